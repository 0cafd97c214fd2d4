"""Settings of a new fleet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from broker.protocol.topics import check_id
from broker.security.certificate_authority import check_host
from broker.security.mosquitto.config import address_family
from fedge.errors import ConfigError


@dataclass(frozen=True)
class FleetSettings:
    """Settings of a new fleet, as `fedge broker init` takes them."""

    federation: str
    hosts: Sequence[str]
    port: int = 8883
    bind: str = ""
    user: str = ""
    enrolment_port: int = 0  # 0: one above `port`
    websockets: int = 0  # port; 0: none
    plugin: str = ""  # path of the dynamic security plugin; empty: an access-control file

    def __post_init__(self) -> None:
        check_id(self.federation, "federation")
        for host in self.hosts:
            check_host(host)
        self._check_ports()
        if self.bind:
            check_host(self.bind)
        if self.websockets and self.bind and address_family(self.bind) is None:
            # Mosquitto would take the name as that of a network interface, and not listen at all.
            raise ConfigError(f"--bind {self.bind}: with --websockets it must be an address")

    @property
    def enrols_on(self) -> int:
        """Port of the enrolment service."""
        return self.enrolment_port or self.port + 1

    def _check_ports(self) -> None:
        ports = {"--port": self.port, "--enrolment-port": self.enrols_on}
        if self.websockets:
            ports["--websockets"] = self.websockets
        for option, port in ports.items():
            if not 1 <= port <= 65_535:
                raise ConfigError(f"{option} {port}: must be 1 to 65535; choose another port")
            if list(ports.values()).count(port) > 1:
                raise ConfigError(
                    f"{option} {port}: two listeners have this port; give each its own"
                )
