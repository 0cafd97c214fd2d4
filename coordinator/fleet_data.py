"""Findings about the data of a whole fleet: shifted labels, missing classes, other units.

Devices say coarsely what targets their rows have (`TargetSummary`). One device cannot tell that its
labels are shifted, or that it measures watts where the others measure kilowatts; all of them
together can. Pure functions of the agents' statuses and of a round's record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import median

from broker.protocol.messages import AgentStatus, TargetSummary
from coordinator.records.records import AgentResult
from models.package.spec import ModelSpec, TensorSpec
from models.package.units import amount_text

#: Devices that must say something before one of them can be odd.
_ENOUGH = 3
#: Devices that must have a class before it is odd that one lacks it.
_MOST = 3
#: Rows per class that a device must have: one of few rows lacks classes by chance.
_ROWS = 10
#: Largest shift that is looked for.
_SHIFTS = (1, -1, 2, -2)
#: Ratio to the median spread. Spreads are rounded to powers of 4: 64 is a true ratio above 16.
_RATIO = 50.0
#: Spreads, and usual distances between devices, from the median level.
_FAR = 10.0
#: Usual distances (median absolute deviations) of a spread, in logarithms.
_UNUSUAL = 4.0
_SHOWN = 8
#: Devices whose own warnings are told one by one.
_EACH = 3
#: By one process: a fleet of 100,000 odd devices must not fill a log.
_MOST_TOLD = 1000


@dataclass(frozen=True)
class FleetFinding:
    """Something odd about a fleet's data.

    Attributes:
        key: the same for as long as the finding is the same, however the fleet grows.
        text: one line for people.
    """

    key: str
    text: str


def fleet_findings(statuses: Mapping[str, AgentStatus], spec: ModelSpec) -> Iterator[FleetFinding]:
    """Yields what is odd about the targets of the agents that say what they have.

    Args:
        statuses: by agent id; those of agents that are offline count too.
        spec: of the model.
    """
    yield from _warnings({name: s.warnings for name, s in sorted(statuses.items()) if s.warnings})
    for target in spec.targets:
        said = {
            agent_id: status.targets[target.name]
            for agent_id, status in sorted(statuses.items())
            if target.name in status.targets
        }
        if names := spec.class_names(target):
            rows = {n: s.train_examples + s.test_examples for n, s in statuses.items()}
            yield from _classes(target, names, said, rows)
        else:
            yield from _spreads(target, said)


def _warnings(said: Mapping[str, Sequence[str]]) -> Iterator[FleetFinding]:
    """Yields what devices say of their own data; of many devices one line."""
    if len(said) <= _EACH:
        for agent_id, warnings in said.items():
            for number, warning in enumerate(warnings):
                # Once each: one that is worded anew every time must not fill the log.
                yield FleetFinding(f"{agent_id} warns {number}", f"{agent_id}: {warning}")
        return
    first, *others = said
    rest = len(others) - _SHOWN
    listed = ", ".join(others[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    yield FleetFinding(
        f"warnings {len(said).bit_length()}",  # told again when they are twice as many
        f"{len(said)} devices warn of their data. {first}: {said[first][0]}. Others: {listed}",
    )


def shift_findings(agents: Mapping[str, AgentResult]) -> Iterator[FleetFinding]:
    """Yields the agents whose labels are off by a constant from what the model predicts.

    Args:
        agents: of a round's record.
    """
    for agent_id, result in agents.items():
        if result.label_shift:
            yield FleetFinding(
                f"{agent_id} shift {result.label_shift}",
                f"{agent_id}: most of its labels are {result.label_shift:+d} from the class that "
                "the model predicts: are its labels shifted? Look at its label column",
            )


class DataWatch:
    """Tells each finding once, when it is new.

    Args:
        spec: of the model.

    Attributes:
        is_due: an agent's status has changed since the last look.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._told: set[str] = set()
        self.is_due = True

    def news(
        self, statuses: Mapping[str, AgentStatus], agents: Mapping[str, AgentResult]
    ) -> Iterator[str]:
        """Yields a line for each finding that was not told before, a thousand in all.

        Args:
            statuses: by agent id.
            agents: of the record of the round that ended.
        """
        looked = fleet_findings(statuses, self._spec) if self.is_due else ()
        self.is_due = False
        for found in (*looked, *shift_findings(agents)):
            if found.key not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(found.key)
                yield found.text


# -- classes --------------------------------------------------------------------------------------


