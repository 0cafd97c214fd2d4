"""What an agent says of itself and of its work, as messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

import numpy as np

from broker import messages
from broker.messages import (
    MAX_MISSING,
    AgentStatus,
    CoordinatorStatus,
    Report,
    RoundPlan,
    Task,
    UpdateHeader,
)
from edge_agent.events import PackageFailed, PackageLoaded
from edge_agent.fetcher import STALL_S
from edge_agent.limits import LimitsConfig, Rest
from edge_agent.spool import SpooledUpdate
from edge_agent.trainer import TrainingResult
from models.codecs import CODECS, compensate, make_codec
from models.metrics import Sums, Total
from models.parameters import F32


@dataclass(frozen=True)
class AgentFacts:
    """What does not change while the process lives.

    Attributes:
        boot: new at every start; receipts for an earlier boot are not ours.
        unable: why this device cannot take part at all (no interpreter); empty when it can.
        fingerprint: the only layout this device trains, when pinned by its configuration.
        max_blob_bytes: larger packages and weights are refused.
        heartbeat_s: says that it is there so often; 0 never.
        stall_s: a fetch without a chunk for so long asks again.
        trusted_keys: public keys of the coordinator, 32 bytes each; none: nothing need be signed.
        limits: when the device rests.
    """

    agent_id: str
    federation: str
    boot: str
    tasks: tuple[Task, ...] = ("train", "evaluate")
    tags: tuple[str, ...] = ()
    unable: str = ""
    memory_bytes: int = 0
    software: str = ""
    fingerprint: str | None = None
    max_blob_bytes: int = 64 << 20
    heartbeat_s: float = 0.0
    stall_s: float = STALL_S
    trusted_keys: tuple[bytes, ...] = ()
    limits: LimitsConfig = field(default_factory=LimitsConfig)


def agent_status(
    facts: AgentFacts,
    loaded: PackageLoaded | None,
    failed: PackageFailed | None,
    rest: Rest | None = None,
    *,
    online: bool,
) -> AgentStatus:
    """The birth, the heartbeat and, with `online=False`, the will."""
    unable = facts.unable or (f"{failed.reason}: {failed.detail}" if failed else "")
    return AgentStatus(
        state="online" if online else "offline",
        boot=facts.boot,
        tasks=facts.tasks,
        train_examples=loaded.train_examples if loaded and not unable else 0,
        test_examples=loaded.test_examples if loaded and not unable else 0,
        unable=unable[:500],
        passing=failed is not None and failed.may_pass and not facts.unable,
        paused=str(rest or ""),
        runtime=loaded.runtime if loaded else "",
        memory_bytes=facts.memory_bytes,
        codecs=tuple(CODECS),
        tags=facts.tags,
        software=facts.software,
        heartbeat_s=facts.heartbeat_s,
    )


def finished_update(
    facts: AgentFacts,
    plan: RoundPlan,
    result: TrainingResult,
    residual: F32 | None,
    attempt: int,
    received_bytes: int,
) -> SpooledUpdate:
    """The update frame of a finished training, and what rounding lost of it.

    Raises:
        CodecError: there is nothing finite to send.
        ConfigError: the plan's codec is unknown.
    """
    # From the plan's seed and the agent's name, so that a repeated training rounds the same way.
    rng = np.random.default_rng([plan.seed, crc32(facts.agent_id.encode()), 1])
    encoded = compensate(make_codec(plan.codec), result.delta, residual, rng)
    sums = result.sums
    header = UpdateHeader(
        session=plan.session,
        boot=facts.boot,
        round_id=plan.round_id,
        attempt=attempt,
        version=plan.version,
        fingerprint=plan.fingerprint,
        codec=plan.codec,
        size=len(result.delta),
        num_examples=result.num_examples,
        loss_sum=sums.loss,
        weight_sum=sums.weight,
        metric_sums=dict(sums.metrics),
        training_s=result.seconds,
        received_bytes=received_bytes,
    )
    return SpooledUpdate(
        session=plan.session,
        round_id=plan.round_id,
        boot=facts.boot,
        attempt=attempt,
        fingerprint=plan.fingerprint,
        deadline_s=plan.deadline_s,
        frame=messages.encode_update(header, encoded.payload),
        residual=encoded.residual,
    )


def not_finite(sums: Sums) -> str:
    """Which sum cannot be sent, in words; empty when all can."""
    totals: dict[str, Total] = {"loss": sums.loss, **sums.metrics}
    values = (
        (name, value)
        for name, total in totals.items()
        for value in (total if isinstance(total, tuple) else (total,))
    )
    bad = [f"{name} is {value:g}" for name, value in values if not abs(value) <= 1e100]
    return f"{bad[0]} (sum over {sums.weight:g} rows): training diverged" if bad else ""


def plan_report(
    facts: AgentFacts,
    plan: RoundPlan,
    kind: Literal["declined", "evaluation"],
    reason: str = "",
    detail: str = "",
) -> Report:
    """The answer to a plan that is no update; bytes received are the caller's to add."""
    return Report(
        session=plan.session,
        boot=facts.boot,
        round_id=plan.round_id,
        kind=kind,
        task=plan.task,
        version=plan.version,
        reason=reason,
        detail=detail[:500],
    )


def missing_report(
    facts: AgentFacts,
    coordinator: CoordinatorStatus,
    plan: RoundPlan | None,
    sha256: str,
    chunks: tuple[int, ...],
) -> Report:
    """That chunks of a blob do not come; bytes received are the caller's to add."""
    return Report(
        session=coordinator.session,
        boot=facts.boot,
        round_id=0 if plan is None else plan.round_id,
        kind="missing",
        task="evaluate" if plan is None else plan.task,
        version=coordinator.version,
        sha256=sha256,
        chunks=chunks[:MAX_MISSING],
    )


def refusal(
    facts: AgentFacts,
    plan: RoundPlan,
    loaded: PackageLoaded | None,
    failed: PackageFailed | None,
    rest: Rest | None,
) -> tuple[str, str] | None:
    """Why this device does not do what the plan asks, as (reason, detail); None: it does."""
    if facts.unable:
        return "no_runtime", facts.unable
    if failed is not None and failed.package == plan.package:
        return failed.reason, failed.detail
    if rest is not None:
        return rest.reason, rest.detail
    if plan.task == "train" and plan.codec.name not in CODECS:
        return "codec", f"codec {plan.codec.name!r} is unknown; known: {', '.join(CODECS)}"
    if loaded is None or loaded.package != plan.package:
        return None  # on its way
    if loaded.fingerprint != plan.fingerprint:
        detail = f"the plan is for layout {plan.fingerprint}, the model has {loaded.fingerprint}"
        return "fingerprint", detail
    rows = loaded.train_examples if plan.task == "train" else loaded.test_examples
    return ("no_data", f"no rows to {plan.task} on") if rows == 0 else None
