"""What a round costs beyond the agents' own work: real machine, store, link and Mosquitto.

    python benchmarks/coordinator_overhead.py [--agents 10] [--parameters 10000] [--rounds 60]
        [--repeats 3] [--json] [--save]

The agents are light ones in a process of their own: they answer a plan at once, with a vector
encoded beforehand, and fetch no weights. So all of a round's time is overhead: the coordinator,
the broker, and what light agents need on the same two cores. Split at what the coordinator sees:

    plan to last update       broker and agents; the folding of all updates but the last hides here
    last update to next plan  fold the last, new θ, commit, publish θ and the plan to evaluate
    plan to last report       broker and agents again
    last report to next plan  record the round, publish the next plan

The machine alone, without link and store, is timed in memory in the same run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from measure import Report, budget, finish, option_parser, shown, spread

from broker.link.link import Link, LinkUp, Received
from broker.link.mqtt import MqttLink
from broker.link.network_loop import NetworkLoop
from broker.link.settings import BrokerSettings
from broker.local.broker import LocalBroker
from broker.protocol import blobs, messages
from broker.protocol.messages import AgentStatus, RoundPlan, UpdateHeader, VectorRef
from broker.protocol.messages import Report as AgentReport
from broker.protocol.topics import AgentStatusTopic, ReportTopic, RoundTopic, Topics, UpdateTopic
from broker.service.events import Connected, MessageArrived, Publish
from coordinator.config import CohortConfig, CoordinatorConfig, StartConfig
from coordinator.machine.coordinator import Coordinator
from coordinator.machine.events import Action, Commit, Event, SaveOpenRound, SaveRound, StoreUpdate
from coordinator.service import CoordinatorService
from coordinator.storage.store import Store
from learning.codecs.registry import CODECS
from learning.vector.parameters import Layout, ParameterSpec
from models.package.package import ModelPackage
from models.zoo import load_zoo

FEDERATION = "overhead"
TOPICS = Topics(FEDERATION)
WARM_UP = 5  # rounds that do not count
BOOT = "a1b2c3d4e5f60718"
WRITES: dict[type, str] = {
    Commit: "commit (SQLite)",
    SaveRound: "save record (SQLite)",
    SaveOpenRound: "save the open round (SQLite)",
    StoreUpdate: "add updates (SQLite)",
}
PHASES = (
    "plan to last update",
    "last update to next plan",
    "plan to last report",
    "last report to next plan",
)


class LightAgent:
    """Answers at once; knows nothing."""

    def __init__(self, agent_id: str, body: bytes, size: int) -> None:
        self.agent_id = agent_id
        self.body = body
        self.size = size

    def birth(self) -> Publish:
        status = AgentStatus(
            state="online",
            agent_instance=BOOT,
            phases=("train", "evaluate"),
            train_examples=100,
            test_examples=25,
            codecs=tuple(CODECS),
            algorithms=("fedavg",),
        )
        return _publish(AgentStatusTopic(self.agent_id), messages.encode(status), retain=True)

    def answer(self, payload: bytes) -> list[Publish]:
        plan = messages.decode(payload, RoundPlan)
        if plan.state != "open":
            return []
        return self.update(plan) if plan.phase_name == "train" else [self.report(plan)]

    def update(self, plan: RoundPlan) -> list[Publish]:
        header = UpdateHeader(
            session=plan.session,
            agent_instance=BOOT,
            round_id=plan.round_id,
            attempt=plan.round_id,
            version=plan.version,
            fingerprint=plan.fingerprint,
            vectors={"delta": VectorRef(codec=plan.codec, size=self.size, bytes=len(self.body))},
            num_examples=100,
            loss_sum=50.0,
            weight_sum=100.0,
            metric_sums={"accuracy": 90.0},
            training_s=0.0,
            received_bytes=0,
        )
        _, payloads = blobs.split(messages.encode_update(header, self.body))
        return [
            _publish(UpdateTopic(self.agent_id, plan.round_id, n), payload, expiry_s=60)
            for n, payload in enumerate(payloads)
        ]

    def report(self, plan: RoundPlan) -> Publish:
        report = AgentReport(
            session=plan.session,
            agent_instance=BOOT,
            round_id=plan.round_id,
            kind="result",
            phase="evaluate",
            version=plan.version,
            loss_sum=10.0,
            weight_sum=25.0,
            metric_sums={"accuracy": 20.0},
        )
        return _publish(ReportTopic(self.agent_id, plan.round_id), messages.encode(report))


def _publish(topic: Any, payload: bytes, **how: Any) -> Publish:
    return Publish(TOPICS.name(topic), payload, **how)


def light_agents(count: int, size: int) -> list[LightAgent]:
    """Agents with different vectors."""
    codec = CODECS.make("int8")
    rng = np.random.default_rng(0)
    bodies = [
        codec.encode(rng.normal(0, 1e-3, size).astype(np.float32), 0, rng) for _ in range(count)
    ]
    return [LightAgent(f"agent-{n}", body, size) for n, body in enumerate(bodies)]


def serve_agents(port: int, count: int, size: int) -> None:
    """The agents' process: one network thread, a thread for each agent."""
    settings = BrokerSettings(port=port)
    with NetworkLoop() as network:
        for agent in light_agents(count, size):
            link = MqttLink(settings, f"light-{agent.agent_id}", network=network)
            threading.Thread(target=_serve, args=(agent, link), daemon=True).start()
        sys.stdin.read()  # until the parent closes it


