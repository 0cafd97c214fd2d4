#!/usr/bin/env bash
# Installs the fedge agent on many devices over ssh, or upgrades it: --help says how.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<END
Usage: fleet.sh DEVICES [OPTIONS]       install on every device of the list; upgrade where it is

DEVICES is a file with a line for each device, # begins a comment:

    SSH-DESTINATION  AGENT_ID  [DATA FILE ON THE DEVICE]

The ssh user is root or may use sudo without a password, and logs in with a key.

Options:
  --fleet DIR       enrol the devices that never were in this fleet (fedge broker init DIR); one
                    that was revoked, or whose certificate has expired, stops everything
  --target NAME     column (.csv) or array (.npz) that is learned, on all devices
  --wheel FILE      fedge-*.whl (default: the one beside this script or in ../dist)
  --wheels DIR      carry these wheels along: devices take nothing from the network
  --jobs N          devices at a time (default: 4)
  --logs DIR        a log of each device, and a list of those that failed (default: fleet-logs)
  --ssh WORDS       options of ssh, for instance "-i key -p 2222"
END
}

fail() { echo "error: $*" >&2; exit 1; }
misused() { echo "error: $*; --help shows all options" >&2; exit 2; }

devices="" fleet="" target="" wheel="" wheels="" jobs=4 logs=fleet-logs ssh=""
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --fleet | --target | --wheel | --wheels | --jobs | --logs | --ssh)
      [ $# -ge 2 ] || misused "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift ;;
    -*) misused "unknown option $1" ;;
    *) [ -z "$devices" ] || misused "one list of devices, not also $1"; devices=$1 ;;
  esac
  shift
done
[ -f "$devices" ] || misused "no list of devices${devices:+: $devices}"
[ -z "$wheel" ] || [ -f "$wheel" ] || misused "no file $wheel"
[ -z "$wheels" ] || [ -d "$wheels" ] || misused "no folder $wheels"
[[ $jobs =~ ^[1-9][0-9]*$ ]] || misused "--jobs is a number, not $jobs"
if [ -z "$wheel" ]; then
  # shellcheck disable=SC2012  # the latest, where there are several
  wheel=$(ls -1t "${wheels:-$here}"/fedge-*.whl "$here"/../dist/fedge-*.whl 2>/dev/null | head -n 1 || true)
  [ -n "$wheel" ] || misused "no fedge-*.whl beside this script: name it with --wheel"
fi

# --- the list ----------------------------------------------------------------------------------

destinations=() agents=() files=()
while read -r destination agent file _ || [ -n "$destination" ]; do # without a last newline, too
  [ -n "$destination" ] || continue
  [[ $destination != -* ]] || misused "$devices: $destination is no ssh destination"
  [[ $agent =~ ^[A-Za-z0-9_-]{1,64}$ ]] ||
    misused "$devices: $destination: '$agent' is no AGENT_ID (letters, digits, - and _)"
  destinations+=("$destination") agents+=("$agent") files+=("$file")
done < <(sed 's/#.*//' "$devices")
[ ${#agents[@]} -gt 0 ] || misused "$devices names no device"
twice=$(printf '%s\n' "${agents[@]}" | sort | uniq -d | head -n 1)
[ -z "$twice" ] || misused "$devices: $twice stands there twice"

# --- enrolment: a bundle waits in the fleet's folder until its device has it -------------------

if [ -n "$fleet" ]; then
  enrolled=$(fedge broker list "$fleet") || exit $?
  has() { grep -q "^$1  *$2 " <<<"$enrolled"; }
  new=()
  for agent in "${agents[@]}"; do
    if has "$agent" active; then
      continue
    elif has "$agent" expired; then
      fail "the certificate of $agent has expired: fedge broker rotate $fleet $agent, then once more"
    elif has "$agent" revoked; then
      fail "$agent was revoked: take it off the list, or enrol it by hand"
    fi
    new+=("$agent")
  done
  # All at once: the broker is given its rules once. A name may begin with -.
  [ ${#new[@]} = 0 ] || fedge broker enrol "$fleet" -- "${new[@]}" >/dev/null || exit $?
  echo "${#new[@]} of ${#agents[@]} devices newly enrolled"
fi

# --- one device --------------------------------------------------------------------------------

# The kit goes through one connection into a folder that only its user can read, and is removed.
install_one() {
  local destination=$1 agent=$2 file=$3 bundle=$fleet/bundles/$2.bundle
  local words=() parts=(-C "$here" install.sh install-agent.sh agent.yaml systemd)
  parts+=(-C "$(realpath "$(dirname "$wheel")")" "$(basename "$wheel")")
  words=(--wheel "$(basename "$wheel")")
  if [ -n "$wheels" ]; then
    parts+=(-C "$(realpath "$wheels")/.." "$(basename "$(realpath "$wheels")")")
    words+=(--wheels "$(basename "$(realpath "$wheels")")")
  fi
  if [ -n "$fleet" ] && [ -f "$bundle" ]; then
    parts+=(-C "$(realpath "$fleet")/bundles" "./$agent.bundle")
    words+=(--enrol "./$agent.bundle" ${file:+--data "$file"} ${target:+--target "$target"})
  fi
  # shellcheck disable=SC2086  # --ssh is words
  tar -cz "${parts[@]}" | ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=30 $ssh \
    "$destination" "$(remote_script "${words[@]}")" || return $?
  [ -z "$fleet" ] || rm -f "$bundle"
}

remote_script() {
  # shellcheck disable=SC2016  # expanded on the device
  echo 'set -e; umask 077; kit=$(mktemp -d); trap "rm -rf $kit" EXIT; cd "$kit"; tar -xzo
    if [ "$(id -u)" = 0 ]; then sudo=""; else sudo="sudo -n"; fi
    upgrade=""; [ ! -e /opt/fedge/current ] || upgrade=--upgrade
    $sudo sh install-agent.sh $upgrade'"$(quoted "$@")"
}

# For any shell: printf %q writes what only bash reads where a letter is not of this locale.
quoted() {
  local word quote="'\\''"
  for word in "$@"; do printf " '%s'" "${word//\'/$quote}"; done
}

# --- all of them -------------------------------------------------------------------------------

mkdir -p "$logs"
# Of devices on this list only: the folder may hold logs of others.
for agent in "${agents[@]}"; do rm -f "$logs/$agent.log"; done
rm -f "$logs/failed"
# What ssh or the installer said last; tar only says then that nobody listens.
last_line() { grep -Ev '^(tar|gzip): ' "$1" | tail -n 1; }
one_and_tell() {
  local log=$logs/$2.log
  if install_one "$@" >"$log" 2>&1; then
    echo "$2: $(last_line "$log")"
  else
    echo "$2: FAILED: $(last_line "$log")"
    echo "$1 $2 $3" >>"$logs/failed"
  fi
}
for number in "${!agents[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  one_and_tell "${destinations[number]}" "${agents[number]}" "${files[number]}" &
done
wait
if [ -e "$logs/failed" ]; then
  echo "$(wc -l <"$logs/failed") of ${#agents[@]} failed; logs are in $logs, once more for those: fleet.sh $logs/failed ..." >&2
  exit 1
fi
echo "all ${#agents[@]} done"
