"""Topics: what is built can be parsed, what is odd can be neither."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.topics import (
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorStatusTopic,
    InboxTopic,
    ProgramTopic,
    ReportTopic,
    RoundTopic,
    Topic,
    Topics,
    UpdateTopic,
    check_id,
)
from fedge.errors import ConfigError, WireError

SHA256 = "0123456789abcdef" * 4

ids = st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z")
numbers = st.integers(0, 999_999_999)
digests = st.from_regex(r"\A[0-9a-f]{64}\Z")
topics: st.SearchStrategy[Topic] = st.one_of(
    st.just(CoordinatorStatusTopic()),
    st.just(ProgramTopic()),
    st.just(RoundTopic()),
    st.builds(ChunkTopic, digests, numbers),
    st.builds(AgentStatusTopic, ids),
    st.builds(UpdateTopic, ids, numbers, numbers),
    st.builds(ReportTopic, ids, numbers),
    st.builds(InboxTopic, ids),
)

ODD_IDS = ["", "#", "+", "a/b", "a#", "$SYS", "a b", "a\n", "\n", "ä", "Ⅷ", "a\0", "a.b", "x" * 65]


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        (CoordinatorStatusTopic(), "fedge/v1/f/coordinator/status"),
        (ProgramTopic(), "fedge/v1/f/program"),
        (RoundTopic(), "fedge/v1/f/round"),
        (ChunkTopic(SHA256, 7), f"fedge/v1/f/blobs/{SHA256}/7"),
        (AgentStatusTopic("pi-1"), "fedge/v1/f/agents/pi-1/status"),
        (UpdateTopic("pi-1", 3, 0), "fedge/v1/f/agents/pi-1/updates/3/0"),
        (ReportTopic("pi-1", 3), "fedge/v1/f/agents/pi-1/reports/3"),
        (InboxTopic("pi-1"), "fedge/v1/f/agents/pi-1/inbox"),
    ],
)
def test_the_names_of_protocol_v1(topic: Topic, name: str) -> None:
    assert Topics("f").name(topic) == name
    assert Topics("f").parse(name) == topic


@given(federation=ids, topic=topics)
def test_every_topic_that_is_built_is_parsed_to_itself(federation: str, topic: Topic) -> None:
    names = Topics(federation)
    assert names.parse(names.name(topic)) == topic


@given(st.text())
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(WireError):
        Topics("f").parse(name)


@given(st.text())
def test_any_tail_is_a_topic_that_gives_it_back_or_refused(tail: str) -> None:
    names = Topics("f")
    try:
        topic = names.parse(names.root + tail)
    except WireError:
        return
    assert topic.tail == tail


@pytest.mark.parametrize("agent_id", ODD_IDS)
@pytest.mark.parametrize(
    "build",
    [
        AgentStatusTopic,
        InboxTopic,
        lambda agent_id: ReportTopic(agent_id, 1),
        lambda agent_id: UpdateTopic(agent_id, 1, 0),
    ],
)
def test_an_odd_id_can_be_neither_built_nor_parsed(
    build: Callable[[str], Topic], agent_id: str
) -> None:
    with pytest.raises(WireError):
        build(agent_id)
    good = Topics("f").name(build("pi-1"))
    with pytest.raises(WireError):
        Topics("f").parse(good.replace("pi-1", agent_id))


@pytest.mark.parametrize("number", ["-1", "01", "1e3", "1.0", " 1", "1\n", "٣", "1000000000", ""])
def test_an_odd_number_is_refused(number: str) -> None:
    for tail in (f"agents/a/reports/{number}", f"agents/a/updates/{number}/0"):
        with pytest.raises(WireError):
            Topics("f").parse(f"fedge/v1/f/{tail}")


@pytest.mark.parametrize("number", [-1, 1_000_000_000])
def test_a_number_out_of_range_can_not_be_built(number: int) -> None:
    with pytest.raises(WireError):
        ReportTopic("a", number)
    with pytest.raises(WireError):
        UpdateTopic("a", 1, number)


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"])
def test_an_odd_digest_is_refused(sha256: str) -> None:
    with pytest.raises(WireError):
        ChunkTopic(sha256, 0)


@pytest.mark.parametrize(
    "name",
    [
        "fedge/v1/g/round",
        "fedge/v2/f/round",
        "fedge/v1/f",
        "fedge/v1/f/",
        "fedge/v1/f/round/",
        "fedge/v1/f/round/1",
        "fedge/v1/ff/round",
        "/fedge/v1/f/round",
        "FEDGE/v1/f/round",
        "fedge/v1/f/agents/a",
        "fedge/v1/f/agents/a/updates/1",
    ],
)
def test_names_of_others_are_refused(name: str) -> None:
    with pytest.raises(WireError):
        Topics("f").parse(name)


@pytest.mark.parametrize("value", ODD_IDS)
def test_an_odd_federation_is_a_mistake_in_the_configuration(value: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        Topics(value)
    with pytest.raises(ConfigError, match=r"agent_id .* is not allowed"):
        check_id(value, "agent_id")


def test_an_id_that_may_be_used_comes_back() -> None:
    assert check_id("A-z_09", "agent_id") == "A-z_09"


def test_filters_take_what_agents_write_and_the_chunks_of_one_blob() -> None:
    names = Topics("f")
    assert names.from_agents == (
        "fedge/v1/f/agents/+/status",
        "fedge/v1/f/agents/+/updates/+/+",
        "fedge/v1/f/agents/+/reports/+",
    )
    assert names.chunks_of(SHA256) == f"fedge/v1/f/blobs/{SHA256}/+"
