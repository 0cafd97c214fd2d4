"""WebSocket frames against a server of a few lines, and the choice of MQTT's version."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.link.connection_failures import VersionChoice
from broker.link.websocket import Opening, WebSocket, WebSocketRefused

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def upgrade(request: bytes) -> bytes:
    """The answer of RFC 6455 §4.2.2."""
    key = request.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-accept: " + accept + b"\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )


def shake(
    pair: tuple[WebSocket, socket.socket], answer: bytes = b"", more: bytes = b""
) -> tuple[bytes, BaseException | None]:
    """The handshake; returns what the server was asked, and what went wrong."""
    client, server = pair
    failure: list[BaseException] = []

    def run() -> None:
        try:
            client.do_handshake()
        except (WebSocketRefused, OSError) as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    request = server.recv(4096)
    server.sendall((answer or upgrade(request)) + more)
    if answer:
        server.shutdown(socket.SHUT_WR)
    thread.join(5)
    client.setblocking(False) if not failure else None
    return request, failure[0] if failure else None


@pytest.fixture
def pair() -> Iterator[tuple[WebSocket, socket.socket]]:
    left, right = socket.socketpair()
    left.settimeout(5)
    right.settimeout(5)
    opening = Opening("broker.example.org:8080", "/mqtt", {"X-Site": "north"})
    yield WebSocket(left, opening), right
    left.close()
    right.close()


def frame(opcode: int, payload: bytes, first: int = 0x80) -> bytes:
    size = len(payload)
    head = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)
    if size > 65_535:
        head = b"\x7f" + size.to_bytes(8)
    return bytes([first | opcode]) + head + payload


def unmask(data: bytes) -> tuple[int, bytes, bytes]:
    """Opcode and payload of a client's frame, and what follows it."""
    size, at = data[1] & 0x7F, 2
    assert data[1] & 0x80, "a client masks"
    if size > 125:
        width = {126: 2, 127: 8}[size]
        size, at = int.from_bytes(data[2 : 2 + width]), 2 + width
    mask, body = data[at : at + 4], data[at + 4 : at + 4 + size]
    plain = bytes(byte ^ mask[n % 4] for n, byte in enumerate(body))
    return data[0] & 0x0F, plain, data[at + 4 + size :]


def test_the_request_says_mqtt_and_the_further_headers(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    request, failure = shake(pair)
    assert failure is None
    lines = request.decode().split("\r\n")
    assert lines[0] == "GET /mqtt HTTP/1.1"
    for line in (
        "Host: broker.example.org:8080",
        "Sec-WebSocket-Protocol: mqtt",
        "X-Site: north",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", 404, "HTTP 404 Not Found"),
        (
            b"HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
            101,
            "wrong Sec-WebSocket",
        ),
        (b"\x20\x02\x00\x01", 0, "did not answer with HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", 0, "did not answer with HTTP"),
        (b"HTTP/1.1 200 " + b"x" * 40_000, 0, "did not answer with HTTP"),
    ],
)
def test_a_refused_upgrade_is_explained(
    pair: tuple[WebSocket, socket.socket], answer: bytes, status: int, words: str
) -> None:
    _, failure = shake(pair, answer)
    assert isinstance(failure, WebSocketRefused)
    assert failure.status == status
    assert words in str(failure)
    assert pair[0].fileno() == -1  # closed


@pytest.mark.parametrize("size", [1, 125, 126, 65_535, 65_536, 200_000])
def test_payloads_of_all_lengths_are_masked_and_come_back(
    pair: tuple[WebSocket, socket.socket], size: int
) -> None:
    client, server = pair
    shake(pair)
    payload = bytes(n % 251 for n in range(size))
    got = bytearray()

    def serve() -> None:
        while len(got) < size + 6:
            got.extend(server.recv(1 << 16))

    reader = threading.Thread(target=serve)
    reader.start()
    client.setblocking(True)
    assert client.send(payload) == size
    server.settimeout(0.2)
    reader.join(5)
    opcode, plain, rest = unmask(bytes(got))
    assert (opcode, plain, rest) == (0x2, payload, b"")