def _serve(agent: LightAgent, link: MqttLink) -> None:
    link.subscribe(TOPICS.name(RoundTopic()))
    link.open()
    while True:
        event = link.poll(60)
        answers: list[Publish] = []
        if isinstance(event, LinkUp):
            answers = [agent.birth()]
        elif isinstance(event, Received):
            answers = agent.answer(event.payload)
        for out in answers:
            link.publish(out.topic, out.payload, retain=out.retain, expiry_s=out.expiry_s)


class Clock:
    """Moments and times of every round."""

    def __init__(self) -> None:
        self.plans: list[tuple[str, float]] = []
        self.last_answer: list[float] = []
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0])

    def add(self, name: str, seconds: float) -> None:
        """Time spent on something, in this round."""
        self.spent[name][-1] += seconds

    def plan(self, task: str) -> None:
        """A plan goes out: a phase ends, and with a plan to train a round."""
        self.plans.append((task, time.perf_counter()))
        self.last_answer.append(0.0)
        if task == "train":
            for rounds in self.spent.values():
                rounds.append(0.0)

    def phases(self) -> dict[str, list[float]]:
        """Seconds of every phase of every whole round."""
        found: dict[str, list[float]] = {name: [] for name in ("round", *PHASES)}
        for i in range(0, len(self.plans) - 2, 2):
            (first, a), (second, c), (_, e) = self.plans[i : i + 3]
            assert (first, second) == ("train", "evaluate"), "rounds are evaluated one by one"
            b, d = self.last_answer[i], self.last_answer[i + 1]
            for name, seconds in zip(found, (e - a, b - a, c - b, d - c, e - d), strict=True):
                found[name].append(seconds)
        return found


class TimedLink:
    """The link, with an eye on plans and answers."""

    def __init__(self, link: MqttLink, clock: Clock) -> None:
        self._link = link
        self._clock = clock
        self._round_topic = TOPICS.name(RoundTopic())
        self.counters = link.counters

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    def publish(self, topic: str, payload: bytes, **how: Any) -> None:
        """Notes plans."""
        if topic == self._round_topic:
            self._clock.plan(messages.decode(payload, RoundPlan).phase_name)
        self._link.publish(topic, payload, **how)

    def poll(self, timeout_s: float) -> Any:
        """Notes answers: the last before the next plan is the one that ends a phase."""
        event = self._link.poll(timeout_s)
        if isinstance(event, Received) and self._clock.last_answer:
            self._clock.last_answer[-1] = time.perf_counter()
        return event


class TimedService(CoordinatorService):
    """The service, with a stop watch."""

    clock: Clock

    def handle(self, event: Event) -> Sequence[Action]:
        started = time.perf_counter()
        actions = super().handle(event)
        self.clock.add(_kind(event, actions), time.perf_counter() - started)
        return actions

    def perform(self, action: Action) -> None:
        started = time.perf_counter()
        super().perform(action)
        self.clock.add(WRITES.get(type(action), "other"), time.perf_counter() - started)

    def idle(self) -> None:
        started = time.perf_counter()
        super().idle()
        seconds = time.perf_counter() - started
        self.clock.add("write updates, then confirm them (SQLite)", seconds)
        self.clock.add("busy in all", seconds)

    def dispatch(self, event: Any) -> None:
        started = time.perf_counter()
        super().dispatch(event)
        self.clock.add("busy in all", time.perf_counter() - started)


def _kind(event: Event, actions: Sequence[Action]) -> str:
    if not isinstance(event, MessageArrived):
        return "other"
    if any(isinstance(action, Commit) for action in actions):
        return "fold the last update, new θ, plan"
    if "/updates/" in event.topic:
        return "fold the other updates"
    if any(isinstance(action, SaveRound) for action in actions):
        return "last report, record, plan"
    return "other reports"


def make_package(size: int) -> ModelPackage:
    """A model of P parameters; its program is never run."""
    zoo = load_zoo("wearable_activity")
    spec = msgspec.structs.replace(zoo.spec, layout=Layout((ParameterSpec("all", (size,)),)))
    return ModelPackage(spec, zoo.program, np.zeros(size, np.float32))


def make_config(broker: BrokerSettings, agents: int, rounds: int) -> CoordinatorConfig:
    """All agents, every round."""
    return CoordinatorConfig(
        federation=FEDERATION,
        model="none",
        broker=broker,
        rounds=rounds,
        start=StartConfig(agents=agents),
        cohort=CohortConfig(at_least=agents),
    )


