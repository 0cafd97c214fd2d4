"""One suite over every registered algorithm: what the device half and the server half must do.

A cohort is an array of shape [n, P] in the place of [P]; the simulator trains it with the same
lines that one device runs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError, TrainingError
from learning.algorithms.algorithm import Aggregate, ServerState, Summary
from learning.algorithms.server_step import (
    check_state,
    server_step,
    state_from_bytes,
    state_to_bytes,
)
from learning.registry import Choice
from learning.vector.parameters import Layout, ParameterSpec
from learning.vector.vectors import pack_vectors, read_only, unpack_vectors
from tests.conformance.algorithm_cases import (
    PLAN,
    N,
    P,
    aggregate,
    assert_plain,
    assert_same,
    broadcast,
    cohort_loss,
    cohort_of,
    context_of,
    copies,
    device_loss,
    device_state,
    every_algorithm,
    make,
    normal,
    stepped,
    trained_once,
)
from tests.unit.learning.rounds import local_context, one_tensor, summary_of, trained, vector

# --- the device's half ----------------------------------------------------------------------------


@every_algorithm
def test_local_training_follows_the_gradient(choice: Choice) -> None:
    algorithm = make(choice)
    theta, loss = normal(P), device_loss(0)
    shared = algorithm.shared(algorithm.init(theta))
    run = algorithm.local(local_context(PLAN, theta, shared, {}, loss.loss))
    assert loss.loss(trained(run, loss.gradient, PLAN)) < 0.8 * loss.loss(run.start)


@every_algorithm
def test_the_uploads_have_the_announced_names_and_lengths(choice: Choice) -> None:
    algorithm = make(choice)
    assert algorithm.uploads["delta"].length is None
    for state in ({}, device_state(algorithm, 0)):
        _, uploads = trained_once(algorithm, 0, state)
        assert list(uploads) == list(algorithm.uploads)
        for name, upload in algorithm.uploads.items():
            assert uploads[name].shape == (upload.size(P),)
        assert_plain(uploads)


@every_algorithm
def test_the_device_half_leaves_its_inputs_alone(choice: Choice) -> None:
    algorithm = make(choice)
    context = context_of(algorithm, 1, device_state(algorithm, 1))  # all of it read-only
    theta_before = context.theta.copy()
    shared_before, state_before = copies(context.shared), copies(context.state)
    run = algorithm.local(context)
    theta = trained(run, device_loss(1).gradient, PLAN)
    theta.setflags(write=False)
    gradient = device_loss(1).gradient(theta)
    gradient.setflags(write=False)
    run.direction(lambda theta, rows=None: gradient, theta)
    uploads = run.finish(theta, summary_of(PLAN))
    run.commit(read_only(uploads))
    assert np.array_equal(context.theta, theta_before)
    assert_same(context.shared, shared_before)
    assert_same(context.state, state_before)


@every_algorithm
def test_a_training_that_is_repeated_gives_the_same(choice: Choice) -> None:
    algorithm = make(choice)
    state = device_state(algorithm, 2)
    (first, uploads), (second, again) = (trained_once(algorithm, 2, state) for _ in range(2))
    assert_same(again, uploads)
    assert_same(second.commit(again), first.commit(uploads))
    assert_same(first.commit(uploads), first.commit(uploads))


@every_algorithm
def test_what_a_device_remembers_is_finite_and_survives_on_disk(choice: Choice) -> None:
    algorithm, state = make(choice), device_state(make(choice), 0)
    for _ in range(3):
        assert_plain(state)
        stored, _ = unpack_vectors(pack_vectors(state), "device state")
        assert_same(stored, state)
        (run, uploads), (other, same) = (
            trained_once(algorithm, 0, remembered) for remembered in (state, stored)
        )
        assert_same(same, uploads)
        state = run.commit(uploads)
        assert_same(other.commit(same), state)


@every_algorithm
def test_a_devices_state_follows_what_arrived(choice: Choice) -> None:
    run, uploads = trained_once(make(choice), 0, {})
    coarse = {name: np.round(values, 1) for name, values in uploads.items()}
    before = copies(uploads)
    assert_plain(run.commit(coarse))
    assert list(run.commit(coarse)) == list(run.commit(uploads))
    assert_same(uploads, before)


@every_algorithm
def test_a_device_evaluates_with_parameters_of_the_model(choice: Choice) -> None:
    algorithm, theta = make(choice), normal(P)
    for state in ({}, device_state(algorithm, 0)):
        personal = algorithm.personal(theta, state)
        assert personal.shape == (P,)
        assert_plain({"personal": personal})


# --- a cohort as one array ------------------------------------------------------------------------


@every_algorithm
def test_a_cohort_starts_and_steps_as_its_devices_do_alone(choice: Choice) -> None:
    algorithm = make(choice)
    context, states = cohort_of(algorithm)
    run, thetas = algorithm.local(context), normal(N, P)
    together = run.direction(cohort_loss().gradient, thetas)
    assert together.dtype == np.float32
    assert together.shape == (N, P)
    for index, state in enumerate(states):
        alone = algorithm.local(context_of(algorithm, index, state))
        assert np.array_equal(broadcast(run.start)[index], alone.start)
        direction = alone.direction(device_loss(index).gradient, thetas[index])
        assert np.array_equal(together[index], direction)


@every_algorithm
def test_a_cohort_uploads_and_remembers_as_its_devices_do_alone(choice: Choice) -> None:
    algorithm = make(choice)
    context, states = cohort_of(algorithm)
    run, thetas = algorithm.local(context), normal(N, P)
    steps = np.array([1, 2, 4])  # devices with unlike numbers of rows
    uploads = run.finish(thetas, Summary(steps, 0.05 * steps))
    after = run.commit(uploads)
    for index, state in enumerate(states):
        alone = algorithm.local(context_of(algorithm, index, state))
        count = int(steps[index])
        expected = alone.finish(thetas[index], Summary(count, 0.05 * count))
        assert_same({name: values[index] for name, values in uploads.items()}, expected)
        remembered = alone.commit(expected)
        assert_same({name: values[index] for name, values in after.items()}, remembered)
    assert_plain(uploads)
    assert_plain(after)


@every_algorithm
def test_a_cohort_evaluates_as_its_devices_do_alone(choice: Choice) -> None:
    algorithm = make(choice)
    context, states = cohort_of(algorithm)
    together = broadcast(algorithm.personal(context.theta, context.state))
    for index, state in enumerate(states):
        assert np.array_equal(together[index], algorithm.personal(context.theta[index], state))


@every_algorithm
def test_a_cohort_in_its_first_round_trains_as_one_device_does(choice: Choice) -> None:
    algorithm, one = make(choice), context_of(make(choice), 0, {})
    theta = np.broadcast_to(one.theta, (N, P))
    run = algorithm.local(local_context(PLAN, theta, one.shared, {}, cohort_loss().loss))
    steps, rates = np.full(N, PLAN.max_steps), np.full(N, summary_of(PLAN).rate_sum)
    uploads = run.finish(trained(run, cohort_loss().gradient, PLAN), Summary(steps, rates))
    for index in range(N):
        _, expected = trained_once(algorithm, index, {})
        for name, values in expected.items():
            np.testing.assert_allclose(uploads[name][index], values, rtol=1e-6)


# --- the coordinator's half -----------------------------------------------------------------------


@every_algorithm
def test_the_states_vectors_fit_the_model_and_the_store(choice: Choice) -> None:
    algorithm = make(choice)
    state = algorithm.init(normal(P))
    assert_plain(state.vectors)
    shared = algorithm.shared(state)
    assert_plain(shared)
    _, after = stepped(algorithm, normal(P), rounds=2)
    check_state(after, state)  # the same names and lengths in every round
    assert_plain(after.vectors)
    lengths = {name: values.shape for name, values in algorithm.shared(after).items()}
    assert lengths == {name: values.shape for name, values in shared.items()}
    # A vector of the model's length grows with the model, others do not.
    for name, values in algorithm.init(normal(2 * P)).vectors.items():
        assert values.size in (2 * state.vectors[name].size, state.vectors[name].size)


@every_algorithm
def test_a_zero_aggregate_at_the_start_moves_nothing(choice: Choice) -> None:
    algorithm, theta = make(choice), normal(P)
    state = algorithm.init(theta)
    zero = aggregate(algorithm, P, factor=0)
    after, _ = server_step(algorithm, one_tensor(P), theta, state, zero)
    assert np.array_equal(after, theta)


@every_algorithm
def test_the_server_steps_along_the_mean_delta(choice: Choice) -> None:
    algorithm, theta = make(choice), normal(P)
    after, _ = stepped(algorithm, theta, rounds=1)
    delta = aggregate(algorithm, P, factor=1).vectors["delta"]
    assert np.array_equal(np.sign(after - theta), np.sign(delta))


@every_algorithm
def test_apply_leaves_its_arguments_alone(choice: Choice) -> None:
    algorithm = make(choice)
    theta, state = stepped(algorithm, normal(P), rounds=2)  # read-only
    found = aggregate(algorithm, P, factor=3)
    theta_before, scalars_before = theta.copy(), dict(state.scalars)
    state_before, found_before = copies(state.vectors), copies(found.vectors)
    step, after = algorithm.apply(theta, state, found)
    assert step.dtype == np.float32
    assert step.shape == (P,)
    assert np.array_equal(theta, theta_before)
    assert_same(state.vectors, state_before)
    assert_same(found.vectors, found_before)
    assert state.scalars == scalars_before
    again, same = algorithm.apply(theta, state, found)
    assert np.array_equal(again, step)
    assert_same(same.vectors, after.vectors)


@every_algorithm
def test_a_server_step_returns_read_only_float32(choice: Choice) -> None:
    theta, state = stepped(make(choice), normal(P), rounds=2)
    for result in (theta, *state.vectors.values()):
        assert result.dtype == np.float32
        assert not result.flags.writeable


@every_algorithm
def test_a_resumed_run_equals_one_that_never_stopped(choice: Choice) -> None:
    algorithm, theta = make(choice), normal(50)
    state, expected = algorithm.init(theta), stepped(algorithm, theta, rounds=6)
    for number in range(1, 7):
        stored = state_from_bytes(state_to_bytes(state))
        assert_same(stored.vectors, state.vectors)
        assert stored.scalars == state.scalars
        found = aggregate(algorithm, 50, factor=number)
        theta, state = server_step(algorithm, one_tensor(50), theta, stored, found)
    assert np.array_equal(theta, expected[0])
    assert_same(state.vectors, expected[1].vectors)


@every_algorithm
def test_a_diverged_step_is_refused(choice: Choice) -> None:
    algorithm = make(choice)
    top = np.full(P, np.finfo(np.float32).max, np.float32)
    vectors = {name: np.full(upload.size(P), top[0]) for name, upload in algorithm.uploads.items()}
    diverged = Aggregate(vectors, weight=1, count=1, population=1)
    with pytest.raises(TrainingError, match="NaN or inf after the server's step"):
        server_step(algorithm, one_tensor(P), top, algorithm.init(top), diverged)


@every_algorithm
def test_a_tracked_part_is_the_mean_of_the_agents_whatever_the_algorithm(choice: Choice) -> None:
    layout = Layout((ParameterSpec("w", (2,)), ParameterSpec("moving_mean", (1,), True)))
    algorithm, theta = make(choice), vector(1, 2, 3)
    state = algorithm.init(theta)
    found = aggregate(algorithm, 3, factor=1)
    found = Aggregate({**found.vectors, "delta": vector(0.5, -0.5, 4)}, 1, 1, 1)
    plain, _ = server_step(algorithm, one_tensor(3), theta, state, found)
    after, _ = server_step(algorithm, layout, theta, state, found)
    assert after.tolist() == [*plain[:2].tolist(), 7.0]
    assert not after.flags.writeable


@every_algorithm
def test_a_state_of_another_model_or_algorithm_is_refused(choice: Choice) -> None:
    expected = make(choice).init(normal(P))
    others: list[Any] = [ServerState({"other": vector(1)}), ServerState(scalars={"other": 1.0})]
    if expected.vectors:
        others += [ServerState(), make(choice).init(normal(P + 1))]
    for other in others:
        with pytest.raises(ConfigError, match="the algorithm or the model was changed"):
            check_state(other, expected)


@every_algorithm
def test_the_discount_falls_from_1_with_staleness(choice: Choice) -> None:
    discounts = [make(choice).discount(staleness) for staleness in range(20)]
    assert discounts[0] == 1
    assert all(0 < later < earlier for earlier, later in pairwise(discounts))
