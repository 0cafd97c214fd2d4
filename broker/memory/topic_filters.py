"""Trees of topic filters and topics (MQTT 5 §4.7): find all matches of a topic, or of a filter.

A look-up takes time by the depth of the topic and the number of matches, not by the number of
stored entries: the simulated broker makes one for every message.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
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

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing."""
        return not (self._root.below or self._root.values)

    def insert(self, path: str, key: str, value: V) -> None:
        """Stores a value."""
        node = self._root
        for level in path.split("/"):
            below = node.below.get(level)
            if below is None:
                below = node.below[level] = _Node()
            node = below
        node.values[key] = value

    def remove(self, path: str, key: str) -> None:
        """Removes a value, if it is there."""
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


class _WildTree(_Tree[V]):
    """Subscriptions whose filters are alike up to their first wildcard, by what follows."""

    def collect(self, levels: list[str], found: dict[str, V]) -> None:
        """Adds value by key of every subscriber that the rest of a topic reaches."""
        nodes = [self._root]
        for level in levels:
            reached = []
            for node in nodes:
                below = node.below
                if (exact := below.get(level)) is not None:
                    reached.append(exact)
                if (one := below.get("+")) is not None:
                    reached.append(one)
                if (rest := below.get("#")) is not None:
                    found.update(rest.values)
            if not reached:
                return
            nodes = reached
        for node in nodes:
            found.update(node.values)
            if (rest := node.below.get("#")) is not None:
                found.update(rest.values)  # "a/#" matches "a" as well (§4.7.1.2)


class FilterTree(Generic[V]):
    """Subscriptions; finds those that a topic reaches.

    Filters without wildcards, the majority, are in a dict. The others are found by what comes
    before their first wildcard: a fleet's begin alike, and have one or two levels more.
    """

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, V]] = {}
        #: By the number of levels before the first wildcard, and these levels.
        self._wild: dict[int, dict[str, _WildTree[V]]] = {}

    def add(self, topic_filter: str, key: str, value: V) -> None:
        """Stores `value` of subscriber `key` under a filter."""
        if not _has_wildcard(topic_filter):
            self._exact.setdefault(topic_filter, {})[key] = value
            return
        depth, begin, rest = _at_wildcard(topic_filter)
        trees = self._wild.setdefault(depth, {})
        tree = trees.get(begin)
        if tree is None:
            tree = trees[begin] = _WildTree()
        tree.insert(rest, key, value)

    def discard(self, topic_filter: str, key: str) -> None:
        """Removes the entry, if there is one."""
        if _has_wildcard(topic_filter):
            self._discard_wild(topic_filter, key)
        elif (subscribers := self._exact.get(topic_filter)) is not None:
            subscribers.pop(key, None)
            if not subscribers:
                del self._exact[topic_filter]

    def _discard_wild(self, topic_filter: str, key: str) -> None:
        depth, begin, rest = _at_wildcard(topic_filter)
        trees = self._wild.get(depth, {})
        if (tree := trees.get(begin)) is None:
            return
        tree.remove(rest, key)
        if tree.is_empty:
            del trees[begin]
            if not trees:
                del self._wild[depth]

    def matching(self, topic: str) -> dict[str, V]:
        """Returns value by key of every subscriber that `topic` reaches, each once."""
        found = dict(self._exact.get(topic, ()))
        levels = topic.split("/")
        for depth, trees in self._wild.items():
            # A filter that begins with a wildcard does not match topics that begin with $ (§4.7.2).
            if depth > len(levels) or (not depth and topic.startswith("$")):
                continue
            if (tree := trees.get("/".join(levels[:depth]))) is not None:
                tree.collect(levels[depth:], found)
        return found


@lru_cache(maxsize=64)
def _at_wildcard(topic_filter: str) -> tuple[int, str, str]:
    """Returns number of the levels before the first wildcard, these levels, and the others."""
    levels = topic_filter.split("/")
    depth = next(n for n, level in enumerate(levels) if level in ("+", "#"))
    return depth, "/".join(levels[:depth]), "/".join(levels[depth:])


def _has_wildcard(topic_filter: str) -> bool:
    return "+" in topic_filter or "#" in topic_filter


class TopicTree(_Tree[V]):
    """Tree of retained messages; finds those that a filter matches."""

    def put(self, topic: str, value: V) -> None:
        """Stores `value` under a topic, in place of an earlier value."""
        self.insert(topic, topic, value)

    def discard(self, topic: str) -> None:
        """Removes the entry, if there is one."""
        self.remove(topic, topic)

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
