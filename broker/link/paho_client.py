"""Driver of a paho client on the network thread, instead of paho's own thread.

Everything here runs on the network thread, except `paho.Client.reconnect`, which runs in a
connector thread while the network thread does not touch the client. So paho is never called by two
threads at a time.

paho surprises that shaped this file (2.1 and 2.2):

- `reconnect` blocks (DNS, TCP, TLS handshake); everything after it does not.
- Callbacks run under a lock that is not reentrant and that closing a socket takes as well: closing
  or reconnecting inside a callback is a deadlock. Defer such calls with `NetworkLoop.soon`.
- A callback that raises leaves the packet in the input buffer, and paho handles it again for ever.
- `on_disconnect` can come twice for one connection (a keep-alive that expires).
- The one public way to drop a connection without a DISCONNECT is `connect_async`.
- After a failed TLS handshake paho leaves the socket to the garbage collector.
- When a broker refuses MQTT 3.1.1, paho calls `reconnect` by itself, inside a callback;
  `reconnect_on_failure=False` prevents that.
- A client speaks one version: another version takes another client.
"""

from __future__ import annotations

import functools
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.link import disconnect_reasons, sockets
from broker.link.link import QOS, Will
from broker.link.network_loop import NetworkLoop, Timer
from broker.link.settings import BrokerSettings, Secrets
from broker.link.transport_settings import proxy_arguments
from broker.link.websocket import WebSocket

#: Room for topic, packet id and properties around the largest payload.
HEADER_ROOM = 1024
#: Packets read in one go from TLS's buffer before other connections get their turn.
_READS_IN_A_ROW = 50


_Socket = socket.socket | WebSocket

disconnect_reasons.accept_every_code()


@dataclass(frozen=True)
class Session:
    """Identity and session settings of a client.

    Attributes:
        client_id: stable, so that the broker finds the session again.
        will: message that the broker publishes when we vanish.
        expiry_s: how long the broker keeps the session while we are disconnected.
        receive_maximum: messages that the broker may send ahead of our acknowledgements.
    """

    client_id: str
    will: Will | None
    expiry_s: int
    receive_maximum: int


class Handler(Protocol):
    """Handler of connection events. Called inside paho's callbacks, except `broken`."""

    def connected(self, present: bool, code: ReasonCode, properties: Properties) -> None:
        """Handles CONNACK; `present`: the broker still had the session."""

    def disconnected(self, by_broker: bool, code: ReasonCode) -> None:
        """Handles the end of the connection; may be called twice."""

    def subscribed(self, mid: int, codes: list[ReasonCode]) -> None:
        """Handles SUBACK."""

    def acknowledged(self, mid: int, code: ReasonCode) -> None:
        """Handles PUBACK."""

    def received(self, message: paho.MQTTMessage) -> None:
        """Handles PUBLISH, which paho does not acknowledge by itself."""

    def broken(self, error: Exception) -> None:
        """Handles an exception while reading or writing: the connection must be dropped."""


@functools.lru_cache(maxsize=64)  # each Properties object builds a table of all properties
def make_properties(packet_type: int, **values: int) -> Properties:
    """Returns properties of a packet, by paho's names; shared, not to be changed."""
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


