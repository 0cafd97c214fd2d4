"""A fleet's folder and its bundles: who may read them, and what goes wrong with them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from broker.access import ListenerSettings, access_rules, check_device_id, mosquitto_config
from broker.authority import Authority, check_host
from broker.bundle import Bundle, check_bundle, encode_bundle, read_bundle
from broker.config import load_config
from broker.key_rotation import rotate_certificate, rotate_key
from broker.reload import reload_mosquitto
from broker.seal import key_id, read_public_keys
from broker.security import Fleet, FleetSettings, create_fleet, utc_now
from broker.security_files import Account, claimed, write_whole
from broker.signing import SigningKeys
from edge_agent.config import AgentConfig
from fedge import cli
from models.errors import ConfigError
from tests.users import as_nobody

ROOT = Path(__file__).parents[2]
HOSTS = "broker.example.org,10.1.2.3"
STRANGE = ["a/b", "+", "#", "a#", "", "x" * 65, "ä", "a b", "a\nuser b", "..", "$SYS", "a\0"]
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def fedge(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def line_of(result: Result, exit_code: int = 2) -> str:
    """The one line of a command that failed."""
    assert result.exit_code == exit_code, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return make(tmp_path / "fleet")


def make(folder: Path) -> Fleet:
    settings = FleetSettings("houses", HOSTS.split(","), user=Account.current().name)
    return create_fleet(folder, settings, utc_now())


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- init -----------------------------------------------------------------------------------------


def test_only_the_owner_may_read_anything(fleet: Fleet) -> None:
    fleet.enrol("pi-1", utc_now(), None, 30)
    for path in (fleet.folder, *fleet.folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_init_tells_what_to_do_next(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    result = fedge("broker", "init", folder, "--host", HOSTS, "--user", Account.current().name)
    assert result.exit_code == 0, result.output
    assert f"mosquitto -c {folder}/broker/mosquitto.conf" in result.stdout
    assert "broker: {host: broker.example.org, port: 8883, tls:" in result.stdout
    assert f"fedge broker enrol {folder} AGENT_ID" in result.stdout


def test_what_is_to_be_done_next_may_be_copied_to_a_shell(tmp_path: Path) -> None:
    (place := tmp_path / "a b").mkdir()
    folder = place / "o'clock: ü"
    result = fedge("broker", "init", folder, "--host", HOSTS, "--user", Account.current().name)
    told = dict(
        line.strip().split(":  ", 1) for line in result.stdout.splitlines() if ":  " in line
    )
    assert shlex.split(told["start the broker"])[2] == f"{folder}/broker/mosquitto.conf"
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


def test_a_second_init_changes_nothing_and_says_what_is_there(fleet: Fleet) -> None:
    fleet.enrol("pi-1", utc_now(), None, 30)
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
            "address to listen on none, not 10.1.2.3",
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
    assert "is in use and holds no fleet" in line
    assert content(tmp_path) == {"thesis.txt": b"mine"}


def broker_names(fleet: Fleet) -> list[str]:
    """Whom the broker's certificate is for."""
    pem = (fleet.broker_folder / "server.pem").read_bytes()
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    kinds = (x509.DNSName, x509.IPAddress)
    return [str(name) for kind in kinds for name in names.value.get_values_for_type(kind)]


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
    assert "devices that look for it as 10.1.2.3 refuse it" in result.stdout
    assert broker_names(fleet) == names.split(",")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    bundle = read_bundle(Fleet(fleet.folder).enrol("pi-9", utc_now(), None, 30))
    assert bundle.host == "new.example.org"
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    assert key.public_key() == certificate.public_key()


def test_a_change_of_the_broker_s_certificate_is_whole_or_not_made(fleet: Fleet) -> None:
    fleet.enrol("pi-1", utc_now(), None, 30)
    before = content(fleet.folder)
    for hosts in ("a b", "a,,b"):
        line = line_of(fedge("broker", "rotate-broker", fleet.folder, "--host", hosts))
        assert "neither a host name nor an IP address" in line
    code = (
        "from broker.key_rotation import rotate_broker; "
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
        (["--port", "65535"], "--enrolment-port 65536: a port is 1 to 65535"),
        (["--enrolment-port", "8883"], "--port 8883: this fleet takes the port twice"),
        (["--websockets", "8883"], "--port 8883: this fleet takes the port twice"),
        (["--websockets", "8884"], "--enrolment-port 8884: this fleet takes the port twice"),
    ],
)
def test_ports_that_cannot_be_are_refused_before_anything_is_made(
    tmp_path: Path, options: list[str], what: str
) -> None:
    line = line_of(fedge("broker", "init", tmp_path / "f", "--host", HOSTS, *options))
    assert what in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["fe80::1%eth0", "fe80::1%\nallow_anonymous true"])
