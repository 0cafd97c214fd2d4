"""Intake of a cohort's answers: as the coordinator's, for a block of agents at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.link.link import publish_packet_bytes
from broker.protocol import blobs, messages
from broker.protocol.messages import Receipt, Report, RoundPlan, UpdateHeader
from broker.protocol.topics import InboxTopic, ReportTopic, Topics, UpdateTopic
from coordinator.machine.uploads import ExpectedVectors, Upload
from fedge.errors import UpdateRejected
from fleet.batched.cohort.cohort_update import CohortUpdate
from fleet.batched.cohort.device_states import CohortState
from fleet.batched.cohort.devices import CodecSeeds, Measured, Part, chosen_rows
from fleet.batched.cohort.task import Columns, PartAnswer, PhaseTask
from learning.codecs.many import decode_many
from learning.phases.evaluate import EvaluateCollector
from learning.phases.phase import ReceivedMany
from learning.phases.train import TrainCollector
from learning.vector.metrics import Sums
from learning.vector.parameters import F32, F64

#: Of all simulated agents: each has started once.
INSTANCE = "instance-1"


#: Stands for an agent's id in a topic that is taken apart: no federation has this name.
_SOMEBODY = "-_" * 32


class Wire(Protocol):
    """How a cohort's messages travel: counts their bytes."""

    def updates(
        self, update: CohortUpdate, columns: Columns
    ) -> tuple[NDArray[np.int64], dict[str, F32]]:
        """Returns the bytes up of each update, and the vectors as they were decoded.

        Args:
            update: of n agents.
            columns: of these; the attempt is counted already.
        """

    def receipts(self, update: CohortUpdate, columns: Columns) -> NDArray[np.int64]:
        """Returns the bytes down of the receipt of each update."""

    def reports(self, measured: Measured, columns: Columns) -> NDArray[np.int64]:
        """Returns the bytes up of each report."""


class RealWire:
    """Real frames, chunks, reports and receipts: encoded, cut, read again and checked."""

    def __init__(self, part: Part, task: PhaseTask) -> None:
        self._part = part
        self._task = task
        self._topics = Topics(task.federation)
        self._expected = ExpectedVectors(task.plan, part.package.spec.size)
        # What is before and behind an agent's id; the ids were checked when the fleet was made.
        update = self._topics.name(UpdateTopic(_SOMEBODY, task.plan.round_id, 0))
        self._update_topic = _around(update[:-1])
        self._inbox_topic = _around(self._topics.name(InboxTopic(_SOMEBODY)))

    def updates(
        self, update: CohortUpdate, columns: Columns
    ) -> tuple[NDArray[np.int64], dict[str, F32]]:
        """See `Wire.updates`."""
        up = np.zeros(len(update), np.int64)
        bodies: dict[str, list[bytes]] = {name: [] for name in update.payloads}
        for place, agent_id in enumerate(update.sums.names):
            payloads = update_payloads(self._task.plan, update, columns, place)
            up[place] = self._packet_bytes(agent_id, payloads)
            arrived = self._taken(agent_id, payloads)
            start = 0
            for name, ref in arrived.header.vectors.items():
                bodies[name].append(bytes(arrived.body[start : start + ref.bytes]))
                start += ref.bytes
        seeds = CodecSeeds(self._task.plan.seed, update.sums.names)
        expected = self._expected
        return up, {
            name: decode_many(expected.codecs[name], parts, expected.sizes[name], seeds)
            for name, parts in bodies.items()
        }

    def _packet_bytes(self, agent_id: str, payloads: Sequence[bytes]) -> int:
        before, behind = self._update_topic
        return sum(
            publish_packet_bytes(f"{before}{agent_id}{behind}{index}", len(payload), expiry_s=1)
            for index, payload in enumerate(payloads)
        )

    def _taken(self, agent_id: str, payloads: Sequence[bytes]) -> Upload:
        """Returns the update that a coordinator puts together."""
        receiver: blobs.BlobReceiver | None = None
        frame: bytes | None = None
        for payload in payloads:
            chunk = blobs.parse_chunk(payload)
            receiver = receiver or blobs.BlobReceiver(chunk.ref, chunk.ref.size)
            frame = receiver.add(chunk)
        assert frame is not None, "all chunks are there"
        upload = Upload.from_frame(frame)
        upload.check_plan(
            agent_id, self._task.plan, self._expected, self._part.package.spec.metrics
        )
        return upload

    def receipts(self, update: CohortUpdate, columns: Columns) -> NDArray[np.int64]:
        """See `Wire.receipts`."""
        found = np.zeros(len(update), np.int64)
        before, behind = self._inbox_topic
        lengths = {
            attempt: len(messages.encode(receipt_of(self._task, attempt)))
            for attempt in np.unique(columns.attempts).tolist()
        }
        for place, (agent_id, attempt) in enumerate(
            zip(update.sums.names, columns.attempts.tolist(), strict=True)
        ):
            found[place] = publish_packet_bytes(f"{before}{agent_id}{behind}", lengths[attempt])
        return found

    def reports(self, measured: Measured, columns: Columns) -> NDArray[np.int64]:
        """See `Wire.reports`."""
        found = np.zeros(len(measured.agents), np.int64)
        round_id = self._task.plan.round_id
        for place, (agent_id, sums) in enumerate(measured.sums.items()):
            report = report_of(self._task, sums, int(columns.received[place]))
            payload = messages.encode(report)
            messages.decode(payload, Report)
            name = self._topics.name(ReportTopic(agent_id, round_id))
            found[place] = publish_packet_bytes(name, len(payload))
        return found


