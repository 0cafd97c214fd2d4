"""`fedge agent doctor`: whether this device can take part, and what prevents it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from broker.diagnostics.access_checks import Rights
from broker.diagnostics.broker_checks import ExpectedPeers, network_checks
from broker.diagnostics.host_and_files import clock_check
from broker.diagnostics.probe import Probe
from broker.protocol import blobs, messages
from broker.protocol.messages import CoordinatorStatus, ProgramManifest, Report
from broker.protocol.topics import (
    PREFIX,
    AgentProbeTopic,
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    ReportTopic,
    RoundTopic,
    Topics,
    UpdateTopic,
)
from edge_agent.config import AgentConfig
from edge_agent.data.dataset import LocalDataset, build_dataset, read_ready
from edge_agent.data.size import data_bytes
from edge_agent.device import LinuxDevice
from edge_agent.doctor.data_checks import data_checks
from edge_agent.doctor.interpreter_check import runtime_check
from edge_agent.machine.limits import Limits
from edge_agent.machine.trust import Trust
from edge_agent.storage.trust_file import open_trust
from edge_agent.training.memory_estimate import estimate, megabytes, shortage
from fedge.check_result import Check, failed, ok, skipped, warning
from fedge.errors import (
    ConfigError,
    DataError,
    FederationError,
    LinkError,
    UntrustedError,
    WireError,
)
from fedge.host_checks import disk_check, memory_check, owner_check, temperature_check
from fedge.system import available_bytes
from fedge.yaml_config import located
from models.package.package import Unpacked, unpack_wire
from models.runtime.program import Program
from models.runtime.rows import Rows
from models.zoo import load_zoo

#: No agent is called so; what is forbidden is tried on its topics.
_NOBODY = "fedge-doctor"
_FETCH_S = 20.0
#: Of the zoo: tried when nobody says which model.
_SMALLEST = "house_price"
_STEPS = 20
_WARM_UP = 3
#: An update is written before it is sent.
_LITTLE_DISK = 50_000_000


@dataclass(eq=False)
class _Found:
    """Retained messages of the coordinator, as far as this device trusts them."""

    trust: Trust
    manifest: ProgramManifest | None = None
    coordinator: CoordinatorStatus | None = None


def diagnose(
    config: AgentConfig, base: Path, model: Unpacked | None, *, offline: bool = False
) -> Iterator[Check]:
    """Yields all checks of a device, one after the other.

    Args:
        config: of the agent.
        base: folder that the configuration's paths are relative to.
        model: to try; None takes the federation's, when the broker has it.
        offline: leave the broker alone.
    """
    yield owner_check()
    if offline:
        yield clock_check()
    else:
        found, knows_keys = _Found(Trust(Topics(config.federation), ())), True
        try:
            found = _Found(_trust(config, base))
        except ConfigError as error:
            knows_keys = False  # and runs no program that anybody may have put there
            yield failed("keys", str(error), "enrol this device anew, or correct `trusted_keys`")
        yield from _at_the_broker(config, base, found)
        if model is None and knows_keys and found.manifest is not None:
            try:
                model = _fetch(config, base, found.manifest)
            except FederationError as error:
                yield failed("model", str(error), "is the coordinator running?", "network")
    yield disk_check(located(config.state_dir, base), _LITTLE_DISK)
    yield memory_check()
    yield temperature_check()
    yield from _pause_check(config)
    yield from _at_work(config, base, model)


def _at_the_broker(config: AgentConfig, base: Path, found: _Found) -> Iterator[Check]:
    topics = Topics(config.federation)
    settings = config.broker.located(base)
    rights = agent_rights(topics, config.agent_id)
    others = ExpectedPeers(
        (topics.name(CoordinatorStatusTopic()), topics.name(ProgramTopic())),
        lambda kept: _coordinator_check(topics, kept, found),
        elsewhere=f"{PREFIX}/+/{CoordinatorStatusTopic().tail}",
    )
    yield from network_checks(settings, config.agent_id, _client_id(config), rights, others)


def _trust(config: AgentConfig, base: Path) -> Trust:
    """Returns the trust that the agent would have after its next start.

    Raises:
        ConfigError: the file with the trusted keys cannot be used.
    """
    keys, record = open_trust(config, base)
    return Trust(Topics(config.federation), keys, record)


def _client_id(config: AgentConfig) -> str:
    return f"fedge-{config.federation}-{config.agent_id}-doctor"


def agent_rights(topics: Topics, agent_id: str) -> Rights:
    """Returns an agent's rights at the broker, as `broker.security.access_control` grants them."""

    def of(name: str) -> tuple[str, str, str]:
        return (
            topics.name(AgentStatusTopic(name)),
            topics.name(UpdateTopic(name, 0, 0)),
            topics.name(ReportTopic(name, 0)),
        )

    status, update, report = of(agent_id)
    # Round 0 is none: a coordinator looks at it and does nothing.
    nothing = Report(
        session=_NOBODY, agent_instance=_NOBODY, round_id=0, kind="missing", phase="none", version=0
    )
    plan, program = topics.name(RoundTopic()), topics.name(ProgramTopic())
    coordinator, inbox = topics.name(CoordinatorStatusTopic()), topics.name(InboxTopic(agent_id))
    return Rights(
        publishes=((status, b""), (update, b""), (report, messages.encode(nothing))),
        subscribes=(coordinator, program, plan, inbox, topics.chunks_of("0" * 64)),
        forbidden=(
            (plan, "publish plans"),
            (program, "publish programs"),
            (coordinator, "speak as the coordinator"),
            (topics.name(ChunkTopic("0" * 64, 0)), "publish weights"),
            (of(_NOBODY)[0], "speak as another agent"),
            (of(_NOBODY)[1], "send updates as another agent"),
        ),
        echo=(
            next(name for name in topics.from_agents if name.endswith("/reports/+")),
            report,
            messages.encode(nothing),
        ),
        overhears="read what other agents send",
        probe=topics.name(AgentProbeTopic(agent_id)),
    )


