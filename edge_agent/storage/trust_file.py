"""Trust file: an agent's trust record in its state folder (`edge_agent.machine.trust`)."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from broker.protocol.signed_messages import read_public_keys
from edge_agent.config import AgentConfig
from edge_agent.machine.trust import TrustRecord
from fedge.errors import ConfigError, StoreError
from fedge.files import write_whole
from fedge.yaml_config import located

log = logging.getLogger(__name__)

TRUST_FILE = "trust.json"
_MAX_BYTES = 64 << 10


def open_trust(config: AgentConfig, base: Path) -> tuple[tuple[bytes, ...], TrustRecord | None]:
    """Returns the keys that a device was enrolled with, and its stored trust record.

    Args:
        config: of the agent.
        base: folder that its paths are relative to.

    Returns:
        Public keys, 32 bytes each (none: any message is trusted), and the record; None without one.

    Raises:
        ConfigError: the file with the keys is missing or damaged.
    """
    if config.trusted_keys is None:
        return (), None
    keys = read_public_keys(located(config.trusted_keys, base))
    return keys, TrustFile(located(config.state_dir, base)).load()


class TrustFile:
    """Trust file of one agent.

    Args:
        state_dir: made when absent.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / TRUST_FILE

    def load(self) -> TrustRecord | None:
        """Returns the stored record; None when there is none, or, with a warning, a damaged one."""
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_MAX_BYTES), type=TrustRecord)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning(
                "%s is damaged, only the enrolled keys are trusted and the next messages count as"
                " the newest: %s",
                self._path,
                error,
            )
            return None

    def write(self, record: TrustRecord) -> None:
        """Writes the record; it is on the disk on return.

        Raises:
            StoreError: the disk is full or failed.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, msgspec.json.encode(record))
        except (ConfigError, OSError) as error:
            raise StoreError(
                f"{error}; after a restart older plans than now are not recognised"
            ) from error
