"""`fedge agent init`: from a data file to an agent.yaml that loads."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import AgentConfig
from edge_agent.data.config import DataConfig
from edge_agent.data.dataset import build_dataset, read_ready
from edge_agent.data.table import Table
from edge_agent.data.targets import target_findings
from edge_agent.first_config.guess import guess
from edge_agent.first_config.look import look
from edge_agent.first_config.write import config_text, default_agent_id
from fedge.console import counted, log_less
from fedge.errors import ConfigError, DataError
from fedge.files import write_whole
from fedge.yaml_config import load_config
from models.package.spec import ModelSpec

_FEDERATION = "my-federation"


@dataclass(frozen=True)
class Written:
    """Result of a first look: doubts about what was written.

    Attributes:
        doubts: what a person has to look at, a line each.
        problem: that the data still has; empty: none was found.
        reads: what can be used of it, in words; empty: nobody tried.
    """

    doubts: tuple[str, ...]
    problem: str
    reads: str


def write_first_config(
    data: str,
    spec: ModelSpec | None,
    out: Path,
    table: str = "",
    *,
    model: str = "",
    force: bool = False,
    federation: str | None = None,
    agent_id: str | None = None,
    host: str = "127.0.0.1",
) -> Written:
    """Looks at a data file and writes a configuration; tries it where a model is known.

    Args:
        data: path of the file, or a pattern.
        spec: of the model.
        out: file to write.
        table: of an SQLite file.
        model: as the command line named it.
        force: whether an existing file is replaced.
        federation: its name; None: the model's.
        agent_id: of the device; None: the machine's name.
        host: of the broker.

    Raises:
        ConfigError: `out` exists, or cannot be written; an id is none.
        DataError: the data cannot be read.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out} exists: choose another --out, or replace it with --force")
    found = look(data, table)
    made = guess(found, spec)
    text = config_text(
        found,
        made,
        spec,
        out=out,
        model=model,
        federation=federation or (_as_id(spec.name) if spec else _FEDERATION),
        agent_id=agent_id or default_agent_id(),
        host=host,
    )
    before = out.read_bytes() if out.exists() else None
    write_whole(out, text.encode(), mode=0o644)
    try:
        config = load_config(out, AgentConfig)
    except ConfigError:  # an id that is none: leave nothing behind that does not load
        out.unlink() if before is None else write_whole(out, before, mode=0o644)
        raise
    doubts = tuple(f"{name}: {doubt}" for name, doubt in made.doubts.items())
    if spec is None:
        return Written(doubts, "; ".join(found.faults), "")
    restore = log_less(logging.ERROR, "edge_agent")
    try:
        table_read = read_ready(config.data, spec, out.parent)
        dataset = build_dataset(table_read, config.data, spec, own=True)
    except DataError as error:
        return Written(doubts, "; ".join(found.faults) or str(error), "")
    finally:
        restore()
    odd = tuple(
        str(one)
        for one in target_findings(dataset.arrays, spec, dataset.num_train, dataset.split)
        if "split" not in made.doubts or one.kind != "split"
    )
    return Written(doubts + odd, "", _reads(table_read, config.data))


def _reads(table: Table, config: DataConfig) -> str:
    if config.window is None:
        return counted(table.rows, "row")
    length = counted(config.window.length, "reading")
    return f"{counted(table.rows, 'window')} of {length}, cut from {counted(table.readings, 'row')}"


def _as_id(name: str) -> str:
    return name.replace(".", "-")
