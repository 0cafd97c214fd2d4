"""Blob fetcher: a state machine that fetches missing chunks, retries, and gives up in the end.

The coordinator keeps a blob's chunks retained under its SHA-256. A fetch subscribes to them only
while it lasts. Brokers drop messages silently when their queues are short, so a fetch that stalls
subscribes anew to what is missing, asks the coordinator to publish it again, and after some tries
gives up with a reason. Chunks of large blobs are kept on disk as they come: after a power cut only
the missing ones travel.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from random import Random

import msgspec

from broker.protocol import blobs
from broker.protocol.messages import BlobRef
from broker.protocol.topics import ChunkTopic, Topics
from broker.service.events import LinkAction, Subscribe, Unsubscribe
from edge_agent.machine.events import ForgetBlob, KeepChunk, RecallBlob
from fedge.errors import WireError

log = logging.getLogger(__name__)

#: Seconds without a chunk after which some were dropped; doubled at each try, with jitter.
STALL_S = 20.0
_LONGEST_STALL_S = 300.0
#: Tries in a row without a chunk until a fetch gives up.
TRIES = 6
#: Damaged or foreign chunks until a fetch gives up.
_BAD_CHUNKS = 3
#: Subscriptions to single chunks at a time. All at once would bring nothing more from a broker
#: whose queue is too short for the blob: it delivers the same first ones, and drops the others.
_SINGLE_CHUNKS = 64

FetchAction = LinkAction | KeepChunk | ForgetBlob | RecallBlob


class Progressed(msgspec.Struct, frozen=True):
    """Result of a step of fetching.

    Attributes:
        actions: to be done.
        blob: (SHA-256, bytes) when one is complete.
        failed: (SHA-256, why) when one is given up.
        missing: (SHA-256, chunks) to ask the coordinator for.
    """

    actions: tuple[FetchAction, ...] = ()
    blob: tuple[str, bytes] | None = None
    failed: tuple[str, str] | None = None
    missing: tuple[str, tuple[int, ...]] | None = None


class _Fetch(msgspec.Struct, eq=False):
    receiver: blobs.BlobReceiver
    due_s: float  # when to subscribe (jitter), then when to call it stalled
    recalled: bool  # what the disk holds is known
    filters: list[str] = []
    awaited: set[int] = set()  # single chunks; empty when all are
    stalls: int = 0
    bad: int = 0


class Fetcher:
    """Fetcher of all blobs of one agent.

    Args:
        topics: of the federation.
        max_bytes: larger blobs are refused.
        rng: for jitter.
        stall_s: a fetch without a chunk for so long asks again.
        common: chunks that other agents of the process hold; None: there are no others.
    """

    def __init__(
        self,
        topics: Topics,
        max_bytes: int,
        rng: Random,
        stall_s: float = STALL_S,
        common: blobs.CommonChunks | None = None,
    ) -> None:
        self._topics = topics
        self._max_bytes = max_bytes
        self._rng = rng
        self._stall_base_s = stall_s
        self._common = common
        self._parse = blobs.parse_chunk if common is None else common.parse
        self._fetches: dict[str, _Fetch] = {}
        self._begun = False
        self._max_payload_bytes = blobs.HEADER_BYTES + blobs.CHUNK_BYTES
        self._is_connected = True

    def __len__(self) -> int:
        return len(self._fetches)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._fetches

    def begin(self, ref: BlobRef, now_s: float, jitter_s: float = 0.0) -> Progressed:
        """Fetches a blob, after a random part of `jitter_s`, unless it is being fetched already.

        One that is cut otherwise by now is fetched anew.

        Raises:
            WireError: larger than allowed.
        """
        before = self._fetches.get(ref.sha256)
        if before is not None and before.receiver.ref == ref:
            return Progressed()
        receiver = blobs.BlobReceiver(ref, self._max_bytes, self._common)
        fetch = _Fetch(receiver, now_s, recalled=ref.chunks == 1)
        old = () if before is None else self.forget(before.receiver.ref)
        self._fetches[ref.sha256] = fetch
        if jitter_s:
            fetch.due_s += self._rng.uniform(0, jitter_s)
        if not fetch.recalled:
            self._begun = True
            return Progressed((*old, RecallBlob(ref.sha256)))
        step = self._subscribe(fetch, now_s) if fetch.due_s <= now_s else Progressed()
        return msgspec.structs.replace(step, actions=(*old, *step.actions)) if old else step

    def recalled(self, sha256: str, payloads: Sequence[bytes], now_s: float) -> Progressed:
        """Takes the chunks of a blob that the disk still holds."""
        fetch = self._fetches.get(sha256)
        if fetch is None or fetch.recalled:
            return Progressed()
        fetch.recalled = True
        for payload in payloads:
            try:
                blob = fetch.receiver.add(blobs.parse_chunk(payload))
            except WireError as error:
                log.warning("stored chunk of blob %s is ignored: %s", sha256[:12], error)
                continue
            if blob is not None:
                del self._fetches[sha256]
                return Progressed(blob=(sha256, blob))
        return self._subscribe(fetch, now_s) if fetch.due_s <= now_s else Progressed()

    def chunk(self, sha256: str, payload: bytes, now_s: float) -> Progressed:
        """Takes a chunk."""
        fetch = self._fetches.get(sha256)
        if fetch is None:
            return Progressed(() if self._begun else _early(sha256, payload))
        try:
            chunk = self._parse(payload)
            if _is_cut_otherwise(chunk.ref, fetch.receiver.ref):
                return Progressed()  # retained since an earlier connection of the coordinator
            new = not fetch.receiver.holds(chunk.index)
            blob = fetch.receiver.add(chunk)
        except WireError as error:
            return self._bad_chunk(fetch, error, now_s)
        fetch.due_s = max(fetch.due_s, now_s + self._stall_s(fetch))
        keep: tuple[FetchAction, ...] = ()
        if new:
            fetch.stalls = 0
            keep = (KeepChunk(sha256, payload),) if fetch.receiver.ref.chunks > 1 else ()
        if blob is not None:
            return Progressed((*keep, *self._stop(sha256)), blob=(sha256, blob))
        return Progressed((*keep, *self._awaited_came(fetch, chunk.index, now_s)))

    def _awaited_came(self, fetch: _Fetch, index: int, now_s: float) -> tuple[FetchAction, ...]:
        """Subscribes to the next single chunks once the last of the current ones has come."""
        if index not in fetch.awaited:
            return ()
        fetch.awaited.remove(index)
        return () if fetch.awaited else self._subscribe(fetch, now_s).actions

    def pause(self, sha256: str) -> tuple[FetchAction, ...]:
        """Stops fetching a blob for now; the disk keeps its chunks."""
        return (*self._stop(sha256),)

    def forget(self, ref: BlobRef) -> tuple[FetchAction, ...]:
        """Stops fetching a blob for good and frees the disk."""
        return (*self._stop(ref.sha256), *_free(ref))

    def disconnected(self) -> None:
        """Stops the stall timers: the link is down."""
        self._is_connected = False

    def connected(self, max_payload_bytes: int, now_s: float) -> None:
        """Restarts the stall timers: the link is up and has subscribed again.

        Args:
            max_payload_bytes: largest message of this connection.
            now_s: the time.
        """
        self._is_connected = True
        self._max_payload_bytes = max_payload_bytes
        for fetch in self._fetches.values():
            fetch.stalls = 0
            if fetch.filters:
                fetch.due_s = now_s + self._stall_s(fetch)

    def tick(self, now_s: float) -> list[Progressed]:
        """Begins fetches that are due, and retries those that have stalled."""
        timed = [fetch for fetch in self._fetches.values() if self._has_timer(fetch)]
        return [self._retry(fetch, now_s) for fetch in timed if now_s >= fetch.due_s]

    def refused(self, topic_filter: str, why: str) -> Progressed:
        """Gives up the fetch whose subscription the broker refused."""
        for sha256, fetch in self._fetches.items():
            if topic_filter in fetch.filters:
                text = f"the broker refuses the subscription {topic_filter}: {why}"
                return Progressed(self._stop(sha256), failed=(sha256, text))
        return Progressed()

    def next_s(self) -> float:
        """Returns when `tick` has something to do; infinite: never."""
        if not self._fetches:
            return math.inf  # asked after every event
        moments = [fetch.due_s for fetch in self._fetches.values() if self._has_timer(fetch)]
        return min(moments, default=math.inf)

    def _has_timer(self, fetch: _Fetch) -> bool:
        """Whether a fetch has a timer that runs."""
        return fetch.recalled and self._is_connected

    def _retry(self, fetch: _Fetch, now_s: float) -> Progressed:
        if not fetch.filters:
            return self._subscribe(fetch, now_s)
        fetch.stalls += 1
        ref, missing = fetch.receiver.ref, fetch.receiver.missing
        # The coordinator had the time to cut smaller chunks, as this device's status asks for.
        least_bytes = -(-ref.size // ref.chunks) + blobs.HEADER_BYTES
        if missing and least_bytes > self._max_payload_bytes:
            why = f"chunks of {least_bytes} bytes do not come: this connection takes "
            why += f"{self._max_payload_bytes} (broker.max_payload_bytes, or the broker's limit)"
            return Progressed(tuple(self._stop(ref.sha256)), failed=(ref.sha256, why))
        if fetch.stalls >= TRIES:
            why = f"{missing} of {ref.chunks} chunks did not come in {TRIES} tries"
            return Progressed(tuple(self._stop(ref.sha256)), failed=(ref.sha256, why))
        log.info(
            "blob %s has stalled: %d of %d chunks missing, subscribing again",
            ref.sha256[:12],
            missing,
            ref.chunks,
        )
        again = self._subscribe(fetch, now_s)
        wanted = sorted(fetch.awaited) or fetch.receiver.missing_indexes()
        return Progressed(again.actions, missing=(ref.sha256, tuple(wanted)))

    def _subscribe(self, fetch: _Fetch, now_s: float) -> Progressed:
        """Subscribes to missing chunks; the broker delivers retained ones at each subscription."""
        sha256 = fetch.receiver.ref.sha256
        everything = self._topics.chunks_of(sha256)
        nothing = fetch.receiver.missing == fetch.receiver.ref.chunks
        wanted = [] if nothing else fetch.receiver.missing_indexes()[:_SINGLE_CHUNKS]
        old = [Unsubscribe(name) for name in fetch.filters]
        if wanted and not old:
            # The session of the instance that began may still have all of them subscribed to, and
            # brokers deliver once for every subscription.
            old = [Unsubscribe(everything)]
        fetch.awaited = set(wanted)
        fetch.filters = [self._topics.name(ChunkTopic(sha256, index)) for index in wanted]
        fetch.filters = fetch.filters or [everything]
        fetch.due_s = now_s + self._stall_s(fetch)
        return Progressed((*old, *(Subscribe(name) for name in fetch.filters)))

    def _stall_s(self, fetch: _Fetch) -> float:
        base = min(_LONGEST_STALL_S, self._stall_base_s * 2.0**fetch.stalls)
        return base * self._rng.uniform(1.0, 1.5)

    def _bad_chunk(self, fetch: _Fetch, error: WireError, now_s: float) -> Progressed:
        sha256 = fetch.receiver.ref.sha256
        fetch.bad += 1
        log.warning("blob %s: %s", sha256[:12], error, extra={"event": "bad_chunk"})
        if fetch.bad < _BAD_CHUNKS:
            again = self._subscribe(fetch, now_s)
            return Progressed((*_free(fetch.receiver.ref), *again.actions))
        return Progressed(self.forget(fetch.receiver.ref), failed=(sha256, str(error)))

    def _stop(self, sha256: str) -> tuple[FetchAction, ...]:
        fetch = self._fetches.pop(sha256, None)
        return () if fetch is None else tuple(Unsubscribe(name) for name in fetch.filters)


def _is_cut_otherwise(one: BlobRef, other: BlobRef) -> bool:
    """Whether two references are to the same bytes in other chunks."""
    return one.sha256 == other.sha256 and one != other


def _free(ref: BlobRef) -> tuple[FetchAction, ...]:
    # Blobs of one chunk are never kept: fetching them anew costs as much as reading them.
    return (ForgetBlob(ref.sha256),) if ref.chunks > 1 else ()


def _early(sha256: str, payload: bytes) -> tuple[FetchAction, ...]:
    """Keeps a chunk that comes before the first plan: an earlier instance had subscribed to it."""
    try:
        ref = blobs.parse_chunk(payload).ref
    except WireError:
        return ()
    return (KeepChunk(sha256, payload),) if ref.sha256 == sha256 and ref.chunks > 1 else ()