def test_no_address_brings_a_line_of_its_own_into_the_configuration(
    tmp_path: Path, address: str
) -> None:
    for options in (["--host", HOSTS, "--bind", address], ["--host", address]):
        result = fedge("broker", "init", tmp_path / "f", *options, "--websockets", "443")
        assert "neither a host name nor an IP address" in line_of(result)
    assert list(tmp_path.iterdir()) == []


def test_no_value_of_the_configuration_is_followed_by_a_comment() -> None:
    text = mosquitto_config(Path("/srv/fleet/broker"), ListenerSettings(8883, "", "mosquitto"))
    assert "listener 8883\n" in text
    assert all("#" not in line for line in text.splitlines() if not line.startswith("#"))
    for folder in ("/srv/a#b", "/srv/a\nallow_anonymous true"):
        with pytest.raises(ConfigError, match="no such folder name"):
            mosquitto_config(Path(folder), ListenerSettings(8883, "", "mosquitto"))


# --- a full disk ----------------------------------------------------------------------------------


def limited(max_file_bytes: int, code: str) -> str:
    """Runs code that may write no larger file, as on a disk that fills up; what it raised."""
    script = (
        "import resource, sys; from pathlib import Path; from models.errors import ConfigError\n"
        "from broker.security import *; from broker.security_files import *\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({max_file_bytes}, {max_file_bytes}))\n"
        f"try:\n    {code}\nexcept ConfigError as error: sys.stdout.write(str(error))\n"
    )
    run = [sys.executable, "-c", script]
    return subprocess.run(
        run, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    ).stdout


