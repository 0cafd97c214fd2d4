"""Places at the enrolment port: no address takes them all."""

from __future__ import annotations

import pytest

from broker.enrolment.doorkeeper import Doorkeeper, DoorLimits, network_of


def keeper(**changes: float) -> Doorkeeper:
    facts = {"per_address": 3, "total": 5, "per_second": 100.0, "at_once": 100.0}
    return Doorkeeper(DoorLimits(**(facts | changes)))  # type: ignore[arg-type]


def test_one_address_has_so_many_connections_and_no_more() -> None:
    door = keeper()
    assert [door.enter("a", n, 0.0)[0] for n in range(3)] == [""] * 3
    assert door.enter("a", 3, 0.0) == ("3 connections are open, limit 3", None)
    assert door.enter("b", 4, 0.0) == ("", None)
    door.left("a", 1)
    door.left("a", 1)  # told twice
    assert door.enter("a", 5, 0.0) == ("", None)
    assert door.enter("a", 6, 0.0)[0]


def test_one_address_comes_so_often_and_no_more() -> None:
    door = keeper(per_second=1.0, at_once=2.0, per_address=100, total=100)
    for number in range(2):
        assert door.enter("a", number, 0.0) == ("", None)
    assert door.enter("a", 2, 0.5) == ("more than 1 connections a second", None)
    assert door.enter("b", 3, 0.5) == ("", None)
    assert door.enter("a", 4, 1.5) == ("", None)


def test_when_all_is_full_the_greediest_loses_its_oldest_to_a_newcomer() -> None:
    door = keeper()
    for number in range(3):
        door.enter("greedy", number, 0.0)
    for number in range(3, 5):
        door.enter("other", number, 0.0)
    assert door.enter("new", 5, 0.0) == ("", 0)
    door.left("greedy", 0)
    assert door.enter("other", 6, 0.0) == ("all 5 places are taken", None)
    assert door.enter("last", 7, 0.0) == ("", 1)


def test_addresses_that_come_once_are_forgotten() -> None:
    door = keeper()
    for number in range(10_000):
        assert door.enter(f"a{number}", number, 0.0)[0] == ""
        door.left(f"a{number}", number)
    assert len(door._rates) <= 4096
    assert door._inside == {}


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("?", "?"),
    ],
)
def test_a_network_of_version_6_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network
