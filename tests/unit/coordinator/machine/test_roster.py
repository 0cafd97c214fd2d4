"""The roster: births, wills, and what each link took in."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol import messages
from broker.protocol.messages import AgentStatus
from coordinator.config import QuarantineConfig
from coordinator.machine import roster
from coordinator.machine.roster import Roster, lacking_text
from coordinator.machine.standing import Standing, Standings


def status(state: Any = "online", agent_instance: str = "b1", **changes: Any) -> AgentStatus:
    facts: dict[str, Any] = {
        "phases": ("train", "evaluate"),
        "train_examples": 10,
        "test_examples": 5,
        "codecs": ("int8",),
    }
    return AgentStatus(state=state, agent_instance=agent_instance, **(facts | changes))


def changes_something(found: Roster, name: str, described: AgentStatus) -> bool:
    return found.update(name, described, 0.0) != "none"


def roster_of(**agents: AgentStatus) -> Roster:
    found = Roster()
    for name, described in agents.items():
        assert changes_something(found, name, described)
    return found


def test_a_birth_puts_an_agent_on_the_list_and_its_will_takes_it_off() -> None:
    found = roster_of(b=status(), a=status())
    assert found.eligible_agents("train") == ["a", "b"]
    assert changes_something(found, "a", status("offline"))
    assert found.eligible_agents("train") == ["b"]
    entry = found.get("a")
    assert entry is not None
    assert not entry.online
    assert len(found) == 2
    assert [name for name, _ in found] == ["b", "a"]


def test_a_will_published_after_the_next_birth_is_ignored() -> None:
    found = roster_of(a=status(agent_instance="b1"))
    assert changes_something(found, "a", status(agent_instance="b2"))
    assert not changes_something(found, "a", status("offline", agent_instance="b1"))
    assert found.eligible_agents("train") == ["a"]
    assert changes_something(found, "a", status("offline", agent_instance="b2"))
    assert found.eligible_agents("train") == []


def test_a_will_of_somebody_never_heard_of_says_nothing() -> None:
    found = Roster()
    assert not changes_something(found, "a", status("offline"))
    assert found.get("a") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "offline"},
        {"unavailable_reason": "no interpreter"},
        {"phases": ("evaluate",)},
        {"train_examples": 0},
        {"codecs": ("float32",)},
    ],
)
def test_only_those_who_can_are_asked_to_learn(changes: Any) -> None:
    found = roster_of(a=status())
    assert found.eligible_agents("train", "int8") == ["a"]
    changes_something(found, "a", status(**changes))
    assert found.eligible_agents("train", "int8") == []


def test_measuring_needs_held_out_rows_and_no_codec() -> None:
    found = roster_of(
        a=status(train_examples=0, codecs=()),
        b=status(test_examples=0),
        c=status(phases=("train",)),
    )
    assert found.eligible_agents("evaluate") == ["a"]


def test_bytes_are_credited_once_and_from_zero_after_a_restart() -> None:
    found = roster_of(a=status())
    assert found.credit("a", "b1", 100) == 100
    assert found.credit("a", "b1", 100) == 0
    assert found.credit("a", "b1", 90) == 0  # said before, arrived after
    assert found.credit("a", "b1", 130) == 30
    changes_something(found, "a", status())  # connected again, same instance
    assert found.credit("a", "b1", 130) == 0
    changes_something(found, "a", status(agent_instance="b2"))
    assert found.credit("a", "b1", 500) == 0
    assert found.credit("a", "b2", 7) == 7


def test_bytes_of_strangers_are_not_credited() -> None:
    assert Roster().credit("a", "b1", 100) == 0


def test_invented_ids_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "MAX_AGENTS", 2)
    found = roster_of(a=status(), b=status())
    assert not changes_something(found, "c", status())
    assert changes_something(found, "a", status(agent_instance="b2"))  # those known may come back
    assert len(found) == 2


def test_what_agents_say_alike_is_in_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def birth(name: str) -> AgentStatus:
        text = f'{{"state":"online","agent_instance":"{name}","codecs":["int8","float32"]}}'
        return messages.decode(text.encode(), AgentStatus)

    one, other = (found.status for _, found in roster_of(a=birth("a1"), b=birth("b1")))
    assert one.codecs is other.codecs
    assert (one.agent_instance, other.agent_instance) == ("a1", "b1")
    monkeypatch.setattr(roster, "_MOST_SHARED", 2)
    many = roster_of(**{f"a{n}": status(tags=(f"t{n}",)) for n in range(9)})
    assert [found.status.tags for _, found in many] == [(f"t{n}",) for n in range(9)]


def test_agents_that_are_online_and_answered_this_start_are_counted_as_they_come_and_go() -> None:
    found = Roster("c2")
    there = status(coordinator_instance="c2", heartbeat_s=60.0)
    for name, described in (("a", there), ("b", there), ("c", status())):
        found.update(name, described, 0.0)
    assert found.present("train") == 2
    found.update("c", status(coordinator_instance="c2"), 1.0)
    found.update("c", status(agent_instance="b2", coordinator_instance="c1"), 2.0)
    found.update("b", status("offline"), 3.0)
    assert found.present("train") == 1
    assert found.expire(200.0) == ["a"]
    assert found.present("train") == 0
    assert found.heard("a", 201.0)
    found.update("b", there, 202.0)
    assert found.present("train") == 2
    found.update("a", status(coordinator_instance="c2", train_examples=0), 203.0)
    assert (found.present("train"), found.present("evaluate")) == (1, 2)
    found.set_offline("b")
    found.forget("b")
    found.forget("a")
    assert found.present("train") == 0


def test_a_heartbeat_is_heard_and_changes_nothing() -> None:
    found = Roster()
    beat = status(heartbeat_s=60.0)
    assert found.update("a", beat, 0.0) == "changed"
    assert found.update("a", beat, 60.0) == "heartbeat"
    entry = found.get("a")
    assert entry is not None
    assert entry.heard_s == 60.0


def test_an_agent_whose_heartbeats_stop_is_lost_once_and_comes_back_with_the_next() -> None:
    found = Roster()
    found.update("a", status(heartbeat_s=60.0), 0.0)
    found.update("b", status(heartbeat_s=60.0), 0.0)
    assert found.expire(180.0) == []
    found.heard("b", 100.0)  # any message is a sign of life
    assert found.expire(180.1) == ["a"]
    assert found.expire(200.0) == []
    assert found.eligible_agents("train") == ["b"]
    assert found.update("a", status(heartbeat_s=60.0), 201.0) == "changed"
    assert found.eligible_agents("train") == ["a", "b"]


def test_silence_while_nobody_could_be_heard_is_excused_and_not_called_a_word() -> None:
    found = Roster()
    found.update("a", status(heartbeat_s=60.0), 0.0)
    found.restart_heartbeat_timers(170.0)
    assert found.expire(350.0) == []
    entry = found.get("a")
    assert entry is not None
    assert entry.heard_s == 0.0
    assert found.expire(350.1) == ["a"]


def test_an_agent_that_promises_no_heartbeat_never_expires() -> None:
    found = Roster()
    found.update("a", status(heartbeat_s=0.0), 0.0)
    assert found.expire(1e9) == []


def test_two_processes_with_one_id_are_told_from_one_that_starts_anew() -> None:
    found = Roster()
    assert found.update("a", status(agent_instance="b1"), 0.0) == "changed"
    assert found.update("a", status(agent_instance="b2"), 1.0) == "changed"
    assert found.update("a", status(agent_instance="b1"), 2.0) == "duplicate"
    assert found.update("a", status(agent_instance="b2"), 3.0) == "duplicate"


def test_what_agents_lack_is_counted_among_those_that_are_here() -> None:
    knows: dict[str, Any] = {"algorithms": ("fedavg",), "runtime": "litert"}
    found = roster_of(
        able=status(**knows),
        old=status(runtime="litert"),
        older=status(runtime="litert"),
        coder=status(**knows | {"codecs": ("float32",)}),
        watcher=status(**knows | {"phases": ("evaluate",)}),
        empty=status(**knows | {"train_examples": 0}),
        loading=status(algorithms=("fedavg",), train_examples=0),
        broken=status(unavailable_reason="no interpreter"),
        warm=status(pause_reason="too_hot"),
    )
    found.update("gone", status(), 0.0)
    found.update("gone", status("offline"), 0.0)
    assert found.eligible_agents("train", "int8", "fedavg") == ["able"]
    lacking = found.lacking("train", "int8", "fedavg")
    assert lacking_text(lacking) == (
        "2 do not know algorithm 'fedavg', 1 does not know codec 'int8', "
        "1 does not take part in phase 'train', 1 does not have rows for phase 'train', "
        "1 unavailable"
    )
    assert lacking_text(found.lacking("evaluate")) == "1 unavailable"


def test_who_is_in_quarantine_until_released_is_not_asked() -> None:
    standings = {"a": Standing().quarantined("hostile", by_operator=True), "b": Standing()}
    found = Roster(standings=Standings(QuarantineConfig(), standings))
    for name in "abc":
        assert changes_something(found, name, status())
    assert found.eligible_agents("train") == ["b", "c"]
    standings["a"] = standings["a"].released()
    assert found.eligible_agents("train") == ["a", "b", "c"]


def test_an_agent_that_starts_again_stays_one_of_the_population() -> None:
    found = roster_of(a=status(), b=status())
    loading = status(agent_instance="b2", train_examples=0, test_examples=0)
    assert changes_something(found, "a", loading)
    assert found.eligible_agents("train") == ["b"]
    assert (found.population("train"), found.population("evaluate")) == (2, 2)
    assert changes_something(found, "c", status(phases=("evaluate",), train_examples=0))
    assert (found.population("train"), found.population("evaluate")) == (2, 3)
