"""What lies between TCP and MQTT: nothing, TLS, a WebSocket, or a WebSocket in TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping
from typing import Any, cast

from paho.mqtt import client as paho

from broker.link.settings import HTTP_PORT, HTTPS_PORT, BrokerSettings
from broker.link.websocket import Opening, WebSocket


class TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails, and keeps what TLS complained of; paho does neither.

    Attributes:
        complaint: why the connection ended, when TLS knows.
    """

    complaint: ssl.SSLError | None = None

    def do_handshake(self, block: bool = False) -> None:
        """As ssl's."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As ssl's."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.complaint = error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        """As ssl's."""
        try:
            return super().send(data, flags)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            # The other side hung up; it may have said why before.
            with contextlib.suppress(OSError):
                self.recv(1)
            raise


class WebSocketLayer:
    """Makes WebSockets, in TLS where there is a context; paho takes it for a TLS context.

    paho calls `wrap_socket`, `settimeout` and `do_handshake` on whatever it was given as a context
    and uses what comes out as its socket. So the connection, straight or through a proxy, is
    paho's, and everything above it ours.

    Attributes:
        check_hostname: tells paho not to check the name: TLS's own context does.
        headers: of the next first request.
    """

    check_hostname = True

    def __init__(self, settings: BrokerSettings, tls: ssl.SSLContext | None) -> None:
        self.headers: Mapping[str, str] = {}
        self._settings = settings
        self._tls = tls

    def wrap_socket(
        self, sock: socket.socket, server_hostname: str | None = None, **options: Any
    ) -> WebSocket:
        """A WebSocket over the connected `sock`, hands not yet shaken."""
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
    """Gives `client` its layers; returns that of WebSockets, where there is one."""
    if tls is not None:
        tls.sslsocket_class = TlsSocket
    if settings.websocket is None:
        if tls is not None:
            client.tls_set_context(tls)
        return None
    layer = WebSocketLayer(settings, tls)
    client.tls_set_context(cast("ssl.SSLContext", layer))
    return layer


def tcp_of(sock: socket.socket | WebSocket) -> socket.socket:
    """The socket with TCP's options."""
    return sock.below if isinstance(sock, WebSocket) else sock


def complaint_of(sock: socket.socket | WebSocket) -> ssl.SSLError | None:
    """What TLS said when the connection ended, if anything."""
    below = tcp_of(sock)
    return below.complaint if isinstance(below, TlsSocket) else None


def has_more(sock: socket.socket | WebSocket | None) -> bool:
    """Whether `sock` holds bytes that epoll knows nothing of."""
    if isinstance(sock, WebSocket):
        return sock.pending()
    return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
