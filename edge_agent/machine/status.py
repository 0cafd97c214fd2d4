"""Status of an agent, and the reasons for which it declines a plan."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.protocol.messages import MAX_MESSAGE_BYTES, AgentStatus, RoundPlan
from edge_agent.machine.blob_fetcher import STALL_S
from edge_agent.machine.events import PackageFailed, PackageLoaded
from edge_agent.machine.limits import LimitsConfig, PauseReason
from fedge.errors import DeclinedError
from learning.algorithms.registry import ALGORITHMS
from learning.codecs.registry import CODECS
from learning.phases.phase import Phase

#: Phases that every device takes part in unless its configuration says otherwise.
DEFAULT_PHASES = ("train", "evaluate", "statistics")


@dataclass(frozen=True)
class AgentFacts:
    """Facts that do not change while the process lives.

    Attributes:
        agent_instance: new at every start; receipts for an earlier instance's update name that
            instance.
        phases: the device takes part in.
        unavailable_reason: why this device cannot take part at all (no interpreter); empty when it
            can.
        fingerprint: the only layout this device trains, when pinned by its configuration.
        max_blob_bytes: larger packages and vectors are refused.
        heartbeat_s: seconds between heartbeats; 0: none.
        stall_s: seconds without a chunk after which a fetch subscribes again.
        trusted_keys: public keys of the coordinator, 32 bytes each; none: nothing need be signed.
        limits: when the device pauses.
    """

    agent_id: str
    federation: str
    agent_instance: str
    phases: tuple[str, ...] = DEFAULT_PHASES
    tags: tuple[str, ...] = ()
    unavailable_reason: str = ""
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
    pause: PauseReason | None,
    obstacle: str,
    keys: tuple[str, ...],
    max_payload_bytes: int,
    coordinator_instance: str,
    received_bytes: int,
    *,
    online: bool,
) -> AgentStatus:
    """Returns the birth, the heartbeat and, with `online=False`, the will.

    Args:
        facts: of this instance.
        loaded: the package that is ready.
        failed: the package that cannot be used, and why.
        pause: why the device pauses.
        obstacle: what else prevents it from taking part for now; empty: nothing.
        keys: names of the trusted keys.
        max_payload_bytes: largest message of the connection; 0: not known yet.
        coordinator_instance: start of the coordinator that is online; empty when none is.
        received_bytes: by the link, when it saw that start.
        online: whether this process is connected.
    """
    reason = facts.unavailable_reason or (f"{failed.reason}: {failed.detail}" if failed else "")
    is_transient = failed is not None and failed.may_recover and not facts.unavailable_reason
    ready = loaded if not reason else None
    if obstacle:
        reason, is_transient = obstacle, True
    return AgentStatus(
        state="online" if online else "offline",
        agent_instance=facts.agent_instance,
        phases=facts.phases,
        train_examples=ready.train_examples if ready else 0,
        test_examples=ready.test_examples if ready else 0,
        train_weight=_other_weight(ready.train_weight, ready.train_examples) if ready else 0.0,
        test_weight=_other_weight(ready.test_weight, ready.test_examples) if ready else 0.0,
        unavailable_reason=reason[:500],
        is_transient=is_transient,
        pause_reason=str(pause or ""),
        runtime=loaded.runtime if loaded else "",
        memory_bytes=facts.memory_bytes,
        codecs=tuple(CODECS.names()),
        algorithms=tuple(ALGORITHMS.names()),
        tags=facts.tags,
        software=facts.software,
        coordinator_instance=coordinator_instance,
        received_bytes=received_bytes,
        heartbeat_s=facts.heartbeat_s,
        keys=keys,
        targets=dict(ready.targets) if ready else {},
        warnings=ready.warnings if ready else (),
        max_payload_bytes=0 if max_payload_bytes >= MAX_MESSAGE_BYTES else max_payload_bytes,
    )


def _other_weight(weight: float, rows: int) -> float:
    """Returns the weight of rows where they do not each count 1, else 0: it need not be sent."""
    return 0.0 if weight == rows else weight


def check_available(
    facts: AgentFacts, plan: RoundPlan, failed: PackageFailed | None, pause: PauseReason | None
) -> None:
    """Raises DeclinedError when the device can do nothing at all now."""
    if facts.unavailable_reason:
        raise DeclinedError("no_runtime", facts.unavailable_reason)
    if failed is not None and failed.package == plan.package:
        raise DeclinedError(failed.reason, failed.detail)
    if pause is not None:
        raise DeclinedError(pause.reason, pause.detail)


def check_model(plan: RoundPlan, phase: Phase, loaded: PackageLoaded) -> None:
    """Raises DeclinedError when the loaded model or the device's rows do not serve the plan."""
    if loaded.fingerprint != plan.fingerprint:
        detail = f"the plan is for layout {plan.fingerprint}, the model has {loaded.fingerprint}"
        raise DeclinedError("fingerprint", detail)
    if rows_for(phase, loaded) == 0:
        raise DeclinedError("no_data", f"no rows to {plan.phase_name} on")


def rows_for(phase: Phase, loaded: PackageLoaded) -> int:
    """Returns how many of the device's rows a phase looks at."""
    return {
        "train": loaded.train_examples,
        "test": loaded.test_examples,
        "any": loaded.train_examples + loaded.test_examples,
    }[phase.rows]
