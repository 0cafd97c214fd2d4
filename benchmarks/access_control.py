"""Mosquitto's access-control file beside its dynamic security plugin; a token beside a bundle.

    python benchmarks/access_control.py [--reloads 150] [--devices 20] [--json] [--save]

A fleet as `fedge broker init` makes it, with each Mosquitto there is (`make brokers` fetches a
newer one): with the access-control file, and, where the plugin lies beside it, with the same rules
as one literal role a device. Three devices with a session go away; then Mosquitto is told to read
its files again, --reloads times (SIGHUP); they come back, and it is stopped. An exit code below 0
is a crash; freed memory is overwritten (MALLOC_PERTURB_), so that who uses it is found out.

A device that enrols is timed from its call to its certificate: with a bundle that is already there
(checked, as `fedge agent enrol` does), and with a token (a key, two connections, a certificate).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from measure import Report, finish, option_parser, shown, spread

from broker.enrolment.invitations import invite
from broker.link.link import LinkDown, LinkUp, Received
from broker.link.mqtt import MqttLink
from broker.link.settings import BrokerSettings, TlsSettings
from broker.local.broker import HOST, find_mosquitto, free_port
from broker.protocol.topics import Topics
from broker.security import devices
from broker.security.bundle import check_bundle, read_bundle
from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from edge_agent.enrolment.enrol import enrol
from edge_agent.enrolment.private_key import certificate_request, own_key
from edge_agent.enrolment.request_certificate import ask_for_certificate
from fedge.files import Account

ROOT = Path(__file__).resolve().parent.parent
FEDERATION = "fleet"
TOPICS = Topics(FEDERATION).root
AWAY = ("a", "b", "c")
#: Mosquitto looks for signals ten times a second.
_RELOAD_S = 0.13
_SHARE = f"$share/x/{TOPICS}agents/+/inbox"


def programs() -> list[Path]:
    """The installed Mosquitto, and those in .brokers."""
    installed = find_mosquitto()
    return [*([Path(installed)] if installed else []), *sorted(ROOT.glob(".brokers/*/mosquitto"))]


def plugin_of(program: Path) -> Path | None:
    """The dynamic security plugin that belongs to a Mosquitto."""
    folders = [program.parent / "lib"]
    if program.parent.name in ("bin", "sbin"):
        folders = list((program.parent.parent / "lib").glob("*-linux-*"))
    return next((p for f in folders for p in f.glob("mosquitto_dynamic_security.so")), None)


def make(folder: Path) -> Fleet:
    settings = FleetSettings(
        FEDERATION, ["localhost"], free_port(), HOST, Account.current().name, free_port()
    )
    return create_fleet(folder, settings, utc_now())


def roles(names: tuple[str, ...]) -> str:
    """The plugin's file: one literal role a device."""

    def rule(kind: str, topic: str) -> dict[str, Any]:
        return {"acltype": kind, "topic": TOPICS + topic, "priority": 0, "allow": True}

    listed = []
    for name in names:
        reads = ("round", "program", f"agents/{name}/inbox")
        acls = [rule("publishClientSend", f"agents/{name}/#")]
        for kind in ("subscribeLiteral", "publishClientReceive"):
            acls += [rule(kind, topic) for topic in reads]
        listed.append({"rolename": name, "acls": acls})
    listed.append({"rolename": "coordinator", "acls": [rule("publishClientSend", "#")]})
    silent = ("publishClientSend", "publishClientReceive", "subscribe")
    document = {
        "defaultACLAccess": {**dict.fromkeys(silent, False), "unsubscribe": True},
        "roles": listed,
        "groups": [],
        "clients": [
            {"username": name, "roles": [{"rolename": name}]} for name in (*names, "coordinator")
        ],
    }
    return json.dumps(document)


class Place:
    """A fleet's broker and clients of it."""

    def __init__(self, folder: Path, program: Path, plugin: Path | None) -> None:
        self.fleet = make(folder / "fleet")
        self._devices = folder / "devices"
        for name in (*AWAY, "late"):
            bundle = devices.enrol(self.fleet, name, utc_now(), None, 5)
            enrol(bundle, self._devices / name, None, "")
        config = self.fleet.broker_folder / "mosquitto.conf"
        self.roles = folder / "roles.json"
        if plugin:
            text = re.sub(r"(?m)^(acl_file|memory_limit) .*\n", "", config.read_text())
            config.write_text(f"{text}plugin {plugin}\nplugin_opt_config_file {self.roles}\n")
            self.roles.write_text(roles(AWAY))
        self.process = subprocess.Popen(
            [program, "-c", config],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"MALLOC_PERTURB_": "165"},
        )
        time.sleep(1)

    def link(self, name: str) -> MqttLink:
        folder = self._devices / name
        identity = folder / "agent.pem"
        if name == "coordinator":
            folder = self.fleet.folder / "coordinator"
            identity = folder / "coordinator.pem"
        tls = TlsSettings(
            ca_file=str(folder / "ca.crt"), cert_file=str(identity), key_file=str(identity)
        )
        settings = BrokerSettings(host="localhost", port=self.fleet.register.port, tls=tls)
        return MqttLink(settings, name)

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)
        time.sleep(_RELOAD_S)


