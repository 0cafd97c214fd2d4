"""Protocol v1: the typed messages.

Small messages are JSON that a person can read; unknown fields are ignored, so that newer
coordinators and older agents understand each other. Limits are checked while decoding. An update
is a binary frame (`learning.vector.frames`): an `UpdateHeader` and the encoded vector.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from fedge.errors import WireError
from learning.codecs import CodecConfig
from learning.vector import frames
from learning.vector.metrics import MAX_METRIC_NUMBERS

#: Largest JSON message: a plan that lists 10,000 agents of 64 letters fits.
MAX_MESSAGE_BYTES = 1 << 20
MAX_METRICS = 64
#: Missing chunks that one message may name; there may be more.
MAX_MISSING = 1000

# "\\Z": "$" would let a newline follow.
Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Text = Annotated[str, Meta(max_length=500)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Fingerprint = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
#: Names a signing key: the first 16 hex digits of its SHA-256.
KeyId = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
#: An Ed25519 public key.
PublicKey = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0, le=1 << 53)]
RoundId = Annotated[int, Meta(ge=0, le=999_999_999)]
#: Finite, and still finite when multiplied by rows and added up over a fleet.
Measured = Annotated[float, Meta(ge=-1e100, le=1e100)]
#: A metric's sum over rows: one number, or those of an array in row-major order.
MetricSum = Measured | Annotated[tuple[Measured, ...], Meta(max_length=MAX_METRIC_NUMBERS)]
MetricSums = Annotated[dict[str, MetricSum], Meta(max_length=MAX_METRICS)]
ChunkIndex = Annotated[int, Meta(ge=0, le=100_000_000)]
Task = Literal["train", "evaluate"]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all messages."""


