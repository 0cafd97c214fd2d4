#!/usr/bin/env bash
# Installs one role of fedge as a systemd service; called by install-agent.sh and
# install-coordinator.sh, which name the role. Everything it makes:
#
#   /opt/NAME               two slots, a and b, each a virtual environment; `current` says which
#   /etc/NAME               configuration and certificates, readable by the service, not writable
#   /var/lib/NAME           the service's state; /etc/NAME/state leads there
#   /etc/systemd/system     the unit
#   /usr/local/bin/fedge    leads to the command
#   a system user NAME
#
# NAME is "fedge" for the agent and "fedge-coordinator" for the coordinator. An upgrade fills the
# other slot, tries it, and then turns `current` in one step: a power cut leaves the old version or
# the new one.
set -euo pipefail
umask 022

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
units=/etc/systemd/system
command=/usr/local/bin/fedge
fleet=/var/lib/fedge-fleet
needed_mb=400

case ${1-} in
  agent) role=agent name=fedge service=fedge-agent extras="" ;;
  coordinator) role=coordinator name=fedge-coordinator service=fedge-coordinator extras=secure ;;
  *) echo "use install-agent.sh or install-coordinator.sh" >&2; exit 2 ;;
esac
shift
home=/opt/$name etc=/etc/$name state=/var/lib/$name

usage() {
  cat <<END
Usage: install-$role.sh [OPTIONS]               install it and start the service
       install-$role.sh --upgrade [OPTIONS]     another version; configuration and state stay
       install-$role.sh --uninstall [--purge]   remove it

Options:
  --wheel FILE      fedge-*.whl (default: the one beside this script or in ../dist)
  --wheels DIR      take every package from this folder and nothing from the network
  --python FILE     the interpreter, 3.11 to 3.13 (default: python3)
  --config FILE     becomes $etc/$role.yaml
  --no-start        install only
  --purge           with --uninstall: remove configuration, state and user $name as well
END
  if [ $role = agent ]; then
    cat <<END
  --enrol BUNDLE    join a fleet (fedge broker enrol): writes certificates and agent.yaml to
                    $etc; on an enrolled agent the certificates alone
  --data FILE       with --enrol: this device's data, .csv, .npz or SQLite, not below /home or /tmp
  --target NAME     with --enrol: column (.csv) or array (.npz) that is learned
END
  else
    cat <<END
  --broker NAME[,NAME|IP...]
                    make a fleet with its broker on this machine, or go on with the one in
                    $fleet; devices find it under these names
  --federation NAME
                    with --broker: its name (default: fleet)
END
  fi
}

say() { echo "$*"; }
fail() { echo "error: $*" >&2; exit 1; }
misused() { echo "error: $*; --help shows all options" >&2; exit 2; }

# --- options -----------------------------------------------------------------------------------

action=install purge=no start=yes python=python3
wheel="" wheels="" config="" enrol="" data="" target="" broker="" federation=fleet

take_options() {
  while [ $# -gt 0 ]; do
    case $1 in
      --upgrade) action=upgrade ;;
      --uninstall) action=uninstall ;;
      --purge) purge=yes ;;
      --no-start) start=no ;;
      -h | --help) usage; exit 0 ;;
      --wheel | --wheels | --python | --config | --enrol | --data | --target | --broker | --federation)
        [ $# -ge 2 ] || misused "$1 needs a value"
        case $role$1 in
          agent--broker | agent--federation | coordinator--enrol | coordinator--data | coordinator--target)
            misused "$1 is no option of install-$role.sh" ;;
        esac
        printf -v "${1#--}" %s "$2"
        shift ;;
      *) misused "unknown option $1" ;;
    esac
    shift
  done
  [ $purge = no ] || [ $action = uninstall ] || misused "--purge goes with --uninstall"
  [ -z "$data$target" ] || [ -n "$enrol" ] || misused "--data and --target go with --enrol"
  for file in "$wheel" "$config"; do
    [ -z "$file" ] || [ -f "$file" ] || misused "no file $file"
  done
  [ -z "$wheels" ] || [ -d "$wheels" ] || misused "no folder $wheels"
}

# --- what is here ------------------------------------------------------------------------------

systemd_runs() { [ -d /run/systemd/system ]; } # sd_booted(3)
has_systemctl() { command -v systemctl >/dev/null; }
is_installed() { [ -x "$home/current/bin/fedge" ]; }
version_of() { runuser -u "$name" -- "$1/bin/fedge" --version | sed 's/.* //'; }
# Whether the service's process is the interpreter of a slot.
runs_from() {
  systemd_runs &&
    grep -qs "^$1/bin/" "/proc/$(systemctl show -p MainPID --value $service)/cmdline"
}
is_active() { systemd_runs && systemctl is-active --quiet "$1"; }

