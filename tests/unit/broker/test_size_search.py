"""Search for the largest message that a broker takes: pure, without a broker."""

from __future__ import annotations

import itertools

import pytest

from broker.link.size_probe import LEAST_PAYLOAD, SIZES, SizeSearch, probe_message, size_for


def found(limit: int, wanted: int, fails: int = 0) -> tuple[int, int]:
    """Largest payload found below a broker's limit, and the number of tries."""
    search, tries = SizeSearch(wanted, fails), 0
    while search.size:
        search.note(passes=search.size <= limit)
        tries += 1
    return search.passes, tries


def test_sizes_grow_by_a_seventh_at_most_from_a_chunk_of_1_kib_to_1_mib() -> None:
    assert (SIZES[0], SIZES[-1]) == (LEAST_PAYLOAD, 1 << 20)
    assert all(1 < high / low < 1.15 for low, high in itertools.pairwise(SIZES))


def test_a_message_that_passes_costs_one_try() -> None:
    assert found(200_000, 122_936) == (122_936, 1)


@pytest.mark.parametrize("limit", [2_000, 4_096, 20_000, 100_000, 131_072, 1 << 20])
def test_seven_eighths_of_the_limit_are_found_in_eight_tries(limit: int) -> None:
    for passes, tries in (found(limit, 2 << 20), found(limit, 0, fails=2 << 20)):
        assert 0.87 * limit < passes <= limit
        assert tries <= 8


def test_all_clients_find_the_same_limit_whatever_they_wanted_to_send() -> None:
    wishes = (3_000, 122_936, 900_000)
    assert len({found(2_500, size_for(wanted))[0] for wanted in wishes}) == 1
    assert {found(2_500, 0, fails)[0] for fails in wishes} == {found(2_500, 3_000)[0]}


def test_where_nothing_passes_nothing_is_found() -> None:
    assert found(100, 122_936)[0] == 0
    assert found(100, 0, fails=1_100)[0] == 0


def test_one_lost_connection_proves_nothing_and_a_second_counts() -> None:
    search = SizeSearch(122_936)
    search.interrupted()
    assert search.size == 122_936  # tried again
    search.interrupted()
    assert search.size < 122_936
    size = search.size
    search.interrupted()
    assert search.size < size  # from now on every one counts


def test_a_test_message_has_the_length_that_it_is_asked_for() -> None:
    assert len(probe_message(7, 1_280)) == len(probe_message(12_345, 1_280)) == 1_280
    assert probe_message(7, 1_280) != probe_message(8, 1_280)
