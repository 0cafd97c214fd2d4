"""Decides which connections the enrolment port takes: pure, without sockets and clock."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from fedge.limits import TokenBucket

#: Addresses whose rate is remembered; the one silent for longest is forgotten.
_MAX_ADDRESSES = 4096


@dataclass(frozen=True)
class DoorLimits:
    """Limits of the enrolment port.

    Attributes:
        per_address: connections of one address at a time. Devices behind one router share it; a
            device takes two connections of some 50 ms, one after the other.
        total: connections at a time, below Mosquitto's own limit.
        per_second: new connections of one address in a second, once `at_once` have come.
        at_once: see `per_second`.
        handshake_s: a connection that has not come to its end of TLS and MQTT by then is closed.
        idle_s: likewise one on which nothing was said for so long: devices ask every 5 s.
        lifetime_s: likewise one that is open for so long.
    """

    per_address: int = 32
    total: int = 160
    per_second: float = 10.0
    at_once: float = 60.0
    handshake_s: float = 10.0
    idle_s: float = 20.0
    lifetime_s: float = 120.0


class Doorkeeper:
    """Counts connections by address.

    When all places are taken, the address with most connections loses its oldest to a newcomer that
    has fewer: a few addresses cannot keep the others out.
    """

    def __init__(self, limits: DoorLimits) -> None:
        self._limits = limits
        self._inside: dict[str, OrderedDict[int, None]] = {}
        self._rates: OrderedDict[str, TokenBucket] = OrderedDict()
        self._total = 0

    def enter(self, address: str, number: int, now_s: float) -> tuple[str, int | None]:
        """Lets a connection in, or not.

        Args:
            address: of the client.
            number: names the connection, never used before.
            now_s: the time.

        Returns:
            Why it is refused, empty when it is not; and a connection to close in its place.
        """
        key = network_of(address)
        if not self._rate(key).take(now_s):
            return f"more than {self._limits.per_second:g} connections a second", None
        mine = len(self._inside.get(key, ()))
        if mine >= self._limits.per_address:
            return f"{mine} connections are open, limit {self._limits.per_address}", None
        victim = None
        if self._total >= self._limits.total:
            largest = max(self._inside.values(), key=len)
            if len(largest) <= mine + 1:
                return f"all {self._limits.total} places are taken", None
            victim = next(iter(largest))
        self._inside.setdefault(key, OrderedDict())[number] = None
        self._total += 1
        return "", victim

    def left(self, address: str, number: int) -> None:
        """Takes note that a connection has ended; it may be told twice."""
        key = network_of(address)
        numbers = self._inside.get(key, OrderedDict())
        if number not in numbers:
            return
        del numbers[number]
        self._total -= 1
        if not numbers:
            del self._inside[key]

    def _rate(self, key: str) -> TokenBucket:
        rate = self._rates.pop(key, None) or TokenBucket(
            self._limits.per_second, self._limits.at_once
        )
        self._rates[key] = rate
        if len(self._rates) > _MAX_ADDRESSES:
            self._rates.popitem(last=False)
        return rate


def network_of(address: str) -> str:
    """Returns what counts as one address: of IPv6 its /64, of which a household has all."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, 64), strict=False))
