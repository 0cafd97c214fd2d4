"""Enrolment and revocation of devices, and new keys for broker and coordinator."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from broker.protocol.signed_messages import key_id
from broker.security import devices, key_rotation
from broker.security.access_control import Member, access_rules, check_device_id, is_login_of
from broker.security.bundle import read_bundle
from broker.security.fleet import Fleet, utc_now
from broker.security.mosquitto.reload import reload_mosquitto
from broker.security.register import all_members
from fedge.errors import ConfigError
from tests.unit.broker.security.fleet_folders import (
    HOSTS,
    STRANGE,
    content,
    fedge,
    limited,
    line_of,
    revoked_serials,
    signing,
)


@pytest.mark.parametrize("name", STRANGE)
def test_an_invalid_name_is_refused_before_anything_is_signed(fleet: Fleet, name: str) -> None:
    before = content(fleet.folder)
    for action in (devices.enrol, devices.rotate):
        with pytest.raises(ConfigError, match="is not allowed: use 1 to 64 letters"):
            action(fleet, name, utc_now(), None, 30)
    with pytest.raises(ConfigError, match="is not allowed"):
        devices.revoke(fleet, name, utc_now())
    with pytest.raises(ConfigError, match="is not allowed"):
        access_rules("houses", [Member("pi-1.00000000", "agent", name)])
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
def test_a_revoked_name_is_enrolled_again_under_another_login(
    fleet: Fleet, options: list[str]
) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    devices.revoke(fleet, "pi-1", utc_now())
    (old,) = all_members(Fleet(fleet.folder).register)[1:]
    assert fedge("broker", "enrol", fleet.folder, "pi-1", *options).exit_code == 0
    rules = (fleet.broker_folder / "access.acl").read_text()
    assert "user pi-1." in rules
    assert old.login not in rules


@pytest.mark.parametrize("options", [[], ["--token"]])
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["pi-2", "pi-1"], "pi-1 is enrolled already"),
        (["pi-2", "a/b"], "is not allowed"),
        (["pi-2", "pi-3", "pi-2"], "pi-2 is listed twice"),
    ],
)
def test_all_devices_are_enrolled_or_none(
    fleet: Fleet, names: list[str], words: str, options: list[str]
) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    before = content(fleet.folder)
    assert words in line_of(fedge("broker", "enrol", fleet.folder, *names, *options))
    assert content(fleet.folder) == before
    assert fedge("broker", "enrol", fleet.folder, "pi-2", "pi-3", *options).exit_code == 0
    assert "user pi-3." in (fleet.broker_folder / "access.acl").read_text()


def test_a_bundle_is_written_only_to_a_regular_file(fleet: Fleet, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    line = line_of(fedge("broker", "enrol", fleet.folder, "pi-1", "--out", tmp_path / "pipe"))
    assert "pipe is not a regular file: choose another --out" in line


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["broker", "enrol", "fleet", "pi-1", "--token", "--valid", "nan"], "--valid"),
        (["broker", "serve-enrolment", "fleet", "--for", "nan"], "--for"),
        (["agent", "run", "--config", "agent.yaml", "--give-up-after", "nan"], "--give-up-after"),
        (["agent", "enrol", "token", "--dir", "pi-1", "--timeout", "inf"], "--timeout"),
    ],
)
def test_a_validity_must_be_finite(words: list[str], option: str) -> None:
    result = fedge(*words)
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.stderr


def test_a_bundle_does_not_replace_another_file(fleet: Fleet, tmp_path: Path) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("mine")
    line = line_of(fedge("broker", "enrol", fleet.folder, "pi-1", "--out", out))
    assert "is not a bundle of pi-1" in line
    assert out.read_text() == "mine"
    assert fleet.register.devices == ()


def test_rules_begin_with_a_user_and_end_with_the_enrolment(fleet: Fleet) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    devices.enrol(fleet, "pi-2", utc_now(), None, 30)
    rules = (fleet.broker_folder / "access.acl").read_text()
    first = next(line for line in rules.splitlines() if line and not line.startswith("#"))
    assert first.startswith("user coordinator.")
    login = fleet.register.devices[0].login
    assert is_login_of(login, "pi-1")
    assert f"user {login}\ntopic write fedge/v1/houses/agents/pi-1/status\n" in rules
    assert "%" not in rules
    devices.revoke(fleet, "pi-1", utc_now())
    rules = (fleet.broker_folder / "access.acl").read_text()
    assert "pi-1" not in rules
    assert "user pi-2." in rules


def test_every_list_of_revocations_is_newer_than_the_last(fleet: Fleet) -> None:
    now, updates = utc_now(), [revoked_serials(fleet)[1]]
    for number in range(4):
        devices.enrol(fleet, f"pi-{number}", now, None, 30)
        devices.revoke(fleet, f"pi-{number}", now)
        updates.append(revoked_serials(fleet)[1])
    assert updates == sorted(set(updates), key=str)  # strictly, within one second of the clock
    assert revoked_serials(fleet)[0] == {record.serial for record in fleet.register.devices}


def test_a_clock_that_was_ahead_does_not_lock_devices_out(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenSSL refuses every certificate while the list of revoked ones is not yet valid."""
    devices.enrol(fleet, "pi-1", utc_now() + timedelta(days=3650), None, 30)
    assert not caplog.records
    devices.revoke(fleet, "pi-1", utc_now())
    crl = x509.load_pem_x509_crl((fleet.broker_folder / "ca.crl").read_bytes())
    assert crl.last_update_utc < utc_now()
    assert len(crl) == 1
    assert "restart Mosquitto; otherwise set the clock and repeat this command" in caplog.text


