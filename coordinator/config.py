"""Configuration of a coordinator: the types of its YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from broker.link.settings import BrokerSettings
from broker.protocol.messages import Id, name_of
from fedge.errors import ConfigError
from fedge.plugins import load_plugins
from fedge.yaml_config import load_config
from learning.aggregation.norm_bound import NormBoundSettings
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.algorithm import Algorithm
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.training import TrainingPlan
from learning.codecs.registry import CODECS
from learning.phases.registry import PHASES
from learning.registry import Choice

Seed = Annotated[int, Meta(ge=0, le=1 << 31)]
Fraction = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000_000)]
#: Closed rounds whose counted answers are remembered: for lost receipts and stale updates.
KEPT_ROUNDS = 16
#: No chunk of an unfinished update for so long: some were dropped on the way, or the link is slow.
STALL_S = 10.0

#: A list costs every agent some 20 bytes for each agent on it, a rule 60 bytes in all.
LISTED_AGENTS = 50

#: Phases that follow another one, and are no task by themselves.
_FOLLOWING = ("evaluate",)

Seconds = Annotated[float, Meta(gt=0, le=1e7)]


class CohortConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Cohort of a round: how many agents are asked.

    Attributes:
        fraction: of the agents that could take part; the report goal.
        at_least: no round starts with fewer agents than this; also the smallest goal.
        over_select: ask so many times the goal, so that the slowest need not be waited for.
        announce: "ids" lists the agents in the plan; "rule" sends a seed and a fraction that every
            agent applies itself, so that a large fleet needs no list; "auto" lists up to
            `LISTED_AGENTS`.
        seed: of the draws; None: the federation's.
    """

    fraction: Fraction = 1.0
    at_least: Positive = 1
    over_select: Annotated[float, Meta(ge=1, le=10)] = 1.0
    announce: Literal["auto", "ids", "rule"] = "auto"
    seed: Seed | None = None


class RoundConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Deadlines and minimum of a round.

    Attributes:
        deadline_s: after the announcement answers are late.
        fetch_jitter_s: agents wait a random part of this before they fetch the weights; for fleets
            so large that all at once would be too much for the broker.
        minimum: fewer updates at the deadline than this and the round is abandoned.
        stall_s: without a chunk of an unfinished update for so long, what is missing of it is asked
            for again.
        grace_s: a round that waits for agents that went offline only, or that did not answer the
            last time, waits no longer than this for them.
    """

    deadline_s: Seconds = 600.0
    fetch_jitter_s: Annotated[float, Meta(ge=0, le=1e5)] = 0.0
    minimum: Positive = 1
    stall_s: Annotated[float, Meta(ge=0.1, le=3600)] = STALL_S
    grace_s: Annotated[float, Meta(ge=0, le=1e7)] = 30.0


class QuarantineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rule that leaves out agents whose answers are refused again and again.

    Attributes:
        after: faults (see `coordinator.machine.standing.FAULTS`); a good answer makes up for a
            quarter of one; 0: no rule.
        rounds: the agent sits out; twice as many at each further time.
    """

    after: Annotated[int, Meta(ge=0, le=1000)] = 3
    rounds: Annotated[int, Meta(ge=1, le=10_000)] = 10


class StartConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Start of the first round: when so many agents are online, or after the time."""

    agents: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    timeout_s: Seconds = 60.0


class EvaluationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Evaluation of each new θ.

    Attributes:
        every: rounds between evaluations on the devices; 0 asks for none.
        fraction: of the agents that hold rows back.
        deadline_s: after which the answers at hand are the result.
        data: .npz with one array per input of the model and `target`; measured here too.
    """

    every: Annotated[int, Meta(ge=0, le=1_000_000)] = 1
    fraction: Fraction = 1.0
    deadline_s: Seconds = 120.0
    data: Path | None = None


class StopConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Conditions that end a federation before its last round.

    Attributes:
        metric: a metric of the evaluation, or "loss".
        target: end when the metric is this good ("loss", "mae", "mse" and "rmse"
            fall, also with an output's name before them; others rise).
        patience: end when so many evaluations in a row brought no better value; 0 never does.
    """

    metric: str = "loss"
    target: Annotated[float, Meta(ge=-1e300, le=1e300)] | None = None
    patience: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class CoordinatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One federation.

    Attributes:
        federation: its name; agents use the same.
        model: of the zoo, or a package folder relative to the file.
        broker: where it is and how to log in.
        state_dir: rounds, versions of θ and agents are kept here, and the result.
        rounds: committed rounds until the federation ends.
        training: what each agent does in a round.
        codec: name, or name and settings, of the codec of updates.
        plugins: Python files that add algorithms, codecs, aggregators and phases; relative to the
            file.
        task: "train" (then evaluate), or another phase, which is asked once: name, or name and
            settings.
        algorithm: name, or name and settings, of the federated learning algorithm.
        aggregator: name, or name and settings, of how updates become one.
        max_staleness: an update counts while θ has moved on by no more versions than this.
        weighting: "examples" weighs an update by its rows, "agents" weighs all alike.
        quarantine: of agents whose answers are refused again and again.
        norm_bound: how much longer than usual an update may be.
        max_update_norm: larger updates (L2) are refused, whatever is usual; no limit when not
            given.
        keep_versions: of θ in the store, and the best; older ones are deleted, 0 keeps all.
        keep_rounds: of their records, and that of the best version; 0 keeps all.
        forget_agents_after_days: agents that were not heard of for so long are deleted, with
            their standing unless an operator put them in quarantine; 0 keeps all.
        erase: overwrite updates, and what is deleted of the store, before their space is given
            back.
        signing_key: PEM file with the private key that signs plans, programs and receipts; they
            are not signed when not given.
        seed: of cohorts, order of rows and rounding.
    """

    federation: Id
    model: str
    broker: BrokerSettings = BrokerSettings()
    state_dir: Path = Path("state")
    plugins: tuple[Path, ...] = ()
    rounds: Positive = 10
    cohort: CohortConfig = CohortConfig()
    round: RoundConfig = RoundConfig()
    start: StartConfig = StartConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    stop: StopConfig = StopConfig()
    training: TrainingPlan = TrainingPlan()
    codec: Choice = "int8"
    task: Choice = "train"
    algorithm: Choice = "fedavg"
    aggregator: Choice = "mean"
    max_staleness: Annotated[int, Meta(ge=0, le=KEPT_ROUNDS)] = 0
    weighting: Literal["examples", "agents"] = "examples"
    quarantine: QuarantineConfig = QuarantineConfig()
    norm_bound: NormBoundSettings = NormBoundSettings()
    max_update_norm: Annotated[float, Meta(gt=0, le=1e30)] | None = None
    keep_versions: Annotated[int, Meta(ge=0, le=1_000_000)] = 20
    keep_rounds: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 10_000
    forget_agents_after_days: Annotated[int, Meta(ge=0, le=100_000)] = 0
    erase: bool = False
    signing_key: Path | None = None
    seed: Seed = 0


def load_federation(path: Path) -> CoordinatorConfig:
    """Returns the coordinator's configuration in a file: plug-ins loaded, then choices checked.

    Raises:
        ConfigError: see `load_config` and `load_plugins`; or an algorithm, codec or aggregator is
            unknown, or a setting of it.
    """
    config = load_config(path, CoordinatorConfig)
    load_plugins(config.plugins, path.parent, str(path))
    try:
        check_choices(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def check_choices(config: CoordinatorConfig) -> None:
    """Raises ConfigError unless algorithm, codec, aggregator and task are as configured."""
    ALGORITHMS.settings(config.algorithm, key="algorithm")
    algorithm: Algorithm = ALGORITHMS.make(config.algorithm, config.training)
    CODECS.settings(config.codec, key="codec")
    aggregator = AGGREGATORS.settings(config.aggregator, key="aggregator").name
    exact = [name for name, upload in algorithm.uploads.items() if upload.exact]
    member: Any = AGGREGATORS[aggregator]
    if exact and member.needs != "sum":
        raise ConfigError(
            f"aggregator: {aggregator} leaves values out, algorithm {name_of(config.algorithm)} "
            f"needs the mean of {', '.join(exact)}; take aggregator mean"
        )
    name = PHASES.settings(config.task, key="task").name
    if name in _FOLLOWING:
        known = ", ".join(each for each in PHASES.names() if each not in _FOLLOWING)
        raise ConfigError(f"task: {name!r} is no task, it follows another; tasks: {known}")
