"""Updates on their way in: chunks of each agent put together, headers checked against the plan."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker.protocol import blobs, messages
from broker.protocol.messages import RoundPlan, UpdateHeader
from broker.protocol.seeds import codec_seed
from coordinator.config import STALL_S
from coordinator.machine.admission import MAX_EXAMPLES, MIN_WEIGHT, check_examples, check_vector
from fedge.errors import CodecError, UpdateRejected, WireError
from learning.aggregation.norm_bound import RoundNorms
from learning.algorithms.algorithm import Algorithm
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.training import training_plan
from learning.codecs.codec import Codec
from learning.codecs.registry import CODECS
from learning.registry import Choice
from learning.vector import frames
from learning.vector.metrics import MetricSpec, fits
from learning.vector.parameters import F32

#: Room for an update's header beside its vectors.
_HEADER_ROOM = 64 << 10
#: And for each number of a metric's sums, as text.
_NUMBER_ROOM = 32
_LOSSLESS = "float32"


class ExpectedVectors:
    """The vectors that an update of a plan holds: names, lengths and codecs.

    The plan's algorithm and codec, not the configuration's: these may have changed since a restart.

    Args:
        plan: of the round.
        parameters: P.

    Raises:
        ConfigError: the plan names an algorithm or codec that there is not.
    """

    def __init__(self, plan: RoundPlan, parameters: int) -> None:
        algorithm: Algorithm = ALGORITHMS.make(plan.algorithm, training_plan(plan.training))
        self.sizes = {name: u.size(parameters) for name, u in algorithm.uploads.items()}
        self.choices: dict[str, Choice] = {
            name: _LOSSLESS if upload.lossless else plan.codec
            for name, upload in algorithm.uploads.items()
        }
        self.uploads = dict(algorithm.uploads)
        self.codecs: dict[str, Codec] = {n: CODECS.make(c) for n, c in self.choices.items()}

    @property
    def max_bytes(self) -> int:
        """The most bytes of an update's body."""
        return sum(codec.max_bytes(self.sizes[name]) for name, codec in self.codecs.items())


class Upload(msgspec.Struct, frozen=True, eq=False):
    """One whole update, not judged yet.

    Attributes:
        frame: as it came, to be stored.
        header: of the frame.
        body: of the frame: the encoded vectors.
    """

    frame: bytes
    header: UpdateHeader
    body: memoryview

    @classmethod
    def from_frame(cls, frame: bytes) -> Upload:
        """Returns the update in a frame.

        Raises:
            WireError: there is none.
        """
        return cls(frame, *messages.decode_update(frame))

    def check_plan(
        self,
        agent_id: str,
        plan: RoundPlan,
        expected: ExpectedVectors,
        metrics: Sequence[MetricSpec],
    ) -> int:
        """Refuses an update that does not answer this plan; returns its staleness.

        Raises:
            UpdateRejected: `session`, `version`, `fingerprint`, `vectors`, `codec`, `shape`,
                `metrics` or `examples`.
        """
        header = self.header
        staleness = plan.version - header.version
        if not 0 <= staleness <= plan.max_staleness:
            detail = f"version {header.version}, current {plan.version}, "
            detail += f"max_staleness {plan.max_staleness}"
            raise UpdateRejected(agent_id, "version", detail)
        _check_equal(agent_id, "session", header.session, plan.session)
        _check_equal(agent_id, "fingerprint", header.fingerprint, plan.fingerprint)
        if header.vectors.keys() != expected.sizes.keys():
            _check_equal(agent_id, "vectors", sorted(header.vectors), sorted(expected.sizes))
        for name, vector in header.vectors.items():
            _check_equal(agent_id, "codec", vector.codec, expected.choices[name])
            _check_equal(agent_id, "shape", vector.size, expected.sizes[name])
        check_examples(agent_id, header.num_examples)
        if not (
            fits(header.metric_sums, metrics) and MIN_WEIGHT <= header.weight_sum <= MAX_EXAMPLES
        ):
            names = str(sorted(header.metric_sums))[:200]
            detail = f"sums of {names} over a weight of {header.weight_sum:g}"
            raise UpdateRejected(agent_id, "metrics", detail)
        return staleness

    def vectors(
        self, agent_id: str, expected: ExpectedVectors, round_seed: int, norms: RoundNorms
    ) -> dict[str, F32]:
        """The decoded vectors: float32, of the expected lengths, finite.

        Args:
            agent_id: whose they are.
            expected: by the plan, see `check_plan`.
            round_seed: of the plan that the agent worked on.
            norms: shortens vectors that are too long, and notes the norms.

        Raises:
            UpdateRejected: `malformed`, or as `admission.check_vector` and `RoundNorms.admit`.
        """
        found: dict[str, F32] = {}
        norm_of: dict[str, float] = {}
        start = 0
        seed = codec_seed(round_seed, agent_id)
        for name, vector in self.header.vectors.items():
            part = self.body[start : start + vector.bytes]
            start += vector.bytes
            size = expected.sizes[name]
            try:
                found[name] = expected.codecs[name].decode(part, size, seed)
            except CodecError as error:
                raise UpdateRejected(agent_id, "malformed", f"{name}: {error}") from error
            norm_of[name] = check_vector(agent_id, found[name], size=size)
        if start != self.body.nbytes:
            detail = f"body of {self.body.nbytes} bytes, its vectors take {start}"
            raise UpdateRejected(agent_id, "malformed", detail)
        return {
            name: norms.admit(agent_id, name, vector, expected.uploads[name], norm_of[name])
            for name, vector in found.items()
        }


