"""What the coordinator's machine publishes, and how a round goes."""

from __future__ import annotations

import msgspec
import pytest

from broker.protocol import blobs, messages
from broker.protocol.messages import CoordinatorStatus, ProgramManifest, Receipt
from broker.protocol.topics import (
    AgentStatusTopic,
    ChunkTopic,
    CoordinatorStatusTopic,
    ProgramTopic,
    RoundTopic,
    UpdateTopic,
)
from broker.service.events import Connected, Publish, Started, Stopping, Subscribe
from coordinator.config import CohortConfig, EvaluationConfig, RoundConfig, StartConfig
from coordinator.machine.coordinator import Coordinator
from coordinator.machine.events import (
    Action,
    Commit,
    ForgetAgent,
    RoundEnded,
    SaveAgent,
    SaveRound,
    Waiting,
)
from tests.unit.coordinator.machine.coordinator_stage import (
    MAX_PAYLOAD,
    PACKAGE,
    SESSION,
    FakeAgent,
    Stage,
    config,
    only,
    three,
)

# -- what is published --------------------------------------------------------------------------


def test_it_subscribes_to_what_agents_write_and_to_nothing_else() -> None:
    actions = Coordinator(config(), PACKAGE, SESSION, "c1").handle(Started(), 0.0)
    assert actions == [
        Subscribe("fedge/v1/f/agents/+/status"),
        Subscribe("fedge/v1/f/agents/+/updates/+/+"),
        Subscribe("fedge/v1/f/agents/+/reports/+"),
    ]


def test_birth_and_package_are_retained_and_the_package_is_whole() -> None:
    stage = Stage(config())
    birth = stage.retained["fedge/v1/f/coordinator/status"]
    assert messages.decode(birth, CoordinatorStatus) == CoordinatorStatus(
        state="online", session=SESSION, coordinator_instance="c1", version=0
    )
    manifest = messages.decode(stage.retained["fedge/v1/f/program"], ProgramManifest)
    assert manifest.package.sha256 == PACKAGE.digest
    receiver = blobs.BlobReceiver(manifest.package, 1 << 20)
    (payload,) = [p for topic, p in stage.retained.items() if PACKAGE.digest in topic]
    assert receiver.add(blobs.parse_chunk(payload)) == PACKAGE.wire


def test_stopping_and_the_will_say_offline() -> None:
    stage = Stage(config())
    offline = CoordinatorStatus(
        state="offline", session=SESSION, coordinator_instance="c1", version=0
    )
    (goodbye,) = stage.feed(Stopping())
    will = stage.coordinator.will
    assert goodbye == will == Publish(will.topic, messages.encode(offline), retain=True)
    assert stage.topics.parse(will.topic) == CoordinatorStatusTopic()


def test_a_plan_names_weights_that_are_out_before_it() -> None:
    stage, *_ = three()
    published = [a.topic for a in only(stage.actions, Publish)]
    chunk = stage.topics.name(ChunkTopic(stage.plan.weights.sha256, 0))
    assert published.index(chunk) < published.index(stage.topics.name(RoundTopic()))
    assert stage.weights().tolist() == PACKAGE.initial.tolist()


def test_after_a_lost_broker_everything_retained_is_published_again() -> None:
    stage, a, *_ = three()
    before = dict(stage.retained)
    a.update([1, 0, 0])
    stage.retained.clear()
    stage.feed(Connected(MAX_PAYLOAD, session_present=False))
    assert stage.retained == before


def test_a_broker_with_smaller_messages_gets_weights_and_a_plan_that_fit_each_other() -> None:
    stage, *_ = three()
    actions = stage.feed(Connected(2048))
    package = messages.decode(stage.retained[stage.topics.name(ProgramTopic())], ProgramManifest)
    assert package.package.chunks > 1
    assert all(len(a.payload) <= 2048 for a in only(actions, Publish))
    assert stage.weights().tolist() == [0.0, 0.0, 0.0]


def test_weights_that_were_replaced_are_cleared_after_the_plan_that_replaced_them() -> None:
    stage, a, b, c = three()
    old = stage.topics.name(ChunkTopic(stage.plan.weights.sha256, 0))
    a.update([3, 0, 0])
    b.update([3, 0, 0])
    actions = c.update([3, 0, 0])
    removal = Publish(old, b"", retain=True)
    (plan,) = [x for x in only(actions, Publish) if x.topic == stage.topics.name(RoundTopic())]
    assert actions.index(removal) > actions.index(plan)
    assert old not in stage.retained
    assert stage.weights().tolist() == [3.0, 0.0, 0.0]
    kept = [topic for topic in stage.retained if "/blobs/" in topic]
    assert len(kept) == 2  # the package and the new weights


