"""What an agent says of itself, and why it does not do what a plan asks."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.protocol.messages import AgentStatus, RoundPlan, Task
from edge_agent.machine.blob_fetcher import STALL_S
from edge_agent.machine.events import PackageFailed, PackageLoaded
from edge_agent.machine.limits import LimitsConfig, Rest
from learning.codecs import CODECS


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
    rest: Rest | None,
    distrust: str,
    keys: tuple[str, ...],
    *,
    online: bool,
) -> AgentStatus:
    """The birth, the heartbeat and, with `online=False`, the will.

    Args:
        facts: of this boot.
        loaded: the package that is ready.
        failed: the package that cannot be used, and why.
        rest: why the device rests.
        distrust: why the coordinator that is there is not believed; empty when it is.
        keys: names of the keys that are trusted.
        online: whether this process is there.
    """
    unable = facts.unable or (f"{failed.reason}: {failed.detail}" if failed else "")
    may_pass = failed is not None and failed.may_pass and not facts.unable
    ready = loaded if not unable else None
    if distrust:
        unable, may_pass = f"coordinator not trusted: {distrust}", True
    return AgentStatus(
        state="online" if online else "offline",
        boot=facts.boot,
        tasks=facts.tasks,
        train_examples=ready.train_examples if ready else 0,
        test_examples=ready.test_examples if ready else 0,
        unable=unable[:500],
        passing=may_pass,
        paused=str(rest or ""),
        runtime=loaded.runtime if loaded else "",
        memory_bytes=facts.memory_bytes,
        codecs=tuple(CODECS),
        tags=facts.tags,
        software=facts.software,
        heartbeat_s=facts.heartbeat_s,
        keys=keys,
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
