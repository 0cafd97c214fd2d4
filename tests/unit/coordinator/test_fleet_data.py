"""What is odd about the data of a fleet: shifted labels, missing classes, other units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
import pytest

from broker.protocol import messages
from broker.protocol.messages import AgentStatus, TargetSummary
from broker.protocol.topics import AgentStatusTopic, Topics
from coordinator.config import CoordinatorConfig
from coordinator.doctor import _agents_check
from coordinator.fleet_data import DataWatch, fleet_findings, shift_findings
from coordinator.records.records import AgentResult, new_record
from coordinator.records.results import with_evaluation
from learning.vector.label_shift import label_shift
from learning.vector.metrics import MetricSpec, Sums
from models.package.spec import ModelSpec, TensorSpec
from models.zoo import load_zoo

PLAIN = load_zoo("house_price").spec
NAMES = ("rest", "sit", "walk", "run")


def of_classes(names: tuple[str, ...] = NAMES) -> ModelSpec:
    target = TensorSpec("target", (), "int32", classes=names)
    outputs = (TensorSpec("prediction", (len(names) or 4,)),)
    return msgspec.structs.replace(PLAIN, targets=(target,), outputs=outputs)


def born(
    summary: TargetSummary | None = None, warnings: Iterable[str] = (), rows: int = 400
) -> AgentStatus:
    return AgentStatus(
        state="online",
        agent_instance="a",
        phases=("train",),
        codecs=("int8",),
        algorithms=("fedavg",),
        train_examples=rows,
        targets={} if summary is None else {"target": summary},
        warnings=tuple(warnings),
    )


def with_classes(**classes: Iterable[int]) -> dict[str, AgentStatus]:
    return {name: born(TargetSummary(classes=tuple(c))) for name, c in classes.items()}


def lines(statuses: Mapping[str, AgentStatus], spec: ModelSpec | None = None) -> list[str]:
    return [found.text for found in fleet_findings(statuses, spec or of_classes())]


def test_a_device_whose_labels_are_shifted_is_named_once_the_classes_are_known() -> None:
    statuses = with_classes(a=[0, 1, 2], b=[0, 1, 2], c=[1, 2, 3], d=[0, 1, 2])
    assert lines(statuses) == [
        "c: has class 3 (run), which no other device has, and lacks class 0 (rest), which all 3 "
        "others have: its labels look shifted by +1"
    ]


def test_a_shift_downwards_is_seen_too_and_numbers_stand_where_classes_have_no_names() -> None:
    statuses = with_classes(a=[1, 2, 3], b=[1, 2, 3], c=[0, 1, 2])
    assert lines(statuses, of_classes(()))[0].startswith(
        "c: has class 0, which no other device has"
    )
    assert "shifted by -1" in lines(statuses)[0]


def test_a_class_that_no_device_has_is_named() -> None:
    statuses = with_classes(a=[1, 2], b=[2, 3], c=[1, 3])
    (line,) = lines(statuses)
    assert line == (
        "target: of the 3 devices that say which classes they have, none has class 0 (rest): are "
        "labels shifted, or is the class that rare?"
    )


def test_a_device_that_lacks_what_all_others_have_is_named() -> None:
    full = [0, 1, 2, 3]
    statuses = with_classes(a=full, b=full, c=[0, 1, 3], d=full)
    assert lines(statuses) == [
        "c: lacks class 2 (walk), which all 3 others have: is its label column right?"
    ]
    few_rows = statuses | {"c": born(TargetSummary(classes=(0, 1, 3)), rows=39)}
    assert lines(few_rows) == []
    # Two others are few: that may be chance.
    assert lines(with_classes(a=full, b=full, c=[0, 1, 3])) == []


def test_devices_that_differ_by_nature_are_left_alone() -> None:
    names = tuple("abcdefghij")
    shards = {f"pi-{n}": [n, (n + 3) % 10] for n in range(10)}
    assert lines(with_classes(**shards), of_classes(names)) == []
    alone = {f"pi-{n}": [n] for n in range(10)}
    assert lines(with_classes(**alone), of_classes(names)) == []


def test_agents_that_say_nothing_do_not_count() -> None:
    assert lines({"a": born(), "b": born(), "c": born()}) == []
    assert lines(with_classes(a=[0, 1, 2])) == []  # one alone says nothing of a fleet
    beyond = with_classes(a=[0, 1, 2, 3, 999], b=[0, 1, 2, 3])
    assert lines(beyond) == []


def numbers(**said: tuple[float, float]) -> dict[str, AgentStatus]:
    return {n: born(TargetSummary(level=lv, spread=sp)) for n, (lv, sp) in said.items()}


def in_unit(unit: str) -> ModelSpec:
    return msgspec.structs.replace(PLAIN, targets=(TensorSpec("target", units=(unit,)),))


def test_a_device_in_watts_among_kilowatts_is_named() -> None:
    statuses = numbers(a=(4.0, 1.0), b=(0.0, 1.0), c=(4096.0, 1024.0), d=(4.0, 4.0))
    assert lines(statuses, in_unit("kW")) == [
        "c: its targets (target) spread about 1,024 kW, the others' 2.5: are they in another unit? "
        "data.target.scale and offset convert them"
    ]


def test_a_device_in_kelvin_among_degrees_is_named() -> None:
    statuses = numbers(a=(16.0, 4.0), b=(16.0, 4.0), c=(288.0, 4.0))
    (line,) = lines(statuses, in_unit("°C"))
    assert line.startswith("c: its targets (target) lie about 288 °C, the others' 16: are they")


def test_devices_whose_levels_differ_by_nature_are_left_alone() -> None:
    rivers = {f"r{n}": (64.0 * n, 1.0) for n in range(9)}
    assert lines(numbers(**rivers), in_unit("m")) == []
    sizes = {f"r{n}": (0.0, 4.0**n) for n in range(5)}
    assert lines(numbers(**sizes), in_unit("m")) == []


def test_a_fleet_that_warns_of_itself_takes_one_line() -> None:
    one = {"a": born(warnings=["target: odd"]), "b": born()}
    assert lines(one) == ["a: target: odd"]
    many = {f"pi-{n:02}": born(warnings=["target: odd"]) for n in range(12)}
    (line,) = lines(many)
    assert line.startswith("12 devices warn of their data. pi-00: target: odd. Others: pi-01, ")
    assert line.endswith("and 3 more")


def test_absurd_summaries_break_nothing() -> None:
    said = {
        "a": born(TargetSummary(level=1e100, spread=5e-324)),
        "b": born(TargetSummary(level=-1e100, spread=1e100)),
        "c": born(TargetSummary(level=0.0, spread=1.0)),
        "d": born(TargetSummary(classes=(5,), level=0.0)),
    }
    assert {line[0] for line in lines(said, in_unit("m"))} <= {"a", "b", "c"}
    beyond = with_classes(a=[1 << 53], b=[0], c=[0, 0, 1])
    assert all("class" in line for line in lines(beyond))


def test_a_warning_that_is_worded_anew_each_time_is_told_once() -> None:
    watch = DataWatch(of_classes())
    for number in range(20):
        watch.is_due = True
        told = [*watch.news({"a": born(warnings=[f"odd {number}"])}, {})]
        assert told == (["a: odd 0"] if number == 0 else [])


def test_the_doctor_names_odd_devices_from_what_the_broker_keeps() -> None:
    topics = Topics("houses")
    statuses = numbers(a=(4.0, 1.0), b=(0.0, 1.0), c=(4096.0, 1024.0))
    kept = {topics.name(AgentStatusTopic(n)): messages.encode(s) for n, s in statuses.items()}
    config = CoordinatorConfig(federation="houses", model="house_price")
    found = _agents_check(kept, config, in_unit("kW"))
    assert found.state == "warning"
    assert "data: c: its targets (target) spread about 1,024 kW" in found.found
    assert len(found.facts["data"]) == 1
    assert "data" not in _agents_check(kept, config, None).facts


def test_each_finding_is_told_once() -> None:
    watch = DataWatch(of_classes())
    statuses = with_classes(a=[0, 1, 2], b=[0, 1, 2], c=[1, 2, 3])
    assert len([*watch.news(statuses, {})]) == 1
    watch.is_due = True
    assert [*watch.news(statuses, {})] == []
    more = statuses | with_classes(d=[0, 1, 2], e=[2, 3, 3])
    watch.is_due = True
    assert len([*watch.news(more, {})]) <= 2


# -- confusion --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "shift"),
    [
        ([[0, 0, 0, 0], [9, 1, 0, 0], [0, 8, 2, 0], [0, 0, 9, 1]], 1),  # labels one too high
        ([[1, 9, 0, 0], [0, 1, 9, 0], [0, 0, 0, 9], [0, 0, 0, 0]], -1),
        ([[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9]], 0),
        ([[0, 0, 0, 0], [30, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], 0),  # it always says one class
        ([[3, 3, 3, 3]] * 4, 0),
        ([[0, 0, 0, 0], [2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]], 0),  # few rows
    ],
)
def test_labels_that_are_off_by_a_constant_are_seen_in_the_confusion(
    matrix: list[list[float]], shift: int
) -> None:
    assert label_shift(np.array(matrix, np.float64)) == shift


def test_two_classes_that_are_exchanged_are_no_shift() -> None:
    assert label_shift(np.array([[0.0, 30.0], [30.0, 0.0]])) == 0


def test_the_record_of_a_round_has_each_agent_s_shift() -> None:
    right = tuple(np.diag([9.0, 9.0, 9.0, 9.0]).reshape(-1).tolist())
    high = tuple(np.diag([9.0, 9.0, 9.0], -1).reshape(-1).tolist())
    evaluated = {
        "a": Sums(3.0, 36.0, {"confusion": right}),
        "c": Sums(90.0, 27.0, {"confusion": high}),
    }
    metrics = (MetricSpec("confusion", "confusion", (4, 4)),)
    record = with_evaluation(new_record(1, 1, 2), evaluated, set(), metrics)
    assert {name: agent.label_shift for name, agent in record.agents.items()} == {"a": 0, "c": 1}
    assert [found.text for found in shift_findings(record.agents)] == [
        "c: most of its labels are +1 from the class that the model predicts: are its labels "
        "shifted? Look at its label column"
    ]
    old = AgentResult(task="train", loss=1.0, metrics={}, num_examples=4)
    assert [*shift_findings({"a": old})] == []
