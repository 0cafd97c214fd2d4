"""deploy/fleet.sh up to the ssh connection: whom it enrols, whom it refuses, what it sends.

What the devices do with it is tested in a Debian of its own: `make test-install`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from broker.security import devices
from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from fedge.files import Account

ROOT = Path(__file__).parents[3]
#: Keeps what it was sent and the command, in files of the destination's name.
SSH = """\
#!/bin/sh
for word; do destination=$command command=$word; done
tar -tzf - > "$SEEN/$destination.files" && printf %s "$command" > "$SEEN/$destination.command"
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    settings = FleetSettings("houses", ["localhost"], user=Account.current().name)
    return create_fleet(tmp_path / "fleet", settings, utc_now())


def send(fleet: Fleet, devices: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs fleet.sh with an ssh that goes nowhere, in the C locale."""
    folder = fleet.folder.parent
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    fedge = f'#!/bin/sh\nexec "{sys.executable}" -P -m fedge "$@"\n'
    for name, text in (("ssh", SSH), ("fedge", fedge)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (folder / "devices").write_text(devices)
    (folder / "fedge-1-py3-none-any.whl").touch()
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    places = {"PATH": path, "SEEN": str(folder), "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    words = ["--fleet", str(fleet.folder), "--wheel", "fedge-1-py3-none-any.whl", *options]
    return subprocess.run(
        [str(ROOT / "deploy/fleet.sh"), "devices", *words],
        cwd=folder,
        env=os.environ | places,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def names(fleet: Fleet) -> list[str]:
    return [record.agent_id for record in Fleet(fleet.folder).register.devices]


def test_the_last_device_counts_without_a_newline_behind_it(fleet: Fleet) -> None:
    done = send(fleet, "pi@one pi-1\npi@two pi-2")
    assert done.returncode == 0, done.stderr
    assert "all 2 done" in done.stdout
    assert names(fleet) == ["pi-1", "pi-2"]


def test_logs_of_others_are_left_alone(fleet: Fleet) -> None:
    """`--logs /var/log` is soon said."""
    (logs := fleet.folder.parent / "log").mkdir()
    for name in ("auth.log", "pi-1.log"):
        (logs / name).write_text("before")
    done = send(fleet, "pi@one pi-1\n", "--logs", str(logs))
    assert done.returncode == 0, done.stderr
    assert (logs / "auth.log").read_text() == "before"
    assert "before" not in (logs / "pi-1.log").read_text()


def test_names_and_paths_of_all_kinds_arrive_as_they_are(fleet: Fleet) -> None:
    done = send(fleet, "one -pi- /srv/dätä.npz\n", "--target", "it's $HOME")
    assert done.returncode == 0, done.stderr
    seen = fleet.folder.parent
    assert "./-pi-.bundle" in (seen / "one.files").read_text().split()
    command = (seen / "one.command").read_text()
    words = command.partition("install-agent.sh $upgrade")[2]
    run = ["sh", "-c", f"printf '%s\\n' {words}"]
    got = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert got == [
        *("--wheel", "fedge-1-py3-none-any.whl", "--enrol", "./-pi-.bundle"),
        *("--data", "/srv/dätä.npz", "--target", "it's $HOME"),
    ]
    assert list((fleet.folder / "bundles").iterdir()) == []


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("revoked", "error: pi-1 was revoked: take it off the list, or enrol it by hand"),
        ("expired", "error: the certificate of pi-1 has expired: fedge broker rotate "),
    ],
)
def test_a_device_that_is_out_stops_it_before_anybody_is_enrolled(
    fleet: Fleet, state: str, says: str
) -> None:
    age = timedelta(days=40 if state == "expired" else 0)
    devices.enrol(fleet, "pi-1", utc_now() - age, None, 30)
    if state == "revoked":
        devices.revoke(fleet, "pi-1", utc_now())
    done = send(fleet, "one pi-2\ntwo pi-1\n")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(says)
    assert names(fleet) == ["pi-1"]
    assert not list(fleet.folder.parent.glob("*.command"))


def test_a_rotated_device_is_in_and_gets_its_new_bundle(fleet: Fleet) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    devices.rotate(fleet, "pi-1", utc_now(), None, 30)
    done = send(fleet, "one pi-1\n")
    assert done.returncode == 0, done.stderr
    assert "0 of 1 devices newly enrolled" in done.stdout
    assert "--enrol" in (fleet.folder.parent / "one.command").read_text()
