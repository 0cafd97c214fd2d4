"""Topic filters: the specification's own examples (MQTT 5 §4.7), from both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.link.link import check_filter
from broker.memory.topic_filters import FilterTree, TopicTree

EXAMPLES = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/#", "sport", True),
    ("#", "anything/at/all", True),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("#", "$SYS/monitor", False),
    ("+/monitor/Clients", "$SYS/monitor/Clients", False),
    ("$SYS/#", "$SYS/monitor", True),
    ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
    ("ACCOUNTS", "accounts", False),
]


def reaches(topic_filter: str, topic: str) -> bool:
    tree: FilterTree[int] = FilterTree()
    tree.add(topic_filter, "client", 1)
    return "client" in tree.matching(topic)


def takes(topic_filter: str, topic: str) -> bool:
    tree: TopicTree[int] = TopicTree()
    tree.put(topic, 1)
    return bool(tree.matching(topic_filter))


@pytest.mark.parametrize(("topic_filter", "topic", "expected"), EXAMPLES)
def test_the_specifications_examples(topic_filter: str, topic: str, expected: bool) -> None:
    assert reaches(topic_filter, topic) is expected
    assert takes(topic_filter, topic) is expected


_levels = st.lists(st.sampled_from(["a", "b", "", "$x"]), min_size=1, max_size=4)
_filters = st.tuples(
    st.lists(st.sampled_from(["a", "b", "", "+", "$x"]), min_size=1, max_size=4), st.booleans()
)


@given(_levels, _filters)
def test_filter_tree_and_topic_tree_agree(levels: list[str], shape: tuple[list[str], bool]) -> None:
    parts, open_end = shape
    topic, topic_filter = "/".join(levels), "/".join([*parts, "#"] if open_end else parts)
    assert reaches(topic_filter, topic) is takes(topic_filter, topic)


def test_overlapping_filters_of_one_client_count_once() -> None:
    tree: FilterTree[int] = FilterTree()
    for topic_filter in ("a/b", "a/+", "a/#", "#"):
        tree.add(topic_filter, "client", 1)
    assert tree.matching("a/b") == {"client": 1}


def test_discarding_a_filter_keeps_the_others() -> None:
    tree: FilterTree[int] = FilterTree()
    tree.add("a/b/c", "one", 1)
    tree.add("a/b", "two", 2)
    tree.discard("a/b/c", "one")
    tree.discard("a/x", "nobody")
    assert tree.matching("a/b/c") == {}
    assert tree.matching("a/b") == {"two": 2}


def test_a_retained_message_is_replaced_and_discarded() -> None:
    tree: TopicTree[int] = TopicTree()
    tree.put("a/b", 1)
    tree.put("a/b", 2)
    tree.put("a", 3)
    assert tree.matching("a/#") == [("a", 3), ("a/b", 2)]
    tree.discard("a/b")
    assert tree.matching("#") == [("a", 3)]


def test_a_shared_subscription_is_refused() -> None:
    """Any device could join the group, and what falls to it would be lost for the coordinator."""
    with pytest.raises(ValueError, match="shared subscriptions are not allowed"):
        check_filter("$share/coordinators/fedge/v1/houses/agents/+/updates/+/+")
