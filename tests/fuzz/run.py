"""Feeds damaged inputs to decoders and watches what they raise, hold and take."""

from __future__ import annotations

import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.fuzz.decoder import Decoder
from tests.fuzz.mutate import damaged

#: CPU time that no input may take.
SLOW_S = 1.0
#: Wall time after which a call is broken off.
_HANG_S = 20
#: Failures that are kept of one decoder.
_MOST_FAILURES = 5


@dataclass(eq=False)
class Failure:
    """An input that a decoder did not deal with as declared."""

    decoder: str
    why: str
    data: bytes


@dataclass(eq=False)
class Outcome:
    """What came of the inputs of one decoder.

    Attributes:
        inputs: number of them.
        raised: number by what was raised; "" for what was taken.
        slowest_s: CPU time of the slowest call.
    """

    inputs: int = 0
    raised: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)


class _HangError(BaseException):
    """Not an Exception: nothing on the way may catch it."""


def _thread_s() -> float:
    """Seconds that this thread computed: not what the disk and other threads took."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_utime


def check(decoder: Decoder, data: bytes, outcome: Outcome) -> None:
    """Runs one input."""
    outcome.inputs += 1
    signal.alarm(_HANG_S)
    began_s = _thread_s()
    name, why = "", ""
    try:
        decoder.decode(data)
    except decoder.declared as error:
        name = type(error).__name__
    except (Exception, _HangError) as error:  # noqa: BLE001 - this is what is looked for
        name = type(error).__name__
        why = f"{name}: {error}"[:300]
    finally:
        signal.alarm(0)
    took_s = _thread_s() - began_s
    if took_s > SLOW_S:
        why = why or f"took {took_s:.2f} s"
    outcome.slowest_s = max(outcome.slowest_s, took_s)
    outcome.raised[name] += 1
    if why and len(outcome.failures) < _MOST_FAILURES:
        outcome.failures.append(Failure(decoder.name, why, data))


def inputs_of(decoder: Decoder, others: Sequence[bytes], rng: Random) -> Iterator[bytes]:
    """The valid inputs, then damaged ones without end."""
    yield from decoder.seeds
    yield b""
    while True:
        yield damaged(rng.choice(decoder.seeds), others, rng)


def fuzz(
    decoders: Sequence[Decoder],
    inputs: int,
    seed: int,
    seconds: float = float("inf"),
) -> dict[str, Outcome]:
    """Shares `inputs` among the decoders; ends early when the time is over."""
    signal.signal(signal.SIGALRM, _hang)
    every = sum(decoder.share for decoder in decoders)
    others = [seed for decoder in decoders for seed in decoder.seeds]
    ends_s = time.monotonic() + seconds
    outcomes = {}
    for number, decoder in enumerate(decoders):
        rng = Random(f"{seed}/{decoder.name}")  # so that one decoder can be run again alone
        count = max(len(decoder.seeds) + 1, round(inputs * decoder.share / every))
        outcome = outcomes[decoder.name] = Outcome()
        own_end_s = time.monotonic() + (ends_s - time.monotonic()) / (len(decoders) - number)
        stream = inputs_of(decoder, others, rng)
        for data in stream:
            check(decoder, data, outcome)
            if outcome.inputs >= count or time.monotonic() > own_end_s:
                break
    return outcomes


def _hang(_number: int, _frame: object) -> None:
    raise _HangError(f"did not end within {_HANG_S} s")