check_machine() {
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null ||
    fail "$python is no Python 3.11 to 3.13: Raspberry Pi OS and Debian from 12 on have one, --python names another"
  local free_mb
  free_mb=$(df --output=avail -BM "$1" 2>/dev/null | tail -n 1 | tr -dc 0-9) || true # no /proc, no df
  [ "${free_mb:-$needed_mb}" -ge $needed_mb ] || fail "$free_mb MB are free on $1, $needed_mb are needed"
  if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    apt_install python3-venv
  fi
}

apt_install() {
  if [ -n "$wheels" ] || ! command -v apt-get >/dev/null; then
    fail "$1 is missing: apt-get install $1"
  fi
  say "installing $1 ..."
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update -qq && apt-get install -y -qq "$1"; } >/dev/null; then
    fail "apt-get could not install $1"
  fi
}

find_wheel() {
  [ -z "$wheel" ] || return 0
  local found
  # shellcheck disable=SC2012  # the latest, where there are several
  found=$(ls -1t "${wheels:-$here}"/fedge-*.whl "$here"/../dist/fedge-*.whl 2>/dev/null | head -n 1 || true)
  [ -n "$found" ] || fail "no fedge-*.whl beside this script: name it with --wheel"
  wheel=$found
}

# --- software ----------------------------------------------------------------------------------

install_software() {
  local old new slot
  old=$(readlink "$home/current" 2>/dev/null || true)
  [ "$old" = a ] && new=b || new=a
  slot=$home/$new
  # After an upgrade with --no-start.
  ! runs_from "$slot" || fail "$service still runs an earlier version: systemctl restart $service first"
  find_wheel
  check_machine "$home"
  say "installing $(basename "$wheel") into $slot ..."
  rm -rf "$slot"
  fill_slot "$slot" || { rm -rf "$slot"; fail "installation failed; nothing was changed"; }
  turn_to $new
  install_unit $service
  if [ -n "$old" ] && was_running && ! restart; then
    show_log
    turn_to "$old"
    mv "$units/.$service.before" "$units/$service.service"
    systemctl daemon-reload
    restart || true
    rm -rf "$slot"
    fail "the new version does not run; went back to $(version_of "$home/$old")"
  fi
  rm -f "$units/.$service.before"
  [ -z "$old" ] || runs_from "$home/$old" || rm -rf "${home:?}/$old"
}

fill_slot() {
  local sources=() requirement
  [ -z "$wheels" ] || sources=(--no-index --find-links "$wheels")
  requirement=$(realpath "$wheel")${extras:+[$extras]}
  "$python" -m venv "$1" &&
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
      --no-cache-dir "${sources[@]}" "$requirement" &&
    # A fifth of the space, and of no use to a service.
    "$1/bin/python" -m pip uninstall --quiet --yes --disable-pip-version-check pip setuptools 2>/dev/null &&
    version_of "$1" >/dev/null &&
    runuser -u "$name" -- "$1/bin/fedge" $role --help >/dev/null
}

turn_to() {
  ln -sfn "$1" "$home/.current" && mv -T "$home/.current" "$home/current"
}

make_account_and_folders() {
  if ! getent passwd "$name" >/dev/null; then
    useradd --system --user-group --no-create-home --home-dir "$state" \
      --shell /usr/sbin/nologin "$name"
  fi
  mkdir -p "$home/bin" "$etc" "$(dirname "$command")"
  install -d -o "$name" -g "$name" -m 0750 "$state"
  # What a configuration calls `state` is the service's own folder.
  [ -d "$etc/state" ] || ln -sfn "$state" "$etc/state"
  ln -sfn ../current/bin/fedge "$home/bin/fedge"
  exec 9<"$home"
  flock -n 9 || fail "another installation runs in $home"
}

# The service may read its configuration and keys; only root may change them.
set_permissions() {
  chown -R "root:$name" "$etc"
  find "$etc" -type d -exec chmod 0750 {} +
  find "$etc" -type f -exec chmod 0640 {} +
}

# On a machine with both roles the coordinator's, which can do all that the agent's can.
link_command() {
  if { [ -e "$command" ] || [ -L "$command" ]; } && [[ $(readlink "$command") != /opt/fedge* ]]; then
    say "note: $command is not ours and stays as it is; the command is $home/bin/fedge"
  elif [ $role = coordinator ] || [ ! -e "$command" ]; then
    ln -sfn "$home/bin/fedge" "$command"
  fi
}

unlink_command() {
  [ "$(readlink "$command")" = "$home/bin/fedge" ] || return 0
  rm -f "$command"
  [ ! -x /opt/fedge/bin/fedge ] || ln -sfn /opt/fedge/bin/fedge "$command"
}

# --- configuration -----------------------------------------------------------------------------

