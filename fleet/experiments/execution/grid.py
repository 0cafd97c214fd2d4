"""Grid file: scenarios, the settings to vary, and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from broker.protocol.messages import Id
from coordinator.config import Seed
from fleet.experiments.experiment import Target
from learning.registry import Choice


class GridOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of every run, as `fedge fleet simulate` and `fedge fleet run` take them.

    Attributes:
        agents: number of agents; None: the scenario's.
        rounds: number of rounds; None: the scenario's.
        mode: auto, exact, bytes or arrays; of the engine simulate.
        kernel: auto, vectorized or single; of the engine simulate.
        faults: fault plan; of the engine simulate.
        profiles: device profiles; of the engine simulate.
        signed: the coordinator signs; of the engine simulate.
        hosts: number of processes that host the agents; of the engine run.
    """

    agents: Annotated[int, Meta(ge=1)] | None = None
    rounds: Annotated[int, Meta(ge=1)] | None = None
    mode: Literal["auto", "exact", "bytes", "arrays"] = "auto"
    kernel: Literal["auto", "vectorized", "single"] = "auto"
    faults: Path | None = None
    profiles: Path | None = None
    signed: bool = False
    hosts: Annotated[int, Meta(ge=0)] | None = None


class Grid(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One grid file.

    Attributes:
        name: of the experiment; None: the file's.
        description: one line for people.
        scenario: path of a scenario, or several; relative to the grid's file.
        engine: simulate runs in virtual time, run in real processes over MQTT.
        changes: to all runs, by dotted key.
        grid: values by dotted key; every combination is a case.
        cases: each a name and changes of its own; every combination with `grid` is a case.
        seeds: number of seeds, from 0, or their list.
        target: for rounds and bytes to it, in tables and comparisons.
        options: of every run.
        hooks: that follow every run.
    """

    name: Id | None = None
    description: str = ""
    scenario: str | tuple[str, ...]
    engine: Literal["simulate", "run"] = "simulate"
    changes: dict[str, Any] = msgspec.field(name="set", default_factory=dict)
    grid: dict[str, list[Any]] = {}
    cases: tuple[dict[str, Any], ...] = ()
    seeds: Annotated[int, Meta(ge=1)] | tuple[Seed, ...] = 1
    target: Target | None = None
    options: GridOptions = GridOptions()
    hooks: tuple[Choice, ...] = ()

    def __post_init__(self) -> None:
        if not self.scenario:
            raise ValueError("scenario: name at least one file")
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{key} is empty: list the values to try")
        if not isinstance(self.seeds, int) and len(set(self.seeds)) < max(1, len(self.seeds)):
            raise ValueError("seeds: list each seed once, at least one")
        of_simulate = ("mode", "kernel", "faults", "profiles", "signed")
        for key in of_simulate if self.engine == "run" else ("hosts",):
            if getattr(self.options, key) != getattr(GridOptions(), key):
                raise ValueError(f"options.{key} is no option of the engine {self.engine}")

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Paths of all scenarios, as in the file."""
        return (self.scenario,) if isinstance(self.scenario, str) else self.scenario

    @property
    def seed_count(self) -> int:
        """Number of seeds, however many: a list of them may not fit in memory."""
        return self.seeds if isinstance(self.seeds, int) else len(self.seeds)

    @property
    def seed_list(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds
