"""The buffer below paho: the same bytes as without it, in fewer system calls."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from broker.link.sockets import TcpSocket, has_more

Pair = tuple[TcpSocket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    ours.settimeout(2.0)
    own = TcpSocket.over(ours)
    assert own.gettimeout() == 2.0
    with own, theirs:
        yield own, theirs


def test_small_reads_come_from_one_large_one(pair: Pair) -> None:
    own, theirs = pair
    theirs.sendall(b"0123456789")
    assert own.recv(1) == b"0"
    theirs.close()  # what follows is here already
    assert has_more(own)
    assert [own.recv(1), own.recv(3), own.recv(100)] == [b"1", b"234", b"56789"]
    assert not has_more(own)
    assert own.recv(1) == b""


def test_a_large_read_is_not_buffered(pair: Pair) -> None:
    own, theirs = pair
    theirs.sendall(b"x" * 50_000)
    received = own.recv(1)
    while len(received) < 50_000:
        received += own.recv(50_000 - len(received))
    assert received == b"x" * 50_000
    assert not has_more(own)


def test_without_bytes_it_would_block_as_any_socket(pair: Pair) -> None:
    own, theirs = pair
    own.setblocking(False)
    with pytest.raises(BlockingIOError):
        own.recv(1)
    theirs.sendall(b"a")
    assert own.recv(1) == b"a"
    with pytest.raises(BlockingIOError):
        own.recv(1)
