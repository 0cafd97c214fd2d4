"""The one tree of errors.

The class says who must act; `exit_code` is what a command that ends with the error returns to its
shell. Codes are part of the command-line contract (docs/exit-codes.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class FederationError(Exception):
    """The root: every error this project raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(FederationError):
    """A person must act: a configuration file, an option or an argument is wrong."""

    exit_code = 2


class DataError(ConfigError):
    """A person must act: a data file is missing, empty, or does not hold what was configured."""


class ModelError(ConfigError):
    """A person must act: a model package, spec or program is unusable here."""


class ExportError(ModelError):
    """A Keras model cannot become a program; names the layer or operator and the way out."""


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
    """Bytes that are no message of this protocol: drop them, count them, go on."""


class UntrustedError(WireError):
    """A message that is not the coordinator's, or is an old one played again.

    Attributes:
        reason: in words; the same for every message that is refused for it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class CodecError(WireError):
    """An encoded vector that is truncated, oversized or not finite; or a vector not to be sent."""


class TrainingError(FederationError):
    """This round is lost: training diverged or could not run, here or in the mean.

    A command that ends with it was given data, or a learning rate, that the model cannot take.
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
    """A readable update that must not count.

    Attributes:
        agent_id: whose update.
        reason: the machine name of the reason, as in receipts (`late`, `not_finite`, `norm`, …).
    """

    def __init__(self, agent_id: str, reason: str, detail: str) -> None:
        super().__init__(f"update from {agent_id} refused ({reason}): {detail}")
        self.agent_id = agent_id
        self.reason = reason
        self.detail = detail


def one_line(error: BaseException, lines: int = 1) -> str:
    """What an exception says first, as one line of 300 characters; its class if it is silent.

    Libraries write pages, some of them in colour, and of lacking memory only "std::bad_alloc".
    """
    text = "not enough memory" if isinstance(error, MemoryError) else _COLOUR.sub("", str(error))
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(said[:lines])[:300] or type(error).__name__


def did_you_mean(name: str, known: Sequence[str], folder: str = "") -> str:
    """`did you mean NAME? ` of the known name that comes closest; empty where none is close.

    Args:
        name: that is unknown.
        known: names there are.
        folder: written before the name.
    """
    import difflib  # for a wrong name only, not at every start of an agent

    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {folder}{close[0]}? " if close else ""