@pytest.mark.parametrize("room", [100, 500, 700, 1000])
def test_a_full_disk_during_init_leaves_nothing(tmp_path: Path, room: int) -> None:
    folder = str(tmp_path / "fleet")
    settings = f"FleetSettings('h', ['localhost'], user={Account.current().name!r})"
    code = f"create_fleet(Path({folder!r}), {settings}, utc_now())"
    assert "cannot be written" in limited(room, code)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_during_enrolment_enrols_nobody(fleet: Fleet) -> None:
    for number in range(8):
        fleet.enrol(f"pi-{number}", utc_now(), None, 30)
    before = content(fleet.folder)
    largest = max(len(data) for name, data in before.items() if name.endswith("bundle"))
    assert largest < len(before["broker/access.acl"]), "the bundle fits, the rules do not"
    code = f"Fleet(Path({str(fleet.folder)!r})).enrol('pi-x', utc_now(), None, 30)"
    for room in (largest // 2, largest + 64):
        assert "cannot be written" in limited(room, code)
        assert content(fleet.folder) == before
    fleet.enrol("pi-x", utc_now(), None, 30)


def test_a_full_disk_leaves_a_bundle_that_is_not_carried_away_yet(fleet: Fleet) -> None:
    for number in range(8):
        fleet.enrol(f"pi-{number}", utc_now(), None, 30)
    before = content(fleet.folder)
    for action in ("rotate('pi-1'", "enrol_all(['pi-x', 'pi-y']"):
        code = f"Fleet(Path({str(fleet.folder)!r})).{action}, utc_now(), None, 30)"
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
    second = f"in use by process {os.getpid()}: stop it, or give this one another state_dir"
    for _ in range(2):
        with claimed(state, "agent"):
            with pytest.raises(ConfigError, match=second), claimed(state, "agent"):
                pass
            with claimed(state, "coordinator"), claimed(tmp_path / "other", "agent"):
                pass


def test_a_folder_that_this_user_may_not_enter_is_one_line(tmp_path: Path) -> None:
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


def open_to_all(folder: Path) -> None:
    """Every user may come here; the folders on the way are pytest's."""
    folder.chmod(0o777)
    for path in folder.parents:
        if path == Path(tempfile.gettempdir()):
            return
        path.chmod(0o711)


@needs_root
def test_a_command_with_sudo_leaves_the_fleet_to_its_owner(fleet: Fleet) -> None:
    for path in (fleet.folder, *fleet.folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    fleet.enrol("pi-1", utc_now(), None, 30)
    rotate_key(fleet, utc_now())
    rotate_certificate(fleet, utc_now())
    for path in (fleet.folder, *fleet.folder.rglob("*")):
        rules = path.name in ("access.acl", "ca.crl")  # Mosquitto's, whose account the register has
        assert path.stat().st_uid == (0 if rules else NOBODY), path


@needs_root
def test_a_command_with_sudo_leaves_a_device_to_its_owner(
    bundle_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pi-1"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    assert join(bundle_path, folder).exit_code == 0
    assert {path.stat().st_uid for path in folder.iterdir()} == {NOBODY}


def test_a_lock_is_not_taken_where_a_link_leads(tmp_path: Path) -> None:
    """Root may work in the folder of somebody who would like another file emptied."""
    (target := tmp_path / "target").write_text("precious")
    (tmp_path / ".agent.lock").symlink_to(target)
    with claimed(tmp_path, "agent"):
        assert target.read_text() == "precious"


@needs_root
def test_who_can_give_no_files_away_is_told_before_anything_is_made(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    with as_nobody():
        result = fedge("broker", "init", tmp_path / "fleet", "--host", "x", "--user", "daemon")
    assert "error: --user daemon: only root can give" in line_of(result)


@needs_root
def test_a_folder_that_mosquitto_cannot_get_to_is_named(tmp_path: Path) -> None:
    """As /root is; Mosquitto would say that it cannot write its pid file."""
    open_to_all(tmp_path)
    (tmp_path / "root").mkdir(mode=0o700)
    command: list[str | Path] = ["broker", "init", tmp_path / "root" / "fleet", "--host", "x"]
    command += ["--user", "nobody"]
    closed = f"{tmp_path}/root is closed to user nobody, so Mosquitto cannot run from this folder"
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
def test_a_fleet_whose_account_is_not_here_is_changed_by_its_owner(fleet: Fleet) -> None:
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


# --- enrolment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_name_is_refused_before_anything_is_signed(fleet: Fleet, name: str) -> None:
    before = content(fleet.folder)
    for action in (fleet.enrol, fleet.rotate):
        with pytest.raises(ConfigError, match="is not allowed: use 1 to 64 letters"):
            action(name, utc_now(), None, 30)
    with pytest.raises(ConfigError, match="is not allowed"):
        fleet.revoke(name, utc_now())
    with pytest.raises(ConfigError, match="is not allowed"):
        access_rules("houses", ["pi-1", name])
    assert {k: v for k, v in content(fleet.folder).items() if k != ".lock"} == before


def test_no_device_is_called_coordinator(fleet: Fleet) -> None:
    assert "the coordinator's name" in line_of(
        fedge("broker", "enrol", fleet.folder, "coordinator")
    )
    assert check_device_id("coordinator-2") == "coordinator-2"


def test_a_name_is_enrolled_once(fleet: Fleet) -> None:
    assert fedge("broker", "enrol", fleet.folder, "pi-1").exit_code == 0
    assert "is enrolled already" in line_of(fedge("broker", "enrol", fleet.folder, "pi-1"))


@pytest.mark.parametrize("options", [[], ["--token"]])
def test_a_revoked_name_is_enrolled_again_by_those_only_who_say_so(
    fleet: Fleet, options: list[str]
) -> None:
    fleet.enrol("pi-1", utc_now(), None, 30)
    fleet.revoke("pi-1", utc_now())
    before = content(fleet.folder)
    line = line_of(fedge("broker", "enrol", fleet.folder, "pi-1", "pi-2", *options))
    assert "pi-1 was revoked" in line
    assert "take another name, or restart Mosquitto first and say --again" in line
    assert content(fleet.folder) == before
    assert fedge("broker", "enrol", fleet.folder, "pi-1", "--again", *options).exit_code == 0
    assert "user pi-1" in (fleet.broker_folder / "access.acl").read_text()


@pytest.mark.parametrize("options", [[], ["--token"]])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["pi-2", "pi-1"], "pi-1 is enrolled already"),
        (["pi-2", "a/b"], "is not allowed"),
        (["pi-2", "pi-3", "pi-2"], "pi-2 is named twice"),
    ],
)
def test_of_many_all_are_enrolled_or_none(
    fleet: Fleet, names: list[str], words: str, options: list[str]
) -> None:
    fleet.enrol("pi-1", utc_now(), None, 30)
    before = content(fleet.folder)
    assert words in line_of(fedge("broker", "enrol", fleet.folder, *names, *options))
    assert content(fleet.folder) == before
    assert fedge("broker", "enrol", fleet.folder, "pi-2", "pi-3", *options).exit_code == 0
    assert "user pi-3" in (fleet.broker_folder / "access.acl").read_text()


def test_a_bundle_is_written_to_a_file_and_to_nothing_else(fleet: Fleet, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    line = line_of(fedge("broker", "enrol", fleet.folder, "pi-1", "--out", tmp_path / "pipe"))
    assert "pipe is no file: choose another --out" in line


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["broker", "enrol", "fleet", "pi-1", "--token", "--valid", "nan"], "--valid"),
        (["broker", "serve-enrolment", "fleet", "--for", "nan"], "--for"),
        (["agent", "run", "--config", "agent.yaml", "--give-up-after", "nan"], "--give-up-after"),
        (["agent", "enrol", "token", "--dir", "pi-1", "--timeout", "inf"], "--timeout"),
    ],
)
def test_no_time_is_nan_or_endless(words: list[str], option: str) -> None:
    result = fedge(*words)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr


