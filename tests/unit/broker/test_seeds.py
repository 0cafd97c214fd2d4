"""Streams and seeds: the same bits for who makes a generator and who gives one a new key."""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from broker.protocol.seeds import STREAMS, Streams, codec_seed, stream, stream_key

LARGEST = 1 << 53
#: As docs/protocol.md states it, for seed 12345 and `pi-01`.
GOLDEN = 3084656961302584358


def _drawn(rng: np.random.Generator) -> list[object]:
    """Draws of every kind: what is left of a 32-bit pair or of a block must not come again."""
    return [
        rng.permutation(7).tolist(),
        rng.integers(0, 9, 3, dtype=np.uint32).tolist(),
        rng.random(3, np.float32).tolist(),
        rng.normal(size=3).tolist(),
    ]


def test_a_generator_with_a_new_key_gives_the_bits_of_a_new_generator() -> None:
    streams = Streams()
    for seed, agent, number in (
        (0, "a", 0),
        (12345, "pi-01", 1),
        (LARGEST, "pi-01", 1),
        (0, "a", 0),
    ):
        expected = _drawn(stream(seed, agent, number))
        assert _drawn(streams.at(seed, agent, number)) == expected


def test_a_stream_begins_anew_when_it_is_asked_for_in_the_middle_of_another() -> None:
    streams = Streams()
    expected = streams.at(1, "pi-01", 0).random(5).tolist()
    rng = streams.at(2, "pi-02", 0)
    rng.random(2)
    rng.integers(0, 9, dtype=np.uint32)
    assert streams.at(1, "pi-01", 0).random(5).tolist() == expected


def test_streams_of_agents_rounds_and_purposes_differ() -> None:
    keys = {
        stream_key(seed, agent, number)
        for seed in (0, 1, 2048, LARGEST - 1)
        for agent in ("pi-01", "pi-02")
        for number in (0, 1, STREAMS - 1)
    }
    assert len(keys) == 4 * 2 * 3
    assert all(0 <= word < 1 << 64 for key in keys for word in key)


def test_100000_agents_have_different_keys() -> None:
    assert len({stream_key(7, f"agent-{n}", 0) for n in range(100_000)}) == 100_000


def test_the_seed_of_codecs_is_the_rounds_xor_the_agents_number() -> None:
    number = int.from_bytes(sha256(b"pi-01").digest()[:8], "big")
    assert codec_seed(12345, "pi-01") == 12345 ^ number == GOLDEN
