"""Route of packets under a fault plan: `broker.memory.broker.Route` with its faults."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random

from broker.memory.broker import Packet
from fleet.virtual.faults import FaultPlan, concerns


class FaultyRoute:
    """Delays, drops, reorders and duplicates packets; see `broker.memory.broker.Route`.

    Args:
        plan: faults.
        seed: of the random faults.
        names: name of the process by client id.
        bytes_per_s: speed of single links, by process; slow links of the plan apply as well.
    """

    def __init__(
        self,
        plan: FaultPlan,
        seed: int,
        names: Mapping[str, str],
        bytes_per_s: Mapping[str, float] | None = None,
    ) -> None:
        self._plan = plan
        self._rng = Random(f"{seed}/route")  # noqa: S311  a simulation
        self._names = names
        self._rates: dict[str, float] = {}
        for client_id, name in names.items():
            rates = [part.bytes_per_s for part in plan.slow_links if concerns(part.who, name)]
            rates += [(bytes_per_s or {})[name]] if name in (bytes_per_s or {}) else []
            if rates:
                self._rates[client_id] = min(rates)
        partitions = {
            client_id: [part for part in plan.partitions if concerns(part.who, name)]
            for client_id, name in names.items()
        }
        self._partitions = {client_id: parts for client_id, parts in partitions.items() if parts}
        self._disturbed = bool(plan.cut or plan.duplicate or plan.reorder)
        #: What every packet takes that nothing delays: packets of a link cannot overtake.
        self._always = None if self._disturbed else plan.delay.always()
        #: Times at which a link is free again and its last packet arrives, by (client, direction).
        self._free_s: dict[tuple[str, bool], float] = {}
        self._last_s: dict[tuple[str, bool], float] = {}
        self._down_until_s = 0.0

    def delays(self, now_s: float, packet: Packet) -> Sequence[float]:
        """See `Route.delays`; packets keep their order, except those drawn to overtake."""
        if self._partitions and self._cut_off(now_s, packet.client_id):
            return ()
        if self._always is not None and packet.client_id not in self._rates:
            return self._always
        plan, rng = self._plan, self._rng
        if not self._disturbed or now_s >= plan.until_s:
            return (self._in_order_s(now_s, packet),)
        if plan.cut and rng.random() < plan.cut:
            return ()
        early = plan.reorder and rng.random() < plan.reorder
        delay_s = plan.delay.draw(rng) if early else self._in_order_s(now_s, packet)
        if plan.duplicate and rng.random() < plan.duplicate:
            return (delay_s, delay_s + plan.delay.draw(rng))
        return (delay_s,)

    def _in_order_s(self, now_s: float, packet: Packet) -> float:
        key = (packet.client_id, packet.upward)
        sent_s = now_s
        if packet.client_id in self._rates:
            began_s = max(now_s, self._free_s.get(key, 0.0))
            sent_s = began_s + packet.packet_bytes / self._rates[packet.client_id]
            self._free_s[key] = sent_s
        last_s = self._last_s.get(key, 0.0)
        delay_s = max(sent_s + self._plan.delay.draw(self._rng), last_s) - now_s
        while now_s + delay_s < last_s:  # rounding must not let the packet overtake
            delay_s = math.nextafter(delay_s, math.inf)
        self._last_s[key] = now_s + delay_s
        return delay_s

    def connect_s(self, now_s: float, client_id: str) -> float | None:
        """See `Route.connect_s`."""
        if now_s < self._down_until_s or self._cut_off(now_s, client_id):
            return None
        for upward in (True, False):  # a new connection has no packets under way
            self._free_s.pop((client_id, upward), None)
            self._last_s.pop((client_id, upward), None)
        return 2 * self._plan.delay.draw(self._rng)

    def _cut_off(self, now_s: float, client_id: str) -> bool:
        parts = self._partitions.get(client_id)
        return parts is not None and any(p.from_s <= now_s < p.to_s for p in parts)

    def broker_down(self, until_s: float) -> None:
        """Refuses connections until `until_s`."""
        self._down_until_s = max(self._down_until_s, until_s)

    def admits(self, now_s: float) -> bool:
        """Returns whether the broker queues a message; a False drops it silently."""
        share = self._plan.drop
        return not share or now_s >= self._plan.until_s or self._rng.random() >= share
