"""Bundle: the one file that a device needs to join a fleet. Read without `cryptography`."""

from __future__ import annotations

import ssl
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from broker.protocol.messages import Id, PublicKey
from broker.protocol.signed_messages import MAX_KEYS
from broker.security.access_control import is_login_of
from fedge.errors import ConfigError

MAX_BUNDLE_BYTES = 64 << 10
_Pem = Annotated[str, Meta(min_length=1, max_length=16_384)]
_FORMAT = 1
#: OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
NOT_YET_VALID, EXPIRED = 9, 10


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Identity of a device and the keys it trusts. Contains the device's private key.

    Attributes:
        fedge_bundle: version of the format.
        federation: the device's federation.
        agent_id: name of the device; its certificate's name begins with it.
        host: name or address of the broker.
        port: TLS port of the broker.
        websockets: WebSocket port of the broker; 0: none.
        ca: certificate of the fleet's authority, PEM.
        certificate: certificate of the device, PEM.
        key: its private key, PEM, not encrypted; empty if the device made the key itself.
        trusted_keys: public signing keys of the coordinator, hexadecimal.
    """

    fedge_bundle: int = _FORMAT
    federation: Id
    agent_id: Id
    host: Annotated[str, Meta(min_length=1, max_length=253)]
    port: Annotated[int, Meta(ge=1, le=65_535)]
    websockets: Annotated[int, Meta(ge=0, le=65_535)] = 0
    ca: _Pem
    certificate: _Pem
    trusted_keys: Annotated[tuple[PublicKey, ...], Meta(min_length=1, max_length=MAX_KEYS)]
    key: Annotated[str, Meta(max_length=16_384)] = ""

    def __repr__(self) -> str:  # the key must not appear in a log
        return f"Bundle({self.agent_id!r} of {self.federation!r})"

    @property
    def identity(self) -> bytes:
        """Certificate and key in one PEM file, so that they are replaced together."""
        return f"{self.certificate.strip()}\n{self.key.strip()}\n".encode()


def encode_bundle(bundle: Bundle) -> bytes:
    """Returns the content of a bundle file."""
    return msgspec.json.format(msgspec.json.encode(bundle), indent=1) + b"\n"


def read_bundle(path: Path) -> Bundle:
    """Reads a bundle file, without checking the certificates in it, see `check_bundle`.

    Raises:
        ConfigError: unreadable, truncated, or not a bundle.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"bundle {path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BUNDLE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BUNDLE_BYTES} bytes: not a bundle")
    try:
        bundle = msgspec.json.decode(data, type=Bundle)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path} is not a bundle of this version: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"bundle {path} is damaged or incomplete ({len(data)} bytes): copy it again"
        ) from error
    if bundle.fedge_bundle != _FORMAT:
        raise ConfigError(f"bundle {path} has format {bundle.fedge_bundle}; known is {_FORMAT}")
    return bundle


def check_bundle(bundle: Bundle, where: str) -> None:
    """Checks the certificate as a broker will, with a TLS handshake in memory.

    Args:
        bundle: to check.
        where: name of the bundle in messages.

    Raises:
        ConfigError: certificate, key and authority do not belong together, or the certificate is
            not valid at the time of this machine's clock.
    """
    with tempfile.TemporaryDirectory(prefix="fedge-bundle-") as folder:  # readable by its owner
        identity = Path(folder) / "identity.pem"
        identity.touch(0o600)
        identity.write_bytes(bundle.identity)
        broker = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        device = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            broker.load_cert_chain(identity)
            device.load_cert_chain(identity)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(
                f"{where}: certificate and key are damaged or do not belong together"
            ) from error
        try:
            broker.load_verify_locations(cadata=bundle.ca)
        except ssl.SSLError as error:
            raise ConfigError(f"{where}: the authority's certificate is damaged") from error
    broker.verify_mode = ssl.CERT_REQUIRED
    # In TLS 1.2 both sides know the result when the handshake ends.
    broker.maximum_version = ssl.TLSVersion.TLSv1_2
    device.check_hostname = False
    device.verify_mode = ssl.CERT_NONE
    try:
        subject = _shake_hands(broker, device)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(f"{where}: {_verdict(error)}") from error
    if not is_login_of(subject, bundle.agent_id):
        raise ConfigError(
            f"{where}: bundle is for {bundle.agent_id!r}, its certificate for {subject!r}"
        )


def _verdict(error: ssl.SSLCertVerificationError) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if error.verify_code == NOT_YET_VALID:
        return f"the certificate is not yet valid: this machine's clock says {now}; set it"
    if error.verify_code == EXPIRED:
        return f"the certificate has expired: this machine's clock says {now}; rotate it"
    return f"the certificate is not signed by the bundle's authority: {error.verify_message}"


def _shake_hands(broker: ssl.SSLContext, device: ssl.SSLContext) -> str:
    """Runs a TLS handshake in memory; returns the name in the device's certificate."""
    to_broker, to_device = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = broker.wrap_bio(to_broker, to_device, server_side=True)
    client = device.wrap_bio(to_device, to_broker)
    for _ in range(10):
        done = [_step(side) for side in (client, server)]
        if all(done):
            break
    certificate: dict[str, Any] = dict(server.getpeercert() or {})
    names = [v for part in certificate.get("subject", ()) for k, v in part if k == "commonName"]
    return str(names[0]) if names else ""


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