def test_bytes_a_full_socket_refused_are_sent_by_the_next_call(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    client, server = pair
    shake(pair)
    payload = bytes(range(256)) * 8000
    with pytest.raises(BlockingIOError):
        client.send(payload)
    data = bytearray()
    sent = 0
    while not sent:
        data += server.recv(1 << 20)
        try:
            sent = client.send(payload)  # the same data again, as for OpenSSL
        except BlockingIOError:
            continue
    server.setblocking(False)
    while True:
        try:
            data += server.recv(1 << 20)
        except BlockingIOError:
            break
    opcode, plain, rest = unmask(bytes(data))
    assert sent == len(payload)
    assert (opcode, plain, rest) == (0x2, payload, b"")


def test_packets_are_read_across_frames_and_many_from_one(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    client, _ = pair
    shake(pair, more=frame(0x2, b"abc", first=0) + frame(0x0, b"") + frame(0x0, b"defgh")[:4])
    assert client.recv(2) == b"ab"
    assert client.pending()
    assert client.recv(10) == b"c"
    assert client.recv(10) == b"de"
    with pytest.raises(BlockingIOError):
        client.recv(10)
    assert not client.pending()  # or the network thread would ask for ever


def test_an_incomplete_header_does_not_block(pair: tuple[WebSocket, socket.socket]) -> None:
    client, server = pair
    shake(pair)
    whole = frame(0x2, bytes(300))
    server.sendall(whole[:3])
    with pytest.raises(BlockingIOError):
        client.recv(1)
    assert not client.pending()
    server.sendall(whole[3:])
    assert client.recv(1000) == bytes(300)


def test_a_ping_is_answered_masked_and_not_inside_a_frame(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    client, server = pair
    shake(pair)
    server.sendall(frame(0x9, b"are you there") + frame(0x2, b"x"))
    assert client.recv(5) == b"x"
    assert unmask(server.recv(100)) == (0xA, b"are you there", b"")


def test_pings_do_not_fill_memory(pair: tuple[WebSocket, socket.socket]) -> None:
    client, server = pair
    shake(pair)
    for number in range(8000):  # more than the socket takes of the answers
        server.sendall(frame(0x9, number.to_bytes(125)))
        with pytest.raises(BlockingIOError):
            client.recv(1)
    with pytest.raises(BlockingIOError):
        client.send(b"packet")
    assert len(client._out) < 1000
    data, sent = bytearray(), 0
    while not sent:
        data += server.recv(1 << 20)
        with contextlib.suppress(BlockingIOError):
            sent = client.send(b"packet")
    server.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while more := server.recv(1 << 20):
            data += more
    frames, rest = [], bytes(data)
    while rest:
        opcode, payload, rest = unmask(rest)
        frames.append((opcode, payload))
    assert (0xA, (7999).to_bytes(125)) in frames, "the latest is answered"
    assert (0x2, b"packet") in frames


def test_a_close_frame_ends_the_connection_and_keeps_its_reason(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    client, server = pair
    shake(pair)
    server.sendall(frame(0x2, b"last") + frame(0x8, (1009).to_bytes(2) + b"too big"))
    assert client.recv(10) == b"last"
    assert client.recv(10) == b""
    assert client.farewell == "1009 too big"
    assert unmask(server.recv(100))[0] == 0x8


@pytest.mark.parametrize(
    "bad",
    [
        frame(0x1, b"text"),
        frame(0x2, b"x", first=0xC0),  # a reserved bit
        frame(0x3, b"unknown"),
        b"\x82\x81abcdx",  # masked by a server
        frame(0x9, bytes(126)),
        frame(0x9, b"", first=0),
    ],
)
def test_an_invalid_frame_ends_the_connection(
    pair: tuple[WebSocket, socket.socket], bad: bytes
) -> None:
    client, server = pair
    shake(pair)
    server.sendall(bad)
    with pytest.raises(ConnectionError):
        client.recv(10)


def test_an_endless_frame_is_not_collected_in_memory(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    client, server = pair
    shake(pair)
    server.sendall(b"\x82\x7f" + (1 << 62).to_bytes(8) + b"begin")
    assert client.recv(100) == b"begin"
    with pytest.raises(BlockingIOError):
        client.recv(100)


def test_a_half_received_frame_wakes_the_sender_once(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    client, server = pair
    shake(pair)
    server.sendall(frame(0x2, bytes(100))[:50])
    client.recv(48)
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            client.recv(10)
    assert unmask(server.recv(100)) == (0xA, b"", b"")


# --- versions ------------------------------------------------------------------------------------


def test_a_broker_that_knows_no_mqtt_5_is_asked_for_3_1_1_from_then_on() -> None:
    choice = VersionChoice("auto")
    assert choice.take()
    assert choice.unknown(mqtt5=True)
    assert [choice.take(), choice.take()] == [False, False]
    assert not choice.unknown(mqtt5=False)  # and if it changed its mind
    assert choice.take()


def test_3_1_1_is_tried_once_after_an_unanswered_connect() -> None:
    choice = VersionChoice("auto")
    assert choice.take()
    assert choice.silent(mqtt5=True)
    assert [choice.take(), choice.take()] == [False, True]
    assert not choice.silent(mqtt5=False)
    assert choice.take()


@pytest.mark.parametrize(("wanted", "mqtt5"), [("5", True), ("3.1.1", False)])
def test_a_configured_version_is_kept(wanted: str, mqtt5: bool) -> None:
    choice = VersionChoice(wanted)  # type: ignore[arg-type]
    assert not choice.unknown(mqtt5=mqtt5)
    assert not choice.silent(mqtt5=mqtt5)
    assert choice.take() is mqtt5


# --- whatever comes ------------------------------------------------------------------------------


class Pieces:
    """A socket that hands out what it was given in pieces, and takes everything."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece]

    def recv(self, most: int) -> bytes:
        if not self._pieces:
            raise BlockingIOError
        return self._pieces.pop(0)

    def send(self, data: bytes) -> int:
        return len(data)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [*pieces, data[at:]]


def read_all(pieces: list[bytes], most: int) -> bytes:
    client = WebSocket(Pieces(pieces), Opening("b", "/", {}))  # type: ignore[arg-type]
    got = b""
    while True:
        try:
            data = client.recv(most)
        except BlockingIOError:
            assert not client.pending()
            return got
        assert len(data) <= most
        if not data:
            return got
        got += data


_PAYLOADS = st.lists(
    st.tuples(st.sampled_from([0x0, 0x2, 0x9, 0xA]), st.binary(max_size=125) | st.just(bytes(300))),
    max_size=8,
)


@given(_PAYLOADS, st.lists(st.integers(0, 200), max_size=10), st.integers(1, 400))
def test_payloads_are_the_same_however_they_are_cut(
    frames: list[tuple[int, bytes]], sizes: list[int], most: int
) -> None:
    frames = [(opcode, body[:125] if opcode > 7 else body) for opcode, body in frames]
    stream = b"".join(frame(opcode, body) for opcode, body in frames)
    expected = b"".join(body for opcode, body in frames if opcode < 8)
    assert read_all(cut(stream, sizes), most) == expected


@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=5))
def test_random_bytes_raise_a_connection_error_or_wait(data: bytes, sizes: list[int]) -> None:
    with contextlib.suppress(ConnectionError):
        assert len(read_all(cut(data, sizes), 64)) <= len(data)
