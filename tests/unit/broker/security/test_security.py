"""Making a fleet's folder, whoever it belongs to and however full the disk is."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from broker.security import devices
from broker.security.bundle import read_bundle
from broker.security.certificate_authority import check_host
from broker.security.fleet import Fleet, utc_now
from broker.security.key_rotation import rotate_certificate, rotate_key
from broker.security.mosquitto.config import ListenerSettings, mosquitto_config
from fedge.errors import ConfigError
from fedge.files import Account, claimed, write_whole
from tests.unit.broker.security.fleet_folders import (
    HOSTS,
    NOBODY,
    broker_names,
    content,
    fedge,
    limited,
    line_of,
    make,
    needs_root,
    open_to_all,
)
from tests.users import as_nobody

# -- init ---------------------------------------------------------------------------------------


def test_only_the_owner_may_read_the_fleet(fleet: Fleet) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    for path in (fleet.folder, *fleet.folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_init_prints_the_next_steps(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    result = fedge("broker", "init", folder, "--host", HOSTS, "--user", Account.current().name)
    assert result.exit_code == 0, result.output
    assert f"fedge broker run {folder}" in result.stdout
    assert "broker: {host: broker.example.org, port: 8883, tls:" in result.stdout
    assert f"fedge broker enrol {folder} AGENT_ID" in result.stdout


def test_the_next_steps_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    (place := tmp_path / "a b").mkdir()
    folder = place / "o'clock: ü"
    result = fedge("broker", "init", folder, "--host", HOSTS, "--user", Account.current().name)
    told = dict(
        line.strip().split(":  ", 1) for line in result.stdout.splitlines() if ":  " in line
    )
    assert shlex.split(told["start the broker"])[3] == str(folder)
    assert shlex.split(told["for each device"])[3] == str(folder)
    assert shlex.split(told["or, with a token"])[3] == str(folder)
    lines = [line[24:] for line in result.stdout.splitlines() if "coordinator/" in line]
    config = yaml.safe_load("\n".join(lines))
    assert config["signing_key"] == f"{folder}/coordinator/signing.key"
    assert config["broker"]["tls"]["ca_file"] == f"{folder}/coordinator/ca.crt"
    tokens = fedge("broker", "enrol", folder, "pi-1", "--token").stdout
    (serve,) = (line for line in tokens.splitlines() if "serve-enrolment" in line)
    assert shlex.split(serve)[-1] == str(folder)


def test_a_link_to_an_empty_folder_becomes_a_fleet(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "fleet").symlink_to("disk")
    assert make(tmp_path / "fleet").folder == tmp_path / "disk"
    assert (tmp_path / "fleet" / "fleet.json").is_file()


def test_a_second_init_changes_nothing_and_reports_the_state(fleet: Fleet) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    before = content(fleet.folder)
    result = fedge("broker", "init", fleet.folder, "--host", HOSTS, "--federation", "houses")
    assert result.exit_code == 0, result.output
    assert "holds fleet 'houses' with 1 devices enrolled; nothing was changed" in result.stdout
    assert content(fleet.folder) == before


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--host", "other.example.org", "--federation", "houses"], "host broker.example.org"),
        (["--host", HOSTS, "--federation", "flats"], "federation houses, not flats"),
        (["--host", HOSTS, "--federation", "houses", "--port", "1"], "port 8883, not 1"),
        (
            ["--host", HOSTS, "--federation", "houses", "--bind", "10.1.2.3"],
            "listening address none, not 10.1.2.3",
        ),
        (
            ["--host", HOSTS, "--federation", "houses", "--user", "somebody"],
            f"account {Account.current().name}, not somebody",
        ),
    ],
)
def test_init_for_another_fleet_is_refused(fleet: Fleet, options: list[str], what: str) -> None:
    before = content(fleet.folder)
    line = line_of(fedge("broker", "init", fleet.folder, *options))
    assert what in line
    assert "nothing was changed" in line
    assert content(fleet.folder) == before


def test_init_leaves_other_people_s_files_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    line = line_of(fedge("broker", "init", tmp_path, "--host", "localhost"))
    assert "is not empty and holds no fleet" in line
    assert content(tmp_path) == {"thesis.txt": b"mine"}


def test_the_certificate_of_the_broker_names_every_host(fleet: Fleet) -> None:
    assert broker_names(fleet) == ["broker.example.org", "10.1.2.3"]


def test_the_broker_gets_a_new_certificate_and_other_names(fleet: Fleet) -> None:
    path = fleet.broker_folder / "server.pem"
    old = path.read_bytes()
    assert fedge("broker", "rotate-broker", fleet.folder).exit_code == 0
    assert broker_names(fleet) == ["broker.example.org", "10.1.2.3"]
    assert path.read_bytes() != old
    names = "new.example.org,broker.example.org"
    result = fedge("broker", "rotate-broker", fleet.folder, "--host", names)
    assert "devices that connect to 10.1.2.3 refuse the broker" in result.stdout
    assert broker_names(fleet) == names.split(",")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    bundle = read_bundle(devices.enrol(Fleet(fleet.folder), "pi-9", utc_now(), None, 30))
    assert bundle.host == "new.example.org"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    assert key.public_key() == certificate.public_key()


def test_a_change_of_the_broker_s_certificate_is_atomic(fleet: Fleet) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    before = content(fleet.folder)
    for hosts in ("a b", "a,,b"):
        line = line_of(fedge("broker", "rotate-broker", fleet.folder, "--host", hosts))
        assert "neither a host name nor an IP address" in line
    code = (
        "from broker.security.key_rotation import rotate_broker; "
        f"rotate_broker(Fleet(Path({str(fleet.folder)!r})), utc_now(), ['other.example.org'])"
    )
    assert "cannot be written" in limited(500, code)
    assert content(fleet.folder) == before


@pytest.mark.parametrize(
    "host", ["", "a b", "a/b", "-a", "a..b", "*.org", "x" * 64, "a:b", "ä", "10.1.2.300"]
)
def test_a_host_must_be_a_name_or_an_address(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="neither a host name nor an IP address"):
        check_host(host)
    assert "neither" in line_of(fedge("broker", "init", tmp_path / "f", "--host", f"ok,{host}"))
    assert content(tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--port", "65535"], "--enrolment-port 65536: must be 1 to 65535"),
        (["--enrolment-port", "8883"], "--port 8883: two listeners have this port"),
        (["--websockets", "8883"], "--port 8883: two listeners have this port"),
        (["--websockets", "8884"], "--enrolment-port 8884: two listeners have this port"),
    ],
)
def test_invalid_ports_are_refused_before_anything_is_made(
    tmp_path: Path, options: list[str], what: str
) -> None:
    line = line_of(fedge("broker", "init", tmp_path / "f", "--host", HOSTS, *options))
    assert what in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fe80::1%\nallow_anonymous true"])
def test_an_address_cannot_add_a_line_to_the_configuration(tmp_path: Path, address: str) -> None:
    for options in (["--host", HOSTS, "--bind", address], ["--host", address]):
        result = fedge("broker", "init", tmp_path / "f", *options, "--websockets", "443")
        assert "neither a host name nor an IP address" in line_of(result)
    assert list(tmp_path.iterdir()) == []


def test_no_value_of_the_configuration_is_followed_by_a_comment() -> None:
    text = mosquitto_config(Path("/srv/fleet/broker"), ListenerSettings(8883, "", "mosquitto"))
    assert "listener 8883\n" in text
    assert all("#" not in line for line in text.splitlines() if not line.startswith("#"))
    for folder in ("/srv/a#b", "/srv/a\nallow_anonymous true"):
        with pytest.raises(ConfigError, match="cannot use this name"):
            mosquitto_config(Path(folder), ListenerSettings(8883, "", "mosquitto"))


# -- a full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [100, 500, 700, 1000])
def test_a_full_disk_during_init_leaves_nothing(tmp_path: Path, room: int) -> None:
    folder = str(tmp_path / "fleet")
    settings = f"FleetSettings('h', ['localhost'], user={Account.current().name!r})"
    code = f"create_fleet(Path({folder!r}), {settings}, utc_now())"
    assert "cannot be written" in limited(room, code)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_during_enrolment_enrols_no_device(fleet: Fleet) -> None:
    for number in range(8):
        devices.enrol(fleet, f"pi-{number}", utc_now(), None, 30)
    before = content(fleet.folder)
    largest = max(len(data) for name, data in before.items() if name.endswith("bundle"))
    assert largest < len(before["broker/access.acl"]), "the bundle fits, the rules do not"
    code = f"enrol(Fleet(Path({str(fleet.folder)!r})), 'pi-x', utc_now(), None, 30)"
    for room in (largest // 2, largest + 64):
        assert "cannot be written" in limited(room, code)
        assert content(fleet.folder) == before
    devices.enrol(fleet, "pi-x", utc_now(), None, 30)


def test_a_full_disk_leaves_existing_bundles(fleet: Fleet) -> None:
    for number in range(8):
        devices.enrol(fleet, f"pi-{number}", utc_now(), None, 30)
    before = content(fleet.folder)
    for action, names in (("rotate", "'pi-1'"), ("enrol_all", "['pi-x', 'pi-y']")):
        code = f"{action}(Fleet(Path({str(fleet.folder)!r})), {names}, utc_now(), None, 30)"
        room = len(before["bundles/pi-1.bundle"]) + 64
        assert "access.acl cannot be written" in limited(room, code)
        assert content(fleet.folder) == before


def test_a_file_is_replaced_as_a_whole_and_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        write_whole(path, b"one")
        write_whole(path, b"two")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        write_whole(tmp_path / "nowhere" / "key", b"one")


def test_one_process_at_a_time_runs_on_a_state_folder(tmp_path: Path) -> None:
    state = tmp_path / "state"
    second = f"in use by process {os.getpid()}: stop that process, or use another state_dir"
    for _ in range(2):
        with claimed(state, "agent"):
            with pytest.raises(ConfigError, match=second), claimed(state, "agent"):
                pass
            with claimed(state, "coordinator"), claimed(tmp_path / "other", "agent"):
                pass


def test_an_inaccessible_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0)
    commands: list[list[str | Path]] = [
        ["broker", "init", tmp_path / "theirs" / "fleet", "--host", "x"],
        ["broker", "list", tmp_path / "theirs" / "fleet"],
    ]
    with as_nobody():
        results = [fedge(*words) for words in commands]
    for result in results:
        assert "theirs" in line_of(result)
        assert "Permission denied" in line_of(result)


@needs_root
def test_a_command_with_sudo_leaves_the_fleet_to_its_owner(fleet: Fleet) -> None:
    for path in (fleet.folder, *fleet.folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    rotate_key(fleet, utc_now())
    rotate_certificate(fleet, utc_now())
    for path in (fleet.folder, *fleet.folder.rglob("*")):
        rules = (
            path.name in ("access.acl", "ca.crl") or path.is_symlink()
        )  # Mosquitto's, whose account the register has
        assert path.stat().st_uid == (0 if rules else NOBODY), path


def test_a_lock_file_that_is_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    """Root may work in the folder of somebody who would like another file emptied."""
    (target := tmp_path / "target").write_text("precious")
    (tmp_path / ".agent.lock").symlink_to(target)
    with claimed(tmp_path, "agent"):
        assert target.read_text() == "precious"


@needs_root
def test_another_user_needs_root_before_anything_is_made(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    with as_nobody():
        result = fedge("broker", "init", tmp_path / "fleet", "--host", "x", "--user", "daemon")
    assert "error: --user daemon: only root can give" in line_of(result)


@needs_root
def test_a_folder_that_mosquitto_cannot_enter_is_named(tmp_path: Path) -> None:
    """As /root is; Mosquitto would say that it cannot write its pid file."""
    open_to_all(tmp_path)
    (tmp_path / "root").mkdir(mode=0o700)
    command: list[str | Path] = ["broker", "init", tmp_path / "root" / "fleet", "--host", "x"]
    command += ["--user", "nobody"]
    closed = f"user nobody cannot enter {tmp_path}/root, so Mosquitto cannot run from this folder"
    for _ in range(2):
        result = fedge(*command)
        assert result.exit_code == 0
        assert closed in result.stderr
    (tmp_path / "root").chmod(0o711)
    assert closed not in fedge(*command).output


@needs_root
def test_a_user_without_a_name_is_one_line(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    os.seteuid(54_321)
    try:
        result = fedge("broker", "init", tmp_path / "fleet", "--host", "x")
    finally:
        os.seteuid(0)
    assert "user 54321 has no name on this machine" in line_of(result)


@needs_root
def test_a_fleet_with_an_unknown_account_is_changed_by_its_owner(fleet: Fleet) -> None:
    """As after it was moved to another machine; root would have to give files to that account."""
    text = (fleet.folder / "fleet.json").read_text()
    (fleet.folder / "fleet.json").write_text(text.replace('"user":"root"', '"user":"gone"'))
    assert "there is no user 'gone'" in line_of(fedge("broker", "enrol", fleet.folder, "pi-1"))
    for path in (fleet.folder, *fleet.folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    open_to_all(fleet.folder.parent)
    with as_nobody():
        result = fedge("broker", "enrol", fleet.folder, "pi-1")
    assert result.exit_code == 0, result.output


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("")
    with claimed(tmp_path / "state", "agent"):
        assert "cannot be locked against a second process: " in caplog.text