def outcome(link: MqttLink) -> str:
    """`up`, or why not."""
    while event := link.poll(10):
        if isinstance(event, LinkUp):
            return "up"
        if isinstance(event, LinkDown):
            return event.reason
    return "nothing"


def hears(link: MqttLink, for_s: float) -> int:
    """Messages within a moment."""
    deadline_s, heard = time.monotonic() + for_s, 0
    while time.monotonic() < deadline_s:
        heard += isinstance(link.poll(0.1), Received)
    return heard


def subscribed(place: Place, topic_filter: str) -> bool:
    """Whether the broker grants a subscription."""
    link = place.link("a")
    link._post(lambda: link._connection.subscribe(topic_filter))  # the link itself refuses $share
    link.open()
    try:
        return outcome(link) == "up"
    finally:
        link.abort()


def reloading(folder: Path, program: Path, plugin: Path | None, reloads: int) -> Report:
    place = Place(folder, program, plugin)
    report: Report = {"grants_foreign_subscription": subscribed(place, _SHARE)}
    place.roles.write_text(roles((*AWAY, "late")))
    place.reload()
    place.reload()
    late = place.link("late")
    late.subscribe(f"{TOPICS}round")
    late.open()
    report["new_device_after_reload"] = outcome(late) == "up"
    late.abort()
    for name in AWAY:
        link = place.link(name)
        link.subscribe(f"{TOPICS}round")
        link.open()
        outcome(link)
        link.close()
    done = 0
    while done < reloads and place.process.poll() is None:
        place.reload()
        done += 1
    report["reloads"] = done
    report["away_hears"] = False
    if place.process.poll() is None:
        coordinator = place.link("coordinator")
        coordinator.open()
        outcome(coordinator)
        coordinator.publish(f"{TOPICS}round", b"plan")
        coordinator.close()
        report["away_hears"] = _come_back(place)
    place.process.terminate()
    report["exit_code"] = place.process.wait(20)
    return report


def _come_back(place: Place) -> bool:
    """Whether those who were away have what was sent; they come and go some more times."""
    heard = []
    for _ in range(5):
        for name in AWAY:
            link = place.link(name)
            link.subscribe(f"{TOPICS}program")
            link.open()
            heard.append(hears(link, 0.3) > 0)
            link.close()
    return all(heard[: len(AWAY)])


def enrolling(folder: Path, count: int) -> Report:
    fleet = make(folder / "fleet")
    by_bundle, by_token = [], []
    for number in range(count):
        path = devices.enrol(fleet, f"bundle-{number}", utc_now(), None, 5)
        started = time.perf_counter()
        check_bundle(read_bundle(path), "bundle")
        by_bundle.append(time.perf_counter() - started)
    command = [sys.executable, "-P", "-m", "fedge", "broker", "serve-enrolment", str(fleet.folder)]
    service = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    assert service.stderr is not None
    while b" INFO    connected" not in service.stderr.readline():
        pass
    try:
        for number in range(count):
            token = invite(fleet, f"token-{number}", utc_now(), timedelta(hours=1), 5)
            key = folder / f"{number}.key"
            started = time.perf_counter()
            own_key(key)
            ask_for_certificate(token, certificate_request(key, token.agent_id), 30)
            by_token.append(time.perf_counter() - started)
            time.sleep(0.1)  # two requests each: below what the service hears
    finally:
        service.terminate()
        service.stderr.close()
        service.wait(10)
    return {"bundle_s": spread(by_bundle), "token_s": spread(by_token)}


def version(program: Path) -> str:
    done = subprocess.run([program, "-h"], capture_output=True, text=True, check=False)
    return done.stdout.split()[2]


def measure(reloads: int, devices: int) -> Report:
    report: Report = {"brokers": {}}
    for program in programs():
        plugin = plugin_of(program)
        for way in ("file", *(["plugin"] if plugin else [])):
            with tempfile.TemporaryDirectory(prefix="access-") as name:
                chosen = plugin if way == "plugin" else None
                row = reloading(Path(name), program, chosen, reloads)
                report["brokers"][f"{version(program)}, {way}"] = row
    with tempfile.TemporaryDirectory(prefix="access-") as name:
        report["enrolling"] = enrolling(Path(name), devices)
    return report


def show(report: Report) -> None:
    for name, row in report["brokers"].items():
        print(name)
        for key, value in row.items():
            print(f"    {key.replace('_', ' '):<32}{value}")
    for key, what in (("bundle_s", "a bundle, checked"), ("token_s", "a token")):
        print(f"{what:<24}{shown(report['enrolling'][key], 1000)} ms")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--reloads", type=int, default=150)
    parser.add_argument("--devices", type=int, default=20, help="that enrol each way")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    with suppress(KeyboardInterrupt):
        report = measure(options.reloads, options.devices)
        report["budgets"] = []
        finish("access_control", report, options, show)


if __name__ == "__main__":
    main()
