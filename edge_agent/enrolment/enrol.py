"""Enrolment of a device: a bundle or a token becomes certificates and a configuration that runs."""

from __future__ import annotations

from pathlib import Path

import msgspec
import yaml

from broker.enrolment.token import SCHEME, Token
from broker.protocol.signed_messages import encode_public_keys
from broker.security.bundle import MAX_BUNDLE_BYTES, Bundle, check_bundle, read_bundle
from edge_agent.config import AgentConfig
from edge_agent.data.config import DataConfig
from edge_agent.enrolment.private_key import certificate_request, forget_used_key, own_key
from edge_agent.enrolment.request_certificate import ask_for_certificate
from fedge.errors import ConfigError
from fedge.files import make_private_folder, write_whole
from fedge.yaml_config import load_config

CONFIG_FILE = "agent.yaml"
CA_FILE = "ca.crt"
KEYS_FILE = "coordinator.pub"
IDENTITY_FILE = "agent.pem"
#: The device's own key until it has a certificate.
KEY_FILE = "agent.key"
#: Where the data is looked for when nothing else is said; until it is there the agent connects and
#: says that it cannot take part.
DEFAULT_DATA = "data.npz"


def enrol(
    bundle_path: Path, folder: Path, data: Path | None, target: str, *, websockets: bool = False
) -> tuple[Bundle, bool]:
    """Unpacks a bundle into `folder`.

    On a folder of the same device (after a rotation) the certificates are replaced and its
    configuration is kept.

    Args:
        bundle_path: from `fedge broker enrol`.
        folder: made when it does not exist.
        data: the data file; None: `data.npz` in the folder.
        target: of a .csv or SQLite file: the column that is learned.
        websockets: the new configuration takes the broker's port for WebSockets.

    Returns:
        The bundle, and whether a configuration was written.

    Raises:
        ConfigError: the bundle is damaged or cannot be used here, or the folder is another
            device's; then nothing is changed.
    """
    bundle = read_bundle(bundle_path)
    return bundle, _install(bundle, f"bundle {bundle_path}", folder, data, target, websockets)


def enrol_with_token(
    token: Token,
    folder: Path,
    data: Path | None,
    target: str,
    timeout_s: float,
    *,
    websockets: bool = False,
) -> tuple[Bundle, bool]:
    """Makes a key, has it certified by the fleet's enrolment service, and fills `folder`.

    The key never leaves the device. When this is cut short it may be called again with the same
    token: the key is kept in the folder, and the service certifies it again.

    Args:
        token: from `fedge broker enrol --token`.
        folder: made when it does not exist.
        data: the data file; None: `data.npz` in the folder.
        target: of a .csv or SQLite file: the column that is learned.
        timeout_s: how long to try to reach the service.
        websockets: as for `enrol`.

    Returns:
        As `enrol`; the bundle has the device's key.

    Raises:
        ConfigError: refused, or the folder is another device's.
        LinkError: the service cannot be reached or trusted.
    """
    _check_before(token, folder, data, target)
    make_private_folder(folder)
    key_path = folder / KEY_FILE
    forget_used_key(key_path, folder / IDENTITY_FILE)
    key = own_key(key_path)
    granted = ask_for_certificate(token, certificate_request(key_path, token.agent_id), timeout_s)
    bundle = msgspec.structs.replace(granted, key=key)
    is_new = _install(
        bundle, "the answer of the enrolment service", folder, data, target, websockets
    )
    key_path.unlink()  # it is in the identity now
    return bundle, is_new


def token_in(source: str) -> Token | None:
    """Returns the token that `source` is, or names a file of; None: the file is a bundle.

    Raises:
        ConfigError: a token that is damaged.
    """
    text = source
    if not source.startswith(SCHEME):
        try:
            with Path(source).open("rb") as file:
                text = file.read(MAX_BUNDLE_BYTES).decode("ascii", "replace").strip()
        except OSError:
            return None  # it is for the reader of bundles to say so
    return Token.parse(text) if text.startswith(SCHEME) else None


def _check_before(token: Token, folder: Path, data: Path | None, target: str) -> None:
    """Checks what can be checked before the token is used up."""
    config_path = folder / CONFIG_FILE
    if config_path.exists():
        _check_same_device(token, config_path)
    else:
        _data_section(data, target)


def _install(
    bundle: Bundle, what: str, folder: Path, data: Path | None, target: str, websockets: bool
) -> bool:
    """Fills a device's folder; returns whether a configuration was written."""
    check_bundle(bundle, what)
    config_path = folder / CONFIG_FILE
    is_new = not config_path.exists()
    if is_new:
        text = config_text(bundle, data, target, websockets=websockets)
    else:
        _check_same_device(bundle, config_path)
    make_private_folder(folder)
    write_whole(folder / CA_FILE, bundle.ca.encode(), 0o644)
    write_whole(folder / IDENTITY_FILE, bundle.identity)
    keys = encode_public_keys(map(bytes.fromhex, bundle.trusted_keys))
    write_whole(folder / KEYS_FILE, keys, 0o644)
    if is_new:  # last: a folder with a configuration is complete
        write_whole(config_path, text.encode(), 0o644)
        load_config(config_path, AgentConfig)
    return is_new


def _check_same_device(who: Bundle | Token, config_path: Path) -> None:
    config = load_config(config_path, AgentConfig)
    here = (config.agent_id, config.federation)
    if here != (who.agent_id, who.federation):
        raise ConfigError(
            f"{config_path} is of {here[0]} in federation {here[1]}, not of "
            f"{who.agent_id} in {who.federation}: choose another --dir"
        )


def config_text(bundle: Bundle, data: Path | None, target: str, *, websockets: bool = False) -> str:
    """Returns the agent's configuration as YAML.

    Raises:
        ConfigError: the broker has no port for WebSockets, or the data file is of a kind that is
            not read, or lacks its target.
    """
    source = _data_section(data, target)
    if websockets and not bundle.websockets:
        raise ConfigError(
            "this fleet's broker does not listen for WebSockets (fedge broker init --websockets)"
        )
    document = {
        "federation": bundle.federation,
        "agent_id": bundle.agent_id,
        "broker": {
            "host": bundle.host,
            "port": bundle.websockets if websockets else bundle.port,
            "tls": {"ca_file": CA_FILE, "cert_file": IDENTITY_FILE, "key_file": IDENTITY_FILE},
            **({"websocket": {}} if websockets else {}),
        },
        "trusted_keys": KEYS_FILE,
        "data": source,
        "state_dir": "state",
    }
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return f"# Paths are relative to this file; docs/configuration.md lists all keys.\n{text}"


def _data_section(data: Path | None, target: str) -> dict[str, object]:
    # Absolute, since a configuration's paths are relative to its own folder.
    path = str(data.absolute()) if data else DEFAULT_DATA
    try:
        is_table = DataConfig(path=path).format != "npz"
    except ValueError as error:
        raise ConfigError(f"--data {path}: {error}") from error
    if is_table and not target:
        raise ConfigError(f"--data {path}: say which column is learned with --target COLUMN")
    source: dict[str, object] = {"path": path}
    if target:
        source["target"] = {"column" if is_table else "array": target}
    return source