class Driver:
    """Serves the socket of a paho client on the network thread.

    Attributes:
        client: to subscribe, publish and acknowledge; not to connect or disconnect. Another one
            after `speak`.
        mqtt5: whether it speaks MQTT 5, not 3.1.1.
        complaint: error that TLS reported when the last connection ended, if any.
        farewell: reason that the WebSocket gave then; empty: none.
    """

    complaint: ssl.SSLError | None = None
    farewell = ""

    def __init__(
        self,
        settings: BrokerSettings,
        session: Session,
        network: NetworkLoop,
        handler: Handler,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._settings = settings
        self._session = session
        self._network = network
        self._handler = handler
        self._connecting = False  # a connector thread has the client
        self._writing = False  # the socket was full: epoll reports when it is not
        self._paused = False  # the owner has enough: incoming bytes wait in the socket
        self._timer: Timer | None = None
        self._tls = tls
        self.mqtt5 = settings.protocol != "3.1.1"
        self.client = self._make_client()

    def speak(self, *, mqtt5: bool) -> None:
        """Switches to an MQTT version; only while there is no connection."""
        if mqtt5 != self.mqtt5:
            self.mqtt5 = mqtt5
            self.client = self._make_client()

    def _make_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._session.client_id,
            protocol=paho.MQTTv5 if self.mqtt5 else paho.MQTTv311,
            # In MQTT 3.1.1 a session either ends with the connection or never expires.
            clean_session=None if self.mqtt5 else self._session.expiry_s == 0,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.suppress_exceptions = True  # `_guarded` has logged and counted them
        client.connect_timeout = self._settings.connect_timeout_s
        client.max_inflight_messages_set(0)  # no limit: `Outbox` has its own window
        self._websockets = sockets.install(client, self._settings, self._tls)
        if will := self._session.will:
            delay = {"WillDelayInterval": will.delay_s}
            properties = make_properties(PacketTypes.WILLMESSAGE, **delay) if self.mqtt5 else None
            client.will_set(will.topic, will.payload, QOS, retain=True, properties=properties)
        self._set_callbacks(client)
        return client

    def _set_callbacks(self, client: paho.Client) -> None:
        handler = self._handler
        guarded = self._guarded
        client.on_socket_open = guarded(self._on_socket_open)
        client.on_socket_close = guarded(self._on_socket_close)
        client.on_socket_register_write = guarded(self._on_register_write)
        client.on_socket_unregister_write = guarded(self._on_unregister_write)
        client.on_connect = guarded(
            lambda _client, _data, flags, code, properties: handler.connected(
                flags.session_present, code, properties
            )
        )
        client.on_disconnect = guarded(
            lambda _client, _data, flags, code, _properties: handler.disconnected(
                flags.is_disconnect_packet_from_server, code
            )
        )
        client.on_subscribe = guarded(
            lambda _client, _data, mid, codes, _properties: handler.subscribed(mid, codes)
        )
        client.on_publish = guarded(
            lambda _client, _data, mid, code, _properties: handler.acknowledged(mid, code)
        )
        client.on_message = guarded(lambda _client, _data, message: handler.received(message))

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            try:
                callback(*arguments)
            except Exception:  # noqa: BLE001 - one bad packet must not end the network thread
                self._network.count_error("error while handling a packet")

        return guarded

    # --- connecting and disconnecting ------------------------------------------------------------

    def connect(self, secrets: Secrets, done: Callable[[BaseException | None], None]) -> None:
        """Opens the socket in a connector thread and sends CONNECT; then calls `done(error)`."""
        self.client.username_pw_set(self._settings.username or None, secrets.password)
        if self._websockets is not None:
            self._websockets.headers = secrets.headers
        if secrets.proxy is not None:
            self.client.proxy_set(**proxy_arguments(secrets.proxy))
        self.drop()  # no socket yet: sets host, port and properties
        self._connecting = True
        self._paused = False

        def opened(error: BaseException | None) -> None:
            self._connecting = False
            done(error)  # first: writing may already find the connection closed
            sock = self._socket()
            if sock is not None:
                self._network.add_reader(sock, self._read)
                self._keep_time()
                self._write()

        self._network.in_background(self.client.reconnect, opened)

    def drop(self) -> None:
        """Closes the socket without DISCONNECT. Must not be called inside a paho callback."""
        self._stop_timer()
        limits = {
            "SessionExpiryInterval": self._session.expiry_s,
            "ReceiveMaximum": self._session.receive_maximum,
            "MaximumPacketSize": self._settings.max_payload_bytes + HEADER_ROOM,
        }
        properties = make_properties(PacketTypes.CONNECT, **limits) if self.mqtt5 else None
        self.client.connect_async(
            self._settings.host,
            self._settings.port,
            self._settings.keepalive_s,
            clean_start=False,
            properties=properties,
        )

    def goodbye(self) -> None:
        """Sends DISCONNECT; `disconnected` is called afterwards."""
        self.client.disconnect()

    def pause_reading(self) -> None:
        """Stops reading, so that the broker must wait."""
        self._paused = True
        if (sock := self._socket()) is not None:
            self._network.remove_reader(sock)

    def resume_reading(self) -> None:
        """Reads again after `pause_reading`."""
        if not self._paused:
            return
        self._paused = False
        if (sock := self._socket()) is not None and not self._connecting:
            self._network.add_reader(sock, self._read)
            self._network.soon(self._read)  # bytes that TLS or WebSocket have buffered

    def _socket(self) -> socket.socket | WebSocket | None:
        return cast("_Socket | None", self.client.socket())

    # --- the socket ------------------------------------------------------------------------------

    def _on_socket_open(self, client: paho.Client, data: object, sock: _Socket) -> None:
        self.complaint, self.farewell = None, ""
        # In a connector thread. Without TCP_NODELAY small requests and answers wait 40 ms each.
        sockets.tcp_of(sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_socket_close(self, client: paho.Client, data: object, sock: _Socket) -> None:
        self._stop_timer()
        self.complaint = sockets.complaint_of(sock)
        self.farewell = sock.farewell if isinstance(sock, WebSocket) else ""
        self._network.remove_reader(sock)
        self._on_unregister_write(client, data, sock)

    def _on_register_write(self, client: paho.Client, data: object, sock: _Socket) -> None:
        # In a connector thread while connecting: `opened` writes then. Otherwise write soon,
        # together with all that this turn of the loop queues: the socket mostly takes all of it.
        if not self._connecting:
            self._network.soon(self._write)

    def _on_unregister_write(self, client: paho.Client, data: object, sock: _Socket) -> None:
        if self._writing:
            self._network.remove_writer(sock)
            self._writing = False

    def _write(self) -> None:
        if self._connecting:
            return
        try:
            self.client.loop_write()
            sock = self._socket()
            if sock is not None and self.client.want_write() and not self._writing:
                self._network.add_writer(sock, self._write)
                self._writing = True
        except Exception as error:  # noqa: BLE001 - ends this connection, not the loop
            self._network.count_error("error while sending")
            self._handler.broken(error)

    def _read(self) -> None:
        if self._connecting or self._paused:
            return
        try:
            for _ in range(_READS_IN_A_ROW):
                self.client.loop_read()
                # TLS and WebSocket may have buffered whole packets, which epoll does not report.
                if self._paused or not sockets.has_more(self._socket()):
                    return
            self._network.soon(self._read)
        except Exception as error:  # noqa: BLE001 - ends this connection, not the loop
            self._network.count_error("error while reading")
            self._handler.broken(error)

    # --- keep-alive ------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        """Calls paho every few seconds, so that it pings and notices a missing answer."""
        self.client.loop_misc()
        self._stop_timer()
        if self._socket() is not None:
            interval_s = min(5.0, self._settings.keepalive_s / 6)
            self._timer = self._network.later(interval_s, self._keep_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
