"""What can happen to an agent (events) and what it can ask its shell to do (actions)."""

from __future__ import annotations

from dataclasses import dataclass

from broker.protocol.messages import RoundPlan
from broker.service.events import (
    Connected,
    Disconnected,
    LinkAction,
    MessageArrived,
    Started,
    Stopping,
    Tick,
)
from edge_agent.machine.limits import Readings
from edge_agent.machine.pending_update import SpooledUpdate
from edge_agent.machine.trust import TrustRecord
from edge_agent.training.result import TrainingResult
from learning.vector.metrics import Sums
from learning.vector.parameters import F32


@dataclass(frozen=True)
class PackageLoaded:
    """The program runs here and the device's data fits it."""

    package: str
    fingerprint: str
    runtime: str
    train_examples: int
    test_examples: int


@dataclass(frozen=True)
class PackageFailed:
    """The device cannot work with this package.

    Attributes:
        reason: machine name: no_program, no_data, memory.
        needs_bytes: with this much memory available it would work; 0: nothing to wait for.
        passing: it may work some time later, as it is; it is tried again.
    """

    package: str
    reason: str
    detail: str
    needs_bytes: int = 0
    passing: bool = False

    @property
    def may_pass(self) -> bool:
        """Whether it may yet be used, as it is."""
        return self.passing or self.needs_bytes > 0


@dataclass(frozen=True)
class Trained:
    """A training job is done."""

    plan: RoundPlan
    result: TrainingResult


@dataclass(frozen=True)
class Evaluated:
    """An evaluation job is done."""

    plan: RoundPlan
    sums: Sums


@dataclass(frozen=True)
class JobFailed:
    """A job ended without a result: training diverged, or the interpreter failed."""

    plan: RoundPlan
    detail: str


@dataclass(frozen=True)
class BlobRecalled:
    """Chunks of a blob that the disk holds."""

    sha256: str
    payloads: tuple[bytes, ...]


@dataclass(frozen=True)
class Felt:
    """How the device feels now."""

    readings: Readings


Event = (
    Started
    | Connected
    | Disconnected
    | MessageArrived
    | Tick
    | BlobRecalled
    | PackageLoaded
    | PackageFailed
    | Trained
    | Evaluated
    | JobFailed
    | Felt
    | Stopping
)


@dataclass(frozen=True)
class LoadPackage:
    """Load the program and the device's data; answered by PackageLoaded or PackageFailed."""

    package: str
    wire: bytes


@dataclass(frozen=True)
class RecallBlob:
    """Which chunks of the blob does the disk hold? Answered by BlobRecalled."""

    sha256: str


@dataclass(frozen=True)
class KeepChunk:
    """Keep a chunk on disk."""

    sha256: str
    payload: bytes


@dataclass(frozen=True)
class ForgetBlob:
    """Free what the disk holds of a blob."""

    sha256: str


@dataclass(frozen=True)
class KeepTrust:
    """Have on disk whom the agent trusts, before what follows is done."""

    record: TrustRecord


@dataclass(frozen=True, eq=False)
class SpoolUpdate:
    """Have the update on disk before what follows is done."""

    update: SpooledUpdate


@dataclass(frozen=True)
class SettleUpdate:
    """The spooled update is done with."""

    accepted: bool


@dataclass(frozen=True)
class ForgetResidual:
    """What the last update that counted has left is of no more use."""


@dataclass(frozen=True, eq=False)
class StartJob:
    """Do what the plan asks with θ; answered by Trained, Evaluated or JobFailed."""

    plan: RoundPlan
    theta: F32


@dataclass(frozen=True)
class CancelJob:
    """Nobody waits for the running job's result any more."""


@dataclass(frozen=True)
class PauseJobs:
    """The running job, and those to come, wait before their next step."""


@dataclass(frozen=True)
class ResumeJobs:
    """They go on."""


Action = (
    LinkAction
    | RecallBlob
    | KeepChunk
    | ForgetBlob
    | KeepTrust
    | SpoolUpdate
    | SettleUpdate
    | ForgetResidual
    | LoadPackage
    | StartJob
    | CancelJob
    | PauseJobs
    | ResumeJobs
)