def test_rotation_revokes_the_old_certificate_unless_it_is_kept(fleet: Fleet) -> None:
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    assert fedge("broker", "rotate", fleet.folder, "pi-1", "--keep-old").exit_code == 0
    assert revoked_serials(fleet)[0] == set()
    assert fedge("broker", "rotate", fleet.folder, "pi-1").exit_code == 0
    records = Fleet(fleet.folder).register.devices
    assert [record.state(utc_now()) for record in records] == ["revoked", "revoked", "active"]
    assert revoked_serials(fleet)[0] == {record.serial for record in records[:2]}
    assert "user pi-1" in (fleet.broker_folder / "access.acl").read_text()


def test_only_enrolled_devices_are_rotated_and_revoked(fleet: Fleet) -> None:
    assert "pi-9 is not enrolled" in line_of(fedge("broker", "revoke", fleet.folder, "pi-9"))
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    revoked = fedge("broker", "revoke", fleet.folder, "pi-1")
    assert revoked.exit_code == 0
    assert "after three missed heartbeats; `fedge coordinator forget pi-1`" in revoked.output
    again = fedge("broker", "revoke", fleet.folder, "pi-1", "--no-reload")  # to be sure
    assert again.exit_code == 0
    assert "was left alone: the change takes effect at its next start" in again.stdout
    assert "pi-1 was revoked" in line_of(fedge("broker", "rotate", fleet.folder, "pi-1"))


def test_the_list_shows_serial_expiry_and_state(fleet: Fleet) -> None:
    assert "no device is enrolled" in fedge("broker", "list", fleet.folder).stdout
    now = utc_now()
    devices.enrol(fleet, "old", now - timedelta(days=40), None, 30)
    devices.enrol(fleet, "gone", now, None, 30)
    devices.revoke(fleet, "gone", now)
    devices.enrol(fleet, "here", now, None, 30)
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