configure() {
  local wanted=$etc/$role.yaml
  # Never in use, always of this version: what there is to set.
  cp "$here/$role.yaml" "$wanted.example"
  if [ -n "$config" ]; then
    [ ! -e "$wanted" ] || cp -p "$wanted" "$wanted.before"
    cp "$config" "$wanted"
  fi
  if [ -n "$enrol" ]; then
    "$home/bin/fedge" agent enrol "$enrol" --dir "$etc" ${data:+--data "$data"} \
      ${target:+--target "$target"} >/dev/null || { code=$?; set_permissions; exit $code; }
    say "enrolled: certificates and $wanted"
  fi
  [ -z "$broker" ] || make_fleet
  [ $role = agent ] || [ ! -d $fleet ] || copy_keys
  [ -z "$broker" ] || write_coordinator_config
  set_permissions
  [ -z "$data" ] || check_data
}

check_data() {
  case $(realpath -m "$data") in
    /home/* | /root/* | /tmp/* | /var/tmp/*)
      say "warning: the service sees nothing below /home, /root and /tmp: move $data, for instance to $state" ;;
    *)
      runuser -u "$name" -- test -r "$data" ||
        say "warning: user $name cannot read $data yet" ;;
  esac
}

make_fleet() {
  if ! command -v mosquitto >/dev/null && [ ! -x /usr/sbin/mosquitto ]; then
    apt_install mosquitto
    # The package starts one of its own, without TLS, for this machine alone.
    ! systemd_runs || systemctl disable --quiet --now mosquitto
  fi
  "$home/bin/fedge" broker init "$fleet" --host "$broker" --federation "$federation" >/dev/null || exit $?
}

# The fleet's keys as they are now: they may have been changed (fedge broker rotate-key).
copy_keys() {
  local file
  for file in "$fleet"/coordinator/*; do
    if ! cmp -s "$file" "$etc/${file##*/}"; then
      cp "$file" "$etc/"
      has_new_keys=yes
    fi
  done
}

write_coordinator_config() {
  [ ! -e "$etc/coordinator.yaml" ] || [ -n "$config" ] || return 0
  "$home/current/bin/python" - "$fleet/fleet.json" "${config:-$etc/coordinator.yaml.example}" \
    >"$etc/.coordinator.yaml" <<'END'
"""The example with this fleet's name and broker in place of its own."""
import json, re, sys

fleet = json.load(open(sys.argv[1]))
text = open(sys.argv[2]).read().rstrip("\n") + "\n"
files = "ca_file: ca.crt, cert_file: coordinator.pem, key_file: coordinator.pem"
# In quotes, since 2024 and ::1 would not be text without.
host, federation = (json.dumps(name) for name in (fleet["hosts"][0], fleet["federation"]))
broker = f"broker: {{host: {host}, port: {fleet['port']}, tls: {{{files}}}}}\n"
name = f"federation: {federation}\n"
text, found = re.subn(r"(?m)^federation:.*\n", lambda _: name, text, count=1)
text = text if found else name + text
if not re.search("(?m)^signing_key:", text):  # devices of this fleet refuse what is not signed
    broker += "signing_key: signing.key\n"
# What is indented, or closes a brace, belongs to it; blank lines and comments between, too.
section = r"(?m)^broker:.*\n(?:(?:[ \t]*(?:#.*)?\n)*(?:[ \t]+[^\s#].*|[}\]].*)\n)*"
text, found = re.subn(section, lambda _: broker, text, count=1)
print(text if found else broker + text, end="")
END
  mv "$etc/.coordinator.yaml" "$etc/coordinator.yaml"
}

# --- service -----------------------------------------------------------------------------------

install_unit() {
  local pauses="" said
  # Growing pauses between restarts, where systemd knows them (from 254 on). They grow for ever: it
  # forgets none after a good run. So not for the broker, which all others need.
  if [ "$1" != fedge-broker ] && has_systemctl && [ "$(systemctl --version | sed -n '1s/[^0-9]*\([0-9]*\).*/\1/p')" -ge 254 ]; then
    pauses='s/^RestartSec=.*/&\nRestartSteps=6\nRestartMaxDelaySec=600/'
  fi
  [ ! -e "$units/$1.service" ] || cp -p "$units/$1.service" "$units/.$1.before"
  # The unit last: it may take back what is common to all.
  sed "$pauses" "$here/systemd/sandbox.conf" "$here/systemd/$1.service" >"$units/.$1.new"
  mv "$units/.$1.new" "$units/$1.service"
  if has_systemctl; then
    ! systemd_runs || systemctl daemon-reload
    # An upgrade leaves to the operator whether it starts at boot.
    [ $action = upgrade ] || said=$(systemctl --quiet enable "$1" 2>&1) ||
      say "warning: $1 will not start at boot: $said"
  fi
}