def _coordinator_check(topics: Topics, kept: Mapping[str, bytes], found: _Found) -> Check:
    advice = "start it; the agent waits for it meanwhile"
    status_topic, program = CoordinatorStatusTopic(), ProgramTopic()
    signed = False
    try:
        if payload := kept.get(topics.name(status_topic)):
            opened = found.trust.opened(status_topic, payload)
            signed = opened != payload
            found.coordinator = messages.decode(opened, CoordinatorStatus)
            found.trust.announced(found.coordinator)
        if payload := kept.get(topics.name(program)):
            opened = found.trust.opened(program, payload)
            found.manifest = messages.decode(opened, ProgramManifest)
    except UntrustedError as error:
        advice = "it is not this device's coordinator, or its key is another now: enrol anew"
        return failed("coordinator", f"not believed: {error}", advice, "network")
    except WireError as error:
        return warning("coordinator", f"it left something unreadable: {error}", advice, "network")
    status, manifest = found.coordinator, found.manifest
    if status is None:
        where = f"no word of any below {topics.root}"
        names = sorted({topic.split("/")[2] for topic in kept if not topic.startswith(topics.root)})
        if names:
            where += f"; coordinators of other federations are here: {', '.join(names[:10])}"
        advice = f"is the federation's name right (`federation`)? Else {advice}"
        return warning("coordinator", where, advice, "network", federations=names)
    name = f", model {manifest.name}" if manifest else ", no model"
    text = f"{status.state}, version {status.version}{name}"
    if status.state == "offline":
        return warning("coordinator", text, advice, "network")
    if found.trust.key_ids:
        text += f", signed by {' or '.join(found.trust.key_ids)}"
    elif signed:
        advice = "set trusted_keys, or enrol anew: a hostile broker could send plans of its own"
        return warning("coordinator", f"{text}; it signs, nobody here checks", advice, "network")
    return ok("coordinator", text, "network")


def _fetch(config: AgentConfig, base: Path, manifest: ProgramManifest) -> Unpacked:
    """Returns the federation's model, fetched as an agent does.

    Raises:
        FederationError: it does not come, or is none.
    """
    sha256 = manifest.package.sha256
    topics = Topics(config.federation)
    receiver = blobs.BlobReceiver(manifest.package, config.max_blob_bytes)
    with Probe(config.broker.located(base), _client_id(config)) as probe:
        probe.connect()
        chunks = topics.chunks_of(sha256)
        probe.subscribe([chunks])
        blob: bytes | None = None

        def is_whole() -> bool:
            nonlocal blob
            while probe.heard and blob is None:
                topic, payload, _ = probe.heard.pop(0)
                if isinstance(topics.parse(topic), ChunkTopic) and payload:
                    blob = receiver.add(blobs.parse_chunk(payload))
            return blob is not None

        whole = probe.listen(is_whole, _FETCH_S)
        probe.unsubscribe([chunks])
    if not whole or blob is None:
        missing, count = receiver.missing, manifest.package.chunks
        raise LinkError(
            f"the model {manifest.name} does not come: {missing} of {count} chunks missing"
        )
    return unpack_wire(blob)