def _check_equal(agent_id: str, reason: str, found: object, wanted: object) -> None:
    if found != wanted:
        detail = f"{str(found)[:200]} instead of {wanted}"
        raise UpdateRejected(agent_id, reason, detail)


class Uploads:
    """One receiver for each agent and round that is arriving; memory: an encoded update for each.

    Args:
        stall_s: an update without a chunk for so long is asked for again.
    """

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._max_bytes = 0
        self._receivers: dict[tuple[str, int], blobs.BlobReceiver] = {}
        #: When the last chunk of each came; the longest ago is first.
        self._heard_s: dict[tuple[str, int], float] = {}

    def begin(self, body_bytes: int, metrics: Sequence[MetricSpec] = ()) -> None:
        """Forgets unfinished updates; from now on a body may have so many bytes."""
        numbers = sum(metric.size for metric in metrics)
        self._max_bytes = body_bytes + _HEADER_ROOM + _NUMBER_ROOM * numbers
        self._receivers.clear()
        self._heard_s.clear()

    def __len__(self) -> int:
        return len(self._receivers)

    def add(self, agent_id: str, round_id: int, payload: bytes, now_s: float) -> Upload | None:
        """Take one chunk; the update once it is whole.

        Raises:
            UpdateRejected: `malformed`: not a chunk, too large, damaged, or no update inside.
        """
        key = (agent_id, round_id)
        try:
            chunk = blobs.parse_chunk(payload)
            receiver = self._receivers.get(key)
            if receiver is None or receiver.ref != chunk.ref:  # a new attempt replaces the old
                receiver = blobs.BlobReceiver(chunk.ref, self._max_bytes)
                self._receivers[key] = receiver
            self._heard_s.pop(key, None)
            self._heard_s[key] = now_s
            data = receiver.add(chunk)
            if data is None:
                return None
            self._forget(key)
            return Upload.from_frame(data)
        except WireError as error:
            self._forget(key)
            raise UpdateRejected(agent_id, "malformed", str(error)) from error

    def _forget(self, key: tuple[str, int]) -> None:
        self._receivers.pop(key, None)
        self._heard_s.pop(key, None)

    def stalled(self, now_s: float) -> list[tuple[str, int, str, tuple[int, ...]]]:
        """Returns (agent, round, SHA-256, missing chunks) of updates that stopped half-way."""
        found = []
        while self._heard_s:
            key, heard_s = next(iter(self._heard_s.items()))
            if now_s < heard_s + self._stall_s:
                break
            del self._heard_s[key]
            self._heard_s[key] = now_s
            receiver = self._receivers[key]
            missing = tuple(receiver.missing_indexes()[: messages.MAX_MISSING])
            found.append((*key, receiver.ref.sha256, missing))
        return found

    def next_s(self) -> float | None:
        """Returns when `stalled` is due; None when never."""
        for heard_s in self._heard_s.values():
            return heard_s + self._stall_s  # the first: of the longest silence
        return None


def peek_header(payload: bytes) -> UpdateHeader | None:
    """The header of an update that will not be put together, from its first chunk.

    None for every other chunk, and for what is no update.
    """
    try:
        chunk = blobs.parse_chunk(payload)
        return frames.unpack(chunk.data, UpdateHeader, "update")[0] if chunk.index == 0 else None
    except WireError:
        return None
