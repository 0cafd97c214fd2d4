"""Configuration of an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from broker.link.settings import BrokerSettings
from broker.protocol.messages import Fingerprint, Id, Names
from edge_agent.data.columns import StatisticsConfig
from edge_agent.data.dataset import DataConfig
from edge_agent.machine.blob_fetcher import STALL_S
from edge_agent.machine.limits import LimitsConfig
from edge_agent.machine.status import DEFAULT_PHASES
from fedge.errors import ConfigError, did_you_mean
from fedge.plugins import load_plugins
from fedge.yaml_config import load_config
from learning.phases.registry import PHASES


class AgentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One agent of one federation.

    Attributes:
        federation: the name that the coordinator uses too.
        agent_id: unique in the federation; two devices of one id fight for one session.
        broker: where it is and how to log in.
        data: this device's data; paths are relative to the file.
        state_dir: the agent's own files; relative to the file.
        phases: that the device takes part in; leave "train" out for one that only measures.
        tags: free words that the coordinator shows.
        runtime: the TFLite interpreter; the first that is installed when not given.
        threads: of the interpreter.
        fingerprint: train only a model with this layout; any when not given.
        trusted_keys: PEM file with the coordinator's public keys: what they have not signed is
            refused. Not given: whatever the broker delivers is believed.
        max_blob_bytes: larger packages and weights are refused.
        heartbeat_s: the agent says that it is there so often, also while it trains.
        stall_s: without a chunk of what it fetches for so long, it subscribes again and asks the
            coordinator for what is missing; doubled at each try.
        plugins: Python files that add algorithms, codecs and phases; relative to the file. Nothing
            else is loaded, least of all what the network names.
        limits: what training may take from the device, and when it pauses.
        statistics: whether statistics of the device's data may leave it.
        describe_targets: the device's status says which classes its rows have, or how large its
            targets are to a factor of four, and what is odd about them.
    """

    federation: Id
    agent_id: Id
    data: DataConfig
    broker: BrokerSettings = BrokerSettings()
    state_dir: Path = Path("state")
    plugins: tuple[Path, ...] = ()
    phases: Names = DEFAULT_PHASES
    tags: Annotated[tuple[Id, ...], Meta(max_length=64)] = ()
    runtime: Literal["tflite-runtime", "ai-edge-litert", "tensorflow"] | None = None
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    fingerprint: Fingerprint | None = None
    trusted_keys: Path | None = None
    max_blob_bytes: Annotated[int, Meta(ge=1024, le=1 << 32)] = 64 << 20
    heartbeat_s: Annotated[float, Meta(ge=1, le=1e6)] = 60.0
    stall_s: Annotated[float, Meta(ge=0.1, le=300)] = STALL_S
    limits: LimitsConfig = LimitsConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    describe_targets: bool = True

    def __post_init__(self) -> None:
        if self.agent_id == "coordinator":
            raise ValueError("agent_id: 'coordinator' is the coordinator's own name at the broker")
        if not self.phases:
            raise ValueError("phases: name at least one")
        if self.statistics.allow and "statistics" not in self.phases:
            raise ValueError("statistics: allowed, but phases leaves out statistics")


def load_agent_config(path: Path) -> AgentConfig:
    """Returns an agent's configuration in a file: plug-ins loaded, then phases checked.

    Raises:
        ConfigError: see `load_config` and `load_plugins`; or a phase is unknown.
    """
    config = load_config(path, AgentConfig)
    load_plugins(config.plugins, path.parent, str(path))
    for name in config.phases:
        if name not in PHASES:
            known = PHASES.names()
            hint = f"{did_you_mean(name, known)}known: {', '.join(known)}"
            raise ConfigError(f"{path}: phases: unknown phase {name!r}; {hint}")
    return config
