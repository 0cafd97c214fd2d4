"""`fedge coordinator doctor`: would this coordinator run, and what keeps it from doing so?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from broker.diagnostics.access_checks import Rights
from broker.diagnostics.broker_checks import ExpectedPeers, network_checks
from broker.diagnostics.host_and_files import clock_check, open_secret
from broker.protocol import messages
from broker.protocol.messages import AgentStatus
from broker.protocol.signed_messages import key_id
from broker.protocol.topics import (
    PREFIX,
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorProbeTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    ResultsTopic,
    RoundTopic,
    Topics,
    UpdateTopic,
)
from coordinator.config import CoordinatorConfig
from coordinator.evaluation import central_measure
from coordinator.fleet_data import fleet_findings
from coordinator.machine.roster import Roster, lacking_text
from coordinator.rounds.checks import untrimmed
from coordinator.rounds.protocol import first_needs
from coordinator.service import find_package, known_spec, trained_with
from coordinator.storage.store import Store
from fedge.check_result import Check, failed, ok, warning
from fedge.errors import ConfigError, FederationError, WireError
from fedge.host_checks import disk_check, memory_check, owner_check, temperature_check
from fedge.yaml_config import located
from models.package.spec import ModelSpec
from models.package.stored_versions import STORE_FILE

#: No agent is called so; what is forbidden is tried on its topics.
_NOBODY = "fedge-doctor"
#: θ, the server state and the versions that are kept, and room for what else grows.
_LITTLE_DISK = 100_000_000
#: θ, the mean in float64, an update while it is decoded, the server state, a copy for the
#: store: bytes a parameter, counted; and of the process without a model.
_PER_PARAMETER, _PROCESS_BYTES = 48, 60_000_000


def diagnose(config: CoordinatorConfig, base: Path, *, offline: bool = False) -> Iterator[Check]:
    """Look at everything, one thing after the other.

    Args:
        config: of the federation.
        base: folder that its paths are relative to.
        offline: leave the broker alone.
    """
    yield owner_check()
    if offline:
        yield clock_check()
    else:
        topics = Topics(config.federation)
        client_id = f"fedge-{config.federation}-coordinator-doctor"
        others = ExpectedPeers(
            tuple(name for name in topics.from_agents if name.endswith("/status")),
            lambda kept: _agents_check(kept, config, known_spec(config, base)),
            elsewhere=f"{PREFIX}/+/agents/+/status",
        )
        settings = config.broker.located(base)
        yield from network_checks(
            settings, "coordinator", client_id, coordinator_rights(topics), others
        )
    yield from _configuration(config)
    yield from _signing_key(config, base)
    yield from _model(config, base)
    state_dir = located(config.state_dir, base)
    yield disk_check(state_dir, _LITTLE_DISK)
    yield _store(config, state_dir)
    yield temperature_check()


def coordinator_rights(topics: Topics) -> Rights:
    """Returns the coordinator's access rights, as `broker.security.access_control` grants them."""
    writes = (
        CoordinatorStatusTopic(),
        ProgramTopic(),
        RoundTopic(),
        ChunkTopic("0" * 64, 0),
        InboxTopic(_NOBODY),
        ResultsTopic(),
    )
    return Rights(
        # The first also measures the round trip: one that nobody takes for anything.
        publishes=tuple((topics.name(topic), b"") for topic in reversed(writes)),
        subscribes=tuple(topics.from_agents),
        forbidden=(
            (topics.name(AgentStatusTopic(_NOBODY)), "speak as an agent"),
            (topics.name(UpdateTopic(_NOBODY, 0, 0)), "send updates as an agent"),
        ),
        probe=topics.name(CoordinatorProbeTopic()),
    )


