"""Norm bound: an update far longer than those of its cohort is clipped, or refused.

The scale is the median L2 norm of the latest rounds' updates, which a minority cannot move. Above
`clip` times the scale an update is shortened to that (norm clipping: Sun et al. 2019, "Can you
really backdoor federated learning?", arXiv 1911.07963, section 5); above `refuse` times it does
not count at all. Honest norms shrink (to a fortieth, at the most) and spread as training converges:
of ten federations on real data the longest was up to 1.7 times the first round's median, and up to
7.4 times that of a late one. So the scale never falls below a quarter of the largest median so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from fedge.errors import UpdateRejected
from learning.algorithms.algorithm import Upload
from learning.vector.parameters import F32, F64

Multiple = Annotated[float, Meta(ge=0, le=1e6)]

#: Norms without which there is no median to speak of.
_FEWEST = 3
_FLOOR = 0.25
#: What is left of the largest median after each round, so that one round does not count for ever.
_FADING = 0.98
#: A step of so many times (‖θ‖ + √P) is none: weights of a working model are of the order of 1.
_EXPLOSION = 1e4
#: A delta that an agent clipped to the limit may exceed it by float32 rounding.
NORM_TOLERANCE = 1e-5

#: float32 dot products are fast, and over this many elements their rounding is below 1e-6.
_PIECE = 65_536


class NormBoundSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bound on the norms of updates, relative to those of their cohort.

    Attributes:
        clip: updates longer than so many times the scale are shortened to it; 0: none is.
        refuse: updates longer than so many times the scale do not count; 0: none is refused, and
            there is no ceiling either.
        rounds: whose updates make the scale.
    """

    clip: Multiple = 2.0
    refuse: Multiple = 10.0
    rounds: Annotated[int, Meta(ge=1, le=1000)] = 5

    def __post_init__(self) -> None:
        if self.clip and self.refuse and self.clip > self.refuse:
            raise ValueError(f"clip {self.clip:g} is above refuse {self.refuse:g}")


class Norms(msgspec.Struct, frozen=True):
    """Norms of one round's updates, refused ones included.

    Attributes:
        median: of them.
        count: number of agents.
    """

    median: float
    count: int


class KnownNorms(msgspec.Struct, frozen=True):
    """Memory of a norm history about one vector; stored.

    Attributes:
        recent: of the latest rounds, in order.
        largest: the largest median of a round so far.
    """

    recent: tuple[Norms, ...]
    largest: float = 0.0


class Limit(NamedTuple):
    """A largest norm of `delta`, and the reason for it."""

    norm: float
    why: str


class NormHistory:
    """The scale of each vector's norm, from round to round.

    Args:
        settings: of the bound.
        known: what an earlier history remembered, by the vectors' names.
    """

    def __init__(
        self, settings: NormBoundSettings, known: Mapping[str, KnownNorms] | None = None
    ) -> None:
        self.settings = settings
        self._recent: dict[str, deque[Norms]] = {}
        self._largest: dict[str, float] = {}
        for name, norms in (known or {}).items():
            self._recent[name] = deque(norms.recent, maxlen=settings.rounds)
            if norms.largest:
                self._largest[name] = norms.largest

    @property
    def known(self) -> dict[str, KnownNorms]:
        """Memory that a restart goes on with, by the vectors' names."""
        return {
            name: KnownNorms(tuple(recent), self._largest.get(name, 0.0))
            for name, recent in self._recent.items()
        }

    def add(self, norms: Mapping[str, Norms]) -> None:
        """Adds a round's norms, by the vectors' names.

        When most of a round's updates are beyond the bound, it is the fleet that has changed: what
        was before says nothing any more.
        """
        for name, found in norms.items():
            scale = self.scale(name)
            refuse = self.settings.refuse
            if scale and refuse and found.count >= _FEWEST and found.median > refuse * scale:
                self._recent.pop(name)
                self._largest.pop(name, None)
            recent = self._recent.setdefault(name, deque(maxlen=self.settings.rounds))
            recent.append(found)
            if found.count >= _FEWEST:
                largest = _FADING * self._largest.get(name, 0.0)
                self._largest[name] = max(found.median, largest)

    def scale(self, name: str) -> float:
        """Returns the norm that is usual for a vector; 0 while too few are known.

        A round of one or two agents says nothing: its median is what one of them chose.
        """
        recent = [each for each in self._recent.get(name, ()) if each.count >= _FEWEST]
        if not recent:
            return 0.0
        # A round counts by its agents, but none more than a hundred times another.
        medians = [each.median for each in recent for _ in range(min(each.count, 100))]
        return max(float(np.median(medians)), _FLOOR * self._largest.get(name, 0.0))

    def open_round(self, theta: F32, max_norm: float | None = None) -> RoundNorms:
        """Returns the bound of a round that begins now.

        Args:
            theta: float32, [P]: a step that is far longer than it is refused from the first on.
            max_norm: of `delta`, whatever is usual; None sets no limit.
        """
        limits = [] if max_norm is None else [Limit(max_norm, "max_update_norm")]
        if self.settings.refuse:
            limits.append(Limit(explosion_norm(theta), "θ would explode (norm_bound.refuse)"))
        scales = {name: self.scale(name) for name in self._recent}
        return RoundNorms(self.settings, scales, min(limits, default=None))


