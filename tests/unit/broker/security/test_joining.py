"""What a device makes of its bundle, and what is there without cryptography."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from click.testing import Result

from broker.protocol.signed_messages import read_public_keys
from broker.security import devices
from broker.security.bundle import Bundle, check_bundle, encode_bundle, read_bundle
from broker.security.certificate_authority import Authority
from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from edge_agent.config import AgentConfig
from fedge.errors import ConfigError
from fedge.files import Account
from fedge.yaml_config import load_config
from tests.unit.broker.security.fleet_folders import (
    NOBODY,
    ROOT,
    content,
    fedge,
    line_of,
    make,
    needs_root,
)

# -- on the device ------------------------------------------------------------------------------


def test_an_existing_folder_keeps_its_permissions(fleet: Fleet, tmp_path: Path) -> None:
    """A service may have to look into it; what must not be read are its files."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o750)
    assert join(devices.enrol(fleet, "pi-1", utc_now(), None, 30), folder).exit_code == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert stat.S_IMODE((folder / "agent.pem").stat().st_mode) == 0o600


@pytest.fixture
def bundle_path(fleet: Fleet) -> Path:
    return devices.enrol(fleet, "pi-1", utc_now(), None, 30)


def join(bundle: Path, folder: Path, *options: str | Path) -> Result:
    return fedge("agent", "enrol", bundle, "--dir", folder, *options)


@needs_root
def test_a_command_with_sudo_leaves_a_device_to_its_owner(
    bundle_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pi-1"
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    assert join(bundle_path, folder).exit_code == 0
    assert {path.stat().st_uid for path in folder.iterdir()} == {NOBODY}


def test_a_bundle_becomes_a_folder_that_an_agent_can_run(bundle_path: Path, tmp_path: Path) -> None:
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
    result = join(devices.rotate(fleet, "pi-1", utc_now(), None, 30), folder)
    assert f"add `trusted_keys: coordinator.pub` to {path}" in result.stdout


def test_the_data_goes_into_the_configuration(bundle_path: Path, tmp_path: Path) -> None:
    line = line_of(join(bundle_path, tmp_path / "a", "--data", "houses.csv"))
    assert "--target COLUMN" in line
    assert not (tmp_path / "a").exists()
    options: list[str | Path] = ["--data", tmp_path / "houses.csv", "--target", "price: USD"]
    assert join(bundle_path, tmp_path / "a", *options).exit_code == 0
    data = load_config(tmp_path / "a" / "agent.yaml", AgentConfig).data
    assert data.path == str(tmp_path / "houses.csv")
    told = f"put the data there: {tmp_path / 'houses.csv'} is missing"
    assert told in join(bundle_path, tmp_path / "a").stdout
    (tmp_path / "houses.csv").write_text("a,price: USD\n1,2\n")
    assert "is missing" not in join(bundle_path, tmp_path / "a").stdout
    assert data.target is not None
    assert data.target.column == "price: USD"
    assert "must end in" in line_of(join(bundle_path, tmp_path / "b", "--data", "a.xls"))


def test_a_new_bundle_renews_the_certificates_and_keeps_the_rest(
    fleet: Fleet, bundle_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pi"
    join(bundle_path, folder)
    before = content(folder)
    with (folder / "agent.yaml").open("a") as file:
        file.write("threads: 2\n")
    result = join(devices.rotate(fleet, "pi-1", utc_now(), None, 30), folder)
    assert "certificates renewed" in result.stdout
    assert "check signatures" not in result.stdout
    assert "another broker?" not in result.stdout
    assert content(folder)["agent.pem"] != before["agent.pem"]
    assert load_config(folder / "agent.yaml", AgentConfig).threads == 2
    other = devices.enrol(fleet, "pi-2", utc_now(), None, 30)
    before = content(folder)
    assert "is of pi-1 in federation houses" in line_of(join(other, folder))
    assert content(folder) == before


def test_differences_of_a_kept_configuration_are_reported(
    bundle_path: Path, tmp_path: Path
) -> None:
    """As when the fleet was made anew on another machine."""
    assert join(bundle_path, tmp_path / "pi").exit_code == 0
    settings = FleetSettings("houses", ["::1"], port=9999, user=Account.current().name)
    anew = create_fleet(tmp_path / "anew", settings, utc_now())
    bundle = devices.enrol(anew, "pi-1", utc_now(), None, 30)
    said = join(bundle, tmp_path / "pi", "--data", "other.npz").stdout
    assert "agent.yaml has broker.example.org:8883, this fleet's is [::1]:9999" in said
    assert "the options:        they are for a new file" in said


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_bundle_is_reported_as_incomplete(
    bundle_path: Path, tmp_path: Path, share: float
) -> None:
    data = bundle_path.read_bytes()
    half = tmp_path / "half"
    half.write_bytes(data[: int(len(data) * share)])
    assert "damaged or incomplete" in line_of(join(half, tmp_path / "pi"))
    assert not (tmp_path / "pi").exists()


def changed(path: Path, **values: object) -> Bundle:
    return msgspec.structs.replace(read_bundle(path), **values)


def test_a_bundle_whose_parts_do_not_belong_together_is_refused(
    fleet: Fleet, bundle_path: Path, tmp_path: Path
) -> None:
    stranger = devices.enrol(make(tmp_path / "other"), "pi-1", utc_now(), None, 30)
    theirs = read_bundle(stranger)
    two = read_bundle(devices.enrol(fleet, "pi-2", utc_now(), None, 30))
    for bundle, words in (
        (changed(bundle_path, key=theirs.key), "do not belong together"),
        (changed(bundle_path, certificate="rubbish"), "are damaged"),
        (changed(bundle_path, ca="rubbish"), "authority's certificate is damaged"),
        (changed(bundle_path, ca=theirs.ca), "not signed by the bundle's authority"),
        (
            changed(bundle_path, certificate=two.certificate, key=two.key),
            "its certificate for",
        ),
    ):
        path = tmp_path / "wrong.bundle"
        path.write_bytes(encode_bundle(bundle))
        assert words in line_of(join(path, tmp_path / "pi"))
        assert not (tmp_path / "pi").exists()


@pytest.mark.parametrize(
    ("days_ago", "words"),
    [(40, "the certificate has expired"), (-40, "not yet valid: this machine's clock says 20")],
)
def test_a_wrong_clock_is_named(fleet: Fleet, days_ago: int, words: str) -> None:
    path = devices.enrol(fleet, "pi-1", utc_now() - timedelta(days=days_ago), None, 30)
    with pytest.raises(ConfigError, match=words):
        check_bundle(read_bundle(path), "bundle")


def test_an_invalid_bundle_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "x"
    document = json.loads(bundle_path.read_text())
    for data, words in (
        (b"[]", "not a bundle of this version"),
        (b"\xff\xfe", "damaged"),
        (b"x" * 70_000, "larger than"),
        (json.dumps(document | {"fedge_bundle": 2}).encode(), "format 2; known is 1"),
        (json.dumps(document | {"agent_id": "a/b"}).encode(), "agent_id"),
    ):
        path.write_bytes(data)
        assert words in line_of(join(path, tmp_path / "pi"))
    assert "cannot be read: No such file" in line_of(join(tmp_path / "y", tmp_path / "pi"))


# -- without cryptography -----------------------------------------------------------------------


def without_cryptography(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.modules['cryptography'] = None; from fedge.command import main; main()"
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
