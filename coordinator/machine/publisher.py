"""Publisher: manifest, blobs, plan and status that the coordinator keeps retained at the broker."""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from broker.protocol import blobs, messages
from broker.protocol.messages import (
    BlobRef,
    CoordinatorStatus,
    ProgramManifest,
    RoundPlan,
    RoundResult,
)
from broker.protocol.topics import (
    ChunkTopic,
    CoordinatorStatusTopic,
    ProgramTopic,
    ResultsTopic,
    RoundTopic,
    Topic,
    Topics,
)
from broker.service.events import Publish
from learning.vector.vectors import Vectors
from models.package.package import ModelPackage

#: In a plan, for all but its cohort, and for its seal.
_PLAN_ROOM = 2048
#: Agents may ask for messages of 64, 32 or 16 KiB: rounded down to these, so that none of them has
#: everything cut and published anew more than three times; and no smaller, for all others' sake.
LEAST_FOR_AGENTS = 16 << 10
#: The same chunk is published again at once, then after 5, 10, 20 … s, at most this: one report of
#: a few bytes has all of θ published, and whoever repeats it must not have it published for ever.
_AGAIN_S = 5.0
_LONGEST_AGAIN_S = 600.0


class Publisher:
    """Builds publications, and remembers which blobs are out there so as to clear them.

    Memory: θ's bytes and the package's, cut into chunks.

    Attributes:
        max_cohort_bytes: for which a plan has room on this connection.
    """

    def __init__(
        self,
        topics: Topics,
        package: ModelPackage,
        session: str,
        instance: str,
        keys: tuple[str, ...] = (),
    ) -> None:
        self._topics = topics
        self._keys = keys
        self._package = package
        self._session = session
        self._own_limit = self._agents_limit = messages.MAX_MESSAGE_BYTES
        self._instance = instance
        self.limit(messages.MAX_MESSAGE_BYTES)
        #: References by name of the sets that are out there, the latest last.
        self._sets: list[dict[str, BlobRef]] = []
        self._result: RoundResult | None = None
        #: Payloads that are out there, by blob.
        self._out: dict[str, list[bytes]] = {}
        #: When a chunk may be published again, by blob and index, and the pause after that.
        self._again_s: dict[str, dict[int, tuple[float, float]]] = {}

    def limit(self, max_payload_bytes: int) -> None:
        """Cuts chunks to what this connection and the agents' take, and keeps plans within it."""
        self._own_limit = max_payload_bytes
        most = min(messages.MAX_MESSAGE_BYTES, max_payload_bytes, self._agents_limit)
        self._chunk_bytes = blobs.chunk_bytes_for(most)
        self.max_cohort_bytes = most - min(_PLAN_ROOM, most // 2)

    def takes(self, max_payload_bytes: int) -> bool:
        """Notes what an agent takes; returns whether all must be published anew, in smaller chunks.

        Args:
            max_payload_bytes: largest message of its connection; 0: any.
        """
        if not 0 < max_payload_bytes < min(self._own_limit, self._agents_limit):
            return False
        rounded = max(LEAST_FOR_AGENTS, 1 << (max_payload_bytes.bit_length() - 1))
        if rounded >= min(self._own_limit, self._agents_limit):
            return False
        self._agents_limit = rounded
        self.limit(self._own_limit)
        return True

    def status(self, version: int, *, online: bool = True) -> Publish:
        """The birth; with `online=False` the will."""
        status = CoordinatorStatus(
            state="online" if online else "offline",
            session=self._session,
            coordinator_instance=self._instance,
            version=version,
            keys=self._keys,
        )
        return self._retained(CoordinatorStatusTopic(), messages.encode(status))

    def package(self) -> list[Publish]:
        """The package's chunks, then the manifest that names them."""
        ref, chunks = self._blob(self._package.wire)
        manifest = ProgramManifest(
            name=self._package.spec.name, package=ref, fingerprint=self._package.spec.fingerprint
        )
        return [*chunks, self._retained(ProgramTopic(), messages.encode(manifest))]

    def vectors(
        self, vectors: Vectors, keep: int = 0
    ) -> tuple[dict[str, BlobRef], list[Publish], list[Publish]]:
        """Publishes θ and what travels beside it.

        Args:
            vectors: float32, by the names that plans give them.
            keep: sets before this one that stay: an agent may still be fetching one of them.

        Returns:
            The references, the chunks, and the removal of blobs that no longer serve: to be sent
            after the plan that named them was replaced.
        """
        refs, chunks = {}, []
        for name, vector in vectors.items():
            refs[name], payloads = self._blob(vector.astype("<f4").tobytes())
            chunks += payloads
        if not self._sets or self._sets[-1] != refs:
            self._sets.append(refs)
        over, self._sets = self._sets[: -1 - keep], self._sets[-1 - keep :]
        live = {ref.sha256 for each in self._sets for ref in each.values()}
        removal = []
        for ref in (ref for each in over for ref in each.values()):
            if ref.sha256 not in live and self._out.pop(ref.sha256, None) is not None:
                self._again_s.pop(ref.sha256, None)
                removal += [
                    self._retained(ChunkTopic(ref.sha256, n), b"") for n in range(ref.chunks)
                ]
        return refs, chunks, removal

    def again(self, sha256: str, indexes: Iterable[int], now_s: float) -> list[Publish]:
        """Chunks that an agent misses, once more; each less and less often.

        Many agents miss the same chunk when the broker lost it; nothing for a blob that is not
        current.
        """
        payloads = self._out.get(sha256, [])
        found = []
        for index in indexes:
            if index >= len(payloads):
                continue
            moments = self._again_s.setdefault(sha256, {})
            due_s, pause_s = moments.get(index, (-math.inf, _AGAIN_S))
            if now_s >= due_s:
                moments[index] = (now_s + pause_s, min(2 * pause_s, _LONGEST_AGAIN_S))
                found.append(self._retained(ChunkTopic(sha256, index), payloads[index]))
        return found

    def results(self, result: RoundResult | None = None) -> list[Publish]:
        """The last round's result, once there is one; None: the one before, again."""
        self._result = result or self._result
        if self._result is None:
            return []
        return [self._retained(ResultsTopic(), messages.encode(self._result))]

    def finished(self, reason: str) -> list[Publish]:
        """The last round's result, with the end of the federation."""
        if self._result is None:
            return []
        return self.results(msgspec.structs.replace(self._result, finished=reason))

    def plan(self, plan: RoundPlan) -> Publish:
        """The current plan."""
        return self._retained(RoundTopic(), messages.encode(plan))

    def _blob(self, blob: bytes) -> tuple[BlobRef, list[Publish]]:
        ref, payloads = blobs.split(blob, self._chunk_bytes)
        before = len(self._out.get(ref.sha256, ()))
        self._out[ref.sha256] = payloads
        chunks = [
            self._retained(ChunkTopic(ref.sha256, index), payload)
            for index, payload in enumerate(payloads)
        ]
        # Cut into larger chunks than on the connection before: the last ones are too many.
        surplus = range(ref.chunks, before)
        chunks += [self._retained(ChunkTopic(ref.sha256, n), b"") for n in surplus]
        return ref, chunks

    def _retained(self, topic: Topic, payload: bytes) -> Publish:
        return Publish(self._topics.name(topic), payload, retain=True)
