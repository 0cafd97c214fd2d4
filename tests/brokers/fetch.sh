#!/usr/bin/env bash
# Puts another release's Mosquitto beside the installed one, with the libraries it needs, into a
# folder of its own: tests/brokers/fetch.sh [SUITE] [FOLDER]. Nothing is installed. The attacks are
# then tried on both. Needs Debian with apt; SUITE is one of Debian's (default: testing).
set -euo pipefail
suite=${1:-testing}
folder=$(mkdir -p "${2:-.brokers}" && cd "${2:-.brokers}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The mirror that this machine uses anyway.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)
[ -n "$mirror" ] || { echo "no Debian mirror is configured: apt-get update first" >&2; exit 2; }
mkdir -p "$work"/{lists,archives}/partial "$work/none"
: >"$work/status"
echo "deb $mirror $suite main" >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "$work/none";
Dir::Etc::preferencesparts "$work/none";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work";
Dir::Cache::archives "$work/archives";
APT::Sandbox::User "";
APT::Install-Recommends "false";
CONF
echo "fetching Mosquitto of $suite ..." >&2
APT_CONFIG="$work/apt.conf" apt-get update -qq
APT_CONFIG="$work/apt.conf" apt-get install -y -qq --download-only mosquitto >/dev/null
command -v patchelf >/dev/null || (cd "$work" && apt-get -o APT::Sandbox::User= download -qq patchelf)
for package in "$work"/archives/*.deb; do dpkg -x "$package" "$work/root"; done
for package in "$work"/patchelf*.deb; do [ ! -e "$package" ] || dpkg -x "$package" "$work/tool"; done
patchelf=$(command -v patchelf || echo "$work/tool/usr/bin/patchelf")

# Its own loader and libraries: those of this machine are older.
libraries=$(dirname "$(find "$work/root" -name libc.so.6 | head -n 1)")
rm -rf "$folder/$suite"
mkdir -p "$folder/$suite/lib"
cp -a "$libraries"/lib*.so* "$libraries"/ld-linux-*.so* "$folder/$suite/lib/"
find "$folder/$suite/lib" -xtype l -delete
cp -L "$libraries"/mosquitto_*.so "$folder/$suite/lib/" 2>/dev/null || true
"$(command -v ldconfig || echo /sbin/ldconfig)" -n "$folder/$suite/lib"
cp "$work/root/usr/sbin/mosquitto" "$folder/$suite/mosquitto"
loader=$(find "$folder/$suite/lib" -name 'ld-linux-*.so*' | head -n 1)
"$patchelf" --set-interpreter "$loader" --force-rpath --set-rpath "$folder/$suite/lib" \
  "$folder/$suite/mosquitto"
"$folder/$suite/mosquitto" -h | head -n 1 || true