# -- a round ------------------------------------------------------------------------------------


def test_a_full_round_commits_the_mean_weighted_by_examples() -> None:
    stage = Stage(config(start=StartConfig(agents=3)))
    a, b, c = (FakeAgent(stage, n, rows=r) for n, r in (("a", 3), ("b", 3), ("c", 4)))
    a.update([10, 0, 0], loss=4.0, metrics={"mae": 2.0})
    b.update([0, 10, 0], loss=2.0, metrics={"mae": 1.0})
    actions = c.update([0, 0, 10], loss=1.0, metrics={"mae": 0.4})
    (commit,) = only(actions, Commit)
    assert commit.version == 1
    assert commit.theta.tolist() == [3.0, 3.0, 4.0]  # 10 x 3/10, 10 x 3/10, 10 x 4/10
    record = stage.record
    assert (record.status, record.round_id, record.version) == ("committed", 1, 1)
    assert (record.asked, record.reported, record.refused) == (3, 3, 0)
    assert record.closed == "goal"
    assert record.train_loss == pytest.approx((4 * 3 + 2 * 3 + 1 * 4) / 10)
    assert record.train_metrics == {"mae": pytest.approx((2 * 3 + 1 * 3 + 0.4 * 4) / 10)}
    assert {n: r.num_examples for n, r in record.agents.items()} == {"a": 3, "b": 3, "c": 4}
    assert stage.plan.round_id == 2
    assert stage.plan.version == 1


def test_weighting_by_agents_counts_all_alike() -> None:
    stage = Stage(config(start=StartConfig(agents=2), weighting="agents"))
    a, b = FakeAgent(stage, "a", rows=1), FakeAgent(stage, "b", rows=99)
    a.update([2, 0, 0])
    (commit,) = only(b.update([0, 4, 0]), Commit)
    assert commit.theta.tolist() == [1.0, 2.0, 0.0]


def test_the_commit_comes_before_anything_that_depends_on_it() -> None:
    stage, a, b, c = three()
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    actions = c.update([1, 0, 0])
    kinds = [type(action) for action in actions]
    plans = [
        index
        for index, action in enumerate(actions)
        if isinstance(action, Publish) and action.topic == stage.topics.name(RoundTopic())
    ]
    assert kinds.index(Commit) < kinds.index(SaveRound) < plans[0]


def test_an_accepted_update_gets_a_receipt_that_names_it() -> None:
    stage, a, *_ = three()
    receipt = a.receipt(a.update([1, 0, 0], attempt=7))
    assert receipt == Receipt(
        session=SESSION, round_id=1, agent_instance="b1", attempt=7, accepted=True
    )
    assert only(stage.actions, Commit) == []


def test_an_update_in_many_chunks_in_any_order_counts_once() -> None:
    stage, a, b, c = three()
    _, body = messages.decode_update(a.frame([3, 0, 0]))
    header = messages.decode_update(a.frame([3, 0, 0]))[0]
    newer = msgspec.to_builtins(header) | {"field_of_a_newer_agent": "x" * 4000}
    text = msgspec.json.encode(newer)
    frame = b"FDG1" + len(text).to_bytes(4, "big") + text + bytes(body)
    payloads = blobs.split(frame, 1024)[1]
    assert len(payloads) == 5
    for n in (4, 2, 2, 3, 0):
        assert a.say(UpdateTopic("a", 1, n), payloads[n]) == []
    assert a.receipt(a.say(UpdateTopic("a", 1, 1), payloads[1])).accepted
    b.update([0, 0, 0])
    c.update([0, 0, 0])
    assert stage.coordinator.progress.theta.tolist() == [1.0, 0.0, 0.0]


def test_over_selection_closes_at_the_goal_and_the_slow_one_is_late() -> None:
    stage = Stage(
        config(
            start=StartConfig(agents=3),
            cohort=CohortConfig(fraction=0.6, over_select=1.5),
            evaluation=EvaluationConfig(every=1),
        )
    )
    agents = {n: FakeAgent(stage, n, test_rows=1) for n in "abc"}
    asked = stage.plan.cohort.ids
    assert asked == ("a", "b", "c")  # goal ceil(0.6 x 3) = 2, asked ceil(2 x 1.5) = 3
    plan = stage.plan
    agents["a"].update([2, 0, 0])
    agents["b"].update([4, 0, 0])
    assert stage.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]
    late = agents["c"].receipt(agents["c"].update([90, 0, 0], plan=plan))
    assert (late.accepted, late.reason) == (False, "late")
    for agent in agents.values():
        agent.evaluation(1.0, 1.0)
    assert stage.record.refusals == {"late": 1}
    assert (stage.record.asked, stage.record.reported, stage.record.refused) == (3, 2, 1)
    assert stage.coordinator.progress.theta.tolist() == [3.0, 0.0, 0.0]


