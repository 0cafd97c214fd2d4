"""Updates on their way in: chunks of each agent put together, headers checked against the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.protocol import blobs, messages
from broker.protocol.messages import RoundPlan, UpdateHeader
from coordinator.machine.admission import MAX_EXAMPLES, MIN_WEIGHT, check_examples, check_vector
from fedge.errors import CodecError, UpdateRejected, WireError
from learning.codecs import Codec
from learning.vector import frames
from learning.vector.metrics import MetricSpec, fits
from learning.vector.parameters import F32

#: Room for an update's header beside its vector.
_HEADER_ROOM = 64 << 10
#: And for each number of a metric's sums, as text.
_NUMBER_ROOM = 32
#: No chunk of an unfinished update for so long: some were dropped on the way, or the link is slow.
STALL_S = 10.0


@dataclass(frozen=True, eq=False)
class Upload:
    """One whole update, not judged yet.

    Attributes:
        frame: as it came, to be stored.
        header: of the frame.
        body: of the frame: the encoded vector.
    """

    frame: bytes
    header: UpdateHeader
    body: memoryview

    @classmethod
    def from_frame(cls, frame: bytes) -> Upload:
        """The update in a frame.

        Raises:
            WireError: there is none.
        """
        return cls(frame, *messages.decode_update(frame))

    def check_plan(
        self, agent_id: str, plan: RoundPlan, size: int, metrics: Sequence[MetricSpec]
    ) -> None:
        """Refuses an update that does not answer this plan.

        Raises:
            UpdateRejected: `session`, `round`, `version`, `fingerprint`, `codec`, `shape`,
                `metrics` or `examples`.
        """
        header = self.header
        facts = [
            ("session", header.session, plan.session),
            ("round", header.round_id, plan.round_id),
            ("version", header.version, plan.version),
            ("fingerprint", header.fingerprint, plan.fingerprint),
            ("codec", header.codec, plan.codec),
            ("shape", header.size, size),
        ]
        for reason, found, expected in facts:
            if found != expected:
                raise UpdateRejected(agent_id, reason, f"{found} instead of {expected}")
        check_examples(agent_id, header.num_examples)
        if not (
            fits(header.metric_sums, metrics) and MIN_WEIGHT <= header.weight_sum <= MAX_EXAMPLES
        ):
            detail = f"sums of {sorted(header.metric_sums)} over a weight of {header.weight_sum:g}"
            raise UpdateRejected(agent_id, "metrics", detail)

    def vector(self, agent_id: str, codec: Codec, size: int, max_norm: float | None) -> F32:
        """The decoded delta: float32, shape (P,), finite.

        Raises:
            UpdateRejected: `malformed`, or as `admission.check_vector`.
        """
        try:
            delta = codec.decode(self.body, size)
        except CodecError as error:
            raise UpdateRejected(agent_id, "malformed", str(error)) from error
        check_vector(agent_id, delta, size=size, max_norm=max_norm)
        return delta


class Uploads:
    """One receiver for each agent that is sending; memory: an encoded update for each of them.

    Args:
        stall_s: an update without a chunk for so long is asked for again.
    """

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._max_bytes = 0
        self._receivers: dict[str, blobs.BlobReceiver] = {}
        self._heard_s: dict[str, float] = {}

    def begin(self, body_bytes: int, metrics: Sequence[MetricSpec] = ()) -> None:
        """Forget what is half there, and take vectors of `body_bytes` encoded bytes from now on."""
        numbers = sum(metric.size for metric in metrics)
        self._max_bytes = body_bytes + _HEADER_ROOM + _NUMBER_ROOM * numbers
        self._receivers.clear()
        self._heard_s.clear()

    def __len__(self) -> int:
        return len(self._receivers)

    def add(self, agent_id: str, payload: bytes, now_s: float) -> Upload | None:
        """Take one chunk; the update once it is whole.

        Raises:
            UpdateRejected: `malformed`: not a chunk, too large, damaged, or no update inside.
        """
        try:
            chunk = blobs.parse_chunk(payload)
            receiver = self._receivers.get(agent_id)
            if receiver is None or receiver.ref != chunk.ref:  # a new attempt replaces the old
                receiver = blobs.BlobReceiver(chunk.ref, self._max_bytes)
                self._receivers[agent_id] = receiver
            self._heard_s[agent_id] = now_s
            data = receiver.add(chunk)
            if data is None:
                return None
            del self._receivers[agent_id]
            return Upload.from_frame(data)
        except WireError as error:
            self._receivers.pop(agent_id, None)
            raise UpdateRejected(agent_id, "malformed", str(error)) from error

    def stalled(self, now_s: float) -> list[tuple[str, str, tuple[int, ...]]]:
        """(agent, SHA-256, missing chunks) of updates that stopped half-way, now and then."""
        found = []
        for agent_id, receiver in self._receivers.items():
            if now_s >= self._heard_s[agent_id] + self._stall_s:
                self._heard_s[agent_id] = now_s
                missing = tuple(receiver.missing_indexes()[: messages.MAX_MISSING])
                found.append((agent_id, receiver.ref.sha256, missing))
        return found

    def next_s(self) -> float | None:
        """When `stalled` has something to say; None when never."""
        moments = (self._heard_s[agent_id] + self._stall_s for agent_id in self._receivers)
        return min(moments, default=None)


def peek_header(payload: bytes) -> UpdateHeader | None:
    """The header of an update that will not be put together, from its first chunk.

    None for every other chunk, and for what is no update.
    """
    try:
        chunk = blobs.parse_chunk(payload)
        return frames.unpack(chunk.data, UpdateHeader, "update")[0] if chunk.index == 0 else None
    except WireError:
        return None
