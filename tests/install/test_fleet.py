"""Many devices over ssh: a real ssh server on a machine that is coordinator and device at once."""

from __future__ import annotations

import shutil

import pytest

from tests.install.machine import ROOT, Machine

DATA = "/var/lib/fedge-data.npz"
OPTIONS = "--fleet /var/lib/fedge-fleet --wheels wheels --jobs 2"


@pytest.fixture(scope="module")
def reachable(booted: Machine) -> Machine:
    """A coordinator with its broker, and and a user `pi` who may use sudo."""
    booted.run("sh deploy/install-agent.sh --uninstall --purge")
    booted.run("sh deploy/install-coordinator.sh --broker localhost --federation houses")
    shutil.copy(ROOT / "examples/data/housing_california.npz", booted.root / DATA[1:])
    booted.run(
        f"""chmod 644 {DATA}
        useradd --create-home --shell /bin/bash pi
        echo 'pi ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/pi
        ssh-keygen -q -t ed25519 -N '' -f key
        install -d -o pi -g pi -m 700 /home/pi/.ssh
        install -o pi -g pi -m 600 key.pub /home/pi/.ssh/authorized_keys
        systemctl restart ssh && mkdir -p /root/.ssh
        ssh-keyscan localhost > /root/.ssh/known_hosts"""
    )
    return booted


def test_one_device_is_installed_and_enrolled_the_other_is_told(reachable: Machine) -> None:
    lines = f"# ours\npi@localhost pi-1 {DATA}\nnobody@localhost pi-2  # cannot log in\n"
    (reachable.kit / "devices").write_text(lines)
    done = reachable.run(f"deploy/fleet.sh devices {OPTIONS} --ssh '-i key'", check=False)
    assert done.returncode == 1, done.stdout
    said = done.stdout.splitlines()
    assert said[0] == "2 of 2 devices newly enrolled"
    assert "pi-1: fedge-agent runs: connected" in said[1:]
    (failed,) = [line for line in said if line.startswith("pi-2: FAILED: ")]
    assert "Permission denied" in failed
    assert "1 of 2 failed" in done.stderr
    # The key is where it belongs, and nowhere else.
    assert reachable.says("ls /var/lib/fedge-fleet/bundles") == "pi-2.bundle"
    assert reachable.says("find / -xdev -name 'pi-1.bundle'") == ""
    assert reachable.says("stat -c %U:%G:%a /etc/fedge/agent.pem") == "root:fedge:640"
    assert "/var/lib/fedge-data.npz" in reachable.says("cat /etc/fedge/agent.yaml")
    assert reachable.says("cat fleet-logs/failed").strip() == "nobody@localhost pi-2"


def test_once_more_is_an_upgrade_and_enrols_nobody(reachable: Machine) -> None:
    (reachable.kit / "devices").write_text(f"pi@localhost pi-1 {DATA}\n")
    before = reachable.says("readlink /opt/fedge/current; md5sum /etc/fedge/agent.pem")
    said = reachable.says(f"deploy/fleet.sh devices {OPTIONS} --ssh '-i key'").splitlines()
    assert said == [
        "0 of 1 devices newly enrolled",
        "pi-1: fedge-agent runs: connected",
        "all 1 done",
    ]
    after = reachable.says("readlink /opt/fedge/current; md5sum /etc/fedge/agent.pem")
    assert before.splitlines()[0] != after.splitlines()[0]
    assert before.splitlines()[1] == after.splitlines()[1]
