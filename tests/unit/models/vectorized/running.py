"""Runs one operator on arrays of several agents, without a program around it."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from models.inspect.flatbuffer import Table
from models.vectorized.axes import Array, Batch, Rows
from models.vectorized.building import Builder, Level, Operation, Value
from models.vectorized.plan import OPERATORS

AGENTS = 3


def table(fields: Mapping[int, float]) -> Table:
    """Options by field number: a FlatBuffers table of 32-bit fields, floats as float32."""
    count = max(fields, default=-1) + 1
    layout = [4 + 2 * count, 4 + 4 * count]
    layout += [4 + 4 * at if at in fields else 0 for at in range(count)]
    head = struct.pack(f"<{len(layout)}H", *layout)
    body = struct.pack("<i", len(head))
    for at in range(count):
        number = fields.get(at, 0)
        body += struct.pack("<f" if isinstance(number, float) else "<i", number)
    return Table(head + body, len(head))


def run(
    kind: int,
    inputs: Sequence[Array],
    shape: Sequence[int],
    *,
    options: Mapping[int, float] | None = None,
    own: Sequence[int] = (0,),
    dtype: Any = np.float32,
    outputs: int = 1,
) -> list[Array]:
    """Returns the outputs for each of AGENTS agents.

    Args:
        kind: the operator.
        inputs: arrays; those in `own` with an axis of agents in front, the others constants.
        shape: of each output, without the axis of agents.
        options: by field number.
        own: numbers of the inputs that each agent has its own of.
        dtype: of the outputs.
        outputs: how many there are.
    """
    builder = Builder(AGENTS, Rows(1, 1, follow=False))
    values = [
        Value(array.copy(), array.shape[1:], Level.AGENTS)
        if at in own
        else Value(array, array.shape, Level.CONSTANT)
        for at, array in enumerate(inputs)
    ]
    operation = Operation(
        kind,
        tuple(values),
        (False,) * len(values),
        None if options is None else table(options),
        (tuple(shape),) * outputs,
        (np.dtype(dtype),) * outputs,
        (None,) * outputs,
    )
    found = OPERATORS[kind](builder, operation)
    with np.errstate(all="ignore"):
        for level in (Level.SHARED, Level.AGENTS):
            for step in builder.steps[level]:
                step()
    return [
        value.array
        if value.level == Level.AGENTS
        else np.broadcast_to(value.array, (AGENTS, *value.array.shape))
        for value in found
    ]


def rows_of(now: int, recorded: int) -> Rows:
    return Rows(now, recorded, follow=True)


BATCH = Batch(1, 1)
