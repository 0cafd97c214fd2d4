"""Random seeds that an agent and the coordinator derive from the same plan."""

from __future__ import annotations

from zlib import crc32


def codec_seed(round_seed: int, agent_id: str) -> int:
    """Returns the seed of the codecs of one agent's update: the round's, XOR CRC-32 of its id.

    Different for each agent and round, so that what codecs draw from it (rotations, positions) is
    independent.
    """
    return round_seed ^ crc32(agent_id.encode())
