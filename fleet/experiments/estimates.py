"""Means of few runs: standard deviation, confidence interval (Student's t), paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean, mean, stdev

#: Of a confidence interval where nothing else is asked for.
LEVEL = 0.95
#: Above it Student's t is the normal distribution to 1e-4.
_MANY = 20_000
#: Halvings of the interval in which a quantile is looked for: below the precision of a float.
_HALVINGS = 200


@dataclass(frozen=True)
class Estimate:
    """Mean of independent runs.

    Attributes:
        n: number of runs.
        mean: of their values.
        sd: standard deviation with n - 1 in the denominator; None for one run.
        low, high: confidence interval of the mean (Student's t); None for one run.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        """Half of the confidence interval's width; None for one run."""
        return None if self.high is None else self.high - self.mean


@dataclass(frozen=True)
class Difference:
    """Differences of two sets of runs, paired by seed.

    Attributes:
        estimate: of the differences, the second minus the first.
        wins: seeds with which the second is strictly better.
        ties: seeds with which both are equal.
    """

    estimate: Estimate
    wins: int
    ties: int


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Returns mean, standard deviation and confidence interval.

    Args:
        values: at least one, of independent runs.
        level: of the interval.
    """
    n = len(values)
    if n == 1 or not all(map(math.isfinite, values)):
        return Estimate(n, fmean(values))
    middle, sd = mean(values), stdev(values)  # exact: runs that are equal deviate by 0
    half = t_quantile((1 + level) / 2, n - 1) * sd / math.sqrt(n)
    return Estimate(n, middle, sd, middle - half, middle + half)


def paired(
    first: Mapping[int, float], second: Mapping[int, float], *, falls: bool, level: float = LEVEL
) -> Difference:
    """Returns the differences `second - first`, seed by seed.

    Args:
        first: value by seed, of the baseline.
        second: value by seed; the same seeds.
        falls: whether smaller values are better.
        level: of the confidence interval.

    Raises:
        ValueError: the seeds differ, or there is none.
    """
    if not first or set(first) != set(second):
        raise ValueError(f"seeds do not pair: {sorted(first)} and {sorted(second)}")
    gains = [second[seed] - first[seed] for seed in sorted(first)]
    sign = -1 if falls else 1
    wins = sum(sign * gain > 0 for gain in gains)
    return Difference(estimate(gains, level), wins, gains.count(0.0))


@lru_cache(maxsize=256)
def t_quantile(probability: float, degrees: int) -> float:
    """Returns the quantile of Student's t distribution.

    Args:
        probability: 0.975 gives the factor of a 95 % interval.
        degrees: of freedom, from 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"no t quantile of {probability} with {degrees} degrees of freedom")
    if degrees > _MANY:
        return NormalDist().inv_cdf(probability)
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    wanted = 2 * probability - 1
    # P(|T| <= t) depends on the angle atan(t / sqrt(degrees)), which has an upper limit.
    angle = _root(lambda angle: _central_t(angle, degrees) - wanted, 0.0, math.pi / 2)
    return math.tan(angle) * math.sqrt(degrees)


def _central_t(angle: float, degrees: int) -> float:
    """Returns P(|T| <= t) with t = sqrt(degrees) tan(angle).

    Abramowitz and Stegun 1964, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns where an increasing function is zero between `low` and `high`."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if function(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