@dataclass(frozen=True, eq=False)
class NormsTable:
    """Norms of one vector of a cohort's agents; those that count as noted, shape (n,)."""

    agent_ids: Sequence[str]
    norms: F64
    noted: NDArray[np.bool_]


class RoundNorms:
    """One round's bound, and the norms that came in.

    Args:
        settings: of the bound.
        scales: usual norm by vector; 0 or absent: not known.
        limit: of `delta`, times `Upload.norm_factor` of other vectors; None: there is none.

    Attributes:
        clipped: by agent whose update was shortened, the factor.
    """

    def __init__(
        self,
        settings: NormBoundSettings,
        scales: Mapping[str, float],
        limit: Limit | None = None,
    ) -> None:
        self.clipped: dict[str, float] = {}
        self._settings = settings
        self._scales = scales
        self._limit = limit
        self._norms: dict[str, dict[str, float]] = {}
        self._tables: dict[str, list[NormsTable]] = {}
        self._refused: set[str] = set()

    def part(self) -> RoundNorms:
        """Returns the same bound for a part of the round's agents, nothing noted yet."""
        return RoundNorms(self._settings, self._scales, self._limit)

    def merge(self, other: RoundNorms) -> None:
        """Takes what was noted for a part of the agents."""
        self.clipped |= other.clipped
        self._refused |= other._refused
        for name, norms in other._norms.items():
            self._norms.setdefault(name, {}).update(norms)
        for name, tables in other._tables.items():
            self._tables.setdefault(name, []).extend(tables)

    def admit(
        self, agent_id: str, name: str, vector: F32, upload: Upload, norm: float | None = None
    ) -> F32:
        """Returns a vector of an update, shortened where it is too long.

        Args:
            agent_id: whose it is.
            name: of the vector.
            vector: float32, [P], finite.
            upload: its kind; one that is `exact` is refused rather than shortened.
            norm: of the vector; None: it is computed.

        Raises:
            UpdateRejected: `norm`: beyond the limit, or far beyond the usual.
        """
        if norm is None:
            norm = vector_norm(vector)
        if self._explodes(norm, upload):
            self._refused.add(agent_id)
            assert self._limit is not None, "something explodes"
            limit = self._limit.norm * upload.norm_factor
            detail = f"L2 norm of {name} {norm:.6g}, limit {limit:.6g}: {self._limit.why}"
            raise UpdateRejected(agent_id, "norm", detail)
        self._norms.setdefault(name, {})[agent_id] = norm
        scale, settings = self._scales.get(name, 0.0), self._settings
        refuse = settings.refuse * scale
        if refuse and norm > refuse * (1 + NORM_TOLERANCE):
            why = f"{settings.refuse:g} times the usual norm (norm_bound.refuse)"
            detail = f"L2 norm of {name} {norm:.6g}, limit {refuse:.6g}: {why}"
            self._refused.add(agent_id)
            raise UpdateRejected(agent_id, "norm", detail)
        clip = settings.clip * scale
        if clip and norm > clip and not upload.exact:
            self.clipped[agent_id] = clip / norm
            return vector * np.float32(clip / norm)
        return vector

    def admit_many(
        self, agent_ids: Sequence[str], name: str, vectors: F32, upload: Upload
    ) -> tuple[F32, dict[int, UpdateRejected]]:
        """Returns one vector of each of n agents, and why some do not count, by place.

        As `admit` one by one; `vectors`, float32, [n, P], is changed where one is too long.
        """
        norms = vector_norms(vectors)
        scale = self._scales.get(name, 0.0)
        longest = min(
            self._settings.clip * scale if self._settings.clip * scale else np.inf,
            self._settings.refuse * scale if self._settings.refuse * scale else np.inf,
            np.inf if self._limit is None else self._limit.norm * upload.norm_factor,
        )
        refused: dict[int, UpdateRejected] = {}
        fine = norms <= longest
        for place in np.flatnonzero(~fine).tolist():
            try:
                admitted = self.admit(agent_ids[place], name, vectors[place], upload)
            except UpdateRejected as error:
                refused[place] = error
                continue
            if admitted is not vectors[place]:
                vectors = vectors if vectors.flags.writeable else vectors.copy()
                vectors[place] = admitted
        # Those that are not fine, `admit` has noted.
        self._tables.setdefault(name, []).append(NormsTable(agent_ids, norms, fine))
        return vectors, refused

    def lengths(self, agent_ids: Sequence[str]) -> F64:
        """Returns `length` of each of the agents that `admit_many` took last, shape (n,)."""
        scale = self._scales.get("delta", 0.0)
        tables = self._tables.get("delta")
        if not scale or not tables:
            return np.ones(len(agent_ids))
        table = tables[-1]
        assert table.agent_ids is agent_ids, "the last"
        found = table.norms / scale
        for place in np.flatnonzero(~table.noted).tolist():
            found[place] = self.length(agent_ids[place])
        return found

    def _explodes(self, norm: float, upload: Upload) -> bool:
        """Whether a norm is beyond any; it says nothing of what is usual."""
        limit = self._limit
        return limit is not None and norm > limit.norm * upload.norm_factor * (1 + NORM_TOLERANCE)

    def length(self, agent_id: str) -> float:
        """Returns the norm of an agent's `delta` as it counts, in units of the usual one.

        1 where nothing is usual yet.
        """
        scale = self._scales.get("delta", 0.0)
        norm = self._norms.get("delta", {}).get(agent_id)
        if not scale or norm is None:
            return 1.0
        return norm * self.clipped.get(agent_id, 1.0) / scale

    def norms(self) -> dict[str, Norms]:
        """Returns the round's norms for `NormHistory.add`."""
        found = {name: self._values(name) for name in (self._norms | self._tables)}
        return {n: Norms(float(np.median(v)), len(v)) for n, v in found.items() if len(v)}

    def _values(self, name: str) -> F64:
        """Returns the norms of a vector that were noted."""
        alone = np.array(list(self._norms.get(name, {}).values()), np.float64)
        tables = self._tables.get(name, ())
        return np.concatenate([alone, *(table.norms[table.noted] for table in tables)])

    def _beyond(self, name: str, limit: float) -> Iterator[tuple[str, float]]:
        """Yields the agents whose norms are above a limit, and these."""
        yield from ((a, norm) for a, norm in self._norms.get(name, {}).items() if norm > limit)
        for table in self._tables.get(name, ()):
            for place in np.flatnonzero(table.noted & (table.norms > limit)).tolist():
                yield table.agent_ids[place], float(table.norms[place])

    def suspects(self) -> dict[str, str]:
        """Returns agents whose updates were taken before anything was usual, and are beyond it.

        The first round's bound is known when it is over.
        """
        found: dict[str, str] = {}
        for name, norms in self.norms().items():
            limit = self._settings.refuse * norms.median
            if self._scales.get(name) or norms.count < _FEWEST or not limit:
                continue
            found |= {
                agent_id: f"L2 norm of {name} {norm:.6g}, "
                f"{norm / norms.median:.3g} times the median"
                for agent_id, norm in self._beyond(name, limit)
                if agent_id not in self._refused
            }
        return found


