"""Fair sums: no agent decides a fleet's figures alone, by many rows or by an absurd loss.

What a federation stops by is made of these figures, and they are what devices say of themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from learning.aggregation.share_cap import HELD, capped_weight
from learning.vector.metrics import Sums, Total

#: A loss of so many times the usual one is a fault or a lie: it is named and left out.
_ABSURD = 100.0

#: Agents from which on there is a usual one: of two nobody knows which is wrong.
FEWEST = 3


def without_absurd(
    sums: Mapping[str, Sums], usual_loss: float | None
) -> tuple[dict[str, Sums], dict[str, str]]:
    """Returns the sums whose loss can be believed, and the reason by agent for the others.

    Args:
        sums: by agent, each of a weight above 0.
        usual_loss: of the federation before it learned: once a model has learned, the median is so
            small that an honest agent's loss may be many times it; None: not known.
    """
    if len(sums) < FEWEST:
        return dict(sums), {}
    losses = {name: each.loss / each.weight for name, each in sums.items()}
    left_out = _absurd("loss", losses, abs(usual_loss or 0.0))
    return {name: each for name, each in sums.items() if name not in left_out}, left_out


def _absurd(what: str, values: Mapping[str, float], always_fine: float) -> dict[str, str]:
    """Returns the reason by agent whose value is far larger than usual, above or below 0."""
    usual = median(map(abs, values.values()))
    limit = max(_ABSURD * usual, always_fine) if usual else _ABSURD * always_fine
    if not limit:
        return {}
    return {
        name: f"{what} {value:.6g}, more than {_ABSURD:g} times the usual {usual:.6g}"
        for name, value in values.items()
        if abs(value) > limit
    }


def fair_shares(sums: Mapping[str, Sums]) -> dict[str, Sums]:
    """Returns the sums, those of an agent beyond its share of the weight scaled down to it."""
    heaviest = sorted((each.weight for each in sums.values()), reverse=True)
    limit = capped_weight(heaviest[:HELD], sum(heaviest[HELD:]), len(heaviest))
    return {
        name: each if each.weight <= limit else _scaled(each, limit / each.weight)
        for name, each in sums.items()
    }


def _scaled(sums: Sums, factor: float) -> Sums:
    def times(total: Total) -> Total:
        return tuple(factor * x for x in total) if isinstance(total, tuple) else factor * total

    metrics = {name: times(total) for name, total in sums.metrics.items()}
    return Sums(factor * sums.loss, factor * sums.weight, metrics)
