"""Imports without OpenSSL, each in a process of its own: what is loaded, and what works after."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.cli import _needs_openssl

LOADED = """
import sys
from pathlib import Path
maps = Path("/proc/self/maps").read_text()
print("libcrypto" in maps, "_ssl" in sys.modules, "_hashlib" in sys.modules)
"""


def run(code: str) -> list[str]:
    """Returns the lines that the code prints in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_an_agent_is_imported_without_openssl() -> None:
    code = "from fedge import openssl\nwith openssl.left_out():\n    import edge_agent.service\n"
    assert run(code + LOADED) == ["False False False"]


@pytest.mark.parametrize("name", ["asyncio", "importlib.metadata"])
def test_an_agent_with_its_runtime_does_not_import(name: str) -> None:
    code = f"""
import sys, edge_agent.service
from models.runtime.interpreters import available_runtimes, find_runtime
for runtime in available_runtimes()[:1]:
    find_runtime(runtime)
print({name!r} in sys.modules)
"""
    assert run(code) == ["False"], "it costs every agent one or two megabytes"


def test_hashes_are_the_same_and_ssl_can_be_imported_afterwards() -> None:
    code = """
from fedge import openssl
with openssl.left_out():
    import hashlib, hmac, secrets, broker.link.mqtt
print(hashlib.sha256(b"abc").hexdigest()[:16], len(hashlib.new("sha512").digest()))
print(hmac.new(b"key", b"abc", "sha256").hexdigest()[:16], len(secrets.token_hex(8)))
import ssl
print(ssl.create_default_context().verify_mode.name)
from broker.link.settings import TlsSettings
try:
    TlsSettings(ca_file="/nowhere").context()
except Exception as error:
    print(error)
"""
    assert run(code) == [
        "ba7816bf8f01cfea 64",
        "9c196e32dc0175f8 16",
        "CERT_REQUIRED",
        "tls: /nowhere does not exist",
    ]


@pytest.mark.parametrize(
    "before",
    ["import hashlib", "import ssl", "openssl._OWN_HASHES += ('_no_such_hash',)"],
)
def test_nothing_is_left_out_where_openssl_is_loaded_or_needed_for_hashes(before: str) -> None:
    code = f"""
from fedge import openssl
{before}
with openssl.left_out():
    import ssl
print(ssl.create_default_context().verify_mode.name)
"""
    assert run(code) == ["CERT_REQUIRED"]


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("broker: {host: 127.0.0.1}", False),
        ("federation: f  # no tls here", False),
        ("broker: {websocket: {path: /mqtt}}", False),
        ("broker: {tls: {ca_file: ca.crt}}", True),
        ("broker: {proxy: {url: 'http://127.0.0.1:1'}}", True),
        ("plugins: [own.py]", True),
        ("broker: [", True),
        ("broker: 3", True),
    ],
)
def test_openssl_is_left_out_where_no_setting_can_need_it(
    tmp_path: Path, text: str, needs: bool
) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    assert _needs_openssl(path) is needs
