"""WebSocket (RFC 6455) for MQTT (MQTT 5 §6): paho sees a socket with a stream of bytes.

Replaces paho's own WebSocket (2.2), which loses a frame that the socket takes only in part and
reports the next packet as sent, answers a ping without a mask, possibly in the middle of a frame,
and masks byte by byte in Python, which takes a quarter of a second per MiB.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedge.errors import LinkError

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _MASKED = 0x80, 0x80
_MAX_CONTROL_BYTES = 125
_MAX_HEADER_BYTES = 16_384
_BLOCK = 1 << 16


class WebSocketRefused(LinkError):
    """The server did not accept the WebSocket.

    Attributes:
        status: HTTP status; 0: the answer is not HTTP.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True)
class Opening:
    """Content of the upgrade request.

    Attributes:
        authority: `host:port`, without the default port of the scheme.
        path: path of the URL.
        headers: further headers; may be secret.
    """

    authority: str
    path: str
    headers: Mapping[str, str] = field(repr=False)


class WebSocket:
    """Socket whose bytes travel in binary WebSocket frames.

    `send` works like OpenSSL's: after BlockingIOError it expects the same data again. One read of
    the socket may hold several packets; `pending` tells that `recv` has more without the socket.

    Args:
        sock: connected; TLS handshake not done.
        opening: content of the upgrade request.

    Attributes:
        farewell: the server's reason for closing; empty: none.
    """

    def __init__(self, sock: socket.socket, opening: Opening) -> None:
        self.farewell = ""
        self._sock = sock
        self._opening = opening
        self._out = bytearray()  # whole frames, some bytes of which may be sent
        self._claimed = 0  # payload bytes of the data frame in it
        self._pong: bytes | None = None  # payload of a pong to send after these frames
        self._in = bytearray()  # received bytes
        self._at = 0  # number of them that are consumed
        self._left = 0  # payload bytes of the present data frame that are not received yet
        self._dry = True  # `_in` has no bytes to consume
        # Mosquitto 2.0 sends 4 KiB of a frame, then sleeps for 100 ms unless a packet wakes it. An
        # unsolicited pong (RFC 6455 §5.5.3) does: transfers get 25 to 500 times as fast.
        self._nudged = False
        self._ended = False

    # --- opening ---------------------------------------------------------------------------------

    def do_handshake(self) -> None:
        """Does the TLS handshake, if any, then the WebSocket's; closes the socket on failure.

        Raises:
            WebSocketRefused: the server did not upgrade the connection.
            OSError: TCP or TLS failed.
        """
        try:
            if isinstance(self._sock, ssl.SSLSocket):
                self._sock.do_handshake()
            self._upgrade()
        except ssl.SSLEOFError as error:
            self.close()
            # In TLS 1.3 the client learns only now that its certificate was refused.
            raise getattr(self._sock, "complaint", None) or error from error
        except BaseException:
            self.close()
            raise

    def _upgrade(self) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        headers = {
            "Host": self._opening.authority,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": key,
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "mqtt",
            **self._opening.headers,
        }
        lines = [f"GET {self._opening.path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
        self._sock.sendall("\r\n".join([*lines, "", ""]).encode())
        try:
            status, answer = self._read_answer()
        except ConnectionResetError as error:  # as brokers do on a port without WebSockets
            raise WebSocketRefused(0, "server closed the connection on an HTTP request") from error
        if status != 101:
            raise WebSocketRefused(status, f"server answered HTTP {status} {answer['']}".rstrip())
        digest = hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()
        if answer.get("sec-websocket-accept") != base64.b64encode(digest).decode():
            raise WebSocketRefused(status, "server answered with a wrong Sec-WebSocket-Accept")
        if answer.get("sec-websocket-protocol", "mqtt").lower() != "mqtt":
            raise WebSocketRefused(status, "server did not accept the subprotocol mqtt")

    def _read_answer(self) -> tuple[int, dict[str, str]]:
        """Returns status and headers; the reason phrase is under the empty name."""
        while (end := self._in.find(b"\r\n\r\n")) < 0:
            if len(self._in) > _MAX_HEADER_BYTES or not self._fill():
                raise WebSocketRefused(0, "server did not answer with HTTP")
        first, *rest = bytes(self._in[:end]).decode("latin-1").split("\r\n")
        self._at = end + 4
        self._dry = self._at == len(self._in)
        version, _, words = first.partition(" ")
        code, _, words = words.partition(" ")
        if not version.startswith("HTTP/1.") or not code.isdigit():
            raise WebSocketRefused(0, "server did not answer with HTTP")
        headers = {"": words.strip()[:100] if words.isprintable() else ""}
        for line in rest:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return int(code), headers

    # --- sending ---------------------------------------------------------------------------------

    def send(self, data: bytes | bytearray) -> int:
        """Sends `data` as one frame.

        Raises:
            BlockingIOError: the socket took only a part: call again with the same data.
        """
        if not data:
            return 0
        if not self._claimed:
            self._out += _frame(_BINARY, data)
            self._claimed = len(data)
        self._flush()
        sent, self._claimed = self._claimed, 0
        return sent

    def _flush(self) -> None:
        while self._out or self._pong is not None:
            if not self._out and self._pong is not None:
                self._out += _frame(_PONG, self._pong)
                self._pong = None
            sent = self._sock.send(self._out)
            del self._out[:sent]

    def _answer(self) -> None:
        # Bytes that the socket does not take now go before the next packet, at the latest a ping.
        with contextlib.suppress(OSError):
            self._flush()

    # --- receiving -------------------------------------------------------------------------------

    def recv(self, most: int) -> bytes:
        """Returns at most `most` bytes; empty: the connection has ended.

        Raises:
            BlockingIOError: (or that of TLS) no bytes are available yet.
            ConnectionError: the received bytes are not a valid WebSocket.
        """
        while not self._ended:
            if self._left or self._open_frame():
                take = min(most, self._left, len(self._in) - self._at)
                if take:
                    return self._take_payload(take)
            if not self._ended and not self._fill():
                self._ended = True
        return b""

    def pending(self) -> bool:
        """Returns whether `recv` may have bytes that the socket does not report."""
        inner = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0
        return inner or not self._dry

    def _take_payload(self, count: int) -> bytes:
        self._left -= count
        data = self._take(count)
        self._dry = self._at == len(self._in)
        return data

    def _take(self, count: int) -> bytes:
        data = bytes(self._in[self._at : self._at + count])
        self._at += count
        return data

    def _fill(self) -> bool:
        self._dry = True
        try:
            data = self._sock.recv(_BLOCK)
        except (BlockingIOError, ssl.SSLWantReadError):
            if self._left and not self._nudged:
                self._nudged = True
                self._pong = self._pong or b""
                self._answer()
            raise
        self._nudged = False
        self._dry = not data
        if self._at:
            del self._in[: self._at]
            self._at = 0
        self._in += data
        return bool(data)

    def _open_frame(self) -> bool:
        """Consumes headers and control frames; returns whether bytes of a data frame follow."""
        while not self._ended and (header := self._peek_header()) is not None:
            opcode, length, header_bytes = header
            if opcode in (_CONTINUATION, _BINARY):
                self._at += header_bytes
                self._left = length
                if length:
                    return True
                continue
            if len(self._in) - self._at < header_bytes + length:
                return False
            self._at += header_bytes
            self._control(opcode, self._take(length))
        return False

    def _peek_header(self) -> tuple[int, int, int] | None:
        """Returns opcode, length of payload and of header; None: the header is incomplete."""
        view = self._in[self._at : self._at + 10]
        if len(view) < 2:
            return None
        opcode, length = view[0] & 0x0F, view[1]
        if view[0] & 0x70 or length & _MASKED or opcode == _TEXT:
            raise ConnectionAbortedError("received a WebSocket frame that MQTT does not allow")
        if opcode >= _CLOSE and (length > _MAX_CONTROL_BYTES or not view[0] & _FINAL):
            raise ConnectionAbortedError("received a WebSocket control frame that is too long")
        if opcode not in (_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG):
            raise ConnectionAbortedError(f"received a WebSocket frame of unknown type {opcode}")
        extra = {126: 2, 127: 8}.get(length, 0)
        if len(view) < 2 + extra:
            return None
        if extra:
            length = int.from_bytes(view[2 : 2 + extra])
        return opcode, length, 2 + extra

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            # Only the latest ping is answered (RFC 6455 §5.5.3), so that pings cannot fill memory.
            self._pong = payload
            self._answer()
        elif opcode == _CLOSE:
            words = payload[2:].decode(errors="replace")
            code = int.from_bytes(payload[:2])
            self.farewell = f"{code} {words}".strip() if code and words.isprintable() else ""
            self._out += _frame(_CLOSE, payload[:2])
            self._answer()
            self._ended = True

    # --- methods of a socket that paho and the network thread call -------------------------------

    def close(self) -> None:
        """Closes the connection."""
        self._sock.close()

    def fileno(self) -> int:
        """Returns the file descriptor of the socket below."""
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """Sets the blocking mode of the socket below."""
        self._sock.setblocking(flag)

    def settimeout(self, timeout_s: float | None) -> None:
        """Sets the timeout of the socket below."""
        self._sock.settimeout(timeout_s)

    @property
    def below(self) -> socket.socket:
        """Socket that carries the WebSocket: TCP or TLS."""
        return self._sock


def _frame(opcode: int, payload: bytes | bytearray) -> bytes:
    """Returns a frame, masked as a client must (RFC 6455 §5.3)."""
    length = len(payload)
    if length < 126:
        size = bytes([_MASKED | length])
    elif length < 1 << 16:
        size = bytes([_MASKED | 126]) + length.to_bytes(2)
    else:
        size = bytes([_MASKED | 127]) + length.to_bytes(8)
    mask = os.urandom(4)
    masked = np.zeros(-(-length // 4), np.uint32)  # four bytes at a time, padded at the end
    masked.view(np.uint8)[:length] = np.frombuffer(payload, np.uint8)
    masked ^= np.frombuffer(mask, np.uint32)[0]
    return bytes([_FINAL | opcode]) + size + mask + masked.tobytes()[:length]
