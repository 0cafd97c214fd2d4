"""Rules of `fedge broker acl` in a Mosquitto of one's own, with user names and passwords."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.local.child_process import bound_to_parent
from tests.integration.fleet_folder import (
    NOT_AUTHORISED,
    ROOT,
    Client,
    fedge,
    listens,
    plugin_of,
    start_logged,
    until,
)
from tests.ports import free_ports

pytestmark = pytest.mark.mosquitto

USERS = ("coordinator", "alice", "mallory", "homeassistant", "lamp")


@contextlib.contextmanager
def mosquitto(program: Path, folder: Path, rules: str) -> Iterator[int]:
    """A broker with passwords; its port."""
    (port,) = free_ports(1)
    log, config = folder / "log", folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(f"{user}listener {port} 127.0.0.1\nallow_anonymous false\n{rules}")
    process = start_logged([*bound_to_parent(os.getpid()), str(program), "-c", str(config)], log)
    try:
        assert until(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield port
    finally:
        process.terminate()
        process.wait(10)


def hashed(user: str) -> tuple[str, str]:
    """Salt and hash of a password, which is the user's name."""
    salt = os.urandom(12)
    key = hashlib.pbkdf2_hmac("sha512", user.encode(), salt, 101)
    return base64.b64encode(salt).decode(), base64.b64encode(key).decode()


@pytest.fixture(scope="module", params=["named", "by user name", "dynsec"])
def port(
    program: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("own")
    words = ["--federation", "houses", "--observer", "homeassistant"]
    names = [] if request.param == "by user name" else ["alice", "mallory"]
    if request.param == "dynsec":
        if not (plugin := plugin_of(program)):
            pytest.skip("this Mosquitto has no dynamic security plugin")
        said = fedge("broker", "acl", *names, *words, "--format", "dynsec")
        yield from _with_plugin(program, folder, plugin, said)
        return
    (folder / "rules").write_text(fedge("broker", "acl", *names, *words))
    lines = ("{}:$7$101${}${}\n".format(user, *hashed(user)) for user in USERS)
    (folder / "passwords").write_text("".join(lines))
    for name in ("rules", "passwords"):
        (folder / name).chmod(0o600)
    rules = f"password_file {folder}/passwords\nacl_file {folder}/rules\n"
    with mosquitto(program, folder, rules) as found:
        yield found


def _with_plugin(program: Path, folder: Path, plugin: str, commands: str) -> Iterator[int]:
    """Yields a broker as `mosquitto_ctrl dynsec init` leaves it, after our commands."""
    salt, key = hashed("admin")
    control = "$CONTROL/dynamic-security/#"
    kinds = ("publishClientSend", "publishClientReceive", "subscribePattern")
    acls = [{"acltype": k, "topic": control, "priority": 0, "allow": True} for k in kinds]
    admin = {"username": "admin", "password": key, "salt": salt, "iterations": 101}
    document = {
        "defaultACLAccess": {"publishClientSend": False, "publishClientReceive": False},
        "clients": [{**admin, "roles": [{"rolename": "admin"}]}],
        "roles": [{"rolename": "admin", "acls": acls}],
    }
    document["defaultACLAccess"] |= {"subscribe": False, "unsubscribe": True}  # type: ignore[operator]
    (folder / "dynsec.json").write_text(json.dumps(document))
    rules = f"plugin {plugin}\nplugin_opt_config_file {folder}/dynsec.json\n"
    with mosquitto(program, folder, rules) as port:
        client = connected(port, "admin")
        made = {"command": "createClient", "username": "alice"}  # was there before
        passwords = [
            {"command": "setClientPassword", "username": user, "password": user} for user in USERS
        ]
        client.subscribe("$CONTROL/dynamic-security/v1/response")
        lamp = {"command": "createClient", "username": "lamp"}
        for payload in ({"commands": [made, lamp]}, json.loads(commands), {"commands": passwords}):
            assert client.publish("$CONTROL/dynamic-security/v1", json.dumps(payload).encode()) == 0
        failed = [
            response
            for _, answer in client.heard(0.5)
            for response in json.loads(answer)["responses"]
            if "error" in response
        ]
        assert [(r["command"], r["error"]) for r in failed] == [
            ("createClient", "Client already exists")
        ]
        client.close()
        yield port


def connected(port: int, user: str) -> Client:
    client = Client(port, None, f"client-{user}")
    client.paho.username_pw_set(user, user)
    return client.connect()


def test_everybody_does_its_part_and_nothing_else(port: int) -> None:
    coordinator, alice, mallory = (connected(port, name) for name in USERS[:3])
    observer, lamp = connected(port, "homeassistant"), connected(port, "lamp")
    own, inbox = f"{ROOT}agents/alice/updates/1/0", f"{ROOT}agents/alice/inbox"
    assert coordinator.subscribe(f"{ROOT}agents/+/status", f"{ROOT}agents/+/updates/+/+") == [1, 1]
    assert alice.subscribe(f"{ROOT}round", f"{ROOT}blobs/{'0' * 64}/+", inbox) == [1, 1, 1]
    assert observer.subscribe(f"{ROOT}results", f"{ROOT}agents/+/status") == [1, 1]
    mallory.subscribe("#", own, inbox, f"{ROOT}results")
    lamp.subscribe("#", own)
    assert alice.publish(own, b"update") == 0
    assert coordinator.publish(inbox, b"receipt") == 0
    assert coordinator.publish(f"{ROOT}results", b"{}") == 0
    assert alice.heard() == [(inbox, b"receipt")]
    assert observer.heard(0) == [(f"{ROOT}results", b"{}")]
    assert coordinator.heard(0) == [(own, b"update")]
    assert mallory.heard(0) == lamp.heard(0) == []
    for thief in (mallory, observer, lamp):
        for topic in (own, inbox, f"{ROOT}round", f"{ROOT}results", f"{ROOT}coordinator/status"):
            assert thief.publish(topic) == NOT_AUTHORISED
    for client in (coordinator, alice, mallory, observer, lamp):
        client.close()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "name the federation with --federation"),
        (["--federation", "a/b"], "is not allowed"),
        (["pi 1", "--federation", "f"], "is not allowed"),
        (["coordinator", "--federation", "f"], "is the coordinator's name"),
        (["pi-1", "--federation", "f", "--observer", "pi-1"], "user pi-1 is named twice"),
        (["--federation", "f", "--observer", "a\ntopic read #"], "is not allowed"),
        (["--federation", "f", "--format", "dynsec"], "name every AGENT_ID"),
    ],
)
def test_names_that_cannot_be_are_refused(words: list[str], says: str) -> None:
    from click.testing import CliRunner

    from fedge.command import cli

    result = CliRunner().invoke(cli, ["broker", "acl", *words])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert says in line