def _agents_check(
    kept: Mapping[str, bytes], config: CoordinatorConfig, spec: ModelSpec | None
) -> Check:
    known, roster, root = 0, Roster(), Topics(config.federation).root
    federations = sorted({topic.split("/")[2] for topic in kept if not topic.startswith(root)})
    for topic, payload in kept.items():
        if not topic.startswith(root):
            continue
        try:
            roster.update(topic, messages.decode(payload, AgentStatus), now_s=0.0)
        except WireError:
            continue
        known += 1
    here = sum(entry.online for _, entry in roster)
    lacking = roster.lacking(*first_needs(config))
    # Before the federation's first start no agent has the model, nor can it count its rows.
    able = here - roster.resting - lacking.total()
    found = f"{known} known to the broker, {here} online, {able} can take part"
    found += f", {roster.resting} paused" if roster.resting else ""
    found += f"; {lacking_text(lacking)}" if lacking else ""
    if federations:
        found += f"; agents of other federations are here: {', '.join(federations[:10])}"
    facts = {"known": known, "online": here, "able": able}
    wanted = max(config.cohort.at_least, config.round.minimum)
    if able < wanted:
        advice = f"a round needs {wanted}: start agents, or look at them with fedge agent doctor"
        return warning("agents", found, advice, "network", **facts)
    statuses = {topic.rsplit("/", 2)[1]: entry.status for topic, entry in roster}
    odd = [] if spec is None else [each.text for each in fleet_findings(statuses, spec)]
    if odd:
        found += f"; data: {odd[0]}" + (f" (and {len(odd) - 1} more)" if odd[1:] else "")
        advice = "look at the device; fedge coordinator status shows all such lines"
        return warning("agents", found, advice, "network", **facts, data=odd)
    return ok("agents", found, "network", **facts)


def _configuration(config: CoordinatorConfig) -> Iterator[Check]:
    least = max(config.cohort.at_least, config.round.minimum)
    if config.start.agents and config.start.agents < least:
        yield warning(
            "rounds",
            f"start.agents is {config.start.agents}, a round needs {least}",
            "the first round waits for the larger of the two",
        )
    else:
        yield ok("rounds", f"at least {least} agents; {config.rounds} rounds")
    if found := untrimmed(config):
        what, _, advice = found.rpartition(": ")
        yield warning("aggregator", what, advice)


def _signing_key(config: CoordinatorConfig, base: Path) -> Iterator[Check]:
    if config.signing_key is None:
        return
    try:
        from broker.security.signing import SigningKeys  # cryptography, for those who sign

        keys = SigningKeys.read(located(config.signing_key, base))
    except ConfigError as error:
        yield failed("keys", str(error), "see docs/security.md on the signing key")
        return
    if check := open_secret("keys", "signing_key", located(config.signing_key, base)):
        yield check
    names = " and ".join(key_id(key) for key in keys.public)
    yield ok("keys", f"plans and programs are signed with {names}")


def _model(config: CoordinatorConfig, base: Path) -> Iterator[Check]:
    try:
        package = find_package(config.model, base)
    except FederationError as error:
        yield failed("model", str(error), "see docs/configuration.md, `model`")
        return
    spec = package.spec
    found = f"{spec.name}, {spec.size:,} parameters, program {len(package.program):,} bytes"
    yield ok("model", found, parameters=spec.size, fingerprint=spec.fingerprint)
    yield memory_check(_PROCESS_BYTES + _PER_PARAMETER * spec.size)
    if config.evaluation.data is None:
        return
    path = located(config.evaluation.data, base)
    try:
        sums = central_measure(path, package)(package.initial)
    except FederationError as error:
        yield failed("evaluation", str(error), "see docs/configuration.md, `evaluation`")
        return
    yield ok("evaluation", f"{path}: {sums.weight:,.0f} rows", rows=sums.weight)


def _store(config: CoordinatorConfig, state_dir: Path) -> Check:
    try:
        if not (state_dir / STORE_FILE).exists():
            return ok("store", "none yet: the first start makes it")
    except OSError as error:
        return failed("store", f"{state_dir}: {error.strerror}", "run this as the service's user")
    try:
        with closing(Store.open_existing(state_dir)) as store:
            federation, rounds = store.meta("federation"), store.number_of_rounds()
            if federation == config.federation:
                store.check_algorithm(trained_with(config))
    except FederationError as error:
        return failed("store", str(error), "restore it, or begin anew in another state_dir")
    if federation != config.federation:
        advice = "take another state_dir, or the other federation's name"
        return failed("store", f"it is of the federation {federation!r}", advice)
    return ok("store", f"{rounds} rounds", rounds=rounds)
