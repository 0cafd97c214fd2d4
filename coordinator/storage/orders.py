"""Orders of an operator, as they lie in the store until the coordinator takes them up."""

from __future__ import annotations

import time

import msgspec

from broker.protocol.messages import Count, Id, Text
from coordinator.storage.database import Database

#: Orders that were carried out are kept as a journal, so many of them.
_KEPT_ORDERS = 1000
ORDER_SCHEMA = """
CREATE TABLE orders (
    number INTEGER PRIMARY KEY, given TEXT NOT NULL, given_at REAL NOT NULL, outcome TEXT
);
"""


class Quarantine(msgspec.Struct, frozen=True, tag="quarantine"):
    """Ask an agent no more, and count nothing of it, until it is released."""

    agent_id: Id
    reason: Text


class Release(msgspec.Struct, frozen=True, tag="release"):
    """Ask an agent again."""

    agent_id: Id


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Delete what is known of an agent."""

    agent_id: Id


class Rollback(msgspec.Struct, frozen=True, tag="rollback"):
    """Go on from an earlier version."""

    version: Count


Order = Quarantine | Release | Forget | Rollback


class Outcome(msgspec.Struct, frozen=True):
    """Outcome of an order.

    Attributes:
        text: for people, one or several lines.
        is_done: it was carried out; else the text says why not.
    """

    text: str
    is_done: bool = True


class OrderTable(Database):
    """The table of orders; see `Database`."""

    def give_order(self, order: Order) -> int:
        """Leaves an order for the coordinator; returns its number."""
        text = msgspec.json.encode(order).decode()
        with self._transaction() as db:
            cursor = db.execute(
                "INSERT INTO orders (given, given_at) VALUES (?, ?)", (text, time.time())
            )
            number = int(cursor.lastrowid or 0)
            db.execute("DELETE FROM orders WHERE number <= ?", (number - _KEPT_ORDERS,))
        return number

    def open_orders(self) -> list[tuple[int, Order]]:
        """Orders that nobody has taken up, with their numbers, in their order."""
        rows = self._read("SELECT number, given FROM orders WHERE outcome IS NULL ORDER BY number")
        return [(number, self._order(text)) for number, text in rows]

    def _order(self, text: str) -> Order:
        order: Order = self._decoded("an order", text, Order)  # type: ignore[arg-type]
        return order

    def close_order(self, number: int, outcome: Outcome) -> None:
        """Notes what became of an order."""
        text = msgspec.json.encode(outcome).decode()
        with self._transaction() as db:
            db.execute("UPDATE orders SET outcome = ? WHERE number = ?", (text, number))

    def order_outcome(self, number: int) -> Outcome | None:
        """Returns the outcome of an order; None while it was not taken up."""
        rows = self._read("SELECT outcome FROM orders WHERE number = ?", number)
        if not rows or rows[0][0] is None:
            return None
        return self._decoded("an order's outcome", rows[0][0], Outcome)
