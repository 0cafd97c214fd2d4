"""Private key of a device and the request for its certificate, made by the `openssl` command.

Why the command: it is on every Debian and Raspberry Pi OS (ca-certificates needs it), costs no
memory of the agent, and spares the device a Python package of 10 MB for something it does once.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from fedge.errors import ConfigError
from fedge.files import write_whole

_PATIENCE_S = 60
_GENERATE = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]


def own_key(path: Path) -> str:
    """Returns the key in `path`, made when there is none; PEM, not encrypted.

    An attempt to enrol that was cut short left its key: the next one asks with the same.

    Raises:
        ConfigError: there is no openssl, it fails, or the file cannot be read or written.
    """
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}: delete it") from error
    key = _openssl(_GENERATE)
    write_whole(path, key.encode())
    return key


def forget_used_key(path: Path, identity: Path) -> None:
    """Removes the key in `path` when it is that of `identity`: a rotation makes a new one.

    The power was cut after the identity was written, and before the key's own file was removed.

    Raises:
        ConfigError: a file cannot be read or removed.
    """
    try:
        if path.exists() and identity.exists() and path.read_bytes() in identity.read_bytes():
            path.unlink()
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error


def certificate_request(path: Path, agent_id: str) -> str:
    """Returns a request (PKCS #10, PEM) for a certificate of the key in `path`.

    Raises:
        ConfigError: there is no openssl, or the key is damaged.
    """
    command = ["openssl", "req", "-new", "-sha256", "-key", str(path), "-subj", f"/CN={agent_id}"]
    try:
        return _openssl(command)
    except ConfigError as error:
        raise ConfigError(f"{error}: if {path} is damaged delete it, and try again") from error


def _openssl(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=True,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "a token needs the openssl command on this device (apt install openssl); "
            "or enrol it with a bundle"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"openssl {command[1]} did not end within {_PATIENCE_S} s") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise ConfigError(f"openssl {command[1]} failed: {said[:200]}") from error
    return done.stdout