def _classes(
    target: TensorSpec,
    names: tuple[str, ...],
    said: Mapping[str, TargetSummary],
    rows: Mapping[str, int],
) -> Iterator[FleetFinding]:
    having = {
        agent_id: {index for index in summary.classes if index < len(names)}
        for agent_id, summary in said.items()
        if summary.classes
    }
    if len(having) < 2:
        return
    counts = Counter(index for classes in having.values() for index in classes)
    nobody = [index for index in range(len(names)) if not counts[index]]
    if nobody:
        listed = ", ".join(_class(names, index) for index in nobody[:_SHOWN])
        yield FleetFinding(
            f"{target.name} nobody {nobody}",
            f"{target.name}: of the {len(having)} devices that say which classes they have, none "
            f"has {listed}: are labels shifted, or is the class that rare?",
        )
    if len(having) < _ENOUGH:
        return
    for agent_id, classes in having.items():
        is_large = rows[agent_id] >= _ROWS * len(names)
        odd = _odd_classes(classes, counts, len(having), len(names), is_large=is_large)
        if odd is not None:
            text = _odd_text(odd, names, len(having))
            yield FleetFinding(f"{target.name} {agent_id} {odd}", f"{agent_id}: {text}")


@dataclass(frozen=True)
class _Odd:
    alone: tuple[int, ...]
    lacks: tuple[int, ...]
    shift: int


def _odd_classes(
    classes: set[int], counts: Counter[int], devices: int, known: int, *, is_large: bool
) -> _Odd | None:
    """Returns how a device's classes differ from the others'; None: as devices differ."""
    others = {index for index in range(known) if counts[index] > (index in classes)}
    alone = tuple(sorted(classes - others))
    lacks = tuple(
        index
        for index in range(known)
        if index not in classes and counts[index] == devices - 1 >= _MOST
    )
    shift = next(
        (k for k in _SHIFTS if alone and len(classes) > 1 and {c - k for c in classes} <= others),
        0,
    )
    # Where most classes are on few devices anyway, one that is on a single one is nothing odd.
    is_usual = sum(2 * counts[index] >= devices for index in others) * 2 < len(others)
    if not shift and is_usual:
        alone = ()
    if not shift and not alone and not is_large:
        lacks = ()
    return _Odd(alone, lacks, shift) if alone or lacks else None


def _odd_text(odd: _Odd, names: tuple[str, ...], devices: int) -> str:
    parts = []
    if odd.alone:
        parts.append(f"has {_listed(names, odd.alone)}, which no other device has")
    if odd.lacks:
        parts.append(f"lacks {_listed(names, odd.lacks)}, which all {devices - 1} others have")
    if odd.shift:
        return f"{', and '.join(parts)}: its labels look shifted by {odd.shift:+d}"
    return f"{', and '.join(parts)}: is its label column right?"


def _listed(names: tuple[str, ...], classes: tuple[int, ...]) -> str:
    rest = len(classes) - _SHOWN
    listed = ", ".join(_class(names, index) for index in classes[:_SHOWN])
    return listed + (f" and {rest} more classes" if rest > 0 else "")


def _class(names: tuple[str, ...], index: int) -> str:
    name = names[index]
    return f"class {name}" if name == str(index) else f"class {index} ({name})"


# -- units ----------------------------------------------------------------------------------------


def _spreads(target: TensorSpec, said: Mapping[str, TargetSummary]) -> Iterator[FleetFinding]:
    known = {
        agent_id: (summary.level, summary.spread)
        for agent_id, summary in said.items()
        if summary.level is not None and summary.spread > 0
    }
    if len(known) < _ENOUGH:
        return
    unit = target.units[0] if len(set(target.units)) == 1 else ""
    usual_spread = median(spread for _, spread in known.values())
    sizes = {agent_id: log(spread) - log(usual_spread) for agent_id, (_, spread) in known.items()}
    unusual = max(log(_RATIO), _UNUSUAL * _deviation(sizes))
    usual_level = median(level for level, _ in known.values())
    distances = {agent_id: level - usual_level for agent_id, (level, _) in known.items()}
    apart = _deviation(distances)
    for agent_id, (level, spread) in known.items():
        if abs(sizes[agent_id]) >= unusual:
            found = f"spread about {amount_text(spread, unit)}, the others' {usual_spread:g}"
        elif abs(distances[agent_id]) >= _FAR * max(spread, usual_spread, apart):
            found = f"lie about {amount_text(level, unit)}, the others' {usual_level:g}"
        else:
            continue
        advice = "are they in another unit? data.target.scale and offset convert them"
        yield FleetFinding(
            f"{target.name} {agent_id} unit",
            f"{agent_id}: its targets ({_name(target)}) {found}: {advice}",
        )


def _deviation(values: Mapping[str, float]) -> float:
    """Returns the median distance from 0."""
    return median(map(abs, values.values()))


def _name(target: TensorSpec) -> str:
    return target.features[0] if len(target.features) == 1 else target.name