def test_an_update_that_was_not_asked_for_is_refused_by_name() -> None:
    stage, *_ = three()
    stranger = FakeAgent(stage, "d")
    receipt = stranger.receipt(stranger.update([1, 1, 1]))
    assert (receipt.accepted, receipt.reason) == (False, "not_asked")


def test_at_the_deadline_the_updates_at_hand_are_enough() -> None:
    stage, a, b, _ = three()
    a.update([2, 0, 0])
    b.update([4, 0, 0])
    assert only(stage.later(59.9), Commit) == []
    assert stage.coordinator.wait_s(stage.now_s) == pytest.approx(0.1)
    (commit,) = only(stage.later(0.1), Commit)
    assert commit.theta.tolist() == [3.0, 0.0, 0.0]
    assert stage.record.closed == "deadline"
    assert stage.record.seconds == pytest.approx(60.0)


def test_below_the_minimum_a_round_is_abandoned_and_the_next_one_begins_after_a_pause() -> None:
    stage, a, b, c = three(round=RoundConfig(deadline_s=60.0, minimum=2))
    a.update([2, 0, 0])
    actions = stage.later(60.0)
    assert only(actions, Commit) == []
    abandoned = stage.record
    assert (abandoned.status, abandoned.reported, abandoned.version) == ("abandoned", 1, 0)
    assert stage.plan.round_id == 1
    assert stage.coordinator.wait_s(stage.now_s) == pytest.approx(1.0)
    stage.later(1.0)
    assert stage.plan.round_id == 2
    for agent in (a, b, c):
        agent.update([1, 0, 0])
    assert stage.record.status == "committed"
    # What was sent for the abandoned round does not count in the next.
    assert stage.coordinator.progress.theta.tolist() == [1.0, 0.0, 0.0]


