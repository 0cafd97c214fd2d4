"""Trees of topic filters and topics (MQTT 5 §4.7): find all matches of a topic, or of a filter.

A look-up takes time by the depth of the topic and the number of matches, not by the number of
stored entries: the simulated broker makes one for every message.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class _Node(Generic[V]):
    __slots__ = ("below", "values")

    def __init__(self) -> None:
        self.below: dict[str, _Node[V]] = {}
        self.values: dict[str, V] = {}


class _Tree(Generic[V]):
    """Tree of values by (path, key), where a path is a topic or a filter."""

    def __init__(self) -> None:
        self._root: _Node[V] = _Node()

    def _insert(self, path: str, key: str, value: V) -> None:
        node = self._root
        for level in path.split("/"):
            below = node.below.get(level)
            if below is None:
                below = node.below[level] = _Node()
            node = below
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
    """Tree of subscriptions; finds those that a topic reaches.

    Filters without wildcards, the majority, are in a dict; the tree holds the others.
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
        """Removes the entry, if there is one."""
        if _has_wildcard(topic_filter):
            self._remove(topic_filter, key)
        elif (subscribers := self._exact.get(topic_filter)) is not None:
            subscribers.pop(key, None)
            if not subscribers:
                del self._exact[topic_filter]

    def matching(self, topic: str) -> dict[str, V]:
        """Returns value by key of every subscriber that `topic` reaches, each once."""
        found = dict(self._exact.get(topic, ()))
        # A filter that begins with a wildcard does not match topics that begin with $ (§4.7.2).
        wild = not topic.startswith("$")
        nodes = [self._root]
        for level in topic.split("/"):
            reached = []
            for node in nodes:
                below = node.below
                if (exact := below.get(level)) is not None:
                    reached.append(exact)
                if wild:
                    if (one := below.get("+")) is not None:
                        reached.append(one)
                    if (rest := below.get("#")) is not None:
                        found.update(rest.values)
            if not reached:
                return found
            nodes, wild = reached, True
        for node in nodes:
            found.update(node.values)
            if (rest := node.below.get("#")) is not None:
                found.update(rest.values)  # "a/#" matches "a" as well (§4.7.1.2)
        return found


def _has_wildcard(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


class TopicTree(_Tree[V]):
    """Tree of retained messages; finds those that a filter matches."""

    def put(self, topic: str, value: V) -> None:
        """Stores `value` under a topic, in place of an earlier value."""
        self._insert(topic, topic, value)

    def discard(self, topic: str) -> None:
        """Removes the entry, if there is one."""
        self._remove(topic, topic)

    def matching(self, topic_filter: str) -> list[tuple[str, V]]:
        """Returns (topic, value) of every match, in order of storing per level."""
        node, levels = self._root, topic_filter.split("/")
        for depth, level in enumerate(levels):
            if level in ("+", "#"):
                return list(self._walk(node, levels, depth))
            below = node.below.get(level)
            if below is None:
                return []
            node = below
        return list(node.values.items())

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
