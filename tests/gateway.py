"""A proxy on loopback as of a closed network: HTTP CONNECT (RFC 9110 §9.3.6), SOCKS5 (RFC 1928)."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading

from broker.local.broker import HOST


class Gateway:
    """Relays while the `with` block lasts; every connection of a test is to be in `asked`.

    Args:
        names: names that only it can resolve, with the address they stand for.
        login: name and password that it wants; None: it lets everyone through.

    Attributes:
        port: where it listens, on 127.0.0.1; it knows both protocols apart by their first byte.
        asked: (kind, host, port) of every request, as the client wrote it.
    """

    def __init__(
        self, names: dict[str, str] | None = None, login: tuple[str, str] | None = None
    ) -> None:
        self._names = names or {}
        self._login = login
        self._server = socket.create_server((HOST, 0))
        self.port: int = self._server.getsockname()[1]
        self.asked: list[tuple[str, str, int]] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Gateway:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):
            client.settimeout(10)
            first = client.recv(1, socket.MSG_PEEK)
            target = self._socks(client) if first == b"\x05" else self._http(client)
            if target is None:
                return
            with target:
                client.settimeout(None)
                back = threading.Thread(target=_relay, args=(target, client), daemon=True)
                back.start()
                _relay(client, target)
                back.join(5)

    def _connect(self, kind: str, host: str, port: int) -> socket.socket | None:
        self.asked.append((kind, host, port))
        with contextlib.suppress(OSError):
            return socket.create_connection((self._names.get(host, host), port), 5)
        return None

    def _http(self, client: socket.socket) -> socket.socket | None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += client.recv(4096)
        first, *headers = request.decode().split("\r\n")
        if self._login is not None:
            secret = base64.b64encode(":".join(self._login).encode()).decode()
            if f"proxy-authorization: basic {secret}".lower() not in map(str.lower, headers):
                client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                return None
        method, where, _ = first.split(" ")
        host, _, port = where.rpartition(":")
        target = self._connect("http", host, int(port)) if method == "CONNECT" else None
        if target is None:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return None
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        return target

    def _socks(self, client: socket.socket) -> socket.socket | None:
        _, count = client.recv(2)
        methods = client.recv(count)
        if self._login is None:
            client.sendall(b"\x05\x00")
        elif 2 not in methods:
            client.sendall(b"\x05\xff")
            return None
        else:
            client.sendall(b"\x05\x02")
            _, length = client.recv(2)  # RFC 1929
            name = client.recv(length).decode()
            password = client.recv(client.recv(1)[0]).decode()
            granted = (name, password) == self._login
            client.sendall(b"\x01" + (b"\x00" if granted else b"\x01"))
            if not granted:
                return None
        _, _, _, kind = client.recv(4)
        if kind == 1:
            host = socket.inet_ntoa(client.recv(4))
        else:
            host = client.recv(client.recv(1)[0]).decode()
        target = self._connect("socks5", host, int.from_bytes(client.recv(2)))
        client.sendall(b"\x05" + (b"\x00" if target else b"\x05") + b"\x00\x01" + bytes(6))
        return target


def _relay(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