# Before an upgrade: what ran shall run again, and what was stopped shall stay so.
was_running() { [ $start = yes ] && is_active $service; }

# Started, ready, and still there after a moment: a refused login shows after it is ready.
restart() {
  systemctl restart $service || return 1
  sleep 5
  systemctl is-active --quiet $service || [ "$(systemctl show -p ExecMainStatus --value $service)" = 3 ]
}

status_text() { systemctl show -p StatusText --value $service; }

tell_status() {
  local tries=10
  while [ "$(status_text)" != connected ] && is_active $service && [ $((tries -= 1)) -gt 0 ]; do
    sleep 1
  done
  if is_active $service; then
    say "$service runs: $(status_text)"
  else
    show_log
    say "$service is refused by the broker, as above; it goes on trying"
  fi
}

show_log() { journalctl --no-pager -o cat -n 10 -u $service >&2 || true; }

start_service() {
  if ! systemd_runs; then
    say "systemd does not run here: the service starts with the next boot"
  elif [ ! -e "$etc/$role.yaml" ]; then
    say "not started: write $etc/$role.yaml (there is an example beside it), then: systemctl start $service"
  elif [ $start = no ] && is_active $service; then
    say "$service was not touched: systemctl restart $service, and it takes what is new"
  elif [ $start = no ] || { [ $action = upgrade ] && ! systemctl --quiet is-enabled $service; }; then
    say "not started: systemctl start $service"
  elif [ $role = coordinator ] && [ $action = install ] && [ -z "$config" ] && [ $was_configured = no ]; then
    say "not started: look through $etc/coordinator.yaml, then: systemctl start $service"
  else
    # An upgrade has started it already, unless it did not run before.
    if [ $action = install ] || [ -n "$config$enrol" ] || [ $has_new_keys = yes ] || ! is_active $service; then
      restart || { show_log; fail "the service does not run; the lines above say why"; }
    fi
    tell_status
  fi
}

hint_at_memory_limits() {
  local controllers=/sys/fs/cgroup/cgroup.controllers
  if [ -e $controllers ] && ! grep -qw memory $controllers; then
    say "note: this kernel counts no memory, so the unit's memory limits do nothing. On Raspberry Pi OS" \
      "add cgroup_enable=memory to /boot/firmware/cmdline.txt and start again"
  fi
}

# --- uninstall ---------------------------------------------------------------------------------

remove_unit() {
  [ $purge = no ] || rm -rf "$units/$1.service.d"
  [ -e "$units/$1.service" ] || return 0
  if has_systemctl; then
    ! systemd_runs || systemctl --quiet stop "$1"
    systemctl --quiet disable "$1" 2>/dev/null || true
  fi
  rm -f "$units/$1.service"
  ! systemd_runs || { systemctl daemon-reload; systemctl reset-failed "$1" 2>/dev/null || true; }
}

uninstall() {
  remove_unit $service
  rm -rf "$home"
  unlink_command
  rm -f "$etc/$role.yaml.example"
  [ $role = agent ] || remove_unit fedge-broker
  if [ $purge = yes ]; then
    [ $role = agent ] || rm -rf $fleet
    rm -rf "$etc" "$state"
    ! getent passwd "$name" >/dev/null || userdel "$name"
    say "removed, with configuration, state and user"
  else
    say "removed; $etc, $state and user $name are kept (--purge removes them)"
    [ $role = agent ] || [ ! -d $fleet ] || say "the fleet in $fleet, with its keys, is kept as well"
  fi
}

# --- main --------------------------------------------------------------------------------------

take_options "$@"
[ "$(id -u)" = 0 ] || fail "needs root: sudo $0 ..."
if [ $action = uninstall ]; then
  uninstall
  exit 0
fi
[ $action = install ] || is_installed || fail "nothing is installed in $home"
[ ! -e "$home/pyvenv.cfg" ] || fail "$home is an environment made by hand: remove it first, or move it"
make_account_and_folders
was_configured=no has_new_keys=no
[ ! -e "$etc/$role.yaml" ] || was_configured=yes
if [ $action = upgrade ] || ! is_installed; then
  install_software
else
  install_unit $service
  rm -f "$units/.$service.before"
  say "$(version_of "$home/current") is installed already; --upgrade installs another"
fi
link_command
configure
if [ -n "$broker" ] || { [ $role = coordinator ] && [ -e $units/fedge-broker.service ]; }; then
  install_unit fedge-broker
  rm -f "$units/.fedge-broker.before"
fi
if [ -n "$broker" ]; then
  ! systemd_runs || [ $start = no ] || systemctl restart fedge-broker || fail "Mosquitto does not run: journalctl -u fedge-broker"
fi
say "fedge $(version_of "$home/current") is installed in $home ($(du -sm "$home/" | cut -f1) MB)"
hint_at_memory_limits
start_service
