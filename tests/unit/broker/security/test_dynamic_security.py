"""Rules for the dynamic security plugin: its file, and the commands that lead to them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from broker.security import devices
from broker.security.access_control import Member, new_login
from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from broker.security.mosquitto.config import ListenerSettings, mosquitto_config
from broker.security.mosquitto.dynamic_security import (
    Rights,
    commands,
    found_clients,
    found_roles,
    plugin_file,
    wanted,
)
from broker.security.register import all_members, members
from fedge.files import Account

ALICE = Member("alice.00000001", "agent", "alice")
BOB = Member("bob.00000002", "agent", "bob")
WATCH = Member("watch.00000003", "observer", "watch")
COORDINATOR = Member("coordinator.00000004", "coordinator", "coordinator")
EVERYBODY = [ALICE, BOB, WATCH, COORDINATOR]


def rights_in(file: bytes) -> Rights:
    document = json.loads(file)
    return Rights(found_clients(document["clients"]), found_roles(document["roles"]))


def topics_of(rights: Rights, login: str, kind: str) -> set[str]:
    rules = [rule for role in rights.clients[login] for rule in rights.roles[role]]
    return {topic.removeprefix("fedge/v1/f/") for found, topic in rules if found == kind}


def test_each_member_has_exactly_its_topics() -> None:
    rights = rights_in(plugin_file(wanted("f", EVERYBODY)))
    assert topics_of(rights, ALICE.login, "publishClientSend") == {
        *("agents/alice/status", "agents/alice/updates/+/+", "agents/alice/reports/+"),
        "agents/alice/probe",
    }
    reads = {"results", "coordinator/status", "agents/+/status"}
    assert topics_of(rights, WATCH.login, "subscribePattern") == reads
    assert topics_of(rights, WATCH.login, "publishClientReceive") == reads
    assert topics_of(rights, WATCH.login, "publishClientSend") == set()
    assert rights.clients[ALICE.login] & rights.clients[BOB.login] == {"agent"}
    control = {"$CONTROL/dynamic-security/v1"}
    assert topics_of(rights, "administrator", "publishClientSend") == control
    everybody = json.loads(plugin_file(wanted("f", EVERYBODY)))
    assert not any(
        everybody["defaultACLAccess"][kind] for kind in ("subscribe", "publishClientSend")
    )


def test_a_broker_that_has_the_file_needs_no_command() -> None:
    want = wanted("f", EVERYBODY)
    found = rights_in(plugin_file(want))
    assert commands(want, found, [m.login for m in EVERYBODY]) == []


def test_only_what_differs_is_changed_and_rights_are_taken_first() -> None:
    found = rights_in(plugin_file(wanted("f", EVERYBODY)))
    carol = Member("carol.00000005", "agent", "carol")
    want = wanted("f", [ALICE, COORDINATOR, WATCH, carol])
    known = [m.login for m in (*EVERYBODY, carol)]
    made = [
        (c["command"], c.get("username", c.get("rolename"))) for c in commands(want, found, known)
    ]
    assert made == [
        ("deleteClient", BOB.login),
        ("deleteRole", "agent bob"),
        ("createRole", "agent carol"),
        ("createClient", carol.login),
    ]


def test_a_client_that_was_disabled_or_given_more_gets_its_own_rights_back() -> None:
    want = wanted("f", [ALICE, BOB])
    roles = {**want.roles, "agent": want.roles["agent"] | {("publishClientSend", "#")}}
    found = Rights({ALICE.login: frozenset(), BOB.login: frozenset({"coordinator"})}, roles)
    made = commands(want, found, [])
    assert [c["command"] for c in made] == [
        *("modifyRole", "modifyClient", "enableClient", "modifyClient", "enableClient"),
    ]
    assert {acl["topic"] for acl in made[0]["acls"]} == {t for _, t in want.roles["agent"]}


def test_what_somebody_else_made_stays() -> None:
    document = json.loads(plugin_file(wanted("f", [ALICE, BOB])))
    document["clients"].append({"username": "dashboard", "roles": [{"rolename": "reader"}]})
    document["roles"].append({"rolename": "reader", "acls": []})
    document["groups"].append({"groupname": "people"})
    want = wanted("f", [ALICE])
    known = [ALICE.login, BOB.login]
    after = json.loads(plugin_file(want, known, json.dumps(document).encode()))
    assert {c["username"] for c in after["clients"]} == {ALICE.login, "dashboard", "administrator"}
    assert "reader" in {r["rolename"] for r in after["roles"]}
    assert after["groups"] == [{"groupname": "people"}]
    found = rights_in(json.dumps(document).encode())
    assert [c["command"] for c in commands(want, found, known)] == ["deleteClient", "deleteRole"]


@pytest.mark.parametrize("before", [b"", b"{", b"[]", b'{"clients": 3, "roles": [1]}', b"\xff"])
def test_a_damaged_file_is_written_anew(before: bytes) -> None:
    want = wanted("f", [ALICE])
    assert plugin_file(want, [], before) == plugin_file(want)


def test_logins_fit_into_a_certificate_and_differ() -> None:
    longest = new_login("x" * 64)
    assert len(longest) == 64
    assert len({new_login("pi-1") for _ in range(50)}) == 50


def test_no_memory_limit_with_the_plugin() -> None:
    """Mosquitto 2.0 counts wrongly with it, and soon refuses everybody."""
    listener = ListenerSettings(8883, "", "mosquitto", plugin="/usr/lib/plugin.so")
    text = mosquitto_config(Path("/srv"), listener)
    assert "\nmemory_limit" not in text
    assert "\nacl_file" not in text
    assert (
        "\nplugin /usr/lib/plugin.so\nplugin_opt_config_file /srv/dynamic-security.json\n" in text
    )
    assert "\nmemory_limit" in mosquitto_config(
        Path("/srv"), ListenerSettings(8883, "", "mosquitto")
    )


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    user = Account.current().name
    settings = FleetSettings("Houses-1", ["localhost"], user=user, plugin="/usr/lib/plugin.so")
    return create_fleet(tmp_path / "fleet", settings, utc_now())


def test_the_file_follows_the_register(fleet: Fleet) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 5)
    devices.enrol(fleet, "pi-2", utc_now(), None, 5)
    devices.revoke(fleet, "pi-1", utc_now())
    file = fleet.broker_folder / "dynamic-security.json"
    logins = {m.login for m in members(fleet.register)}
    assert set(rights_in(file.read_bytes()).clients) == {*logins, "administrator"}
    assert len(all_members(fleet.register)) == 3
    assert not (fleet.broker_folder / "access.acl").exists()
    assert msgspec.json.decode(file.read_bytes())["groups"] == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_lists_have_the_names_that_openssl_looks_for(fleet: Fleet) -> None:
    crl = fleet.broker_folder / "ca.crl"
    run = ["openssl", "crl", "-in", str(crl), "-noout", "-hash"]
    name = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    folder = fleet.broker_folder / "revoked"
    assert [path.name for path in folder.iterdir()] == [f"{name}.r0"]
    devices.enrol(fleet, "pi-1", utc_now(), None, 5)
    devices.rotate(fleet, "pi-1", utc_now(), None, 5)
    devices.revoke(fleet, "pi-1", utc_now())
    assert sorted(p.name for p in folder.iterdir()) == [f"{name}.r{n}" for n in range(3)]
    assert all(path.resolve() == crl for path in folder.iterdir())
