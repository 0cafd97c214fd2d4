"""The coordinator's shell: runs the state machine over a real link, with the store behind it."""

from __future__ import annotations

import json
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from broker.link.link import Link, Received, Will
from broker.link.mqtt import MqttLink
from broker.protocol.messages import name_of
from broker.protocol.signed_messages import is_signed, key_id
from broker.protocol.topics import CoordinatorProbeTopic, Topics
from broker.service.events import LinkAction, Publish, Tick
from broker.service.service import Service
from coordinator.config import CoordinatorConfig
from coordinator.evaluation import central_measure
from coordinator.fleet_data import DataWatch
from coordinator.machine.coordinator import Coordinator
from coordinator.machine.events import (
    Action,
    AgentUnavailable,
    Event,
    Finished,
    RoundEnded,
    SaveAgent,
    Waiting,
)
from coordinator.machine.progress import Progress
from coordinator.operate import ROLE, open_store, take_up
from coordinator.records.records import RoundRecord
from coordinator.report import decline_lines, round_line
from coordinator.result import Result, make_result
from coordinator.rounds.checks import untrimmed
from coordinator.rounds.stopping import stop_rule
from coordinator.storage.agent_tables import NOTED_EVERY_S
from coordinator.storage.durability import Durability
from coordinator.storage.orders import Order, Outcome
from coordinator.storage.store import Store
from fedge.errors import ModelError
from fedge.files import claimed
from fedge.yaml_config import located
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage, load_package
from models.package.spec import ModelSpec
from models.package.units import target_units
from models.zoo import load_zoo, zoo_names

if TYPE_CHECKING:
    from broker.security.signing import Signer

log = logging.getLogger(__name__)

#: So often the store is looked at for orders of an operator.
_LOOK_S = 2.0


