"""Exception classes of the project, in one tree.

The class tells who must act; `exit_code` is the exit code of a command that ends with the error.
Exit codes are part of the command-line contract (docs/exit-codes.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class FederationError(Exception):
    """Root of all errors that this project raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(FederationError):
    """A person must act: a configuration file, an option or an argument is wrong."""

    exit_code = 2


class DataError(ConfigError):
    """A person must act: a data file is missing, empty, or does not hold what was configured."""


class ModelError(ConfigError):
    """A person must act: a model package, spec or program is unusable here."""


class ExportError(ModelError):
    """A Keras model cannot become a program; names the layer or operator and a solution."""


class LinkError(FederationError):
    """Retry later: the broker cannot be reached or refuses us."""

    exit_code = 3


class FleetError(FederationError):
    """A fleet run ended without its result (the service failed, or no round was committed)."""

    exit_code = 4


class StoreError(FederationError):
    """The disk failed while the federation ran: nothing may be announced that is not stored."""

    exit_code = 5


class WireError(FederationError):
    """Bytes are not a message of this protocol: drop, count, continue."""


class UntrustedError(WireError):
    """A message is not from the coordinator, or is a replay.

    Attributes:
        reason: human-readable; the same text for every message with this reason.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class CodecError(WireError):
    """An encoded vector is truncated, oversized or not finite, or a vector must not be sent."""


class TrainingError(FederationError):
    """This round is lost: training diverged or could not run, here or in the aggregate.

    For a command: the data or the learning rate do not suit the model.
    """

    exit_code = 2


class DeclinedError(FederationError):
    """This device does not do what a plan asks.

    Attributes:
        reason: the machine name of the reason, as in reports (`no_data`, `algorithm`, ...).
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class UpdateRejected(FederationError):
    """A readable update is not acceptable.

    Attributes:
        agent_id: the agent that sent the update.
        reason: machine name of the reason, as in receipts (`late`, `not_finite`, `norm`, …).
    """

    def __init__(self, agent_id: str, reason: str, detail: str) -> None:
        super().__init__(f"update from {agent_id} refused ({reason}): {detail}")
        self.agent_id = agent_id
        self.reason = reason
        self.detail = detail


def one_line(error: BaseException, lines: int = 1) -> str:
    """Returns the first line of an exception's text, at most 300 characters; else its class.

    Libraries may write many lines, with colours, and for missing memory only "std::bad_alloc".
    """
    text = "not enough memory" if isinstance(error, MemoryError) else _COLOUR.sub("", str(error))
    texts = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(texts[:lines])[:300] or type(error).__name__


def did_you_mean(name: str, known: Sequence[str], folder: str = "") -> str:
    """Returns `did you mean NAME? ` with the closest known name; empty if none is close.

    The shortest name that begins with the unknown one goes before names that resemble it.

    Args:
        name: the unknown name.
        known: all known names.
        folder: text before the name.
    """
    import difflib  # imported only for a wrong name, not at every start of an agent

    begun = [other for other in known if len(name) > 1 and other.startswith(name)]
    close = sorted(begun, key=len) or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {folder}{close[0]}? " if close else ""