def test_a_bundle_does_not_replace_another_file(fleet: Fleet, tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("mine")
    line = line_of(fedge("broker", "enrol", fleet.folder, "pi-1", "--out", out))
    assert "is no bundle of pi-1" in line
    assert out.read_text() == "mine"
    assert fleet.register.devices == ()


def test_rules_begin_with_a_user_and_end_with_the_enrolment(fleet: Fleet) -> None:
    fleet.enrol("pi-1", utc_now(), None, 30)
    fleet.enrol("pi-2", utc_now(), None, 30)
    rules = (fleet.broker_folder / "access.acl").read_text()
    first = next(line for line in rules.splitlines() if line and not line.startswith("#"))
    assert first == "user coordinator"
    assert "user pi-1\ntopic write fedge/v1/houses/agents/pi-1/status\n" in rules
    assert "%" not in rules
    fleet.revoke("pi-1", utc_now())
    rules = (fleet.broker_folder / "access.acl").read_text()
    assert "pi-1" not in rules
    assert "user pi-2" in rules


def revoked_serials(fleet: Fleet) -> tuple[set[str], object]:
    crl = x509.load_pem_x509_crl((fleet.broker_folder / "ca.crl").read_bytes())
    return {f"{entry.serial_number:x}" for entry in crl}, crl.last_update_utc


def test_every_list_of_revocations_is_newer_than_the_last(fleet: Fleet) -> None:
    now, updates = utc_now(), [revoked_serials(fleet)[1]]
    for number in range(4):
        fleet.enrol(f"pi-{number}", now, None, 30)
        fleet.revoke(f"pi-{number}", now)
        updates.append(revoked_serials(fleet)[1])
    assert updates == sorted(set(updates), key=str)  # strictly, within one second of the clock
    assert revoked_serials(fleet)[0] == {record.serial for record in fleet.register.devices}


def test_a_clock_that_was_ahead_locks_nobody_out_for_good(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenSSL refuses every certificate while the list of revoked ones is not yet valid."""
    fleet.enrol("pi-1", utc_now() + timedelta(days=3650), None, 30)
    assert not caplog.records
    fleet.revoke("pi-1", utc_now())
    crl = x509.load_pem_x509_crl((fleet.broker_folder / "ca.crl").read_bytes())
    assert crl.last_update_utc < utc_now()
    assert len(crl) == 1
    assert "restart Mosquitto; else set it, and do this again" in caplog.text


def test_rotation_revokes_the_old_unless_it_is_kept(fleet: Fleet) -> None:
    fleet.enrol("pi-1", utc_now(), None, 30)
    assert fedge("broker", "rotate", fleet.folder, "pi-1", "--keep-old").exit_code == 0
    assert revoked_serials(fleet)[0] == set()
    assert fedge("broker", "rotate", fleet.folder, "pi-1").exit_code == 0
    records = Fleet(fleet.folder).register.devices
    assert [record.state(utc_now()) for record in records] == ["revoked", "revoked", "active"]
    assert revoked_serials(fleet)[0] == {record.serial for record in records[:2]}
    assert "user pi-1" in (fleet.broker_folder / "access.acl").read_text()


def test_only_the_enrolled_are_rotated_and_revoked(fleet: Fleet) -> None:
    assert "pi-9 is not enrolled" in line_of(fedge("broker", "revoke", fleet.folder, "pi-9"))
    fleet.enrol("pi-1", utc_now(), None, 30)
    assert fedge("broker", "revoke", fleet.folder, "pi-1").exit_code == 0
    again = fedge("broker", "revoke", fleet.folder, "pi-1", "--no-reload")  # to be sure
    assert again.exit_code == 0
    assert "was not told: it takes effect when it is started again" in again.stdout
    assert "pi-1 was revoked" in line_of(fedge("broker", "rotate", fleet.folder, "pi-1"))


def test_the_list_shows_serial_expiry_and_state(fleet: Fleet) -> None:
    assert "no device is enrolled" in fedge("broker", "list", fleet.folder).stdout
    now = utc_now()
    fleet.enrol("old", now - timedelta(days=40), None, 30)
    fleet.enrol("gone", now, None, 30)
    fleet.revoke("gone", now)
    fleet.enrol("here", now, None, 30)
    rows = json.loads(fedge("broker", "list", fleet.folder, "--json").stdout)
    assert {row["agent_id"]: row["state"] for row in rows} == {
        "old": "expired",
        "gone": "revoked",
        "here": "active",
    }
    bundle = read_bundle(fleet.folder / "bundles" / "here.bundle")
    certificate = x509.load_pem_x509_certificate(bundle.certificate.encode())
    assert rows[2]["serial"] == f"{certificate.serial_number:x}"
    assert rows[2]["expires"] == (now + timedelta(days=30)).isoformat()
    assert "here  active" in fedge("broker", "list", fleet.folder).stdout


def signing(fleet: Fleet) -> tuple[str, ...]:
    """Public keys of the file that the coordinator signs with, which the register has too."""
    keys = SigningKeys.read(fleet.folder / "coordinator" / "signing.key")
    found = tuple(key.hex() for key in keys.public)
    assert Fleet(fleet.folder).register.signing_keys == found
    return found


def test_a_signing_key_is_rotated_with_an_overlap(fleet: Fleet) -> None:
    (old,) = signing(fleet)
    assert "no rotation" in line_of(fedge("broker", "rotate-key", fleet.folder, "--finish"))
    begun = fedge("broker", "rotate-key", fleet.folder)
    assert begun.exit_code == 0, begun.output
    new, kept = signing(fleet)
    assert kept == old
    assert f"new signing key: {key_id(bytes.fromhex(new))}" in begun.stdout
    assert "under way" in line_of(fedge("broker", "rotate-key", fleet.folder))
    fleet.enrol("pi-1", utc_now(), None, 30)
    assert read_bundle(fleet.folder / "bundles" / "pi-1.bundle").trusted_keys == (new, old)
    assert fedge("broker", "rotate-key", fleet.folder, "--finish").exit_code == 0
    assert signing(fleet) == (new,)
    assert stat.S_IMODE((fleet.folder / "coordinator" / "signing.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("options", [[], ["--at-once"], ["--finish"]])
def test_a_rotation_that_was_cut_short_is_mended_by_the_next_command(
    fleet: Fleet, options: list[str]
) -> None:
    if options == ["--finish"]:
        assert fedge("broker", "rotate-key", fleet.folder).exit_code == 0
    register = (fleet.folder / "fleet.json").read_bytes()
    assert fedge("broker", "rotate-key", fleet.folder, *options).exit_code == 0
    new = signing(fleet)
    (fleet.folder / "fleet.json").write_bytes(register)  # the file is written before it
    fleet.enrol("pi-1", utc_now(), None, 30)
    assert read_bundle(fleet.folder / "bundles" / "pi-1.bundle").trusted_keys == new
    assert signing(fleet) == new


def test_a_rotation_whose_end_was_cut_short_is_ended_by_the_same_command(fleet: Fleet) -> None:
    fedge("broker", "rotate-key", fleet.folder)
    register = (fleet.folder / "fleet.json").read_bytes()
    fedge("broker", "rotate-key", fleet.folder, "--finish")
    new = signing(fleet)
    (fleet.folder / "fleet.json").write_bytes(register)
    assert fedge("broker", "rotate-key", fleet.folder, "--finish").exit_code == 0
    assert signing(fleet) == new


def test_a_signing_key_that_is_lost_vouches_for_nothing(fleet: Fleet) -> None:
    (old,) = signing(fleet)
    (fleet.folder / "coordinator" / "signing.key").unlink()
    line = line_of(fedge("broker", "rotate-key", fleet.folder))
    assert "bring it back from the coordinator's machine" in line
    result = fedge("broker", "rotate-key", fleet.folder, "--at-once")
    assert f"fedge broker rotate {fleet.folder} AGENT_ID" in result.stdout
    (new,) = signing(fleet)
    assert new != old
    assert fedge("broker", "rotate-key", fleet.folder, "--at-once", "--finish").exit_code == 2


def test_the_coordinator_gets_a_new_certificate_and_the_old_one_is_revoked(fleet: Fleet) -> None:
    path = fleet.folder / "coordinator" / "coordinator.pem"
    old = x509.load_pem_x509_certificate(path.read_bytes())
    result = fedge("broker", "rotate-coordinator", fleet.folder)
    assert result.exit_code == 0, result.output
    assert f"give it to the coordinator:  {path}" in result.stdout
    new = x509.load_pem_x509_certificate(path.read_bytes())
    assert new.serial_number != old.serial_number
    assert new.subject == old.subject
    assert revoked_serials(fleet)[0] == {f"{old.serial_number:x}"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = content(fleet.folder)
    code = (
        "from broker.key_rotation import rotate_certificate; "
        f"rotate_certificate(Fleet(Path({str(fleet.folder)!r})), utc_now())"
    )
    assert "cannot be written" in limited(500, code)
    assert content(fleet.folder) == before


def test_a_folder_without_a_fleet_or_with_a_damaged_one_is_named(fleet: Fleet) -> None:
    assert "holds no fleet" in line_of(fedge("broker", "list", fleet.folder / "broker"))
    (fleet.folder / "authority" / "ca.key").write_text("rubbish")
    assert "damaged" in line_of(fedge("broker", "enrol", fleet.folder, "pi-1"))
    (fleet.folder / "fleet.json").write_text('{"federation":')
    assert "fleet.json is damaged" in line_of(fedge("broker", "list", fleet.folder))


def test_an_old_pid_file_ends_nobody_else_s_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "mosquitto.pid"
    assert "no broker runs" in reload_mosquitto(pid_file)
    with subprocess.Popen(["sleep", "30"]) as other:
        pid_file.write_text(f"{other.pid}\n")
        assert "no broker runs" in reload_mosquitto(pid_file)
        time.sleep(0.05)
        assert other.poll() is None
        other.terminate()


def test_a_copy_of_a_fleet_does_not_claim_that_a_broker_was_told(
    fleet: Fleet, tmp_path: Path
) -> None:
    """The copy's pid file names a Mosquitto that reads the rules of the original."""
    fleet.enrol("pi-1", utc_now(), None, 30)
    copy = tmp_path / "copy"
    shutil.copytree(fleet.folder, copy)
    # A Mosquitto as far as anybody sees; SIGHUP would end it.
    (program := tmp_path / "mosquitto").symlink_to(shutil.which("sleep") or "sleep")
    with subprocess.Popen([program, "30"]) as broker:
        for folder in (fleet.folder, copy):
            (folder / "broker" / "mosquitto.pid").write_text(f"{broker.pid}\n")
        for options in ([], ["--no-reload"]):
            result = fedge("broker", "revoke", copy, "pi-1", *options)
            assert result.exit_code == 0, result.output
            assert f"mosquitto.conf names {fleet.folder}/broker/access.acl" in result.output
            assert "No broker knows of its changes" in result.output
        again = fedge("broker", "init", copy, "--host", HOSTS, "--federation", "houses")
        assert "was this fleet moved or copied?" in again.stderr
        time.sleep(0.05)
        assert broker.poll() is None
        assert "has been told" in fedge("broker", "revoke", fleet.folder, "pi-1").output


def test_whoever_has_mosquitto_s_account_does_not_hold_root_up(fleet: Fleet) -> None:
    os.mkfifo(fleet.broker_folder / "mosquitto.pid")
    (fleet.broker_folder / "mosquitto.conf").unlink()
    os.mkfifo(fleet.broker_folder / "mosquitto.conf")
    fleet.enrol("pi-1", utc_now(), None, 30)
    assert "no broker runs" in fedge("broker", "revoke", fleet.folder, "pi-1").stdout


# --- on the device --------------------------------------------------------------------------------


def test_a_folder_that_is_there_keeps_its_rights(fleet: Fleet, tmp_path: Path) -> None:
    """A service may have to look into it; what must not be read are its files."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o750)
    assert join(fleet.enrol("pi-1", utc_now(), None, 30), folder).exit_code == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert stat.S_IMODE((folder / "agent.pem").stat().st_mode) == 0o600


@pytest.fixture
def bundle_path(fleet: Fleet) -> Path:
    return fleet.enrol("pi-1", utc_now(), None, 30)


def join(bundle: Path, folder: Path, *options: str | Path) -> Result:
    return fedge("agent", "enrol", bundle, "--dir", folder, *options)


def test_a_bundle_becomes_a_folder_that_runs(bundle_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pi" / "fedge"
    result = join(bundle_path, folder)
    assert result.exit_code == 0, result.output
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}
    public = ("ca.crt", "coordinator.pub", "agent.yaml")
    assert modes == {"agent.pem": 0o600} | dict.fromkeys(public, 0o644)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    config = load_config(folder / "agent.yaml", AgentConfig)
    assert (config.agent_id, config.federation) == ("pi-1", "houses")
    assert config.broker.address == "broker.example.org:8883"
    tls = config.broker.located(folder).tls
    assert tls is not None
    assert tls.context().check_hostname
    assert config.trusted_keys is not None
    (key,) = read_public_keys(folder / config.trusted_keys)
    assert key.hex() == json.loads(bundle_path.read_bytes())["trusted_keys"][0]


def test_an_old_configuration_is_told_to_check_signatures(
    fleet: Fleet, bundle_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pi"
    join(bundle_path, folder)
    path = folder / "agent.yaml"
    path.write_text(path.read_text().replace("trusted_keys: coordinator.pub\n", ""))
    result = join(fleet.rotate("pi-1", utc_now(), None, 30), folder)
    assert f"add `trusted_keys: coordinator.pub` to {path}" in result.stdout


def test_the_data_goes_into_the_configuration(bundle_path: Path, tmp_path: Path) -> None:
    line = line_of(join(bundle_path, tmp_path / "a", "--data", "houses.csv"))
    assert "--target COLUMN" in line
    assert not (tmp_path / "a").exists()
    options: list[str | Path] = ["--data", tmp_path / "houses.csv", "--target", "price: USD"]
    assert join(bundle_path, tmp_path / "a", *options).exit_code == 0
    data = load_config(tmp_path / "a" / "agent.yaml", AgentConfig).data
    assert data.path == str(tmp_path / "houses.csv")
    assert data.target is not None
    assert data.target.column == "price: USD"
    assert "must end in" in line_of(join(bundle_path, tmp_path / "b", "--data", "a.txt"))


def test_a_new_bundle_renews_the_certificates_and_keeps_the_rest(
    fleet: Fleet, bundle_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pi"
    join(bundle_path, folder)
    before = content(folder)
    with (folder / "agent.yaml").open("a") as file:
        file.write("threads: 2\n")
    result = join(fleet.rotate("pi-1", utc_now(), None, 30), folder)
    assert "certificates renewed" in result.stdout
    assert "check signatures" not in result.stdout
    assert "another broker?" not in result.stdout
    assert content(folder)["agent.pem"] != before["agent.pem"]
    assert load_config(folder / "agent.yaml", AgentConfig).threads == 2
    other = fleet.enrol("pi-2", utc_now(), None, 30)
    before = content(folder)
    assert "is of pi-1 in federation houses" in line_of(join(other, folder))
    assert content(folder) == before


def test_what_a_kept_configuration_says_otherwise_is_told(
    bundle_path: Path, tmp_path: Path
) -> None:
    """As when the fleet was made anew on another machine."""
    assert join(bundle_path, tmp_path / "pi").exit_code == 0
    settings = FleetSettings("houses", ["::1"], port=9999, user=Account.current().name)
    bundle = create_fleet(tmp_path / "anew", settings, utc_now()).enrol("pi-1", utc_now(), None, 30)
    said = join(bundle, tmp_path / "pi", "--data", "other.npz").stdout
    assert "agent.yaml has broker.example.org:8883, this fleet's is [::1]:9999" in said
    assert "the options:        they are for a new file" in said


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_half_written_bundle_is_called_that(
    bundle_path: Path, tmp_path: Path, share: float
) -> None:
    data = bundle_path.read_bytes()
    half = tmp_path / "half"
    half.write_bytes(data[: int(len(data) * share)])
    assert "damaged or only half there" in line_of(join(half, tmp_path / "pi"))
    assert not (tmp_path / "pi").exists()


def changed(path: Path, **values: object) -> Bundle:
    return msgspec.structs.replace(read_bundle(path), **values)


def test_a_bundle_whose_parts_do_not_fit_is_refused(
    fleet: Fleet, bundle_path: Path, tmp_path: Path
) -> None:
    stranger = make(tmp_path / "other").enrol("pi-1", utc_now(), None, 30)
    theirs = read_bundle(stranger)
    two = read_bundle(fleet.enrol("pi-2", utc_now(), None, 30))
    for bundle, words in (
        (changed(bundle_path, key=theirs.key), "do not belong together"),
        (changed(bundle_path, certificate="rubbish"), "are damaged"),
        (changed(bundle_path, ca="rubbish"), "authority's certificate is damaged"),
        (changed(bundle_path, ca=theirs.ca), "not of the authority that comes with it"),
        (changed(bundle_path, certificate=two.certificate, key=two.key), "for another"),
    ):
        path = tmp_path / "wrong.bundle"
        path.write_bytes(encode_bundle(bundle))
        assert words in line_of(join(path, tmp_path / "pi"))
        assert not (tmp_path / "pi").exists()


@pytest.mark.parametrize(
    ("days_ago", "words"),
    [(40, "the certificate has expired"), (-40, "not yet valid: this machine's clock says 20")],
)
def test_a_clock_that_is_wrong_is_named(fleet: Fleet, days_ago: int, words: str) -> None:
    path = fleet.enrol("pi-1", utc_now() - timedelta(days=days_ago), None, 30)
    with pytest.raises(ConfigError, match=words):
        check_bundle(read_bundle(path), "bundle")


def test_what_is_no_bundle_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "x"
    document = json.loads(bundle_path.read_text())
    for data, words in (
        (b"[]", "not a bundle of this version"),
        (b"\xff\xfe", "damaged"),
        (b"x" * 70_000, "larger than"),
        (json.dumps(document | {"fedge_bundle": 2}).encode(), "format 2, known is 1"),
        (json.dumps(document | {"agent_id": "a/b"}).encode(), "agent_id"),
    ):
        path.write_bytes(data)
        assert words in line_of(join(path, tmp_path / "pi"))
    assert "cannot be read: No such file" in line_of(join(tmp_path / "y", tmp_path / "pi"))


# --- without cryptography -------------------------------------------------------------------------


def without_cryptography(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.modules['cryptography'] = None; import fedge; fedge.main()"
    run = [sys.executable, "-c", code, *arguments]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=30)


def test_a_device_needs_no_cryptography(bundle_path: Path, tmp_path: Path) -> None:
    done = without_cryptography("agent", "enrol", str(bundle_path), "--dir", str(tmp_path / "pi"))
    assert done.returncode == 0, done.stderr
    assert without_cryptography("broker", "run", "--help").returncode == 0
    done = without_cryptography("broker", "init", str(tmp_path / "f"), "--host", "localhost")
    assert done.returncode == 2
    assert "fedge[secure]" in done.stderr


def test_a_key_that_is_not_the_authority_s_is_refused() -> None:
    one, two = (Authority.create("houses", utc_now()) for _ in range(2))
    with pytest.raises(ConfigError, match="do not belong together"):
        Authority(one.certificate, two.key)
