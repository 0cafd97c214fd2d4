"""What operators need while a plan is built: values, memory, and the list of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import prod
from typing import Any

import numpy as np

from fedge.errors import ModelError
from models.inspect.flatbuffer import Table
from models.vectorized.axes import (
    Array,
    Axes,
    Rows,
    UnsupportedError,
    broadcast,
    physical,
    recorded,
)
from models.vectorized.graph import kind_name
from models.vectorized.memory import Block, Pool

#: `ActivationFunctionType` of the schema.
_NO_ACTIVATION, _RELU, _RELU_N1, _RELU6, _TANH = range(5)
ZERO, ONE, SIX = (np.array(number, np.float32) for number in (0, 1, 6))


#: Call of numpy with all its arguments.
Step = partial[Any]


class Level(IntEnum):
    """What a value depends on; the result of an operator has the highest level of its inputs."""

    #: The program alone: computed when the plan is built.
    CONSTANT = 0
    #: Inputs that all agents share: computed once a call.
    SHARED = 1
    #: An input of each agent: its array has a leading axis of agents.
    AGENTS = 2


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor.

    Attributes:
        array: where its numbers are, always the same memory.
        axes: without the axis of agents.
        level: what it depends on.
        block: the memory, if it is freed when nothing needs it any more.
        nonnegative: whether no number is below 0.
    """

    array: Array
    axes: Axes
    level: Level
    block: Block | None = None
    nonnegative: bool = False

    def aligned(self, rank: int) -> Array:
        """Returns the array so that it broadcasts with tensors of `rank` axes."""
        missing = rank - len(self.axes)
        if self.level < Level.AGENTS or missing <= 0:
            return self.array
        return self.array[(slice(None), *(None,) * missing)]

    @property
    def lead(self) -> int:
        """Returns 1 if there is an axis of agents, else 0: added to the number of an axis."""
        return int(self.level == Level.AGENTS)


@dataclass(frozen=True, eq=False)
class Operation:
    """Operator with its inputs.

    Attributes:
        kind: `BuiltinOperator` of the schema.
        inputs: None where it has none.
        dying: of each input, whether nothing needs it afterwards.
        options: its options, if it has any.
        shapes: of the outputs, in the program.
        dtypes: of the outputs.
        places: memory that an output must lie in, if it has an axis of agents.
    """

    kind: int
    inputs: tuple[Value | None, ...]
    dying: tuple[bool, ...]
    options: Table | None
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    places: tuple[Array | None, ...]

    @property
    def name(self) -> str:
        """Returns the operator's name."""
        return kind_name(self.kind)

    @property
    def values(self) -> list[Value]:
        """Returns the inputs that are given."""
        return [value for value in self.inputs if value is not None]

    def value(self, at: int) -> Value:
        """Returns an input that must be given."""
        value = self.inputs[at] if at < len(self.inputs) else None
        if value is None:
            raise ModelError(f"the program is damaged: {self.name} lacks its input {at}")
        return value

    def optional(self, at: int) -> Value | None:
        """Returns an input that may be left out."""
        return self.inputs[at] if at < len(self.inputs) else None

    def constant(self, at: int, rows: Rows) -> Array:
        """Returns an input that must be known when the plan is built (a shape, an axis)."""
        value = self.value(at)
        if value.level != Level.CONSTANT:
            raise UnsupportedError(f"{self.name} with a computed shape runs on an interpreter only")
        return np.broadcast_to(value.array, recorded(value.axes, rows))

    def option(self, field: int, form: str = "<b", default: int = 0) -> int:
        """Returns an option by its number in the schema."""
        return default if self.options is None else self.options.number(field, form, default)

    def real(self, field: int, default: float = 0.0) -> float:
        """Returns a float32 option by its number in the schema."""
        given = self.option(field, "<I", -1)
        return default if given < 0 else float(np.array(given, np.uint32).view(np.float32))


