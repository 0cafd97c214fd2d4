"""A whole federation as services under a systemd that runs: broker, coordinator, agent.

The tests of this file share one machine and leave it running, each as it found it.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest

import fedge
from fedge.errors import ConfigError, LinkError
from tests.install.machine import ROOT, Machine
from tests.install.releases import release

DATA = "/var/lib/fedge/data.npz"
#: A round takes a moment, and there are enough of them for all tests.
COORDINATOR = """\
federation: replaced by the installer
model: house_price
rounds: 100000
start: {agents: 1}
cohort: {fraction: 1, at_least: 1}
round: {deadline_s: 120, minimum: 1}
training: {epochs: 1, batch_size: 256, optimizer: sgd, learning_rate: 0.1}
"""
#: Five minutes of the real pauses in seconds.
HASTE = """\
[Service]
RestartSec=1
WatchdogSec=3
"""
WATCHDOG_S = 3

UPGRADE = "sh deploy/install-agent.sh --upgrade --wheels wheels --wheel"


def version(machine: Machine) -> int:
    """The latest version of θ."""
    said = machine.says("fedge coordinator status --config /etc/fedge-coordinator/coordinator.yaml")
    found = re.search(r"(\d+) of 100000 rounds", said)
    assert found, said
    return int(found[1])


def committed(machine: Machine, rounds: int, timeout_s: float = 300) -> float:
    """Waits for so many more rounds; returns how long that took."""
    wanted, began_s = version(machine) + rounds, time.monotonic()
    while version(machine) < wanted:
        assert time.monotonic() < began_s + timeout_s, machine.journal("fedge-agent", "-n 20")
        time.sleep(0.5)
    return time.monotonic() - began_s


def learns(machine: Machine) -> None:
    """Waits until two more rounds are committed."""
    committed(machine, 2)


def restarts(machine: Machine, unit: str = "fedge-agent") -> int:
    return int(machine.show(unit, "NRestarts")["NRestarts"])


@pytest.fixture(scope="module")
def running(booted: Machine) -> Machine:
    """Everything installed as docs/deploy.md says, on one machine."""
    (booted.kit / "coordinator.yaml").write_text(COORDINATOR)
    names = "--broker localhost,127.0.0.1 --federation houses"
    booted.run(f"sh deploy/install-coordinator.sh {names} --config coordinator.yaml")
    booted.run("fedge broker enrol /var/lib/fedge-fleet pi-1 --out pi-1.bundle")
    shutil.copy(ROOT / "examples/data/housing_california.npz", booted.root / DATA[1:])
    booted.run(f"chmod 644 {DATA}")
    booted.run(f"sh deploy/install-agent.sh --enrol pi-1.bundle --data {DATA}")
    config = booted.root / "etc/fedge/agent.yaml"
    columns = "  inputs: {features: {array: x}}\n  target: {array: y, scale: 1.0e-5}\n"
    config.write_text(re.sub(r"(?m)^data:\n", f"data:\n{columns}", config.read_text()))
    haste = booted.root / "etc/systemd/system/fedge-agent.service.d/haste.conf"
    haste.parent.mkdir()
    haste.write_text(HASTE)
    booted.run("systemctl daemon-reload && systemctl restart fedge-agent")
    return booted


def test_broker_coordinator_and_agent_learn_as_services(running: Machine) -> None:
    learns(running)
    for unit in ("fedge-agent", "fedge-coordinator"):
        state = running.show(unit, "SubState", "StatusText", "NRestarts")
        assert state == {"SubState": "running", "StatusText": "connected", "NRestarts": "0"}
    assert running.says("systemctl --failed --quiet") == ""


def test_the_service_is_confined(running: Machine) -> None:
    pid = running.show("fedge-agent", "MainPID")["MainPID"]
    status = running.says(f"cat /proc/{pid}/status")
    facts = dict(re.findall(r"(?m)^(\w+):\t(.*)$", status))
    assert facts["Uid"].split()[0] == running.says("id -u fedge")
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    assert int(facts["CapBnd"], 16) == int(facts["CapEff"], 16) == 0
    inside = f"nsenter --target={pid} --mount"
    for path in ("/etc/fedge/x", "/opt/fedge/x", "/var/lib/x", "/usr/x"):
        assert "Read-only" in running.run(f"{inside} touch {path}", check=False).stderr
    running.run(f"{inside} touch {DATA}")
    assert running.run(f"{inside} ls /home /root", check=False).stdout.split() in (
        ["/home:", "/root:"],
        [],
    )
    # 50 % of the memory, whatever that is here, and nine tenths of one core.
    limits = running.show("fedge-agent", "MemoryMax", "CPUQuotaPerSecUSec", "Nice")
    assert int(limits.pop("MemoryMax")) < 1 << 40
    assert limits == {"CPUQuotaPerSecUSec": "900ms", "Nice": "10"}


def test_the_journal_has_priorities_and_no_second_time(running: Machine) -> None:
    running.run("systemctl restart fedge-broker")  # a warning: the connection is lost
    learns(running)
    warnings = running.journal("fedge-agent", "-p warning")
    assert "trying again" in warnings
    assert "update counted" not in warnings
    assert not re.search(r"(?m)^\d{4}-\d\d-\d\d", running.journal("fedge-agent"))


@pytest.mark.parametrize("unit", ["fedge-agent", "fedge-coordinator", "fedge-broker"])
def test_a_service_that_is_killed_comes_back_and_learning_goes_on(
    running: Machine, unit: str
) -> None:
    before = restarts(running, unit)
    running.run(f"systemctl kill -s KILL {unit}")
    running.wait(f"systemctl is-active {unit}", f"{unit} again")
    learns(running)
    assert restarts(running, unit) == before + 1


def test_a_loop_that_hangs_is_ended_by_the_watchdog_and_told_where(running: Machine) -> None:
    before = restarts(running)
    # The disk does not answer: to open a pipe that nobody reads waits for ever, and only the loop
    # does. Network and training have threads of their own, which go on.
    pipe = "/var/lib/fedge/pending.bin.partial"
    running.run(f"until runuser -u fedge -- mkfifo {pipe} 2>/dev/null; do :; done")
    running.wait(f"[ $(systemctl show -p NRestarts --value fedge-agent) -gt {before} ]", "restart")
    running.run(f"systemctl stop fedge-agent; rm -f {pipe}; systemctl start fedge-agent")
    log = running.journal("fedge-agent")
    assert "Watchdog timeout" in log
    assert re.search(r'spool\.py", line \d+ in _write_whole', log)
    learns(running)


def test_training_that_takes_longer_than_the_watchdog_is_left_alone(running: Machine) -> None:
    before = restarts(running)
    config = running.root / "etc/fedge-coordinator/coordinator.yaml"
    quick = config.read_text()
    # Small steps over 15,000 rows: more than twice what the watchdog waits, without load as well.
    slow = quick.replace("epochs: 1, batch_size: 256", "epochs: 40, batch_size: 1")
    config.write_text(slow)
    running.run("systemctl restart fedge-coordinator")
    committed(running, 1)  # perhaps of the plan before
    assert committed(running, 1) > 2 * WATCHDOG_S
    assert restarts(running) == before
    config.write_text(quick)
    running.run("systemctl restart fedge-coordinator")
    learns(running)  # it goes on with a round of the slow kind


def test_a_wrong_configuration_ends_the_service_and_is_not_tried_again(running: Machine) -> None:
    config = running.root / "etc/fedge/agent.yaml"
    right = config.read_text()
    config.write_text(right + "colour: red\n")
    done = running.run("systemctl restart fedge-agent; sleep 3", check=False)
    state = running.show("fedge-agent", "ActiveState", "ExecMainStatus", "NRestarts")
    assert state["ActiveState"] == "failed", done.stderr
    assert state["ExecMainStatus"] == str(ConfigError.exit_code)
    assert state["NRestarts"] == "0"
    assert "agent.yaml: colour: unknown key" in running.journal("fedge-agent", "-p err")
    config.write_text(right)
    running.run("systemctl start fedge-agent")
    learns(running)


def test_a_refused_login_is_tried_again(running: Machine) -> None:
    running.run("fedge broker revoke /var/lib/fedge-fleet pi-1")
    running.run("systemctl restart fedge-agent")
    running.wait("[ $(systemctl show -p NRestarts --value fedge-agent) -ge 2 ]", "two more tries")
    assert "revoked" in running.journal("fedge-agent", "-p err")
    status = running.show("fedge-agent", "ExecMainStatus")["ExecMainStatus"]
    assert status in ("0", str(LinkError.exit_code))  # 0: the next try runs
    # A new bundle, installed as the first one was; agent.yaml, with its columns, stays.
    before = running.says("md5sum /etc/fedge/agent.yaml")
    enrol = "fedge broker enrol /var/lib/fedge-fleet pi-1 --out pi-1.bundle"
    assert "the running broker" in running.says(f"rm pi-1.bundle; {enrol}")
    assert "fedge-agent runs" in running.says("sh deploy/install-agent.sh --enrol pi-1.bundle")
    assert running.says("md5sum /etc/fedge/agent.yaml") == before
    learns(running)


def test_a_new_signing_key_reaches_the_coordinator_by_installing_once_more(
    running: Machine,
) -> None:
    key = "md5sum < /etc/fedge-coordinator/signing.key"
    before = running.says(key)
    running.run("fedge broker rotate-key /var/lib/fedge-fleet")
    running.run("sh deploy/install-coordinator.sh")
    assert running.says(key) != before
    learns(running)


def test_a_release_that_does_not_run_is_taken_back(running: Machine, wheels: Path) -> None:
    release(next(wheels.glob("fedge-*.whl")), running.kit, "98.0", broken=True)
    unit = running.says("cat /etc/systemd/system/fedge-agent.service")
    done = running.run(f"{UPGRADE} fedge-98.0-*.whl", check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: the new version does not run; went back to {fedge.__version__}"
    )
    assert "a release that does not run" in done.stderr
    assert running.says("/opt/fedge/bin/fedge --version") == f"fedge, version {fedge.__version__}"
    assert running.says("cat /etc/systemd/system/fedge-agent.service") == unit
    learns(running)


def test_an_upgrade_of_a_running_agent_goes_on_learning(running: Machine, wheels: Path) -> None:
    release(next(wheels.glob("fedge-*.whl")), running.kit, "99.0")
    assert "fedge-agent runs: connected" in running.says(f"{UPGRADE} fedge-99.0-*.whl")
    learns(running)
    status = "fedge coordinator status --json --config /etc/fedge-coordinator/coordinator.yaml"
    assert '"99.0"' in running.says(status)  # what the coordinator heard from the agent


def test_an_upgrade_without_a_start_leaves_what_runs(running: Machine, wheels: Path) -> None:
    release(next(wheels.glob("fedge-*.whl")), running.kit, "99.2")
    upgrade = f"{UPGRADE} fedge-99.2-*.whl --no-start"
    said = running.says(upgrade)
    assert "fedge-agent was not touched: systemctl restart fedge-agent" in said
    assert running.says("ls /opt/fedge").split() == ["a", "b", "bin", "current"]
    done = running.run(upgrade, check=False)
    assert done.stderr == (
        "error: fedge-agent still runs an earlier version: systemctl restart fedge-agent first\n"
    )
    learns(running)
    running.run("systemctl restart fedge-agent")
    learns(running)


def test_an_upgrade_after_a_new_signing_key_starts_the_coordinator_with_it(
    running: Machine,
) -> None:
    running.run("fedge broker rotate-key /var/lib/fedge-fleet --finish")
    running.run("sh deploy/install-coordinator.sh --upgrade --wheels wheels --wheel wheels/fedge-*")
    key = "/etc/fedge-coordinator/signing.key"
    running.run(f"cmp {key} /var/lib/fedge-fleet/coordinator/signing.key")
    show = "systemctl show --timestamp=unix --value -p ActiveEnterTimestamp fedge-coordinator"
    assert int(running.says(show).strip("@")) >= int(running.says(f"stat -c %Y {key}"))
    learns(running)


def test_the_broker_may_listen_below_1024(running: Machine) -> None:
    config = "/var/lib/fedge-fleet/broker/mosquitto.conf"
    running.run(f"cp -p {config} conf; sed -i 's/^listener 8883/listener 443/' {config}")
    running.run("systemctl restart fedge-broker && exec 3<>/dev/tcp/127.0.0.1/443")
    running.run(f"cp -p conf {config}; systemctl restart fedge-broker")
    learns(running)


def test_a_service_that_was_stopped_stays_so_after_an_upgrade(running: Machine) -> None:
    running.run("systemctl disable --now fedge-agent")
    (wheel,) = running.says("ls wheels/fedge-*.whl").split()
    assert "not started" in running.says(f"{UPGRADE} {wheel}")
    assert running.run("systemctl is-active fedge-agent", check=False).stdout == "inactive\n"
    running.run("systemctl enable --now fedge-agent")
    learns(running)


def test_stopping_is_clean_and_purging_leaves_nothing(running: Machine) -> None:
    running.run("systemctl stop fedge-agent fedge-coordinator fedge-broker")
    for unit in ("fedge-agent", "fedge-coordinator", "fedge-broker"):
        assert running.show(unit, "Result", "ExecMainStatus")["Result"] == "success"
    running.run("sh deploy/install-agent.sh --uninstall --purge")
    running.run("sh deploy/install-coordinator.sh --uninstall --purge")
    left = running.says("find / -xdev -iname '*fedge*' -not -path '/root/*' -not -path '/tmp/*'")
    assert left == ""
    assert running.says("systemctl list-units --all --no-legend 'fedge*'") == ""