def test_pauses_after_abandoned_rounds_grow_to_a_minute() -> None:
    stage = Stage(config(start=StartConfig(agents=1)))
    FakeAgent(stage, "a")
    pauses = []
    for _ in range(9):
        stage.later(60.0)
        ended_s, round_id = stage.now_s, stage.plan.round_id
        while stage.plan.round_id == round_id:
            stage.later(stage.coordinator.wait_s(stage.now_s))
        pauses.append(stage.now_s - ended_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_an_agent_that_is_lost_is_not_waited_for() -> None:
    stage, a, b, c = three()
    a.update([2, 0, 0])
    c.status("offline")
    (commit,) = only(b.update([4, 0, 0]), Commit)
    assert commit.theta.tolist() == [3.0, 0.0, 0.0]
    assert stage.record.closed == "everyone"
    assert stage.plan.cohort.ids == ("a", "b")


def test_when_everyone_is_lost_a_short_outage_does_not_end_the_round() -> None:
    stage, a, b, c = three()
    for agent in (a, b, c):
        agent.status("offline")
    assert only(stage.actions, RoundEnded) == []
    for agent in (a, b):
        agent.status("online")
        agent.update([1, 0, 0])
    assert (stage.record.status, stage.record.closed) == ("committed", "everyone")


def test_when_everyone_stays_lost_the_deadline_ends_the_round() -> None:
    stage, a, b, c = three()
    for agent in (a, b, c):
        agent.status("offline")
    stage.later(60.0)
    assert (stage.record.status, stage.record.closed) == ("abandoned", "deadline")
    stage.later(1.0)
    assert only(stage.actions, Waiting)[-1] == Waiting(able=0, wanted=1)
    a.agent_instance = "b2"
    a.status("online")
    assert (stage.plan.round_id, stage.plan.cohort.ids) == (2, ("a",))


def test_an_agent_that_comes_back_in_time_may_still_answer() -> None:
    stage, a, b, c = three()
    c.status("offline")
    c.status("online")
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    assert only(stage.actions, Commit) == []
    (commit,) = only(c.update([4, 0, 0]), Commit)
    assert commit.theta.tolist() == [2.0, 0.0, 0.0]


def test_a_will_of_an_earlier_instance_does_not_lose_the_new_one() -> None:
    stage, a, b, c = three()
    c.agent_instance = "b2"
    c.status("online")
    assert c.status("offline", agent_instance="b1") == []
    a.update([1, 0, 0])
    b.update([1, 0, 0])
    assert only(stage.actions, Commit) == []  # c is waited for
    assert len(only(c.update([1, 0, 0]), Commit)) == 1


def test_those_who_decline_are_not_waited_for_and_shown_with_the_reason() -> None:
    stage, a, b, c = three()
    a.update([2, 0, 0])
    b.report("declined", reason="training", detail="the loss is nan")
    c.report("declined", reason="no_data")
    assert stage.record.declined == {"b": "training", "c": "no_data"}
    assert stage.record.details == {"training": "b: the loss is nan", "no_data": "c: "}
    assert (stage.record.closed, stage.record.reported) == ("everyone", 1)


def test_everyone_declining_abandons_the_round() -> None:
    stage, *agents = three()
    for agent in agents:
        agent.report("declined", reason="training")
    assert stage.record.status == "abandoned"
    assert stage.coordinator.progress.version == 0


def test_a_rule_lets_agents_find_out_themselves() -> None:
    stage = Stage(
        config(start=StartConfig(agents=40), cohort=CohortConfig(fraction=0.5, announce="rule"))
    )
    agents = {f"pi-{n}": FakeAgent(stage, f"pi-{n}") for n in range(40)}
    cohort = stage.plan.cohort
    assert cohort.ids is None
    asked = [name for name in agents if cohort.includes(name)]
    assert 8 <= len(asked) <= 32  # 20 expected, standard deviation 3.2
    outsider = next(agents[name] for name in agents if name not in asked)
    assert outsider.receipt(outsider.update([9, 9, 9])).reason == "not_asked"
    for name in asked:
        assert only(stage.actions, Commit) == []
        agents[name].update([1, 0, 0])
    assert stage.record.asked == len(asked)
    assert stage.record.refusals == {"not_asked": 1}
    assert stage.record.closed == "goal"


# -- bytes --------------------------------------------------------------------------------------


def test_an_agent_that_reports_absurd_bytes_leaves_a_result_that_can_be_read() -> None:
    stage, a, b, *_ = three()
    for boot in ("b2", "b3", "b4"):
        a.agent_instance = boot
        a.status("online")
        a.report("x", received_bytes=1 << 53)
    for agent in (a, b):
        agent.update([1, 0, 0])
    stage.later(10_000)
    assert stage.record.bytes_down == 2**53 - 1
    result = messages.decode(stage.retained["fedge/v1/f/results"], messages.RoundResult)
    assert result.bytes_down == 2**53 - 1


def test_bytes_up_are_those_that_arrived_and_bytes_down_those_that_agents_report() -> None:
    stage = Stage(config(start=StartConfig(agents=2), evaluation=EvaluationConfig(every=1)))
    a, b = (FakeAgent(stage, n, test_rows=1) for n in "ab")
    a.update([1, 0, 0], received_bytes=700)
    b.update([1, 0, 0], received_bytes=900)
    a.evaluation(1.0, 1.0, received_bytes=750)
    b.evaluation(1.0, 1.0, received_bytes=900)
    assert (stage.record.bytes_up, stage.record.bytes_down) == (stage.fed_bytes, 750 + 900)
    before = stage.fed_bytes
    a.update([1, 0, 0], received_bytes=1000)
    b.agent_instance = "b2"  # rebooted: its link counts from 0
    b.status("online")
    b.update([1, 0, 0], received_bytes=40)
    a.evaluation(1.0, 1.0, received_bytes=1000)
    b.evaluation(1.0, 1.0, received_bytes=60)
    assert stage.record.bytes_up == stage.fed_bytes - before
    assert stage.record.bytes_down == 250 + 60


def test_what_agents_say_of_themselves_is_saved() -> None:
    stage = Stage(config(start=StartConfig(agents=2)))
    a = FakeAgent(stage, "a")
    assert [action.agent_id for action in only(stage.actions, SaveAgent)] == ["a"]
    (saved,) = only(a.status("offline"), SaveAgent)
    assert saved.status.state == "offline"
    assert a.say(AgentStatusTopic("a"), b"") == [ForgetAgent("a")]  # an operator cleared it
    assert a.say(AgentStatusTopic("a"), b"") == []
    assert stage.coordinator.roster.get("a") is None


def test_the_same_events_at_the_same_times_give_the_same_actions() -> None:
    def play() -> list[Action]:
        stage, a, b, c = three(cohort=CohortConfig(fraction=0.7), codec="int8")
        for agent in (a, b, c):
            agent.update([1, 2, 3])
        stage.later(60.0)
        return [x for x in stage.actions if not isinstance(x, Commit)]

    assert play() == play()