class Builder:
    """Memory and steps of a plan under construction.

    Attributes:
        agents: length of the axis of agents.
        rows: number of rows.
        steps: what a call does, for the levels SHARED and AGENTS.
    """

    def __init__(self, agents: int, rows: Rows) -> None:
        self.agents = agents
        self.rows = rows
        self.pool = Pool()
        self.steps: dict[Level, list[Step]] = {Level.SHARED: [], Level.AGENTS: []}

    def do(self, level: Level, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Adds a step, or runs it at once if it depends on nothing."""
        step = partial(function, *args, **options)
        if level == Level.CONSTANT:
            step()
        else:
            self.steps[level].append(step)

    def new(
        self,
        axes: Axes,
        dtype: Any,
        level: Level,
        place: Array | None = None,
        *,
        nonnegative: bool = False,
    ) -> Value:
        """Returns a value with memory of its own, or in `place`."""
        shape = physical(axes, self.rows)
        if level < Level.AGENTS:
            return Value(np.zeros(shape, dtype), axes, level, nonnegative=nonnegative)
        shape = (self.agents, *shape)
        if place is not None and place.shape == shape and place.dtype == dtype:
            return Value(place, axes, level, nonnegative=nonnegative)
        block = self.pool.take(prod(shape) * np.dtype(dtype).itemsize)
        return Value(block.array(shape, dtype), axes, level, block, nonnegative)

    def output(
        self,
        operation: Operation,
        axes: Axes,
        level: Level,
        *,
        over: Sequence[int] = (),
        at: int = 0,
        nonnegative: bool = False,
    ) -> Value:
        """Returns the value that an operator writes.

        Args:
            operation: the operator.
            axes: of the output.
            level: of the output.
            over: inputs that the output may take the memory of, if nothing needs them afterwards:
                for operators that read a number before they write it.
            at: number of the output.
            nonnegative: whether no number is below 0.
        """
        dtype, place = operation.dtypes[at], operation.places[at]
        if level == Level.AGENTS and place is None:
            shape = (self.agents, *physical(axes, self.rows))
            for number in over:
                value = operation.inputs[number]
                if (
                    value is not None
                    and operation.dying[number]
                    and value.block is not None
                    and value.block.holders == 1
                    and value.array.shape == shape
                    and value.array.dtype == dtype
                    and value.array.flags.c_contiguous
                ):
                    value.block.holders += 1
                    return Value(value.array, axes, level, value.block, nonnegative)
        return self.new(axes, dtype, level, place, nonnegative=nonnegative)

    def view(self, value: Value, array: Array, axes: Axes) -> Value:
        """Returns a view of a value as another one."""
        if value.block is not None:
            value.block.holders += 1
        return Value(array, axes, value.level, value.block, value.nonnegative)

    def free(self, value: Value) -> None:
        """Frees a value that only one operator needed."""
        self.pool.release(value.block)

    def joined(self, values: Sequence[Value]) -> tuple[Axes, Level]:
        """Returns axes and level of what these values give element by element."""
        axes = broadcast([value.axes for value in values], self.rows)
        return axes, max(value.level for value in values)

    def activate(self, value: Value, code: int) -> Value:
        """Adds a fused activation, in place."""
        level, array = value.level, value.array
        match code:
            case 0:
                return value
            case 1:
                self.relu(value, array)
            case 2:
                self.do(level, np.clip, array, -ONE, ONE, array)
            case 3:
                self.do(level, np.clip, array, ZERO, SIX, array)
            case 4:
                self.do(level, np.tanh, array, array)
            case _:
                raise UnsupportedError(f"activation {code} runs on an interpreter only")
        return Value(array, value.axes, level, value.block, nonnegative=code in {_RELU, _RELU6})

    def relu(self, value: Value, out: Array) -> None:
        """Adds max(x, 0): with a 0 for each number of an agent, as one 0 takes twice the time."""
        zeros = np.zeros(physical(value.axes, self.rows), np.float32)
        self.do(value.level, np.maximum, value.array, zeros, out)


#: Returns the outputs of an operator, after adding its steps.
OperatorFunction = Callable[[Builder, Operation], Sequence[Value]]
