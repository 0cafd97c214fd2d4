"""Local task: one job of a plan, from blobs and device state to an encoded update or a report.

The worker's thread and the simulator both run it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from broker.protocol.messages import RoundPlan, VectorRef
from broker.protocol.seeds import codec_seed, stream
from edge_agent.data.columns import NOT_ALLOWED, StatisticsConfig
from edge_agent.data.dataset import LocalDataset
from edge_agent.machine.decoded_plan import DecodedPlan, decode_plan, shared_vectors
from edge_agent.machine.device_state import DeviceState, model_key, rounded_residuals
from edge_agent.machine.pending_update import JobResult, LocalReport, LocalUpdate
from edge_agent.training.local_device import LocalDevice, LocalModel
from edge_agent.training.own_shift import own_shift
from fedge.errors import DeclinedError, TrainingError
from learning.algorithms.algorithm import Upload
from learning.codecs.feedback import Encoded, encode_with_feedback
from learning.codecs.registry import CODECS
from learning.phases.evaluate import LABEL_SHIFT
from learning.phases.phase import WEIGHTS, Answer, Request
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from learning.vector.vectors import Vectors

_LOSSLESS = "float32"
#: Random streams of an agent's round: 0 trains, 1 rounds the first vector, 2 the second ...
TRAINING, ROUNDING = 0, 1
#: Makes the generator of a seed, an agent and a stream; see `broker.protocol.seeds.stream`.
StreamAt = Callable[[int, str, int], np.random.Generator]


def run_local_task(
    plan: RoundPlan,
    blobs: Vectors,
    state: DeviceState,
    model: LocalModel,
    dataset: LocalDataset,
    agent_id: str,
    cancelled: Callable[[], bool] = lambda: False,
    statistics: StatisticsConfig = NOT_ALLOWED,
    stream_at: StreamAt = stream,
) -> JobResult:
    """Does what a plan asks of this device.

    The result depends on the arguments alone: a task that is repeated after a restart gives the
    same bits.

    Args:
        plan: of the round.
        blobs: vectors of the plan's blobs by name; those that the algorithm does not share are
            ignored.
        state: of this device; the part that belongs to another model, session or algorithm, or
            has another length, is left out.
        model: of the plan.
        dataset: of this device.
        agent_id: with the plan's seed it decides the order of rows and the rounding.
        cancelled: see `LocalDevice`.
        statistics: likewise.
        stream_at: gives each random stream; one that is given becomes invalid with the next.

    Raises:
        DeclinedError: the plan names something that this software does not know, or its owner does
            not allow; or its vectors are not the algorithm's.
        TrainingError: no rows, cancelled, or the result is not finite.
        FederationError: the device cannot answer.
    """
    decoded = decode_plan(plan)
    model.program.spec.layout.check(blobs[WEIGHTS])
    key = model_key(model.program.spec)
    shared = _check_shared(decoded, blobs)
    uploads = {n: u.size(blobs[WEIGHTS].size) for n, u in decoded.algorithm.uploads.items()}
    usable = state.usable_for(key, plan.session, decoded.algorithm_name).of_lengths(
        {**uploads, **shared}, uploads, model.personal.size
    )

    def make_rng() -> np.random.Generator:
        return stream_at(plan.seed, agent_id, TRAINING)

    device = LocalDevice(model, dataset, usable, make_rng, cancelled, statistics)
    needed = {name: blobs[name] for name in decoded.blob_names}
    request = Request(needed, decoded.algorithm, decoded.training)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is named
        answer = decoded.phase.answer(request, device)
        sums = answer.sums or Sums(0.0, 0.0, {})
        if not answer.vectors:
            values = dict(answer.values)
            if device.measured is not None:
                shift = own_shift(model.program, device.measured, dataset, sums, plan.version)
                values |= {LABEL_SHIFT: (float(shift),)} if shift else {}
            return LocalReport(sums, values, answer.num_examples)
        encoded = _encode(answer.vectors, decoded, usable, plan, agent_id, stream_at)
        after = _next_state(answer, encoded, usable, decoded, device.personal)
    return LocalUpdate(
        {name: _ref(name, encoded, decoded, plan) for name in encoded},
        b"".join(part.payload for part in encoded.values()),
        answer.num_examples,
        sums,
        answer.seconds,
        after,
    )


def _check_shared(decoded: DecodedPlan, blobs: Vectors) -> dict[str, int]:
    """Returns the lengths of the vectors that the algorithm shares.

    Raises:
        DeclinedError: `weights`: one is missing or of another length.
    """
    shared = shared_vectors(decoded.algorithm, blobs[WEIGHTS])
    expected = {name: vector.size for name, vector in shared.items()}
    for name, length in expected.items():
        found = blobs[name].size if name in blobs else 0
        if found != length:
            detail = f"blob {name} has {found} numbers, {decoded.algorithm_name} shares {length}"
            raise DeclinedError("weights", detail)
    return expected


def _upload(decoded: DecodedPlan, name: str) -> Upload:
    return decoded.algorithm.uploads.get(name, Upload())


def _encode(
    vectors: Vectors,
    decoded: DecodedPlan,
    state: DeviceState,
    plan: RoundPlan,
    agent_id: str,
    stream_at: StreamAt,
) -> dict[str, Encoded]:
    """Each vector for the wire, and as the coordinator will decode it."""
    lossless = CODECS.make(_LOSSLESS)
    encoded = {}
    for number, (name, vector) in enumerate(vectors.items(), ROUNDING):
        upload = _upload(decoded, name)
        residual = state.residuals.get(name) if upload.feedback else None
        encoded[name] = encode_with_feedback(
            lossless if upload.lossless else decoded.codec,
            vector,
            None if residual is None else residual.vector,
            codec_seed(plan.seed, agent_id),
            stream_at(plan.seed, agent_id, number),
        )
    return encoded


def _next_state(
    answer: Answer,
    encoded: Mapping[str, Encoded],
    state: DeviceState,
    decoded: DecodedPlan,
    personal: F32,
) -> DeviceState:
    """The device's state once the update counts.

    Raises:
        TrainingError: NaN or inf in the algorithm's part.
    """
    arrived = {name: part.decoded for name, part in encoded.items()}
    vectors = {} if answer.commit is None else answer.commit(arrived)
    for name, vector in vectors.items():
        if not np.isfinite(vector).all():
            raise TrainingError(f"device state {name!r} is not finite: training diverged")
    kept = {n: p.residual for n, p in encoded.items() if _upload(decoded, n).feedback}
    return DeviceState(
        state.model,
        state.session,
        rounded_residuals(kept),
        decoded.algorithm_name,
        vectors,
        personal if personal.size else None,
    )


def _ref(
    name: str, encoded: Mapping[str, Encoded], decoded: DecodedPlan, plan: RoundPlan
) -> VectorRef:
    codec = _LOSSLESS if _upload(decoded, name).lossless else plan.codec
    return VectorRef(codec=codec, size=encoded[name].decoded.size, bytes=len(encoded[name].payload))