class BlobRef(Message, frozen=True):
    """A content-addressed blob: its SHA-256, its length and the number of its chunks."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=1, le=1 << 40)]
    chunks: Annotated[int, Meta(ge=1, le=100_000_000)]


class CoordinatorStatus(Message, frozen=True):
    """Birth and will of the coordinator.

    Attributes:
        session: of the coordinator's state folder, the same after a restart; plans carry it too.
        version: of θ that is current.
        keys: that the coordinator signs with, the newest first; none when it does not sign.
    """

    state: Literal["online", "offline"]
    session: Id
    version: Count = 0
    keys: Annotated[tuple[PublicKey, ...], Meta(max_length=4)] = ()


class ProgramManifest(Message, frozen=True):
    """Which model package the federation trains."""

    name: Text
    package: BlobRef
    fingerprint: Fingerprint


class TrainingPlan(Message, frozen=True, forbid_unknown_fields=True):
    """What an agent does with its training rows; part of a plan and of the coordinator's config.

    Attributes:
        epochs: passes over the rows.
        max_steps: stop after so many steps; 0 has no limit.
        batch_size: rows a step; 0 takes all rows (FedSGD of McMahan et al. 2017).
        optimizer: "sgd" or "adam" (Kingma & Ba 2015, with its beta and epsilon).
        learning_rate: of the local optimizer.
        momentum: of "sgd" (classical, Polyak 1964).
        proximal_mu: weight μ of FedProx's term μ/2·|θ-θ₀|² (Li et al. 2020, arXiv 1812.06127).
    """

    epochs: Annotated[int, Meta(ge=1, le=10_000)] = 1
    max_steps: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    batch_size: Annotated[int, Meta(ge=0, le=1_000_000)] = 32
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Annotated[float, Meta(gt=0, le=1000)] = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    beta_1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta_2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    epsilon: Annotated[float, Meta(gt=0, le=1)] = 1e-7
    proximal_mu: Annotated[float, Meta(ge=0, le=1e6)] = 0.0


class Cohort(Message, frozen=True):
    """Who is asked: a list of ids, or a rule that needs no list.

    Attributes:
        ids: the agents asked; None when the rule decides.
        seed: of the rule, different every round.
        fraction: an agent is in when hash(seed, agent_id) falls below it.
    """

    ids: tuple[Id, ...] | None = None
    seed: Count = 0
    fraction: Annotated[float, Meta(ge=0, le=1)] = 1.0

    def includes(self, agent_id: str) -> bool:
        """Whether this agent is asked; the same answer on the device and in the middle."""
        if self.ids is not None:
            return agent_id in self.ids
        text = f"{self.seed}:{agent_id}".encode()
        draw = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
        return draw < self.fraction * 2.0**64


class RoundPlan(Message, frozen=True):
    """What a round asks of whom.

    Attributes:
        session: of the coordinator that announced it.
        start: of its process, new at every start: within one, rounds only go forward. A coordinator
            whose state folder was put back from a backup begins again at an earlier one.
        state: "open" to be worked on; "finished" when the federation has ended.
        task: learn from the training rows, or measure θ on the held-out rows.
        version: of θ.
        weights: θ as little-endian float32.
        package: SHA-256 of the model package to use.
        deadline_s: seconds from the announcement until answers are late.
        fetch_jitter_s: agents wait a random part of it before they fetch the weights, so that a
            large fleet does not ask the broker for everything in one moment.
        seed: of this round; agents derive the order of rows and the rounding from it.
    """

    session: Id
    start: Id
    round_id: RoundId
    state: Literal["open", "finished"]
    task: Task
    version: Count
    weights: BlobRef
    package: Sha256
    fingerprint: Fingerprint
    cohort: Cohort
    training: TrainingPlan = TrainingPlan()
    codec: CodecConfig = CodecConfig()
    deadline_s: Annotated[float, Meta(gt=0, le=1e7)] = 600.0
    fetch_jitter_s: Annotated[float, Meta(ge=0, le=1e5)] = 0.0
    seed: Count = 0


class AgentStatus(Message, frozen=True):
    """Birth and will of an agent.

    Attributes:
        boot: new at every start of the agent's process.
        tasks: what it takes part in; one that only evaluates is a wearer the model never saw.
        train_examples: rows it learns from.
        test_examples: rows it measures on.
        unable: why it cannot take part at all; empty when it can.
        passing: whether that may pass: it tries again by itself.
        paused: why it does not take part for now (too_hot, low_battery, metered, quiet_hours, and
            words); empty when it does.
        runtime: the interpreter.
        memory_bytes: of the device, in all; 0 when unknown.
        codecs: it can encode.
        tags: from its configuration.
        software: version of the agent.
        heartbeat_s: it says this again so often, whether it trains or not; 0 never. Silence of
            three times that long means it is lost.
        keys: names of the coordinator's signing keys that it trusts; none when it asks for no
            signature.
    """

    state: Literal["online", "offline"]
    boot: Id
    tasks: tuple[Task, ...] = ()
    train_examples: Count = 0
    test_examples: Count = 0
    unable: Text = ""
    passing: bool = False
    paused: Text = ""
    runtime: Text = ""
    memory_bytes: Count = 0
    codecs: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    tags: Annotated[tuple[Id, ...], Meta(max_length=64)] = ()
    software: Text = ""
    heartbeat_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    keys: Annotated[tuple[KeyId, ...], Meta(max_length=4)] = ()


class UpdateHeader(Message, frozen=True):
    """What an update says of itself; the sender's name is the topic.

    Attributes:
        attempt: counts the times this boot trained for the round.
        size: P of the encoded vector.
        num_examples: rows learned from: the update's weight.
        loss_sum, weight_sum, metric_sums: over the rows of the last epoch, each batch before its
            step; they add across agents.
        training_s: wall time of training on the device.
        received_bytes: all that this boot's link took in so far.
    """

    session: Id
    boot: Id
    round_id: RoundId
    attempt: Count
    version: Count
    fingerprint: Fingerprint
    codec: CodecConfig
    size: Count
    num_examples: Count
    loss_sum: Measured
    weight_sum: Annotated[float, Meta(ge=0, le=1e100)]
    metric_sums: MetricSums
    training_s: Measured
    received_bytes: Count


class Report(Message, frozen=True):
    """An answer that is no update.

    Attributes:
        kind: "declined" with a reason; "evaluation" with sums over the held-out rows; "missing"
            when chunks of a blob do not come: the coordinator publishes them again.
        reason: machine name: no_data, no_runtime, no_program, fingerprint, codec, weights,
            training, evaluation, stopping, memory, too_hot, low_battery, metered, quiet_hours.
        detail: for people.
        loss_sum, weight_sum, metric_sums: add across agents.
        sha256, chunks: of the blob that is incomplete.
    """

    session: Id
    boot: Id
    round_id: RoundId
    kind: Literal["declined", "evaluation", "missing"]
    task: Task
    version: Count
    reason: Text = ""
    detail: Text = ""
    loss_sum: Measured = 0.0
    weight_sum: Annotated[float, Meta(ge=0)] = 0.0
    metric_sums: MetricSums = {}
    received_bytes: Count = 0
    sha256: Sha256 | None = None
    chunks: Annotated[tuple[ChunkIndex, ...], Meta(max_length=MAX_MISSING)] = ()


class Receipt(Message, frozen=True, tag_field="kind", tag="receipt"):
    """The coordinator's answer to an update: it counts, or why it does not."""

    session: Id
    round_id: RoundId
    boot: Id
    attempt: Count
    accepted: bool
    reason: Text = ""
    detail: Text = ""


class Resend(Message, frozen=True, tag_field="kind", tag="resend"):
    """Chunks of an update that did not arrive: send them again.

    Attributes:
        sha256: of the update frame.
        chunks: that are missing.
    """

    session: Id
    round_id: RoundId
    sha256: Sha256
    chunks: Annotated[tuple[ChunkIndex, ...], Meta(min_length=1, max_length=MAX_MISSING)]


InboxMessage = Receipt | Resend


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(message)


def decode(payload: bytes, kind: type[M]) -> M:
    """The message in `payload`.

    Raises:
        WireError: too large, not JSON, or a field is missing, of the wrong type or out of range.
    """
    message: M = _decode(payload, kind, kind.__name__)
    return message


def decode_inbox(payload: bytes) -> InboxMessage:
    """What the coordinator tells one agent; raises as `decode`."""
    message: InboxMessage = _decode(payload, InboxMessage, "inbox")
    return message


def _decode(payload: bytes, kind: Any, what: str) -> Any:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise WireError(f"{what}: {len(payload)} bytes, limit {MAX_MESSAGE_BYTES}")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{what}: {error}") from error


def encode_update(header: UpdateHeader, body: bytes) -> bytes:
    """One update frame."""
    return frames.pack(header, body)


def decode_update(data: bytes) -> tuple[UpdateHeader, memoryview]:
    """Header and encoded vector.

    Raises:
        WireError: not an update frame.
    """
    return frames.unpack(data, UpdateHeader, "update")
