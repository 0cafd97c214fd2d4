"""The update that waits for its receipt, and what an agent remembers of earlier boots."""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.machine.trust import TrustRecord
from learning.vector.parameters import F32


@dataclass(frozen=True, eq=False)
class SpooledUpdate:
    """A finished update.

    Attributes:
        session, round_id, boot, attempt: as in its header; receipts name them.
        fingerprint: of the model.
        deadline_s: of the round's plan.
        frame: as sent.
        residual: float32, shape (P,): what `frame` could not carry.
    """

    session: str
    round_id: int
    boot: str
    attempt: int
    fingerprint: str
    deadline_s: float
    frame: bytes
    residual: F32


@dataclass(frozen=True, eq=False)
class AgentMemory:
    """What an agent remembers of its earlier boots.

    Attributes:
        pending: sent, or about to be, without a receipt so far.
        residual: of the last update that counted; None when there is none.
        fingerprint: of the model that the residual belongs to.
        trust: whom it believed, and how far the coordinator's messages had come.
    """

    pending: SpooledUpdate | None = None
    residual: F32 | None = None
    fingerprint: str = ""
    trust: TrustRecord | None = None
