"""Every decoder refuses what is damaged as it declares, in bounded time and memory.

`python -m tests.fuzz --inputs 1000000` runs many more.
"""

from __future__ import annotations

import logging
import signal
import tracemalloc
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.decoder import Decoder
from tests.fuzz.decoders import decoders
from tests.fuzz.mutate import damaged
from tests.fuzz.programs import crashes
from tests.fuzz.run import Outcome, check, fuzz


@pytest.fixture(scope="module")
def all_decoders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Decoder]]:
    logging.disable(logging.CRITICAL)  # a warning for every damaged file
    alarm = signal.getsignal(signal.SIGALRM)
    yield {decoder.name: decoder for decoder in decoders(tmp_path_factory.mktemp("fuzz"))}
    signal.signal(signal.SIGALRM, alarm)
    logging.disable(logging.NOTSET)


def failures(outcomes: dict[str, Outcome]) -> list[str]:
    found = [failure for outcome in outcomes.values() for failure in outcome.failures]
    return [f"{failure.decoder}: {failure.why}: {failure.data[:300]!r}" for failure in found]


def test_damaged_inputs_are_refused_as_declared(all_decoders: dict[str, Decoder]) -> None:
    chosen = list(all_decoders.values())
    outcomes = fuzz(chosen, 30_000, seed=1, seconds=15)
    assert failures(outcomes) == []
    for decoder in chosen:
        outcome = outcomes[decoder.name]
        assert outcome.inputs > len(decoder.seeds)
        assert outcome.raised[""] >= 1, f"{decoder.name} took not even what is valid"
        assert bool(outcome.raised.keys() - {""}) == bool(decoder.declared), decoder.name


def test_memory_is_bounded_whatever_the_input_says(all_decoders: dict[str, Decoder]) -> None:
    rng = Random(2)
    tracemalloc.start()
    try:
        for decoder in all_decoders.values():
            for number in range(max(5, int(60 * decoder.share))):
                data = damaged(rng.choice(decoder.seeds), decoder.seeds, rng) if number else b""
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                check(decoder, data, Outcome())
                _, peak = tracemalloc.get_traced_memory()
                assert peak - before <= decoder.memory_bytes, (decoder.name, data[:300])
    finally:
        tracemalloc.stop()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_hypothesis_thinks_of_is_refused_as_declared(
    all_decoders: dict[str, Decoder], data: Any
) -> None:
    quick = [decoder for decoder in all_decoders.values() if decoder.share == 1]
    decoder = data.draw(st.sampled_from(quick))
    seed = data.draw(st.sampled_from(decoder.seeds))
    start = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(start, len(seed)))
    put = data.draw(st.binary(max_size=64) | json_values.map(lambda value: repr(value).encode()))
    outcome = Outcome()
    check(decoder, seed[:start] + put + seed[end:], outcome)
    assert failures({decoder.name: outcome}) == []


def test_a_damaged_program_is_refused_or_is_one_process_crash_and_nothing_else() -> None:
    # Known: the interpreters read damaged programs without looking. What came over the network was
    # compared with its digest before it is loaded.
    assert "undeclared exception" not in crashes(15, seed=3)
