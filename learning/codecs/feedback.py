"""Error feedback: what quantizing lost in one round is added to the next round's delta.

Seide et al. 2014, "1-bit stochastic gradient descent and its application to data-parallel
distributed training of speech DNNs" (Interspeech); Karimireddy et al. 2019, "Error feedback fixes
SignSGD and other gradient compression schemes", arXiv 1901.09847, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedge.errors import CodecError
from learning.codecs.codec import Codec, is_lossless
from learning.codecs.many import Payloads, RngOf, decode_many, encode_many
from learning.vector.parameters import F32


@dataclass(frozen=True, eq=False)
class Encoded:
    """A payload, what arrives of it, and what it could not carry.

    Attributes:
        payload: for the wire.
        decoded: float32, shape (P,): the vector that the receiver decodes.
        residual: float32, shape (P,), read-only: becomes the device's residual once the payload
            counts (the receipt says accepted); otherwise the old residual stays, because what was
            sent never reached θ. None of a lossless codec: there is none.
    """

    payload: bytes
    decoded: F32
    residual: F32 | None


def encode_with_feedback(
    codec: Codec, vector: F32, residual: F32 | None, seed: int, rng: np.random.Generator
) -> Encoded:
    """Encodes vector + residual and says what is left over.

    Args:
        codec: encodes, and decodes to learn what arrives.
        vector: float32, shape (P,).
        residual: of the last accepted update; None when there is none. It belongs to one model:
            drop it when the layout's fingerprint changes.
        seed: passed on to the codec.
        rng: passed on to the codec.

    Raises:
        CodecError: shapes differ, or the sum is nothing to send (see `Codec.encode`).
    """
    if residual is not None and residual.shape != vector.shape:
        raise CodecError(f"residual of shape {residual.shape} for a vector of {vector.shape}")
    with np.errstate(over="ignore"):  # the encoder refuses inf by name
        wanted = vector if residual is None else vector + residual
    payload = codec.encode(wanted, seed, rng)
    if is_lossless(codec):
        return Encoded(payload, wanted, None)
    decoded = codec.decode(payload, wanted.size, seed)
    residual = wanted - decoded
    residual.setflags(write=False)
    return Encoded(payload, decoded, residual)


@dataclass(frozen=True, eq=False)
class EncodedMany:
    """Payloads of a cohort, what arrives of them, and what they could not carry.

    Attributes:
        payloads: for the wire.
        decoded: float32, [n, P].
        residual: float32, [n, P]; None of a lossless codec: there is none.
    """

    payloads: Payloads
    decoded: F32
    residual: F32 | None


def encode_many_with_feedback(
    codec: Codec, vectors: F32, residuals: F32 | None, seeds: Sequence[int], rng_of: RngOf
) -> EncodedMany:
    """Encodes vectors + residuals, row by row equal to `encode_with_feedback`.

    Raises:
        CodecError: shapes differ, or one of the sums is nothing to send (see `Codec.encode`).
    """
    if residuals is not None and residuals.shape != vectors.shape:
        raise CodecError(f"residuals of shape {residuals.shape} for vectors of {vectors.shape}")
    with np.errstate(over="ignore"):
        wanted = vectors if residuals is None else vectors + residuals
    payloads = encode_many(codec, wanted, seeds, rng_of)
    if is_lossless(codec):
        return EncodedMany(payloads, wanted, None)
    decoded = decode_many(codec, payloads, vectors.shape[1], seeds)
    return EncodedMany(payloads, decoded, wanted - decoded)
