"""Options of reading a device's data, handed from reader to reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.data.config import DataConfig
from edge_agent.data.normalise import Scale
from models.package.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class ReadOptions:
    """See the module.

    Attributes:
        path: of the data, a file or a pattern, for messages.
        config: of the data.
        spec: of the model.
        scales: of columns, as far as they are known; numbers of inputs are judged by them.
        ready: whether numbers are scaled and rounded now, or kept as they are in the file.
        in_order: whether windows are cut while reading; otherwise all readings are sorted before
            any is cut, at the cost of memory.
    """

    path: Path
    config: DataConfig
    spec: ModelSpec
    scales: Mapping[str, Scale]
    ready: bool
    in_order: bool = True