def test_a_signing_key_is_rotated_with_an_overlap(fleet: Fleet) -> None:
    (old,) = signing(fleet)
    assert "no rotation" in line_of(fedge("broker", "rotate-key", fleet.folder, "--finish"))
    begun = fedge("broker", "rotate-key", fleet.folder)
    assert begun.exit_code == 0, begun.output
    new, kept = signing(fleet)
    assert kept == old
    assert f"new signing key: {key_id(bytes.fromhex(new))}" in begun.stdout
    assert "in progress" in line_of(fedge("broker", "rotate-key", fleet.folder))
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    assert read_bundle(fleet.folder / "bundles" / "pi-1.bundle").trusted_keys == (new, old)
    refused = line_of(fedge("broker", "rotate-key", fleet.folder, "--finish"))
    assert "the new key was made 0 min ago" in refused
    assert "add --checked" in refused
    assert signing(fleet) == (new, old)
    assert fedge("broker", "rotate-key", fleet.folder, "--finish", "--checked").exit_code == 0
    assert signing(fleet) == (new,)
    assert stat.S_IMODE((fleet.folder / "coordinator" / "signing.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("options", [[], ["--at-once"], ["--finish", "--checked"]])
def test_an_interrupted_rotation_is_repaired_by_the_next_command(
    fleet: Fleet, options: list[str]
) -> None:
    if "--finish" in options:
        assert fedge("broker", "rotate-key", fleet.folder).exit_code == 0
    register = (fleet.folder / "fleet.json").read_bytes()
    assert fedge("broker", "rotate-key", fleet.folder, *options).exit_code == 0
    new = signing(fleet)
    (fleet.folder / "fleet.json").write_bytes(register)  # the file is written before it
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    assert read_bundle(fleet.folder / "bundles" / "pi-1.bundle").trusted_keys == new
    assert signing(fleet) == new


def test_a_rotation_ends_without_a_word_once_devices_had_a_day_to_hear_of_it(fleet: Fleet) -> None:
    fedge("broker", "rotate-key", fleet.folder)
    new, _ = signing(fleet)
    with pytest.raises(ConfigError, match="made 23 h ago"):
        key_rotation.finish_rotation(fleet, utc_now() + timedelta(hours=23, minutes=30))
    key_rotation.finish_rotation(fleet, utc_now() + timedelta(hours=24, minutes=1))
    assert signing(fleet) == (new,)
    assert fedge("broker", "rotate-key", fleet.folder, "--checked").exit_code == 2


def test_an_interrupted_finish_is_completed_by_the_same_command(fleet: Fleet) -> None:
    fedge("broker", "rotate-key", fleet.folder)
    register = (fleet.folder / "fleet.json").read_bytes()
    fedge("broker", "rotate-key", fleet.folder, "--finish", "--checked")
    new = signing(fleet)
    (fleet.folder / "fleet.json").write_bytes(register)
    assert fedge("broker", "rotate-key", fleet.folder, "--finish").exit_code == 0
    assert signing(fleet) == new


def test_a_lost_signing_key_needs_at_once(fleet: Fleet) -> None:
    (old,) = signing(fleet)
    (fleet.folder / "coordinator" / "signing.key").unlink()
    line = line_of(fedge("broker", "rotate-key", fleet.folder))
    assert "copy it back from the coordinator's machine" in line
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
    assert new.subject != old.subject  # rights belong to one certificate
    assert revoked_serials(fleet)[0] == {f"{old.serial_number:x}"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = content(fleet.folder)
    code = (
        "from broker.security.key_rotation import rotate_certificate; "
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


def test_a_stale_pid_file_does_not_end_another_process(tmp_path: Path) -> None:
    pid_file = tmp_path / "mosquitto.pid"
    assert "no broker runs" in reload_mosquitto(pid_file)
    with subprocess.Popen(["sleep", "30"]) as other:
        pid_file.write_text(f"{other.pid}\n")
        assert "no broker runs" in reload_mosquitto(pid_file)
        time.sleep(0.05)
        assert other.poll() is None
        other.terminate()


def test_a_copied_fleet_reports_that_no_broker_reloads(fleet: Fleet, tmp_path: Path) -> None:
    """The copy's pid file names a Mosquitto that reads the rules of the original."""
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
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
            assert "No broker reads its changes" in result.output
        again = fedge("broker", "init", copy, "--host", HOSTS, "--federation", "houses")
        assert "was this fleet moved or copied?" in again.stderr
        time.sleep(0.05)
        assert broker.poll() is None
        assert "reloads its files" in fedge("broker", "revoke", fleet.folder, "pi-1").output
        broker.kill()  # SIGHUP is ignored under nohup


def test_a_pipe_in_the_broker_folder_does_not_block_root(fleet: Fleet) -> None:
    os.mkfifo(fleet.broker_folder / "mosquitto.pid")
    (fleet.broker_folder / "mosquitto.conf").unlink()
    os.mkfifo(fleet.broker_folder / "mosquitto.conf")
    devices.enrol(fleet, "pi-1", utc_now(), None, 30)
    assert "no broker runs" in fedge("broker", "revoke", fleet.folder, "pi-1").stdout
