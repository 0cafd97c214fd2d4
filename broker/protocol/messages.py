"""Protocol v1: the typed messages.

Small messages are JSON that a person can read. Newer and older peers understand each other:
defaults are not encoded, unknown fields are ignored, and what an agent must understand to obey a
plan (phase, algorithm, training, codec) is carried as it came and decoded late, so that an agent
that does not know it can decline. Limits are checked while decoding. An update is a binary frame
(`learning.vector.frames`): an `UpdateHeader` and the encoded vectors, one behind the other.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from fedge.errors import WireError
from learning.registry import Choice
from learning.vector import frames
from learning.vector.metrics import MAX_METRIC_NUMBERS

#: Largest JSON message: a plan that lists 10,000 agents of 64 letters fits.
MAX_MESSAGE_BYTES = 1 << 20
MAX_METRICS = 64
#: Missing chunks that one message may name; there may be more.
MAX_MISSING = 1000

# "\\Z": "$" would let a newline follow.
Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
OptionalId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}\Z")]
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
#: Of phases, vectors, capabilities: an open list, so that a newer peer may name others.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
#: A result that is no sum over rows: numbers by name.
Values = Annotated[
    dict[
        Annotated[str, Meta(max_length=500)],
        Annotated[tuple[Measured, ...], Meta(max_length=10_000)],
    ],
    Meta(max_length=1000),
]
MAX_VECTORS = 64
Names = Annotated[tuple[Name, ...], Meta(max_length=1000)]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all messages; defaults are not encoded."""


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
        coordinator_instance: new at every start of its process.
        keys: that the coordinator signs with, the newest first; none when it does not sign.
    """

    state: Name
    session: Id
    coordinator_instance: OptionalId = ""
    version: Count = 0
    keys: Annotated[tuple[PublicKey, ...], Meta(max_length=4)] = ()


class ProgramManifest(Message, frozen=True):
    """Which model package the federation trains."""

    name: Text
    package: BlobRef
    fingerprint: Fingerprint


class Cohort(Message, frozen=True):
    """Cohort of a round: a list of agent ids, or a rule that needs no list.

    Attributes:
        ids: the agents asked; None when the rule decides.
        seed: of the rule, different every round.
        fraction: an agent belongs to the cohort when hash(seed, agent_id) falls below it.
        without: agents that do not belong to it, whatever their hash.
    """

    ids: tuple[Id, ...] | None = None
    seed: Count = 0
    fraction: Annotated[float, Meta(ge=0, le=1)] = 1.0
    without: tuple[Id, ...] = ()

    def includes(self, agent_id: str) -> bool:
        """Returns whether an agent is asked; agent and coordinator get the same answer."""
        if self.ids is not None:
            return agent_id in self.ids
        if agent_id in self.without:
            return False
        if self.fraction == 1.0:
            return True
        text = f"{self.seed}:{agent_id}".encode()
        draw = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
        return draw < self.fraction * 2.0**64


class RoundPlan(Message, frozen=True):
    """Plan of a round: its phase, cohort, settings and blobs.

    Attributes:
        session: of the coordinator that announced it.
        coordinator_instance: new at every start of its process: within one, rounds only go
            forward. A coordinator whose state folder was put back from a backup begins again at an
            earlier round.
        state: "open" to be worked on; "finished" when the federation has ended; others are not
            worked on.
        phase: name, or name and settings, of what is asked (`learning/phases`).
        version: of θ.
        blobs: by name: `weights` (θ as little-endian float32), and what the algorithm shares.
        package: SHA-256 of the model package to use.
        algorithm: name, or name and settings (`learning/algorithms`).
        training: settings of local training that are not defaults (`TrainingPlan`).
        codec: name, or name and settings, of the update's vectors (`learning/codecs`).
        deadline_s: seconds from the announcement until answers are late.
        fetch_jitter_s: agents wait a random part of it before they fetch the weights, so that a
            large fleet does not ask the broker for everything in one moment.
        seed: of this round; agents derive the order of rows and the rounding from it.
        max_staleness: an update counts while θ has moved on by no more versions than this; 0: an
            update of this version only.
    """

    session: Id
    coordinator_instance: Id
    round_id: RoundId
    state: Name
    version: Count
    blobs: Annotated[dict[Name, BlobRef], Meta(max_length=MAX_VECTORS)]
    package: Sha256
    fingerprint: Fingerprint
    cohort: Cohort
    phase: Choice = "train"
    algorithm: Choice = "fedavg"
    training: dict[str, Any] = {}
    codec: Choice = "int8"
    deadline_s: Annotated[float, Meta(gt=0, le=1e7)] = 600.0
    fetch_jitter_s: Annotated[float, Meta(ge=0, le=1e5)] = 0.0
    seed: Count = 0
    max_staleness: Annotated[int, Meta(ge=0, le=10_000)] = 0

    def __post_init__(self) -> None:
        if "weights" not in self.blobs:
            raise ValueError("blobs lacks `weights`")

    @property
    def weights(self) -> BlobRef:
        """The blob with θ."""
        return self.blobs["weights"]

    @property
    def phase_name(self) -> str:
        """The phase without its settings; empty when it has no name."""
        phase = self.phase
        return phase if isinstance(phase, str) else name_of(phase)


def name_of(choice: Choice) -> str:
    """Returns the name in a name, or in a name with settings; empty when there is none."""
    name = choice if isinstance(choice, str) else choice.get("name")
    return name if isinstance(name, str) else ""


class TargetSummary(Message, frozen=True):
    """Coarse description of one target of a device's rows, for a look at the whole fleet.

    Attributes:
        classes: those that the device has rows of, by index, ascending.
        level: of a number: the mean, rounded to a multiple of 4 spreads; None without numbers.
        spread: the standard deviation, rounded to a power of 4; 0 where all are equal.
    """

    classes: Annotated[tuple[Count, ...], Meta(max_length=1000)] = ()
    level: Measured | None = None
    spread: Annotated[float, Meta(ge=0, le=1e100)] = 0.0


class AgentStatus(Message, frozen=True):
    """Birth and will of an agent.

    Attributes:
        agent_instance: new at every start of the agent's process.
        phases: it takes part in; one that only evaluates is a wearer the model never saw.
        train_examples: rows it learns from.
        test_examples: rows it measures on.
        train_weight, test_weight: sums of the weights of these rows; 0 when each counts 1.
        unavailable_reason: why it cannot take part at all; empty when it can.
        is_transient: whether that may pass: it tries again by itself.
        pause_reason: why it does not take part for now (too_hot, low_battery, metered, quiet_hours,
            and words); empty when it does.
        runtime: the interpreter.
        memory_bytes: of the device, in all; 0 when unknown.
        codecs: it can encode.
        algorithms: it can run.
        tags: from its configuration.
        software: version of the agent.
        coordinator_instance: start of the coordinator that it sees online: only who names the one
            that runs is certainly there; empty when it sees none.
        received_bytes: all that its link had taken in when it saw that start.
        heartbeat_s: it says this again so often, whether it trains or not; 0 never. Silence of
            three times that long means it is lost.
        keys: names of the coordinator's signing keys that it trusts; none when it asks for no
            signature.
        targets: what targets its rows have, by name; empty when its owner does not say.
        warnings: what is odd about its data, one line each.
        max_payload_bytes: largest message that its connection takes; 0: as large as any is.
    """

    state: Name
    agent_instance: Id
    phases: Names = ()
    train_examples: Count = 0
    test_examples: Count = 0
    train_weight: Annotated[float, Meta(ge=0, le=1e100)] = 0.0
    test_weight: Annotated[float, Meta(ge=0, le=1e100)] = 0.0
    unavailable_reason: Text = ""
    is_transient: bool = False
    pause_reason: Text = ""
    runtime: Text = ""
    memory_bytes: Count = 0
    codecs: Names = ()
    algorithms: Names = ()
    tags: Annotated[tuple[Id, ...], Meta(max_length=64)] = ()
    software: Text = ""
    coordinator_instance: OptionalId = ""
    received_bytes: Count = 0
    heartbeat_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    keys: Annotated[tuple[KeyId, ...], Meta(max_length=4)] = ()
    targets: Annotated[dict[Name, TargetSummary], Meta(max_length=64)] = {}
    warnings: Annotated[tuple[Text, ...], Meta(max_length=8)] = ()
    max_payload_bytes: Count = 0


class RoundResult(Message, frozen=True):
    """Figures of a round, for people, home automation and dashboards; no agent reads them.

    Attributes:
        session: of the coordinator's state folder.
        round_id: of the round.
        status: "committed", "answered", "abandoned" or "held_back".
        version: of θ after it.
        loss: over all held-out rows, or while training where nothing is evaluated; None: not known.
        metrics: likewise.
        asked: agents that were asked.
        reported: agents whose answers count.
        refused: answers that were refused.
        bytes_up: of PUBLISH packets from agents.
        bytes_down: to agents.
        seconds: that the round took.
        best_round: the best so far by the metric that stops; 0: none is known.
        finished: why the federation has ended; empty while it goes on.
    """

    session: Id
    round_id: RoundId
    status: Name
    version: Count = 0
    loss: Measured | None = None
    metrics: Annotated[dict[str, Measured], Meta(max_length=1000)] = {}
    asked: Count = 0
    reported: Count = 0
    refused: Count = 0
    bytes_up: Count = 0
    bytes_down: Count = 0
    seconds: float = 0.0
    best_round: RoundId = 0
    finished: Text = ""


class VectorRef(Message, frozen=True):
    """One vector of an update: how to read its part of the body.

    Attributes:
        codec: name, or name and settings.
        size: numbers in the decoded vector.
        bytes: of its part.
    """

    codec: Choice
    size: Count
    bytes: Count


class UpdateHeader(Message, frozen=True):
    """Header of an update; the topic names the sender.

    Attributes:
        attempt: counts the times this instance trained for the round.
        version: of θ that training began from.
        vectors: by name, in the order of their parts in the body.
        num_examples: rows learned from: the update's weight.
        loss_sum, weight_sum, metric_sums: over the rows of the last epoch, each batch before its
            step; they add across agents.
        training_s: wall time of training on the device.
        received_bytes: all that this instance's link took in so far.
    """

    session: Id
    agent_instance: Id
    round_id: RoundId
    attempt: Count
    version: Count
    fingerprint: Fingerprint
    vectors: Annotated[dict[Name, VectorRef], Meta(min_length=1, max_length=MAX_VECTORS)]
    num_examples: Count
    loss_sum: Measured
    weight_sum: Annotated[float, Meta(ge=0, le=1e100)]
    metric_sums: MetricSums = {}
    training_s: Measured = 0.0
    received_bytes: Count = 0


class Report(Message, frozen=True):
    """An answer that is no update.

    Attributes:
        kind: "declined" with a reason; "result" with sums over rows or values; "missing" when
            chunks of a blob do not come: the coordinator publishes them again.
        phase: name of the phase that it answers.
        reason: machine name: no_data, no_runtime, no_program, fingerprint, phase, algorithm, codec,
            training, weights, evaluation, not_allowed, stopping, memory, too_hot, low_battery,
            metered, quiet_hours.
        detail: for people.
        loss_sum, weight_sum, metric_sums: add across agents.
        values: of a phase without θ.
        num_examples: rows behind them.
        sha256, chunks: of the blob that is incomplete.
    """

    session: Id
    agent_instance: Id
    round_id: RoundId
    kind: Name
    phase: Name
    version: Count
    reason: Text = ""
    detail: Text = ""
    loss_sum: Measured = 0.0
    weight_sum: Annotated[float, Meta(ge=0)] = 0.0
    metric_sums: MetricSums = {}
    values: Values = {}
    num_examples: Count = 0
    received_bytes: Count = 0
    sha256: Sha256 | None = None
    chunks: Annotated[tuple[ChunkIndex, ...], Meta(max_length=MAX_MISSING)] = ()


class Receipt(Message, frozen=True, tag_field="kind", tag="receipt"):
    """The coordinator's answer to an update: it counts, or why it does not."""

    session: Id
    round_id: RoundId
    agent_instance: Id
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
    message: M = _decode(payload, _decoder(kind), kind.__name__)
    return message


def decode_inbox(payload: bytes) -> InboxMessage:
    """Returns a message from an agent's inbox; raises like `decode`."""
    message: InboxMessage = _decode(payload, _INBOX, "inbox")
    return message


@cache  # one for each kind of message
def _decoder(kind: type[M]) -> msgspec.json.Decoder[M]:
    return msgspec.json.Decoder(kind)


_INBOX: msgspec.json.Decoder[InboxMessage] = msgspec.json.Decoder(InboxMessage)


def _decode(payload: bytes, decoder: msgspec.json.Decoder[Any], what: str) -> Any:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise WireError(f"{what}: {len(payload)} bytes, limit {MAX_MESSAGE_BYTES}")
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"{what}: {error}") from error


def encode_update(header: UpdateHeader, body: bytes) -> bytes:
    """One update frame."""
    return frames.pack(header, body)


def decode_update(data: bytes) -> tuple[UpdateHeader, memoryview]:
    """Header and encoded vectors.

    Raises:
        WireError: not an update frame.
    """
    return frames.unpack(data, UpdateHeader, "update")
