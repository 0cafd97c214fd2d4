"""Enrolments, rotations and revocations while devices' sessions are away: does Mosquitto live?

    python benchmarks/broker_changes.py [--changes 300] [--json] [--save]

A fleet as `fedge broker init` makes it, with the dynamic security plugin, on each Mosquitto there
is (`make brokers` fetches a newer one). Devices connect, leave a session behind and go away. Then
--changes devices are enrolled, as many rotated and as many revoked, each change given to the
running broker as the commands do. New devices connect in between and leave sessions too. At the
end: does a device of each kind (enrolled, old key, revoked) have its rights and no others, do those
who were away get what was sent meanwhile, and does the broker end with exit code 0? Freed memory is
overwritten (MALLOC_PERTURB_), so that who uses it is found out.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from access_control import outcome, plugin_of, programs, version
from measure import Report, finish, option_parser

from broker.link.link import Received
from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings, TlsSettings
from broker.local.broker import HOST, free_port
from broker.protocol.topics import Topics
from broker.security import devices
from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from broker.security.running_broker import update_broker
from edge_agent.enrolment.enrol import enrol
from fedge.files import Account

FEDERATION = "fleet"
ROOT = Topics(FEDERATION).root
AWAY = ("away-1", "away-2", "away-3")
#: Every so many changes the new device connects and leaves a session, and the plan is published.
_CONNECT_EVERY = 10


class Place:
    """A fleet, its broker and the folders of its devices."""

    def __init__(self, folder: Path, program: Path) -> None:
        settings = FleetSettings(
            FEDERATION,
            ["localhost"],
            free_port(),
            HOST,
            Account.current().name,
            free_port(),
            plugin=str(plugin_of(program)),
        )
        self.fleet: Fleet = create_fleet(folder / "fleet", settings, utc_now())
        self.devices = folder / "devices"
        self.process = subprocess.Popen(
            [program, "-c", self.fleet.broker_folder / "mosquitto.conf"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"MALLOC_PERTURB_": "165"},
        )
        time.sleep(1)

    def install(self, name: str, bundle: Path) -> None:
        enrol(bundle, self.devices / name, None, "")

    def link(self, name: str, identity: Path | None = None) -> MqttLink:
        folder = self.devices / name
        if name == "coordinator":
            folder = self.fleet.folder / "coordinator"
        file = str(
            identity or folder / ("coordinator.pem" if name == "coordinator" else "agent.pem")
        )
        tls = TlsSettings(ca_file=str(folder / "ca.crt"), cert_file=file, key_file=file)
        settings = BrokerSettings(host="localhost", port=self.fleet.register.port, tls=tls)
        return MqttLink(settings, name)

    def leave_session(self, name: str) -> bool:
        """Connects, subscribes and goes away; whether it got in."""
        link = self.link(name)
        link.subscribe(f"{ROOT}round")
        link.open()
        is_up = outcome(link) == "up"
        link.close()
        return is_up

    def publish(self, payload: bytes) -> None:
        coordinator = self.link("coordinator")
        coordinator.open()
        outcome(coordinator)
        coordinator.publish(f"{ROOT}round", payload)
        coordinator.close()


def changes(place: Place, count: int) -> list[float]:
    """Makes the changes; seconds that each took, the broker's part included."""
    took = []

    def change(make: object, *arguments: object) -> Path | None:
        began_s = time.perf_counter()
        made: Path | None = make(place.fleet, *arguments)  # type: ignore[operator]
        assert "has the change" in update_broker(place.fleet)
        took.append(time.perf_counter() - began_s)
        return made

    for number in range(count):
        name = f"d-{number}"
        bundle = change(devices.enrol, name, utc_now(), None, 5)
        assert bundle is not None
        place.install(name, bundle)
        if number % _CONNECT_EVERY == 0:
            assert place.leave_session(name), f"{name} does not get in"
            place.publish(str(number).encode())
        if number >= 1:  # the one before
            change(devices.rotate, f"d-{number - 1}", utc_now(), None, 5)
        if number >= 2:
            change(devices.revoke, f"d-{number - 2}", utc_now())
    return took


def heard(link: MqttLink, for_s: float) -> int:
    deadline_s, count = time.monotonic() + for_s, 0
    while time.monotonic() < deadline_s:
        count += isinstance(link.poll(0.1), Received)
    return count


def attacks(place: Place, count: int) -> Report:
    """Tries a revoked device, an old key and forged messages."""
    revoked, rotated, fresh = (place.link(f"d-{count - n}") for n in (3, 2, 1))
    report: Report = {}
    for what, link in (("revoked", revoked), ("old_key", rotated), ("enrolled", fresh)):
        link.open()
        report[what] = "up" if (found := outcome(link)) == "up" else found.split("(")[-1][:30]
    coordinator = place.link("coordinator")
    coordinator.subscribe(f"{ROOT}agents/+/status")
    coordinator.open()
    outcome(coordinator)
    for link in (revoked, rotated, fresh):
        link.publish(f"{ROOT}agents/away-1/status", b"forged")
        link.publish(f"{ROOT}agents/d-{count - 3}/status", b"forged")
    report["forged_heard"] = heard(coordinator, 1)
    for link in (revoked, rotated, fresh, coordinator):
        link.abort()
    back = []
    for name in AWAY:
        link = place.link(name)
        link.subscribe(f"{ROOT}round")
        link.open()
        back.append(heard(link, 1))
        link.close()
    report["away_heard"] = min(back)
    return report


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return 0.0


def of_one(folder: Path, program: Path, count: int) -> Report:
    place = Place(folder, program)
    try:
        for name in AWAY:
            place.install(name, devices.enrol(place.fleet, name, utc_now(), None, 5))
        assert "has the change" in update_broker(place.fleet)
        for name in AWAY:
            assert place.leave_session(name)
        before_mb = resident_mb(place.process.pid)
        took = changes(place, count)
        report: Report = {
            "changes": len(took),
            "lists": len(list((place.fleet.broker_folder / "revoked").iterdir())),
            "change_ms_first_50": round(1000 * statistics.median(took[:50]), 1),
            "change_ms_last_50": round(1000 * statistics.median(took[-50:]), 1),
            **attacks(place, count),
            "broker_mb": [before_mb, resident_mb(place.process.pid)],
            "alive": place.process.poll() is None,
        }
    finally:
        place.process.terminate()
        code = place.process.wait(30)
    report["exit_code"] = code
    return report


def measure(count: int) -> Report:
    report: Report = {"brokers": {}}
    for program in programs():
        if plugin_of(program) is None:
            continue
        folder = Path(tempfile.mkdtemp(prefix="changes-"))
        try:
            report["brokers"][version(program)] = of_one(folder, program, count)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return report


def show(report: Report) -> None:
    for name, row in report["brokers"].items():
        print(f"Mosquitto {name}")
        for key, value in row.items():
            print(f"    {key.replace('_', ' '):<24}{value}")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--changes", type=int, default=300, help="of each kind")
    options = parser.parse_args()
    with suppress(KeyboardInterrupt):
        report = measure(options.changes)
        report["budgets"] = []
        finish("broker_changes", report, options, show)


if __name__ == "__main__":
    main()
