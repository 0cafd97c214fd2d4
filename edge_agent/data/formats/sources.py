"""Sources: which columns of a file a tensor is read from, and what to write where none is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from edge_agent.data.config import DataConfig
from edge_agent.data.table import PLACEHOLDER, unknown_name
from fedge.errors import DataError
from fedge.yaml_config import as_yaml
from models.package.spec import ModelSpec, TensorSpec

_UNIT = re.compile(r"(?P<name>.*?)\s*(\(.*\)|\[.*\])")
_SHOWN = 12


def column_names(tensor: TensorSpec, config: DataConfig, spec: ModelSpec) -> Sequence[str]:
    """Returns the names of the columns that a tensor is read from; of windows, of one reading."""
    if tensor not in spec.inputs:
        single = config.target_sources.get(tensor.name) if tensor in spec.targets else config.weight
        return [single.column] if single and single.column else tensor.features
    source = config.inputs.get(tensor.name)
    if source and source.columns is not None:
        return source.columns
    if config.window and config.window.columns:
        return config.window.columns
    return tensor.features


def numbers_needed(tensor: TensorSpec, config: DataConfig, spec: ModelSpec) -> int:
    """Returns how many columns a tensor is read from.

    Raises:
        DataError: windows do not fit into the input.
    """
    numbers = prod(tensor.shape)
    if config.window is None or tensor not in spec.inputs:
        return numbers
    length = config.window.length
    if numbers % length:
        raise DataError(
            f"{config.path}: windows of {length} readings do not fill the input {tensor.name} "
            f"(shape {tensor.shape}): window.length must divide its {numbers} numbers"
        )
    return numbers // length


def check_names(
    path: Path, tensor: TensorSpec, config: DataConfig, spec: ModelSpec, titles: Sequence[str]
) -> Sequence[str]:
    """Returns the names of a tensor's columns.

    Raises:
        DataError: none or another number of them is configured; says what to write.
    """
    names, needed = column_names(tensor, config, spec), numbers_needed(tensor, config, spec)
    listed = ", ".join(map(as_yaml, titles[:_SHOWN])) + (", …" if len(titles) > _SHOWN else "")
    if not names and tensor in spec.targets:
        key = key_of(tensor)
        raise DataError(
            f"{path}: {key} is missing: name its column, "
            f"`{example(tensor, spec)}` with NAME of: {listed}"
        )
    if len(names) != needed:
        per = f"{needed} a reading" if config.window else f"shape {tensor.shape}"
        raise DataError(
            f"{path}: {tensor.name} needs {needed} columns ({per}), {len(names)} are configured: "
            f"{', '.join(names) or 'none'}; write `{example(tensor, spec, needed)}` with NAME of: "
            f"{listed}"
        )
    return names


def key_of(tensor: TensorSpec) -> str:
    """Returns the key of a target or the weight in the `data` section."""
    return tensor.name if tensor.name in ("target", "weight") else f"targets.{tensor.name}"


def example(tensor: TensorSpec, spec: ModelSpec, needed: int = 1, **source: Any) -> str:
    """Returns what names a tensor's source in the `data` section, as YAML.

    Args:
        tensor: of the spec, or the weight.
        spec: of the model.
        needed: columns of an input.
        source: of it; else columns called NAME.
    """
    if tensor in spec.inputs:
        names = [PLACEHOLDER] * min(needed, _SHOWN)
        return as_yaml({"inputs": {tensor.name: source or {"columns": names}}})
    found: dict[str, Any] = {tensor.name: source or {"column": PLACEHOLDER}}
    return as_yaml(found if tensor.name in ("target", "weight") else {"targets": found})


def find(path: Path, name: str, titles: Sequence[str], advice: str = "") -> int:
    """Returns the place of a column by its full title, or by its title without the unit.

    Args:
        path: for messages.
        name: that is configured.
        titles: of the file.
        advice: what to write, for the message.

    Raises:
        DataError: no such column, or several.
    """
    titles = [title.strip() for title in titles]
    bare = [match["name"] if (match := _UNIT.fullmatch(title)) else title for title in titles]
    for candidates in (titles, bare):
        found = [position for position, title in enumerate(candidates) if title == name.strip()]
        if len(found) == 1:
            return found[0]
        if found:
            same = ", ".join(titles[position] for position in found)
            raise DataError(f"{path}: column {name!r} is ambiguous: {same}")
    error = unknown_name(path, "column", name, titles, bare)
    raise DataError(f"{error}{advice}") if advice else error