class CountedWire:
    """Sizes in place of messages: those of the first agent of a block stand for all of it."""

    def __init__(self, part: Part, task: PhaseTask) -> None:
        self._real = RealWire(part, task)

    def updates(
        self, update: CohortUpdate, columns: Columns
    ) -> tuple[NDArray[np.int64], dict[str, F32]]:
        """See `Wire.updates`."""
        up, _ = self._real.updates(first_of(update), columns.part(slice(1)))
        same = np.full(len(update), up[0], np.int64)
        return same, dict(update.arrived)

    def receipts(self, update: CohortUpdate, columns: Columns) -> NDArray[np.int64]:
        """See `Wire.receipts`."""
        size = self._real.receipts(first_of(update), columns.part(slice(1)))[0]
        return np.full(len(update), size, np.int64)

    def reports(self, measured: Measured, columns: Columns) -> NDArray[np.int64]:
        """See `Wire.reports`."""
        one = np.zeros(len(measured.agents), bool)
        one[0] = True
        first = Measured(measured.agents[:1], measured.sums.select(one))
        size = self._real.reports(first, columns.part(slice(1)))[0]
        return np.full(len(measured.agents), size, np.int64)


class CohortIntake:
    """Judges the answers of one part of the fleet in one phase.

    Args:
        part: of the fleet.
        task: of the phase.
        answer: what comes of it.
    """

    def __init__(self, part: Part, task: PhaseTask, answer: PartAnswer) -> None:
        self._part = part
        self._task = task
        self._answer = answer
        made = RealWire if part.mode == "bytes" else CountedWire
        self._wire: Wire = made(part, task)
        self._uploads = ExpectedVectors(task.plan, part.package.spec.size).uploads

    def updates(self, update: CohortUpdate, columns: Columns) -> None:
        """Takes the updates of n agents, whose columns are changed."""
        if not len(update):
            return
        columns.attempts += 1
        up, vectors = self._wire.updates(update, columns)
        answer = self._answer
        answer.bytes_up += int(up.sum())
        answer.bytes_down += _credit(columns)
        columns.received += self._wire.receipts(update, columns)
        good, vectors, lengths = self._admitted(update, vectors, columns)
        names = update.sums.names
        received = ReceivedMany(
            vectors, update.sums.select(good), update.num_examples[good], lengths
        )
        assert isinstance(answer.collector, TrainCollector), "of this phase"
        answer.collector.accept_many(received)
        answer.counted.update(_answer_ids(names, columns, good))
        self._promote(update, columns, good)
        answer.seconds = max(answer.seconds, float(update.seconds.max()))

    def _admitted(
        self, update: CohortUpdate, vectors: dict[str, F32], columns: Columns
    ) -> tuple[NDArray[np.bool_], dict[str, F32], F64]:
        """Returns whose updates count; their vectors, shortened where too long, and their lengths.

        An update ends with its first vector that is refused: what follows is not looked at.
        The receipts of the others are longer than those that were counted for all.
        """
        norms, names = self._answer.norms, update.sums.names
        good, lengths = np.ones(len(update), bool), np.ones(len(update))
        taken: dict[str, tuple[NDArray[np.int64], F32]] = {}
        for name, rows in vectors.items():
            places = np.flatnonzero(good)
            own = names if good.all() else [names[place] for place in places.tolist()]
            rows, refused = norms.admit_many(
                own, name, chosen_rows(rows, good), self._uploads[name]
            )
            taken[name] = (places, rows)
            if name == "delta":
                lengths[places] = norms.lengths(own)
            for row, error in refused.items():
                place = int(places[row])
                attempt = int(columns.attempts[place])
                columns.received[place] += refusal_bytes(self._task, attempt, error)
                good[place] = False
                self._answer.refused.setdefault(error.agent_id, error.reason)
        kept = {name: chosen_rows(rows, good[places]) for name, (places, rows) in taken.items()}
        return good, kept, lengths[good]

    def _promote(self, update: CohortUpdate, columns: Columns, good: NDArray[np.bool_]) -> None:
        """Makes the next states of the agents whose updates count the ones that they have."""
        state = update.state
        if state.is_empty or not good.any():
            return
        kept = CohortState(
            {name: chosen_rows(rows, good) for name, rows in state.residuals.items()},
            {name: chosen_rows(rows, good) for name, rows in state.vectors.items()},
            None if state.personal is None else chosen_rows(state.personal, good),
        )
        slots = self._part.states.write(update.agents[good], columns.slots[good], kept)
        columns.slots[good] = slots

    def measurements(self, measured: Measured, columns: Columns) -> None:
        """Takes the reports of n agents, whose columns are changed."""
        if not len(measured.agents):
            return
        answer = self._answer
        answer.bytes_up += int(self._wire.reports(measured, columns).sum())
        answer.bytes_down += _credit(columns)
        assert isinstance(answer.collector, EvaluateCollector), "of this phase"
        answer.collector.accept_many(
            ReceivedMany({}, measured.sums, np.zeros(len(measured.agents), np.int64), np.zeros(0))
        )
        answer.counted.update(dict.fromkeys(measured.sums.names, INSTANCE))


