"""Late decoding of a plan: its choices and its blobs, each with a reason to decline."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import numpy as np

from broker.protocol.blobs import CommonChunks
from broker.protocol.messages import BlobRef, RoundPlan
from broker.protocol.recent import RecentPayloads
from fedge.errors import ConfigError, DeclinedError, one_line
from learning.algorithms.algorithm import Algorithm
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.training import TrainingPlan, training_plan
from learning.codecs.codec import Codec
from learning.codecs.registry import CODECS
from learning.phases.phase import WEIGHTS, Phase
from learning.phases.registry import PHASES
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors

#: Limit of settings within settings; deeper ones are nobody's, and end in RecursionError.
MAX_NESTING = 20


def is_too_deep(choice: Any) -> bool:
    """Returns whether settings are nested more than `MAX_NESTING` deep."""
    if isinstance(choice, str) or not choice:
        return False  # nearly always
    level = [choice]
    for _ in range(MAX_NESTING + 1):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return False
    return True


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


#: What a plan names, in the order of decoding.
_REASONS = ("phase", "algorithm", "training", "codec")


@dataclass(frozen=True, eq=False)
class DecodedPlan:
    """Settings of a plan, decoded into objects.

    Attributes:
        phase: with its settings.
        algorithm: with its settings.
        algorithm_name: its name.
        training: steps, rates and the local optimizer.
        codec: with its settings.
        blob_names: of the vectors that the device needs: θ, and what the algorithm shares.
    """

    phase: Phase
    algorithm: Algorithm
    algorithm_name: str
    training: TrainingPlan
    codec: Codec
    blob_names: tuple[str, ...]


def decode_plan(plan: RoundPlan) -> DecodedPlan:
    """Returns the decoded settings of a plan.

    Raises:
        DeclinedError: this software does not know the phase, the algorithm, the codec or a setting,
            or it is nested too deep; its reason is `phase`, `algorithm`, `training` or `codec`.
    """
    for known, decoded in _latest:
        if known is plan:
            return decoded
    choices = {reason: getattr(plan, reason) for reason in _REASONS}
    for reason, choice in choices.items():
        if is_too_deep(choice):
            raise DeclinedError(reason, f"{reason}: nested more than {MAX_NESTING} deep")
    decoded = _decoded(msgspec.json.encode(choices))
    _latest.append((plan, decoded))
    return decoded


#: The plan that was decoded last, and that before it: agents of a simulator share them.
_latest: deque[tuple[RoundPlan, DecodedPlan]] = deque(maxlen=2)


@lru_cache(maxsize=4)
def _decoded(text: bytes) -> DecodedPlan:
    """Returns the decoded choices; shared, since they hold settings only.

    A plan is decoded at every step of its round, in a simulator by every agent.
    """
    choices = msgspec.json.decode(text)
    with _declines("phase"):
        phase = PHASES.make(choices["phase"])
    with _declines("algorithm"):
        settings = ALGORITHMS.settings(choices["algorithm"])
    with _declines("training"):
        training = training_plan(choices["training"])
    with _declines("algorithm"):
        algorithm = ALGORITHMS.make(settings, training)
    with _declines("codec"):
        codec = CODECS.make(choices["codec"])
    shared = shared_vectors(algorithm, np.zeros(1, np.float32))
    return DecodedPlan(phase, algorithm, settings.name, training, codec, (WEIGHTS, *shared))


def shared_vectors(algorithm: Algorithm, theta: F32) -> Vectors:
    """Returns what an algorithm shares before the first round; later ones have the same lengths.

    Raises:
        DeclinedError: the algorithm, of a plug-in perhaps, cannot say.
    """
    try:
        return algorithm.shared(algorithm.init(theta))
    except Exception as error:
        detail = f"{type(algorithm).__name__}.init: {type(error).__name__}: {one_line(error)}"
        raise DeclinedError("algorithm", detail) from error


def wanted_blobs(plan: RoundPlan, names: Collection[str], max_bytes: int) -> dict[str, BlobRef]:
    """Returns the blobs that the device needs, by name; a plan's others are ignored.

    Raises:
        DeclinedError: `weights`: some are missing, or they are larger than allowed.
    """
    wanted, size = {}, 0
    for name in names:
        if (ref := plan.blobs.get(name)) is None:
            lacking = ", ".join(name for name in names if name not in plan.blobs)
            detail = f"the plan has no blob {lacking}; expected {', '.join(names)}"
            raise DeclinedError("weights", detail)
        wanted[name] = ref
        size += ref.size
    if size > max_bytes:
        detail = f"blobs {', '.join(names)} of {size} bytes, limit {max_bytes}"
        raise DeclinedError("weights", detail)
    return wanted


@contextmanager
def _declines(reason: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise DeclinedError(reason, str(error)) from error


@dataclass(frozen=True, eq=False)
class CommonBlobs:
    """Blobs that agents of one process have in common: each is in memory once.

    Every agent still fetches its own. For agents of one thread.

    Attributes:
        chunks: of blobs that are being fetched.
        vectors: that plans at work need, by the SHA-256 of their blob.
        recent: decodes messages that all agents get; None: each agent decodes its own.
    """

    chunks: CommonChunks = field(default_factory=CommonChunks)
    vectors: WeakValueDictionary[str, F32] = field(default_factory=WeakValueDictionary)
    recent: RecentPayloads | None = None

    @classmethod
    def of_many(cls) -> CommonBlobs:
        """Returns what agents share that get the very same payloads, as from a broker in memory."""
        recent = RecentPayloads()
        return cls(CommonChunks(recent), recent=recent)


class PlanBlobs:
    """Vectors by the SHA-256 of their blob; a plan with the same θ needs no second download.

    Args:
        common: vectors that other agents of the process hold.
    """

    def __init__(self, common: WeakValueDictionary[str, F32]) -> None:
        self._common = common
        self._vectors: dict[str, F32] = {}

    def missing(self, wanted: Mapping[str, BlobRef]) -> list[BlobRef]:
        """Returns the wanted blobs that are not in memory."""
        return [ref for ref in wanted.values() if ref.sha256 not in self._vectors]

    def take(self, sha256: str, blob: bytes) -> None:
        """Takes a complete blob.

        Raises:
            DeclinedError: it is not a finite float32 vector.
        """
        vector = self._common.get(sha256)
        if vector is None:
            vector = self._common[sha256] = _decode_vector(sha256, blob)
        self._vectors[sha256] = vector

    def vectors(self, wanted: Mapping[str, BlobRef]) -> Vectors:
        """Returns the wanted vectors by name; none is missing."""
        return {name: self._vectors[ref.sha256] for name, ref in wanted.items()}

    def keep_only(self, plans: Iterable[RoundPlan]) -> None:
        """Frees the vectors of all other plans."""
        if not self._vectors:
            return
        kept = {ref.sha256 for plan in plans for ref in plan.blobs.values()}
        for sha256 in [each for each in self._vectors if each not in kept]:
            del self._vectors[sha256]


def _decode_vector(sha256: str, blob: bytes) -> F32:
    """Returns the vector, read-only.

    Raises:
        DeclinedError: the blob is not a finite float32 vector.
    """
    vector = np.frombuffer(blob, "<f4").astype(np.float32) if len(blob) % 4 == 0 else None
    if vector is None or not np.isfinite(vector).all():
        raise DeclinedError("weights", f"blob {sha256[:12]} is not a finite float32 vector")
    vector.setflags(write=False)
    return vector
