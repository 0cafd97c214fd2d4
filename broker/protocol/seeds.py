"""Random numbers that follow from a plan: streams of one agent and round, and seeds of codecs.

A stream is the counter-based generator Philox 4x64-10 (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3", SC '11), its key made of the round's seed, the agent's id and the
number of the stream. A device makes a new generator for each; who simulates many agents gives one
generator new keys instead, which takes a twentieth of the time.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np

_WORD = 1 << 64
#: Streams of one agent and round; the seed of a round has the other 53 bits of a word.
STREAMS = 1 << 11


@lru_cache(maxsize=4096)
def agent_number(agent_id: str) -> int:
    """Returns the number of an agent in keys and seeds: the first 8 bytes of SHA-256 of its id.

    Of 1,000,000 agents two have the same number with a probability of 3e-8.
    """
    return int.from_bytes(sha256(agent_id.encode()).digest()[:8], "big")


def codec_seed(round_seed: int, agent_id: str) -> int:
    """Returns the seed of the codecs of one agent's update: the round's, XOR the agent's number.

    Different for each agent and round, so that what codecs draw from it (rotations, positions) is
    independent.
    """
    return round_seed ^ agent_number(agent_id)


def stream_key(round_seed: int, agent_id: str, stream: int) -> tuple[int, int]:
    """Returns the key of a stream: two words of 64 bits, the lower one first.

    Args:
        round_seed: of the plan.
        agent_id: of the agent.
        stream: of the agent and round, 0 to `STREAMS` - 1.
    """
    return agent_number(agent_id), (round_seed * STREAMS + stream) % _WORD


def stream(round_seed: int, agent_id: str, stream: int) -> np.random.Generator:
    """Returns a new generator at the beginning of a stream; see `stream_key`."""
    key = np.array(stream_key(round_seed, agent_id, stream), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


class Streams:
    """One generator that is given the keys of many streams in turn: the same bits as `stream`."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._inner: dict[str, Any] = {"counter": (0, 0, 0, 0), "key": (0, 0)}
        # All of the state: numbers that are left of the stream before must not come again.
        self._state: dict[str, Any] = {
            "bit_generator": "Philox",
            "state": self._inner,
            "buffer": (0, 0, 0, 0),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }

    def at(self, round_seed: int, agent_id: str, stream: int) -> np.random.Generator:
        """Returns the generator at the beginning of a stream; it is valid until the next call."""
        return self.at_key(stream_key(round_seed, agent_id, stream))

    def at_key(self, key: tuple[int, int]) -> np.random.Generator:
        """Returns the generator at the beginning of the stream with this key; see `at`."""
        self._inner["key"] = key
        self._bits.state = self._state  # type: ignore[assignment]  # numpy takes sequences
        return self._generator
