"""Results of jobs, the update among them that is pending, and the memory of earlier instances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from broker.protocol.messages import VectorRef
from edge_agent.machine.device_state import DeviceState
from edge_agent.machine.trust import TrustRecord
from learning.phases.phase import Values
from learning.vector.metrics import Sums


@dataclass(frozen=True, eq=False)
class LocalUpdate:
    """An update, encoded; it counts once a receipt says accepted.

    Attributes:
        vectors: by name, in the order of their parts in `body`.
        body: encoded vectors, one behind the other.
        num_examples: rows learned from.
        sums: of loss and metrics over the last epoch, each batch measured before its step.
        seconds: wall time of training.
        state: of the device once the update counts.
    """

    vectors: Mapping[str, VectorRef]
    body: bytes
    num_examples: int
    sums: Sums
    seconds: float
    state: DeviceState


@dataclass(frozen=True, eq=False)
class LocalReport:
    """An answer without vectors.

    Attributes:
        sums: of loss and metrics over rows.
        values: numbers by name, of a phase without θ.
        num_examples: rows behind them.
    """

    sums: Sums
    values: Values = field(default_factory=dict)
    num_examples: int = 0


JobResult = LocalUpdate | LocalReport


class SpooledUpdate(msgspec.Struct, frozen=True, eq=False):
    """An update on disk, pending until its receipt.

    Attributes:
        session, round_id, agent_instance, attempt, version: as in its header; receipts name the
            first four.
        phase: of the plan.
        deadline_s: of the round's plan.
        frame: as sent.
        state: of the device once the update counts.
    """

    session: str
    round_id: int
    phase: str
    agent_instance: str
    attempt: int
    version: int
    deadline_s: float
    frame: bytes
    state: DeviceState


@dataclass(frozen=True, eq=False)
class AgentMemory:
    """Memory that an agent keeps from its earlier instances.

    Attributes:
        pending: an update without a receipt so far.
        settled: state of the last update that counted; None when there is none.
        trust: trusted keys and the highest numbers of the coordinator's messages.
    """

    pending: SpooledUpdate | None = None
    settled: DeviceState | None = None
    trust: TrustRecord | None = None
