"""Topic filters (MQTT 5 §4.7): which subscriptions a topic reaches, and the other way round.

Both trees answer in time that depends on the depth of the topic and on what matches, not on how
many are stored: a simulated broker asks for every message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")

_LONGEST = 65_535


def check_filter(topic_filter: str) -> str:
    """Returns `topic_filter` when it is valid.

    Raises:
        ValueError: empty, too long, or a wildcard that does not stand alone in its level; or a
            shared subscription.
    """
    if topic_filter.startswith("$share/"):
        # Mosquitto's access-control file lets anybody join a group, and what falls to a member
        # that may not read it is lost for all: a device could starve the coordinator.
        raise ValueError(f"shared subscriptions are not used here: {topic_filter[:80]!r}")
    levels = topic_filter.split("/")
    alone = all(len(level) == 1 or not set(level) & {"+", "#"} for level in levels)
    if not alone or "#" in levels[:-1] or not _printable(topic_filter):
        raise ValueError(f"not a topic filter: {topic_filter[:80]!r}")
    return topic_filter


def check_topic(topic: str) -> str:
    """Returns `topic` when a message can be published on it.

    Raises:
        ValueError: empty, too long, or with a wildcard.
    """
    if "+" in topic or "#" in topic or not _printable(topic):
        raise ValueError(f"not a topic to publish on: {topic[:80]!r}")
    return topic


def _printable(text: str) -> bool:
    return bool(text) and "\0" not in text and len(text.encode()) <= _LONGEST


class _Node(Generic[V]):
    __slots__ = ("below", "values")

    def __init__(self) -> None:
        self.below: dict[str, _Node[V]] = {}
        self.values: dict[str, V] = {}


class _Tree(Generic[V]):
    """Values under (path, key), where a path is a topic or a filter."""

    def __init__(self) -> None:
        self._root: _Node[V] = _Node()

    def _insert(self, path: str, key: str, value: V) -> None:
        node = self._root
        for level in path.split("/"):
            node = node.below.setdefault(level, _Node())
        node.values[key] = value

    def _remove(self, path: str, key: str) -> None:
        trail = [("", self._root)]
        for level in path.split("/"):
            node = trail[-1][1].below.get(level)
            if node is None:
                return
            trail.append((level, node))
        trail[-1][1].values.pop(key, None)
        for (_, parent), (level, node) in zip(trail[-2::-1], trail[:0:-1], strict=True):
            if node.values or node.below:
                return
            del parent.below[level]


class FilterTree(_Tree[V]):
    """Subscriptions: which of them does a topic reach?

    Filters without wildcards, most of them, are found in one look-up; the tree has the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, dict[str, V]] = {}

    def add(self, topic_filter: str, key: str, value: V) -> None:
        """Stores `value` of subscriber `key` under a filter."""
        if _has_wildcard(topic_filter):
            self._insert(topic_filter, key, value)
        else:
            self._exact.setdefault(topic_filter, {})[key] = value

    def discard(self, topic_filter: str, key: str) -> None:
        """Forgets it, if it is there."""
        if _has_wildcard(topic_filter):
            self._remove(topic_filter, key)
        elif (subscribers := self._exact.get(topic_filter)) is not None:
            subscribers.pop(key, None)
            if not subscribers:
                del self._exact[topic_filter]

    def matching(self, topic: str) -> dict[str, V]:
        """Value by key of every subscriber that `topic` reaches, each once."""
        found = dict(self._exact.get(topic, ()))
        levels = topic.split("/")
        self._collect(self._root, levels, 0, found, wild=not topic.startswith("$"))
        return found

    def _collect(
        self, node: _Node[V], levels: list[str], depth: int, found: dict[str, V], *, wild: bool
    ) -> None:
        # A filter that begins with a wildcard does not reach $SYS and its like (§4.7.2).
        if wild and (rest := node.below.get("#")):
            found.update(rest.values)  # "a/#" takes "a" as well (§4.7.1.2)
        if depth == len(levels):
            found.update(node.values)
            return
        steps = (levels[depth], "+") if wild else (levels[depth],)
        for step in steps:
            if below := node.below.get(step):
                self._collect(below, levels, depth + 1, found, wild=True)


def _has_wildcard(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


class TopicTree(_Tree[V]):
    """Retained messages: which of them does a filter take?"""

    def put(self, topic: str, value: V) -> None:
        """Stores `value` under a topic, in the place of what was there."""
        self._insert(topic, topic, value)

    def discard(self, topic: str) -> None:
        """Forgets it, if it is there."""
        self._remove(topic, topic)

    def matching(self, topic_filter: str) -> list[tuple[str, V]]:
        """(topic, value) of everything the filter takes, in order of storing per level."""
        return list(self._walk(self._root, topic_filter.split("/"), 0))

    def _walk(self, node: _Node[V], levels: list[str], depth: int) -> Iterator[tuple[str, V]]:
        if depth == len(levels):
            yield from node.values.items()
            return
        level = levels[depth]
        if level == "#":
            yield from self._everything(node, skip_system=depth == 0)
        elif level == "+":
            for name, below in node.below.items():
                if depth or not name.startswith("$"):
                    yield from self._walk(below, levels, depth + 1)
        elif below_level := node.below.get(level):
            yield from self._walk(below_level, levels, depth + 1)

    def _everything(self, node: _Node[V], *, skip_system: bool) -> Iterator[tuple[str, V]]:
        yield from node.values.items()
        for name, below in node.below.items():
            if not (skip_system and name.startswith("$")):
                yield from self._everything(below, skip_system=False)
