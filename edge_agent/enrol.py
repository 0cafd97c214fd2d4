"""Turns a bundle into a device's folder: certificates and a configuration that runs."""

from __future__ import annotations

from pathlib import Path

import yaml

from broker.bundle import Bundle, check_bundle, read_bundle
from broker.config import load_config
from broker.seal import encode_public_keys
from broker.security_files import make_private_folder, write_whole
from edge_agent.config import AgentConfig
from models.errors import ConfigError

CONFIG_FILE = "agent.yaml"
CA_FILE = "ca.crt"
KEYS_FILE = "coordinator.pub"
IDENTITY_FILE = "agent.pem"
#: Where the data is looked for when nothing else is said; until it is there the agent connects and
#: says that it cannot take part.
DEFAULT_DATA = "data.npz"


def enrol(bundle_path: Path, folder: Path, data: Path | None, target: str) -> tuple[Bundle, bool]:
    """Unpacks a bundle into `folder`.

    On a folder of the same device (after a rotation) the certificates are replaced and its
    configuration is kept.

    Args:
        bundle_path: from `fedge broker enrol`.
        folder: made when it does not exist.
        data: the data file; None: `data.npz` in the folder.
        target: of a .csv file: the column that is learned.

    Returns:
        The bundle, and whether a configuration was written.

    Raises:
        ConfigError: the bundle is damaged or cannot be used here, or the folder is another
            device's; then nothing is changed.
    """
    bundle = read_bundle(bundle_path)
    check_bundle(bundle, f"bundle {bundle_path}")
    config_path = folder / CONFIG_FILE
    is_new = not config_path.exists()
    if is_new:
        text = config_text(bundle, data, target)
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
    return bundle, is_new


def _check_same_device(bundle: Bundle, config_path: Path) -> None:
    config = load_config(config_path, AgentConfig)
    here = (config.agent_id, config.federation)
    if here != (bundle.agent_id, bundle.federation):
        raise ConfigError(
            f"{config_path} is of {here[0]} in federation {here[1]}, the bundle of "
            f"{bundle.agent_id} in {bundle.federation}: choose another --dir"
        )


def config_text(bundle: Bundle, data: Path | None, target: str) -> str:
    """The agent's configuration as YAML.

    Raises:
        ConfigError: the data file is of a kind that is not read, or lacks its target.
    """
    # Absolute, since a configuration's paths are relative to its own folder.
    path = str(data.absolute()) if data else DEFAULT_DATA
    suffix = Path(path).suffix.lower()
    if suffix not in (".npz", ".csv"):
        raise ConfigError(f"--data {path}: must end in .npz or .csv")
    if suffix == ".csv" and not target:
        raise ConfigError(f"--data {path}: say which column is learned with --target COLUMN")
    source: dict[str, object] = {"path": path}
    if target:
        source["target"] = {"column" if suffix == ".csv" else "array": target}
    document = {
        "federation": bundle.federation,
        "agent_id": bundle.agent_id,
        "broker": {
            "host": bundle.host,
            "port": bundle.port,
            "tls": {"ca_file": CA_FILE, "cert_file": IDENTITY_FILE, "key_file": IDENTITY_FILE},
        },
        "trusted_keys": KEYS_FILE,
        "data": source,
        "state_dir": "state",
    }
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    return f"# Paths are relative to this file; docs/configuration.md lists all keys.\n{text}"
