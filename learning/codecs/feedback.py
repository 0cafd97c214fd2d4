"""Error feedback: what quantizing lost in one round is added to the next round's delta.

Seide et al. 2014, "1-bit stochastic gradient descent and its application to data-parallel
distributed training of speech DNNs" (Interspeech); Karimireddy et al. 2019, "Error feedback fixes
SignSGD and other gradient compression schemes", arXiv 1901.09847, Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedge.errors import CodecError
from learning.codecs.codec import Codec
from learning.vector.parameters import F32


@dataclass(frozen=True, eq=False)
class Encoded:
    """A payload, and what it could not carry.

    Attributes:
        payload: for the wire.
        residual: float32, shape (P,), read-only. Becomes the caller's residual only once the
            payload counts (the receipt says accepted); otherwise the old residual stays, because
            what was sent never reached θ.
    """

    payload: bytes
    residual: F32


def compensate(codec: Codec, delta: F32, residual: F32 | None, rng: np.random.Generator) -> Encoded:
    """Encodes delta + residual and says what is left over.

    Args:
        codec: encodes, and decodes to learn what arrives.
        delta: float32, shape (P,).
        residual: of the last accepted update; None when there is none. It belongs to one model:
            drop it when the layout's fingerprint changes.
        rng: passed on to the codec.

    Raises:
        CodecError: shapes differ, or the sum is nothing to send (see `Codec.encode`).
    """
    if residual is not None and residual.shape != delta.shape:
        raise CodecError(f"residual of shape {residual.shape} for a delta of {delta.shape}")
    with np.errstate(over="ignore"):  # the encoder refuses inf by name
        wanted = delta if residual is None else delta + residual
    payload = codec.encode(wanted, rng)
    left: F32 = wanted - codec.decode(payload, wanted.size)
    left.setflags(write=False)
    return Encoded(payload, left)