def explosion_norm(theta: F32) -> float:
    """Returns the norm of a step at which θ would explode, whatever the cohort."""
    return _EXPLOSION * (vector_norm(theta) + sqrt(theta.size))


def vector_norms(vectors: F32) -> F64:
    """Returns the L2 norm of each row of float32 [n, P], equal to `vector_norm` of it."""
    if vectors.shape[1] > _PIECE:
        return np.array([vector_norm(vector) for vector in vectors], np.float64)
    with np.errstate(over="ignore"):
        # Products of one row and one column: numpy has BLAS compute each as `np.dot` does.
        squares = np.matmul(vectors[:, None, :], vectors[:, :, None]).reshape(len(vectors))
        norms: F64 = np.sqrt(squares.astype(np.float64))
    for place in np.flatnonzero(~np.isfinite(norms)).tolist():
        norms[place] = vector_norm(vectors[place])
    return norms


def vector_norm(vector: F32) -> float:
    """Returns the L2 norm of a float32 vector, to about 1e-6; not finite if a number is not."""
    # BLAS tells nobody of an overflow: there is no warning to silence.
    square = 0.0
    for start in range(0, vector.size, _PIECE):
        piece = vector[start : start + _PIECE]
        square += float(np.dot(piece, piece))
    if isfinite(square):
        return sqrt(square)
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        return float(np.linalg.norm(vector.astype(np.float64)))  # squares beyond float32
