"""Network loop: calls, timers and sockets on its thread, and what an error does to them."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Iterator

import pytest

from broker.link.network_loop import NetworkLoop

WAIT_S = 5.0


@pytest.fixture
def network() -> Iterator[NetworkLoop]:
    with NetworkLoop("test") as loop:
        yield loop


@pytest.fixture
def done() -> queue.SimpleQueue[object]:
    return queue.SimpleQueue()


def test_a_call_runs_on_the_network_thread(
    network: NetworkLoop, done: queue.SimpleQueue[object]
) -> None:
    assert network.call(lambda: done.put(threading.current_thread().name))
    assert done.get(timeout=WAIT_S) == "test"


def test_calls_run_in_order_and_soon_after_those_that_wait(
    network: NetworkLoop, done: queue.SimpleQueue[object]
) -> None:
    def first() -> None:
        network.soon(done.put, 3)
        done.put(1)

    gate = threading.Event()
    network.call(gate.wait, WAIT_S)
    network.call(first)
    network.call(done.put, 2)
    gate.set()
    assert [done.get(timeout=WAIT_S) for _ in range(3)] == [1, 2, 3]


def test_timers_run_by_time_and_not_when_cancelled(
    network: NetworkLoop, done: queue.SimpleQueue[object]
) -> None:
    def begin() -> None:
        network.later(0.04, done.put, "late")
        network.later(0.0, done.put, "early")
        network.later(0.02, done.put, "cancelled").cancel()

    network.call(begin)
    assert [done.get(timeout=WAIT_S) for _ in range(2)] == ["early", "late"]
    assert done.empty()


def test_a_socket_is_watched_until_its_reader_is_removed(
    network: NetworkLoop, done: queue.SimpleQueue[object]
) -> None:
    near, far = socket.socketpair()
    with near, far:

        def read() -> None:
            data = near.recv(100)
            done.put(data)
            if data == b"last":
                network.remove_reader(near)
                network.remove_reader(near)  # once too often does no harm

        network.call(network.add_reader, near, read)
        far.send(b"one")
        assert done.get(timeout=WAIT_S) == b"one"
        far.send(b"last")
        assert done.get(timeout=WAIT_S) == b"last"
        far.send(b"unheard")
        network.call(done.put, "end")
        assert done.get(timeout=WAIT_S) == "end"


def test_reading_and_writing_are_watched_apart(
    network: NetworkLoop, done: queue.SimpleQueue[object]
) -> None:
    near, far = socket.socketpair()
    with near, far:

        def write() -> None:
            network.remove_writer(near)
            done.put("writable")

        def begin() -> None:
            network.add_reader(near, lambda: done.put(near.recv(100)))
            network.add_writer(near, write)

        network.call(begin)
        assert done.get(timeout=WAIT_S) == "writable"
        far.send(b"x")
        assert done.get(timeout=WAIT_S) == b"x"
        network.call(network.remove_reader, near)
        network.call(done.put, "end")
        assert done.get(timeout=WAIT_S) == "end"


def test_a_reader_that_another_callback_of_the_same_turn_removed_is_not_called(
    network: NetworkLoop, done: queue.SimpleQueue[object]
) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    near = [pair[0] for pair in pairs]
    gate = threading.Event()

    def whoever_is_first() -> None:
        done.put("called")
        for sock in near:
            network.remove_reader(sock)

    def begin() -> None:
        gate.wait(WAIT_S)  # both are readable when the loop looks next
        for sock in near:
            network.add_reader(sock, whoever_is_first)

    network.call(begin)
    for _, far in pairs:
        far.send(b"x")
    gate.set()
    assert done.get(timeout=WAIT_S) == "called"
    network.call(done.put, "end")
    assert done.get(timeout=WAIT_S) == "end"
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_an_error_in_a_callback_is_counted_and_the_loop_goes_on(
    network: NetworkLoop, done: queue.SimpleQueue[object], caplog: pytest.LogCaptureFixture
) -> None:
    def explode() -> None:
        raise RuntimeError("boom")

    with caplog.at_level(logging.ERROR):
        network.call(explode)
        network.call(network.later, 0.0, explode)
        network.call(network.later, 0.01, done.put, "alive")
        assert done.get(timeout=WAIT_S) == "alive"
    assert network.errors == 2
    assert "the network thread continues" in caplog.text


def test_a_job_in_the_background_reports_its_error_on_the_network_thread(
    network: NetworkLoop, done: queue.SimpleQueue[object]
) -> None:
    def fail() -> None:
        raise OSError("unreachable")

    def finished(error: BaseException | None) -> None:
        done.put((threading.current_thread().name, str(error)))

    network.in_background(fail, finished)
    assert done.get(timeout=WAIT_S) == ("test", "unreachable")


def test_a_closed_loop_takes_no_calls_and_closes_its_sockets() -> None:
    network = NetworkLoop("closing")
    network.close()
    assert not network.call(print)
    network.close()  # again does no harm


def test_many_threads_may_call_at_once(
    network: NetworkLoop, done: queue.SimpleQueue[object]
) -> None:
    def call_often(first: int) -> None:
        for number in range(first, first + 500):
            network.call(done.put, number)

    threads = [threading.Thread(target=call_often, args=(n * 500,)) for n in range(4)]
    for thread in threads:
        thread.start()
    assert sorted(done.get(timeout=WAIT_S) for _ in range(2000)) == list(range(2000))  # type: ignore[type-var]
    for thread in threads:
        thread.join()
