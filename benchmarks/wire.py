"""Bytes of one update on the wire: real frames, cut into chunks, as PUBLISH packets.

    python benchmarks/wire.py [--json] [--save]

Exact, so nothing is repeated. TLS and TCP are not counted. `headers` is everything but the
encoded vector: the frame's JSON, the chunks' headers, topics and the packets' own.
"""

from __future__ import annotations

import math

import numpy as np
from measure import Report, budget, finish, option_parser

from broker.link.link import publish_packet_bytes
from broker.protocol import blobs, messages
from broker.protocol.messages import (
    BlobRef,
    Cohort,
    Message,
    Receipt,
    RoundPlan,
    UpdateHeader,
    VectorRef,
)
from broker.protocol.topics import ChunkTopic, InboxTopic, RoundTopic, Topic, Topics, UpdateTopic
from learning.codecs.registry import CODECS

SIZES = (10_000, 50_000, 250_000, 2_500_000)
NAMES = ("float32", "float16", "int8")
TOPICS = Topics("wearable_activity")
AGENT = "wearer-0"
SESSION, BOOT = "5c0f1d2e3b4a5968", "a1b2c3d4e5f60718"
FINGERPRINT = "0123456789abcdef"
ROUND = 17
DEADLINE_S = 600


def header(codec: str, size: int, body_bytes: int) -> UpdateHeader:
    """What an agent writes in the middle of a federation: numbers of full length."""
    return UpdateHeader(
        session=SESSION,
        agent_instance=BOOT,
        round_id=ROUND,
        attempt=ROUND,
        version=ROUND - 1,
        fingerprint=FINGERPRINT,
        vectors={"delta": VectorRef(codec=codec, size=size, bytes=body_bytes)},
        num_examples=187,
        loss_sum=187 * math.pi / 10,
        weight_sum=187.0,
        metric_sums={"accuracy": 187 * math.e / 3},
        training_s=math.pi,
        received_bytes=size * 4 * ROUND,
    )


def packets(topic: Topic, payload: bytes, expiry_s: int | None = None) -> int:
    """Bytes of the PUBLISH packet."""
    return publish_packet_bytes(TOPICS.name(topic), len(payload), expiry_s)


def update_bytes(codec_name: str, size: int) -> dict[str, float]:
    """One update on its way up."""
    rng = np.random.default_rng(0)
    delta = rng.normal(0, 0.01, size).astype(np.float32)
    body = CODECS.make(codec_name).encode(delta, 0, rng)
    frame = messages.encode_update(header(codec_name, size, len(body)), body)
    _, payloads = blobs.split(frame)
    total = sum(
        packets(UpdateTopic(AGENT, ROUND, index), payload, DEADLINE_S)
        for index, payload in enumerate(payloads)
    )
    return {
        "bytes": total,
        "vector_bytes": len(body),
        "frame_header_bytes": len(frame) - len(body),
        "packets": len(payloads),
        "of_float32": total / (4 * size),
        "headers": (total - len(body)) / total,
    }


def plan(ref: BlobRef, phase: str) -> RoundPlan:
    """A plan for ten agents by name."""
    return RoundPlan(
        session=SESSION,
        coordinator_instance=SESSION,
        round_id=ROUND,
        state="open",
        phase=phase,
        version=ROUND,
        blobs={"weights": ref},
        package="0" * 64,
        fingerprint=FINGERPRINT,
        cohort=Cohort(ids=tuple(f"wearer-{n}" for n in range(10))),
        seed=1 << 52,
    )


def down_bytes(size: int) -> dict[str, float]:
    """What one agent takes in for a round: weights, two plans, the receipt."""
    ref, chunks = blobs.split(np.random.default_rng(0).bytes(4 * size))
    receipt = Receipt(
        session=SESSION, round_id=ROUND, agent_instance=BOOT, attempt=ROUND, accepted=True
    )
    small: list[tuple[Topic, Message]] = [
        (RoundTopic(), plan(ref, "train")),
        (RoundTopic(), plan(ref, "evaluate")),
        (InboxTopic(AGENT), receipt),
    ]
    messages_bytes = sum(packets(topic, messages.encode(message)) for topic, message in small)
    weights = sum(packets(ChunkTopic(ref.sha256, n), chunk) for n, chunk in enumerate(chunks))
    return {
        "bytes": weights + messages_bytes,
        "plans_and_receipt_bytes": messages_bytes,
        "of_float32": (weights + messages_bytes) / (4 * size),
    }


def measure() -> Report:
    """Every size with every codec."""
    up = {str(size): {name: update_bytes(name, size) for name in NAMES} for size in SIZES}
    budgets = []
    for size in SIZES:
        int8 = up[str(size)]["int8"]
        budgets.append(budget(int8["of_float32"], 0.255, f"int8 of float32, P = {size:,}"))
        if size >= 50_000:
            budgets.append(budget(int8["headers"], 0.01, f"headers of int8, P = {size:,}"))
    return {"up": up, "down": {str(size): down_bytes(size) for size in SIZES}, "budgets": budgets}


def show(report: Report) -> None:
    """Two tables."""
    print(f"{'up':<26}{'bytes':>12}{'packets':>9}{'of float32':>12}{'headers':>9}")
    for size, codecs in report["up"].items():
        for name, row in codecs.items():
            label = f"P = {int(size):,}, {name}"
            share, head = row["of_float32"], row["headers"]
            print(f"{label:<26}{row['bytes']:>12,}{row['packets']:>9}{share:>12.2%}{head:>9.2%}")
    print(f"\n{'down, agent and round':<26}{'bytes':>12}{'but weights':>12}")
    for size, row in report["down"].items():
        other = row["plans_and_receipt_bytes"]
        print(f"P = {int(size):<22,}{row['bytes']:>12,}{other:>12,}")


def main() -> None:
    options = option_parser(__doc__).parse_args()
    finish("wire", measure(), options, show)


if __name__ == "__main__":
    main()