class CoordinatorService(Service):
    """One federation over one link.

    Args:
        coordinator: the machine.
        link: to the broker.
        store: written before anything is announced that depends on it.
        save_result: writes the result; called before the end is told.
        tell: takes one JSON-ready event for every round and at the end; None logs lines instead.
        give_up_s: see `Service`.
        signer: seals what agents must be able to trust; None sends it unsigned.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        link: Link,
        store: Store,
        save_result: Callable[[], object],
        tell: Callable[[dict[str, object]], None] | None,
        give_up_s: float | None,
        signer: Signer | None = None,
    ) -> None:
        super().__init__(link, give_up_s)
        self._signer = signer
        self._coordinator = coordinator
        self._store = store
        self._save_result = save_result
        self._tell = tell
        self._durability = Durability(store)
        self._noted_s = time.monotonic()
        self._looked_s = -math.inf
        self._units = target_units(coordinator.spec)
        self._data_watch = DataWatch(coordinator.spec)
        self._forget_agents()

    def handle(self, event: Event) -> Sequence[Action]:
        """See `Coordinator.handle`."""
        return self._coordinator.handle(event, time.monotonic())

    def send(self, action: LinkAction) -> None:
        """Sends now, or once the updates before it are on disk."""
        self._durability.after(lambda: self._transmit(action))

    def _transmit(self, action: LinkAction) -> None:
        # Signed as late as this, so that numbers are in the order of sending.
        if self._signer is not None and isinstance(action, Publish):
            action = sealed(action, self._coordinator.topics, self._signer)
        super().send(action)

    def finish(self, received: Received) -> None:
        """Acknowledges now, or once the update it carried is on disk."""
        self._durability.after(lambda: super(CoordinatorService, self).finish(received))
        if self._durability.is_full:
            self.idle()

    def idle(self) -> None:
        """Writes what was taken in, then confirms it: nothing more arrived at once."""
        self._flush(time.monotonic())

    def _flush(self, now_s: float = math.inf) -> None:
        for confirm in self._durability.flush(now_s):
            confirm()

    def wait_s(self) -> float:
        """Until the next deadline, or the next look for orders."""
        return min(_LOOK_S, self._coordinator.wait_s(time.monotonic()))

    @property
    def has_finished(self) -> bool:
        """Whether the federation has ended."""
        return self._coordinator.finished is not None

    def wake(self) -> None:
        """Let the machine look at the clock; note now and then who was heard of."""
        if time.monotonic() >= self._looked_s + _LOOK_S and self._takes_orders():
            self.starts_anew = True
            self.stop()
            return
        self.dispatch(Tick())
        if time.monotonic() >= self._noted_s + NOTED_EVERY_S:
            self._note_heard()

    def _takes_orders(self) -> bool:
        """Looks after the state folder; returns whether an operator left an order there."""
        self._looked_s = time.monotonic()
        self._store.check_place()
        if self._stopping or not self._store.changed_elsewhere() or not self._store.open_orders():
            return False
        log.info("an operator gave an order: it is carried out now, then the round goes on")
        return True

    def end(self) -> None:
        """See `Service.end`."""
        self._note_heard()
        super().end()
        self._flush()

    def _note_heard(self) -> None:
        since_s, self._noted_s = self._noted_s, time.monotonic()
        zero = time.time() - self._noted_s
        roster = self._coordinator.roster
        self._durability.save_statuses(self._noted_s)  # before: they carry an earlier moment
        heard = {name: zero + agent.heard_s for name, agent in roster if agent.heard_s >= since_s}
        self._store.note_heard(heard)
        if heard:
            self._durability.touch()
        self._forget_agents()

    def _forget_agents(self) -> None:
        days = self._coordinator.config.forget_agents_after_days
        if not days:
            return
        forgotten = self._store.forget_agents(time.time() - 86_400.0 * days)
        for agent_id in forgotten:
            self._coordinator.roster.forget(agent_id)
        if forgotten:
            log.info("%d agents not heard of for %d days are forgotten", len(forgotten), days)

    def _heard_at(self, agent_id: str) -> float:
        agent, now_s = self._coordinator.roster.get(agent_id), time.monotonic()
        return time.time() - (0.0 if agent is None else now_s - agent.heard_s)

    def perform(self, action: Action) -> None:
        """Stores, tells people, or ends."""
        heard_at = self._heard_at(action.agent_id) if isinstance(action, SaveAgent) else None
        self._durability.perform(action, heard_at)
        match action:
            case SaveAgent():
                self._data_watch.is_due = True
            case RoundEnded(record):
                self._tell_round(record)
                statuses = {name: entry.status for name, entry in self._coordinator.roster}
                for line in self._data_watch.news(statuses, record.agents):
                    self._say("data", f"data: {line}", reason=line)
            case Waiting(able, wanted, resting, lacking):
                line = f"waiting for agents: {able} of {wanted} can take part"
                line += f", {resting} paused" if resting else ""
                line += f"; {lacking}" if lacking else ""
                if not len(self._coordinator.roster):
                    line += f"; none is known below {self._coordinator.topics.root}agents/"
                facts = {"able": able, "wanted": wanted, "resting": resting, "reason": lacking}
                self._say("waiting", line, **facts)
            case AgentUnavailable(agent_id, why, is_transient):
                sent = {"sender": agent_id, "reason": why}
                log.warning("%s cannot take part: %s", agent_id, why, extra=sent)
                if self._tell is not None:
                    self._tell(
                        {
                            "event": "unavailable",
                            "agent_id": agent_id,
                            "reason": why,
                            "is_transient": is_transient,
                        }
                    )
            case Finished(reason):
                self._save_result()
                self._say("finished", f"finished: {reason}", reason=reason)
                self.stop()

    def _tell_round(self, record: RoundRecord) -> None:
        if record.status != "abandoned" or self._tell is not None:
            coordinator = self._coordinator
            counted = coordinator.progress.course.committed
            progress = f"{counted} of {coordinator.config.rounds} rounds"
            line = round_line(record, self._units, progress)
            self._say("round", line, record=msgspec.to_builtins(record))
            return
        # The machine logged that it was abandoned, and why; who declined is not in that line.
        for line in decline_lines(record):
            self._say("round", f"round {record.round_id}: {line}")

    def _say(self, event: str, line: str, **facts: object) -> None:
        if self._tell is None:
            log.info("%s", line, extra={"event": event})
        else:
            self._tell({"event": event, **facts})


def sealed(message: Publish, topics: Topics, signer: Signer) -> Publish:
    """The message with its seal; chunks, which need none, as they are."""
    if not is_signed(topics.parse(message.topic)):
        return message
    payload = signer.signed(message.topic, message.payload)
    return msgspec.structs.replace(message, payload=payload)


def run_coordinator(
    config: CoordinatorConfig, base: Path, *, as_json: bool = False, give_up_s: float | None = None
) -> str:
    """Serve until the federation has ended or the process is told to stop.

    Args:
        config: of the federation.
        base: folder that its paths are relative to.
        as_json: print one JSON object a line on stdout for every event.
        give_up_s: see `Service`.

    Returns:
        Its result, in words (`coordinator.result`).

    Raises:
        ConfigError: the model, the data or the state folder is unusable, or another process runs
            on the folder.
        LinkError: see `Service.run`.
        StoreError: the disk is full or failed.
    """
    package = find_package(config.model, base)
    data = config.evaluation.data
    measure = None if data is None else central_measure(located(data, base), package)
    state_dir = located(config.state_dir, base)
    tell = _print_json if as_json else None
    with claimed(state_dir, ROLE), closing(open_store(config, state_dir)) as store:
        store.adopt(config.federation, package)
        store.check_algorithm(trained_with(config))
        while True:
            for order, outcome in take_up(config, state_dir, package, store):
                _tell_order(order, outcome, tell)
            service, result = _prepared(config, base, package, measure, store, tell, give_up_s)
            service.run()
            if not service.starts_anew:
                break
        if not service.has_finished:  # stopped on the way
            result.save()
        return result.text()


def _prepared(
    config: CoordinatorConfig,
    base: Path,
    package: ModelPackage,
    measure: Callable[[F32], Sums] | None,
    store: Store,
    tell: Callable[[dict[str, object]], None] | None,
    give_up_s: float | None,
) -> tuple[CoordinatorService, Result]:
    """Returns a service that goes on where the store is, and its result."""
    progress = store.load(package.spec.size, stop_rule(config))
    session = store.session(secrets.token_hex(8))
    signer = _open_signer(config, base, store)
    keys = () if signer is None else tuple(key.hex() for key in signer.public)
    start = secrets.token_hex(8)
    coordinator = Coordinator(config, package, session, start, progress, measure, keys)
    # Not before it is known to fit.
    store.adopt(config.federation, package, trained_with(config))
    if progress is None:
        store.begin(coordinator.progress.theta, coordinator.progress.state)
    else:
        _log_resumption(progress)
    store.finish("")
    will = coordinator.will
    if signer is not None:
        will = sealed(will, coordinator.topics, signer)
    link = MqttLink(
        config.broker.located(base),
        client_id=f"fedge-{config.federation}-coordinator",
        will=Will(will.topic, will.payload),
        manual_ack=True,
        probe_topic=coordinator.topics.name(CoordinatorProbeTopic()),
    )
    state_dir = located(config.state_dir, base)
    result = make_result(config, state_dir, package, coordinator.progress, store)
    service = CoordinatorService(coordinator, link, store, result.save, tell, give_up_s, signer)
    if warning := untrimmed(config):
        log.warning("%s", warning)
    return service, result


def _tell_order(
    order: Order, outcome: Outcome, tell: Callable[[dict[str, object]], None] | None
) -> None:
    facts: dict[str, object] = msgspec.to_builtins(order)
    name = facts.pop("type")
    if tell is not None:
        done = {"outcome": outcome.text, "is_done": outcome.is_done}
        tell({"event": "order", "order": name, **facts, **done})
    log.warning("order of an operator: %s: %s", name, outcome.text.replace("\n", "; "))


def trained_with(config: CoordinatorConfig) -> str | None:
    """Returns the name of the algorithm that changes θ; None for a task that leaves it as it is."""
    return name_of(config.algorithm) if name_of(config.task) == "train" else None


def _open_signer(config: CoordinatorConfig, base: Path, store: Store) -> Signer | None:
    if config.signing_key is None:
        store.note_keys(())
        return None
    from broker.security.signing import Signer, SigningKeys  # cryptography, for those who sign

    keys = SigningKeys.read(located(config.signing_key, base))
    names = [key_id(key) for key in keys.public]
    store.note_keys(names)
    log.info("signing with %s", " and ".join(names))
    return Signer(keys, store.signed_until, store.sign_until)


def find_package(reference: str, base: Path) -> ModelPackage:
    """The model that a configuration names: of the zoo, or a folder relative to `base`.

    Raises:
        ModelError: there is none of that name, or it is damaged.
    """
    if reference in zoo_names():
        return load_zoo(reference)
    folder = located(reference, base)
    if not folder.is_dir():
        raise ModelError(
            f"model: {reference!r} is neither a package folder beside the configuration nor in "
            f"the zoo, which has: {', '.join(zoo_names())}"
        )
    return load_package(folder)


def known_spec(config: CoordinatorConfig, base: Path) -> ModelSpec | None:
    """Returns the spec of the model that a configuration names; None if it cannot be read."""
    try:
        return find_package(config.model, base).spec
    except ModelError:
        return None


def _log_resumption(progress: Progress) -> None:
    log.info("going on from version %d, round %d", progress.version, progress.last_round)


def _print_json(event: dict[str, object]) -> None:
    print(json.dumps(event), flush=True)  # noqa: T201  stdout is this command's result
