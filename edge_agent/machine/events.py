"""Events that an agent's machine takes, and actions that it asks its shell to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from broker.protocol.messages import RoundPlan, TargetSummary
from broker.service.events import (
    BrokerRefused,
    Connected,
    Disconnected,
    LinkAction,
    MessageArrived,
    Started,
    Stopping,
    Tick,
)
from edge_agent.machine.device_state import DeviceState
from edge_agent.machine.limits import DeviceReadings
from edge_agent.machine.pending_update import JobResult, SpooledUpdate
from edge_agent.machine.trust import TrustRecord
from learning.vector.vectors import Vectors


@dataclass(frozen=True)
class PackageLoaded:
    """The program runs here and the device's data fits it.

    Attributes:
        package: its SHA-256.
        fingerprint: of the layout.
        model: the layouts that device state belongs to (`device_state.model_key`).
        runtime: the interpreter.
        train_examples: rows to learn from.
        test_examples: rows held out.
        train_weight: sum of the weights of the rows to learn from.
        test_weight: of those held out.
        targets: coarse description of the rows' targets by name; empty: its owner does not say.
        warnings: what is odd about the rows.
    """

    package: str
    fingerprint: str
    model: str
    runtime: str
    train_examples: int
    test_examples: int
    train_weight: float
    test_weight: float
    targets: Mapping[str, TargetSummary] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PackageFailed:
    """The device cannot work with this package.

    Attributes:
        package: its SHA-256.
        reason: machine name: no_program, no_data, memory.
        detail: for people.
        needs_bytes: with this much memory available it would work; 0: nothing to wait for.
        is_transient: the same package may work later; it is tried again.
    """

    package: str
    reason: str
    detail: str
    needs_bytes: int = 0
    is_transient: bool = False

    @property
    def may_recover(self) -> bool:
        """Whether the package may yet be used, as it is."""
        return self.is_transient or self.needs_bytes > 0


class JobDone(msgspec.Struct, frozen=True, eq=False):
    """A job ended with a result."""

    plan: RoundPlan
    result: JobResult


class JobFailed(msgspec.Struct, frozen=True):
    """A job ended without a result.

    Attributes:
        plan: of the job.
        detail: for people.
        reason: machine name, as in reports; empty: training or evaluation, whichever it was.
    """

    plan: RoundPlan
    detail: str
    reason: str = ""


@dataclass(frozen=True)
class BlobRecalled:
    """Chunks of a blob that the disk holds."""

    sha256: str
    payloads: tuple[bytes, ...]


Event = (
    Started
    | Connected
    | Disconnected
    | BrokerRefused
    | MessageArrived
    | Tick
    | BlobRecalled
    | PackageLoaded
    | PackageFailed
    | JobDone
    | JobFailed
    | DeviceReadings
    | Stopping
)


@dataclass(frozen=True)
class LoadPackage:
    """Load the program and the device's data; answered by PackageLoaded or PackageFailed."""

    package: str
    wire: bytes


@dataclass(frozen=True)
class RecallBlob:
    """Read the chunks of a blob that the disk holds; answered by BlobRecalled."""

    sha256: str


@dataclass(frozen=True)
class KeepChunk:
    """Keep a chunk on disk."""

    sha256: str
    payload: bytes


@dataclass(frozen=True)
class ForgetBlob:
    """Delete the chunks of a blob from disk."""

    sha256: str


@dataclass(frozen=True)
class SaveTrust:
    """Write the trust record to disk before the actions that follow."""

    record: TrustRecord


class SpoolUpdate(msgspec.Struct, frozen=True, eq=False):
    """Write the update and its next state to disk before the actions that follow."""

    update: SpooledUpdate


class ResolvePendingUpdate(msgspec.Struct, frozen=True):
    """The pending update is resolved: keep its next state (accepted), or delete both."""

    accepted: bool


@dataclass(frozen=True)
class ForgetState:
    """Delete the settled device state: it belongs to another model."""


class StartJob(msgspec.Struct, frozen=True, eq=False):
    """Do what the plan asks; answered by JobDone or JobFailed.

    Attributes:
        plan: of the round.
        blobs: vectors of the plan's blobs by name, read-only; θ is `weights`.
        state: of the device.
    """

    plan: RoundPlan
    blobs: Vectors
    state: DeviceState


@dataclass(frozen=True)
class CancelJob:
    """Cancel the running job: nobody waits for its result any more."""


@dataclass(frozen=True)
class PauseJobs:
    """Pause the running job, and those to come, before their next step."""


@dataclass(frozen=True)
class ResumeJobs:
    """Resume paused jobs."""


Action = (
    LinkAction
    | RecallBlob
    | KeepChunk
    | ForgetBlob
    | SaveTrust
    | SpoolUpdate
    | ResolvePendingUpdate
    | ForgetState
    | LoadPackage
    | StartJob
    | CancelJob
    | PauseJobs
    | ResumeJobs
)