def run_real(agents: int, size: int, rounds: int) -> dict[str, list[float]]:
    """One federation over Mosquitto: seconds by phase and by part, for every round."""
    clock = Clock()
    with LocalBroker("mosquitto") as broker, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", str(broker.port), str(agents), str(size)]
        fleet = subprocess.Popen(command, stdin=subprocess.PIPE)
        package = make_package(size)
        config = make_config(broker.settings, agents, rounds + WARM_UP)
        coordinator = Coordinator(config, package, "session-1", "start-1")
        store = Store(Path(folder), config.keep_versions)
        try:
            store.adopt(FEDERATION, package)
            store.begin(coordinator.progress.theta, coordinator.progress.state)
            link = TimedLink(
                MqttLink(broker.settings, "overhead-coordinator", manual_ack=True), clock
            )
            service = TimedService(
                coordinator,
                _as_link(link),
                store,
                save_result=lambda: None,
                tell=lambda _: None,
                give_up_s=30.0,
            )
            service.clock = clock
            service.run()
        finally:
            store.close()
            fleet.kill()
            fleet.communicate()
    found = clock.phases()
    spent = {name: values[1:] for name, values in clock.spent.items()}
    return {
        name: values[WARM_UP : WARM_UP + rounds - 1] for name, values in (found | spent).items()
    }


def _as_link(link: Any) -> Link:
    typed: Link = link
    return typed


def run_in_memory(agents: int, size: int, rounds: int) -> list[float]:
    """The machine alone: seconds of `handle` in each round; answers are made off the clock."""
    package = make_package(size)
    machine = Coordinator(
        make_config(BrokerSettings(), agents, rounds), package, "session-1", "start-1"
    )
    fleet = light_agents(agents, size)
    spent = 0.0
    found: list[float] = []

    def tell(event: Event) -> list[Action]:
        nonlocal spent
        started = time.perf_counter()
        actions = machine.handle(event, started)
        spent += time.perf_counter() - started
        return actions

    actions = tell(Connected(1 << 20))
    for agent in fleet:
        birth = agent.birth()
        actions = tell(MessageArrived(birth.topic, birth.payload))
    while machine.finished is None:
        plan = _plan_in(actions)
        if plan.phase_name == "train":
            found.append(spent)
            spent = 0.0
        answers = [out for agent in fleet for out in agent.answer(messages.encode(plan))]
        for out in answers:
            actions = tell(MessageArrived(out.topic, out.payload))
    return found[WARM_UP:]


def _plan_in(actions: Sequence[Action]) -> RoundPlan:
    topic = TOPICS.name(RoundTopic())
    (plan,) = (a.payload for a in actions if isinstance(a, Publish) and a.topic == topic)
    return messages.decode(plan, RoundPlan)


def probe_disk(repeats: int = 50) -> list[float]:
    """Seconds of a transaction that holds nothing: what the disk alone takes."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        times = [_timed(lambda: store.finish("")) for _ in range(repeats)]
        store.close()
    return times


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def measure(agents: int, size: int, rounds: int, repeats: int) -> Report:
    """Whole federations, one after another, with the machine alone in between."""
    real: dict[str, list[float]] = defaultdict(list)
    memory: list[float] = []
    disk: list[float] = []
    for _ in range(repeats):
        for name, values in run_real(agents, size, rounds).items():
            real[name] += values
        memory += run_in_memory(agents, size, rounds)
        disk += probe_disk()
    spreads = {name: spread(values) for name, values in real.items()}
    return {
        "agents": agents,
        "parameters": size,
        "rounds": rounds * repeats,
        "phases": {name: spreads[name] for name in ("round", *PHASES)},
        "coordinator_thread": {n: v for n, v in spreads.items() if n not in ("round", *PHASES)},
        "machine_in_memory": spread(memory),
        "empty_transaction": spread(disk),
        "budgets": [
            budget(spreads["round"]["median"] * 1e3, 20, "ms a round, end to end"),
            budget(spreads["busy in all"]["median"] * 1e3, 20, "ms of the coordinator's thread"),
        ],
    }


def show(report: Report) -> None:
    """Phases, then parts."""
    agents, size = report["agents"], report["parameters"]
    print(f"{agents} agents, P = {size:,}; milliseconds a round: median (min-max)\n")
    for name, values in report["phases"].items():
        print(f"  {name:<42}{shown(values, 1e3, 2):>24}")
    print("\nthe coordinator's thread")
    for name, values in report["coordinator_thread"].items():
        print(f"  {name:<42}{shown(values, 1e3, 2):>24}")
    print()
    print(f"  {'machine alone, in memory':<42}{shown(report['machine_in_memory'], 1e3, 2):>24}")
    print(f"  {'empty SQLite transaction':<42}{shown(report['empty_transaction'], 1e3, 2):>24}")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        serve_agents(*(int(argument) for argument in sys.argv[2:5]))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--agents", type=int, default=10)
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=60, help="of each federation")
    parser.add_argument("--repeats", type=int, default=3, help="federations")
    options = parser.parse_args()
    report = measure(options.agents, options.parameters, options.rounds, options.repeats)
    finish("coordinator_overhead", report, options, show)


if __name__ == "__main__":
    main()