# --- here -----------------------------------------------------------------------------------------


def _pause_check(config: AgentConfig) -> Iterator[Check]:
    pause = Limits(config.limits).update(LinuxDevice().read(config.limits))
    if pause is not None:
        found = f"the device would pause now ({pause})"
        yield warning("limits", found, "no training until that is over")
    elif config.limits.watched:
        yield ok("limits", "nothing makes the device pause now")


def _at_work(config: AgentConfig, base: Path, model: Unpacked | None) -> Iterator[Check]:
    """Yields checks of interpreter, program and data."""
    runtime = runtime_check(config.runtime)
    yield runtime
    if runtime.state == "failed":
        yield from (skipped(name, "no interpreter") for name in ("program", "data"))
        return
    if model is None:
        yield from _without_model(config, base)
        return
    size = data_bytes(config.data, model.spec, base, located(config.state_dir, base))
    need = estimate(model.spec, model.program, size)
    why = shortage(
        need, resident=None, available=available_bytes(), ceiling=None
    ) or _above_ceiling(need.total, config.limits.max_memory_bytes)
    if why:
        yield failed("fits", why, "free memory, take a smaller model, or fewer rows")
        return
    yield ok("fits", f"{model.spec.name} needs {need}", needed_bytes=need.total)
    yield from _program(config, base, model)


def _without_model(config: AgentConfig, base: Path) -> Iterator[Check]:
    """Yields checks without a model: the interpreter, and whether the data file is there."""
    package = load_zoo(_SMALLEST)
    yield _self_test(
        Program(package.program, package.spec, runtime=config.runtime, threads=config.threads), None
    )
    path = located(config.data.path, base)
    try:
        path.open("rb").close()
    except OSError as error:
        why = f"{path}: cannot be read: {error.strerror}"
        yield failed("data", why, "see docs/configuration.md, `data`")
    else:
        yield skipped("data", "for which model? Give --model, or start the coordinator")


def _above_ceiling(needed: int, ceiling: int | None) -> str:
    if ceiling is None or needed <= ceiling:
        return ""
    return f"{megabytes(needed)} are needed, max_memory_bytes allows {megabytes(ceiling)}"


def _program(config: AgentConfig, base: Path, model: Unpacked) -> Iterator[Check]:
    try:
        program = Program(
            model.program,
            model.spec,
            frozen=model.frozen,
            runtime=config.runtime,
            threads=config.threads,
        )
    except FederationError as error:
        yield failed("program", str(error), "another interpreter, or another version of it")
        return
    dataset = None
    checks: list[Check] = []
    try:
        table = read_ready(config.data, model.spec, base)
        dataset = build_dataset(table, config.data, model.spec, own=True)
        notes = [ok("data file", note) for note in table.notes]
        checks = [*notes, *data_checks(dataset, model.spec, table.rows)]
    except DataError as error:
        checks = [failed("data", str(error), "see docs/configuration.md, `data`")]
    yield _self_test(program, dataset)
    yield from checks


def _self_test(program: Program, dataset: LocalDataset | None) -> Check:
    """Checks the program: a few steps, on the device's own rows where there are any."""
    spec = program.spec
    count = spec.batch_size
    rows: Rows = {t.name: np.zeros((count, *t.shape), t.dtype) for t in spec.columns}
    if dataset is not None and len(dataset.rows):
        index = np.arange(count) % len(dataset.rows)
        rows = {name: array[index] for name, array in dataset.arrays.items()}
    theta = np.random.default_rng(0).normal(0, 0.01, spec.whole_size).astype(np.float32)
    seconds = []
    try:
        for _ in range(_WARM_UP + _STEPS):
            began_s = time.perf_counter()
            step = program.gradient(theta, rows)
            seconds.append(time.perf_counter() - began_s)
            if sum(seconds) > _FETCH_S:
                break
        program.evaluate(theta, rows)
    except FederationError as error:
        return failed("program", str(error), "another interpreter, or another version of it")
    if not np.isfinite(step.vector).all():
        return failed("program", "its gradient is not finite", "look at the data: huge values?")
    step_s = statistics.median(seconds[_WARM_UP:] or seconds)
    found = f"{spec.name} runs on {program.runtime}: {1000 * step_s:.2f} ms for {count} rows"
    return ok("program", found, step_s=step_s, batch_size=count, runtime=program.runtime)
