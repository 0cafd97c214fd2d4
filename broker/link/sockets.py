"""Sockets under MQTT: plain TCP, TLS, WebSocket, or WebSocket over TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping
from typing import Any, cast

from paho.mqtt import client as paho

from broker.link.settings import HTTP_PORT, HTTPS_PORT, BrokerSettings
from broker.link.websocket import Opening, WebSocket

#: Bytes read at once. paho asks for the first bytes of a packet one by one: without this, a small
#: message takes four system calls, at each of which the other threads may take over.
_READ_BYTES = 16 << 10


class ReadAhead:
    """Buffer of received bytes, for a socket that paho reads."""

    _ahead = b""
    _at = 0

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Returns at most `buflen` bytes, as `socket.recv`."""
        if self._at == len(self._ahead):
            if buflen >= _READ_BYTES:
                return self._receive(buflen, flags)
            self._ahead, self._at = self._receive(_READ_BYTES, flags), 0
        data = self._ahead[self._at : self._at + buflen]
        self._at += len(data)
        if self._at == len(self._ahead):
            self._ahead, self._at = b"", 0
        return data

    def buffered(self) -> int:
        """Returns how many received bytes wait here."""
        return len(self._ahead) - self._at

    def _receive(self, buflen: int, flags: int) -> bytes:
        raise NotImplementedError


class TcpSocket(ReadAhead, socket.socket):
    """TCP socket with a buffer."""

    @classmethod
    def over(cls, sock: socket.socket) -> TcpSocket:
        """Returns the connection of `sock`, which is closed."""
        own = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        own.settimeout(sock.gettimeout())
        return own

    def do_handshake(self) -> None:
        """Does nothing: TCP has none."""

    def _receive(self, buflen: int, flags: int) -> bytes:
        return socket.socket.recv(self, buflen, flags)


class TcpLayer:
    """Puts the buffer into paho's TCP sockets; paho uses it like a TLS context."""

    check_hostname = True

    def wrap_socket(self, sock: socket.socket, **_options: Any) -> TcpSocket:
        """Returns the connection of `sock` with a buffer."""
        return TcpSocket.over(sock)


class TlsSocket(ReadAhead, ssl.SSLSocket):
    """TLS socket that closes itself after a failed handshake and keeps the last TLS error.

    paho does neither.

    Attributes:
        complaint: TLS error that ended the connection, if any.
    """

    complaint: ssl.SSLError | None = None

    def do_handshake(self, block: bool = False) -> None:
        """Shakes hands as `SSLSocket` does; closes the socket on failure."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise

    def _receive(self, buflen: int, flags: int) -> bytes:
        try:
            return ssl.SSLSocket.recv(self, buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.complaint = error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        """Sends as `SSLSocket` does; reads a pending TLS alert if the peer has closed."""
        try:
            return super().send(data, flags)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            # The peer closed the connection, possibly after a TLS alert with the reason.
            with contextlib.suppress(OSError):
                self.recv(1)
            raise


class WebSocketLayer:
    """Makes WebSockets, over TLS if there is a context; paho uses it like a TLS context.

    paho calls `wrap_socket` on its TLS context, then `settimeout` and `do_handshake` on the result,
    and uses the result as its socket. So paho makes the connection, direct or through a proxy, and
    this class adds the WebSocket.

    Attributes:
        check_hostname: keeps paho from checking the name, which the TLS context does.
        headers: headers of the next upgrade request.
    """

    check_hostname = True

    def __init__(self, settings: BrokerSettings, tls: ssl.SSLContext | None) -> None:
        self.headers: Mapping[str, str] = {}
        self._settings = settings
        self._tls = tls

    def wrap_socket(
        self, sock: socket.socket, server_hostname: str | None = None, **options: Any
    ) -> WebSocket:
        """Returns a WebSocket over the connected `sock`, before the handshake."""
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=server_hostname, **options)
        settings = self._settings
        usual = HTTPS_PORT if settings.tls else HTTP_PORT
        address = settings.address
        authority = address.removesuffix(f":{usual}") if settings.port == usual else address
        assert settings.websocket is not None
        return WebSocket(sock, Opening(authority, settings.websocket.path, self.headers))


def install(
    client: paho.Client, settings: BrokerSettings, tls: ssl.SSLContext | None
) -> WebSocketLayer | None:
    """Sets up TLS and WebSocket of `client`; returns the WebSocket layer, if any."""
    if tls is not None:
        tls.sslsocket_class = TlsSocket
    if settings.websocket is None:
        client.tls_set_context(tls or cast("ssl.SSLContext", TcpLayer()))
        return None
    layer = WebSocketLayer(settings, tls)
    client.tls_set_context(cast("ssl.SSLContext", layer))
    return layer


def tcp_of(sock: socket.socket | WebSocket) -> socket.socket:
    """Returns the socket below a WebSocket, which has the TCP options."""
    return sock.below if isinstance(sock, WebSocket) else sock


def complaint_of(sock: socket.socket | WebSocket) -> ssl.SSLError | None:
    """Returns the TLS error that ended the connection, if any."""
    below = tcp_of(sock)
    return below.complaint if isinstance(below, TlsSocket) else None


def has_more(sock: socket.socket | WebSocket | None) -> bool:
    """Returns whether `sock` has buffered bytes, which epoll does not report."""
    if isinstance(sock, WebSocket):
        return sock.pending()
    if isinstance(sock, ReadAhead) and sock.buffered():
        return True
    return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