def _around(topic: str) -> tuple[str, str]:
    before, _, behind = topic.partition(_SOMEBODY)
    return before, behind


def _answer_ids(names: Sequence[str], columns: Columns, good: NDArray[np.bool_]) -> dict[str, str]:
    """Returns the answer ids of the updates that count; one text for those of one attempt."""
    different, places = np.unique(columns.attempts[good], return_inverse=True)
    texts = [f"{INSTANCE}/{attempt}" for attempt in different.tolist()]
    counted = names if good.all() else [names[n] for n in np.flatnonzero(good).tolist()]
    if len(texts) == 1:
        return dict.fromkeys(counted, texts[0])
    return {name: texts[place] for name, place in zip(counted, places.tolist(), strict=True)}


def _credit(columns: Columns) -> int:
    """Returns the bytes that agents took in since they last said so."""
    new = int((columns.received - columns.credited).sum())
    columns.credited[:] = columns.received
    return new


def update_payloads(
    plan: RoundPlan,
    update: CohortUpdate,
    columns: Columns,
    place: int,
    chunk_bytes: int = blobs.CHUNK_BYTES,
) -> list[bytes]:
    """Returns the chunks of one agent's update, as its device publishes them."""
    header = header_of(plan, update, columns, place)
    return blobs.split(messages.encode_update(header, update.body(place)), chunk_bytes)[1]


def header_of(plan: RoundPlan, update: CohortUpdate, columns: Columns, place: int) -> UpdateHeader:
    """Returns the header of one agent's update."""
    sums = update.sums.at(place)
    return UpdateHeader(
        session=plan.session,
        agent_instance=INSTANCE,
        round_id=plan.round_id,
        attempt=int(columns.attempts[place]),
        version=plan.version,
        fingerprint=plan.fingerprint,
        vectors=dict(update.refs[place]),
        num_examples=int(update.num_examples[place]),
        loss_sum=sums.loss,
        weight_sum=sums.weight,
        metric_sums=dict(sums.metrics),
        training_s=float(update.seconds[place]),
        received_bytes=int(columns.received[place]),
    )


def receipt_of(task: PhaseTask, attempt: int) -> Receipt:
    """Returns the receipt of an update that counts."""
    return Receipt(
        session=task.plan.session,
        round_id=task.plan.round_id,
        agent_instance=INSTANCE,
        attempt=attempt,
        accepted=True,
    )


def refusal_bytes(task: PhaseTask, attempt: int, error: UpdateRejected) -> int:
    """Returns the bytes by which the receipt of a refused update is longer."""
    accepted = receipt_of(task, attempt)
    refused = msgspec.structs.replace(
        accepted, accepted=False, reason=error.reason, detail=error.detail[:500]
    )
    name = Topics(task.federation).name(InboxTopic(error.agent_id))
    sizes = (publish_packet_bytes(name, len(messages.encode(each))) for each in (refused, accepted))
    return next(sizes) - next(sizes)


def report_of(task: PhaseTask, sums: Sums, received_bytes: int) -> Report:
    """Returns the report of an agent that measured."""
    plan = task.plan
    return Report(
        session=plan.session,
        agent_instance=INSTANCE,
        round_id=plan.round_id,
        kind="result",
        phase=plan.phase_name,
        version=plan.version,
        loss_sum=sums.loss,
        weight_sum=sums.weight,
        metric_sums=dict(sums.metrics),
        received_bytes=received_bytes,
    )


def first_of(update: CohortUpdate) -> CohortUpdate:
    """Returns the update of the first agent alone."""
    one = np.zeros(len(update), bool)
    one[0] = True
    return CohortUpdate(
        update.agents[:1],
        update.refs[:1],
        {name: payloads[:1] for name, payloads in update.payloads.items()},
        {name: rows[:1] for name, rows in update.arrived.items()},
        update.num_examples[:1],
        update.sums.select(one),
        update.seconds[:1],
        CohortState({}, {}),
    )
