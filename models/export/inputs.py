"""Specs of inputs and targets: Keras's or the user's, under names that a program can use."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence, Set
from math import prod
from typing import Any

import msgspec

from fedge.errors import ExportError
from models.package.spec import RESERVED_NAMES, TensorSpec

log = logging.getLogger(__name__)

#: Keras numbers unnamed inputs consecutively in a process: not the same for every export.
_UNNAMED = re.compile(r"(keras_tensor|input|input_layer)(_\d+)?")


def input_specs(
    model: Any, given: Sequence[TensorSpec], reserved: Set[str] = frozenset()
) -> dict[str, TensorSpec]:
    """Returns the input specs in the model's order, by the names that the user knows.

    A name that a program cannot use (`weight`, `oil-temp`) is replaced, and the new one logged. An
    input of one number keeps its name as the name of its feature: its column in a .csv file.

    Args:
        model: a built model.
        given: specs that add what Keras lacks; empty, or one per input.
        reserved: names that inputs must not have, in addition to `RESERVED_NAMES`.

    Raises:
        ExportError: a shape or dtype is not supported, or `given` does not fit the model.
    """
    if given and len(given) != len(model.inputs):
        raise ExportError(f"{len(given)} input specs for a model of {len(model.inputs)} inputs")
    found: dict[str, TensorSpec] = {}
    taken = set(RESERVED_NAMES | reserved)
    for known, spec in _described(model, given):
        name = _free_name(spec.name, taken)
        taken.add(name)
        if name != known and not _UNNAMED.fullmatch(known):
            log.warning(
                "input %r of model %r is called %r in the package: programs cannot use the name; "
                "in a data file's section: inputs: {%s: {array: %s}}, or columns: [...]",
                known, model.name, name, name, known, extra={"event": "input_renamed"},
            )  # fmt: skip
            if not spec.features and prod(spec.shape) == 1:
                spec = msgspec.structs.replace(spec, features=(known,))
        found[known if known not in found else name] = msgspec.structs.replace(spec, name=name)
    return found


def _described(model: Any, given: Sequence[TensorSpec]) -> Iterator[tuple[str, TensorSpec]]:
    """Returns (name that the user knows, spec) of each input."""
    for index, tensor in enumerate(model.inputs):
        shape, dtype = tuple(tensor.shape[1:]), tensor.dtype
        if None in shape:
            raise ExportError(
                f"input {tensor.name!r} has shape {shape}: every side must be known, "
                "give keras.Input a full shape"
            )
        if dtype not in ("float32", "int32"):
            raise ExportError(f"input {tensor.name!r} is {dtype}: use float32 or int32")
        if not given:
            default = "input" if len(model.inputs) == 1 else f"input_{index}"
            try:
                yield tensor.name, TensorSpec(_identifier(tensor.name, default), shape, dtype)
            except ValueError as error:
                raise ExportError(f"input {index}: {error}: keras.Input(name=...)") from error
        elif (given[index].shape, given[index].dtype) == (shape, dtype):
            yield given[index].name, given[index]
        else:
            raise ExportError(
                f"input spec {given[index].name!r} is {given[index].dtype} {given[index].shape}, "
                f"the model's input {index} is {dtype} {shape}"
            )


def _identifier(name: str, default: str) -> str:
    if _UNNAMED.fullmatch(name):
        return default
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() and plain.isascii() else default


def _free_name(name: str, taken: Set[str]) -> str:
    """Returns `name`, or with a suffix if it is taken: `weight_input`, `weight_input_1`."""
    if name not in taken:
        return name
    found, number = f"{name}_input", 0
    while found in taken:
        number += 1
        found = f"{name}_input_{number}"
    return found


def target_specs(found: Sequence[TensorSpec], given: Sequence[TensorSpec]) -> Iterator[TensorSpec]:
    """Returns the model's targets, with what those of `given` say beyond name and classes."""
    if given and len(given) != len(found):
        raise ExportError(f"{len(given)} target specs for a model of {len(found)} targets")
    for target, described in zip(found, given or found, strict=True):
        if (described.shape, described.dtype) != (target.shape, target.dtype):
            raise ExportError(
                f"target spec {described.name!r} is {described.dtype} {described.shape}, "
                f"the loss takes {target.dtype} {target.shape}"
            )
        yield msgspec.structs.replace(
            described, name=target.name, classes=described.classes or target.classes
        )
