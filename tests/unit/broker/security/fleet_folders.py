"""Fleets in folders, and commands about them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from broker.security.create_fleet import create_fleet
from broker.security.fleet import Fleet, utc_now
from broker.security.fleet_settings import FleetSettings
from broker.security.signing import SigningKeys
from fedge.command import cli
from fedge.files import Account

ROOT = Path(__file__).parents[4]
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


def make(folder: Path) -> Fleet:
    settings = FleetSettings("houses", HOSTS.split(","), user=Account.current().name)
    return create_fleet(folder, settings, utc_now())


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def broker_names(fleet: Fleet) -> list[str]:
    """Whom the broker's certificate is for."""
    pem = (fleet.broker_folder / "server.pem").read_bytes()
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    kinds = (x509.DNSName, x509.IPAddress)
    return [str(name) for kind in kinds for name in names.value.get_values_for_type(kind)]


def limited(max_file_bytes: int, code: str) -> str:
    """Runs code that may write no larger file, as on a disk that fills up; what it raised."""
    script = (
        "import resource, sys; from pathlib import Path; from fedge.errors import ConfigError\n"
        "from broker.security.create_fleet import *; from broker.security.fleet import *\n"
        "from broker.security.devices import *; from broker.security.fleet_settings import *\n"
        "from fedge.files import *\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({max_file_bytes}, {max_file_bytes}))\n"
        f"try:\n    {code}\nexcept ConfigError as error: sys.stdout.write(str(error))\n"
    )
    run = [sys.executable, "-c", script]
    return subprocess.run(
        run, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    ).stdout


def open_to_all(folder: Path) -> None:
    """Every user may come here; the folders on the way are pytest's."""
    folder.chmod(0o777)
    for path in folder.parents:
        if path == Path(tempfile.gettempdir()):
            return
        path.chmod(0o711)


def revoked_serials(fleet: Fleet) -> tuple[set[str], object]:
    crl = x509.load_pem_x509_crl((fleet.broker_folder / "ca.crl").read_bytes())
    return {f"{entry.serial_number:x}" for entry in crl}, crl.last_update_utc


def signing(fleet: Fleet) -> tuple[str, ...]:
    """Public keys of the file that the coordinator signs with, which the register has too."""
    keys = SigningKeys.read(fleet.folder / "coordinator" / "signing.key")
    found = tuple(key.hex() for key in keys.public)
    assert Fleet(fleet.folder).register.signing_keys == found
    return found
