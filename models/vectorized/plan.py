"""Plan: the steps in numpy that compute a signature's outputs for a number of agents and rows.

All arrays are made when the plan is, with every view that its steps need; a call copies its inputs
into them and runs the steps. Operators on what all agents share run once a call.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import prod

import numpy as np

from fedge.errors import ModelError, one_line
from models.inspect.flatbuffer import Operator
from models.inspect.operators import Kind
from models.vectorized import elementwise, moving, products, reducing, windows
from models.vectorized.axes import (
    Array,
    Axes,
    Batch,
    FixedBatchError,
    Rows,
    UnsupportedError,
    loosened,
    recorded,
)
from models.vectorized.building import Builder, Level, Operation, OperatorFunction, Step, Value
from models.vectorized.graph import Graph, kind_name

OPERATORS: dict[int, OperatorFunction] = {
    **elementwise.OPERATORS,
    **moving.OPERATORS,
    **products.OPERATORS,
    **reducing.OPERATORS,
    **windows.OPERATORS,
}
#: Arrays of fewer bytes are copied: that takes less time than views of another array.
_LEAST_LENT = 1 << 16
#: Largest plan: a damaged program may ask for anything.
_MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Wanted:
    """What a plan is for.

    Attributes:
        agents: length of the axis of agents.
        rows: rows of an agent.
        shared: inputs that all agents share.
        outputs: outputs that are needed.
        parameters: inputs without an axis of rows (θ, frozen numbers).
    """

    agents: int
    rows: Rows
    shared: Collection[str]
    outputs: Sequence[str]
    parameters: Collection[str]


@dataclass(frozen=True)
class _Use:
    """Argument of a step that is a view of an input or output."""

    step: int
    argument: int
    offset: int
    view: Array

    def lent(self, step: Step, array: Array) -> Step:
        """Returns the step with the same view of another array."""
        view, args = self.view, list(step.args)
        args[self.argument] = np.ndarray(view.shape, view.dtype, array, self.offset, view.strides)
        return partial(step.func, *args, **step.keywords)


def _uses(steps: Sequence[Step], array: Array) -> list[_Use]:
    """Returns every argument that lies in an array; none if something else than arguments does."""
    start, found = array.ctypes.data, []
    for number, step in enumerate(steps):
        if any(isinstance(o, np.ndarray) and _inside(o, array) for o in step.keywords.values()):
            return []
        for at, argument in enumerate(step.args):
            if isinstance(argument, np.ndarray) and _inside(argument, array):
                found.append(_Use(number, at, argument.ctypes.data - start, argument))
    return found


def _inside(view: Array, array: Array) -> bool:
    start = array.ctypes.data
    return start <= view.ctypes.data < start + array.nbytes


class Plan:
    """Steps of a signature, with their memory.

    Args:
        graph: the signature.
        wanted: numbers of agents and rows, and outputs.

    Attributes:
        inputs: arrays that a call fills, by name; with an axis of agents unless they are shared.
        outputs: arrays that a call leaves, by name, and whether they have an axis of agents.
        bytes: memory of all values.

    Raises:
        UnsupportedError: an operator, or how it is used, runs on an interpreter only.
        FixedBatchError: the program cannot be followed with another number of rows.
        ModelError: the program is damaged.
    """

    def __init__(self, graph: Graph, wanted: Wanted) -> None:
        self._graph = graph
        self._builder = Builder(wanted.agents, wanted.rows)
        self._values: dict[int, Value] = {}
        self._last: dict[int, int] = {}
        self._places: dict[int, Array] = {}
        self.inputs = {name: self._input(name, wanted) for name in graph.inputs}
        try:
            self._build(wanted)
        except UnsupportedError:
            raise
        except (ValueError, IndexError, TypeError, AttributeError, ZeroDivisionError,
                OverflowError, MemoryError, struct.error) as error:  # fmt: skip
            # numpy and struct refuse what shapes or options of a damaged program ask for.
            raise ModelError(f"the program is damaged: {one_line(error)}") from error
        found = {name: self._values[graph.outputs[name]] for name in wanted.outputs}
        self.outputs = {name: (v.array, v.level == Level.AGENTS) for name, v in found.items()}
        steps = self._builder.steps
        self._shared_steps, self._steps = steps[Level.SHARED], steps[Level.AGENTS]
        own = {name: array for name, array in self.inputs.items() if name not in wanted.shared}
        for name in wanted.outputs:  # memory of its own, which no other value shares
            place = self._places.get(graph.outputs[name])
            if place is not None and place is found[name].array:
                own[name] = place
        self._uses = {name: _uses(self._steps, array) for name, array in own.items()}
        inputs = sum(array.nbytes for array in self.inputs.values())
        self.bytes = inputs + self._builder.pool.bytes

    def run_shared(self) -> None:
        """Runs the steps on inputs that all agents share."""
        for step in self._shared_steps:
            step()

    def can_lend(self, name: str, array: Array) -> bool:
        """Returns whether `run` can use an array instead of its own of that name.

        Copying is as fast for small ones.
        """
        if not self._uses.get(name):
            return False
        own = self.inputs[name] if name in self.inputs else self.outputs[name][0]
        fits = array.shape == own.shape and array.dtype == own.dtype and array.flags.c_contiguous
        return fits and array.nbytes >= _LEAST_LENT

    def run(self, lent: Mapping[str, Array]) -> None:
        """Runs the steps on inputs of each agent.

        Args:
            lent: arrays to use instead of those in `inputs` and `outputs`, which are not touched.
        """
        steps = self._steps
        if lent:
            steps = list(steps)
            for name, array in lent.items():
                for use in self._uses[name]:
                    steps[use.step] = use.lent(steps[use.step], array)
        for step in steps:
            step()

    def _input(self, name: str, wanted: Wanted) -> Array:
        number, rows = self._graph.inputs[name], wanted.rows
        shape = self._graph.shape(number)
        axes: Axes = shape
        if name not in wanted.parameters:
            axes = (Batch(1, 1) if rows.follow else rows.now, *shape[1:])
        level = Level.SHARED if name in wanted.shared else Level.AGENTS
        array = self._builder.new(axes, self._graph.dtype(number), level).array
        self._values[number] = Value(array, axes, level)
        return array

    def _build(self, wanted: Wanted) -> None:
        operators = self._graph.needed(wanted.outputs)
        for number, constant in self._graph.constants.items():
            array, axes = loosened(constant, wanted.rows)
            self._values[number] = Value(array, axes, Level.CONSTANT)
        for step, operator in enumerate(operators):
            self._last |= dict.fromkeys(operator.inputs, step)
            self._last |= dict.fromkeys(operator.outputs, step)
        kept = (self._graph.outputs[name] for name in wanted.outputs)
        self._last |= dict.fromkeys(kept, len(operators))
        self._place_gradient(operators, wanted)
        for step, operator in enumerate(operators):
            self._add(step, operator)
        for name in wanted.outputs:
            value = self._values.get(self._graph.outputs[name])
            if value is None:
                raise ModelError(f"the program is damaged: nothing writes the output {name}")
            # Only predictions have rows, in front.
            inner = value.axes[1:] if value.axes[:1] == (Batch(1, 1),) else value.axes
            if not all(isinstance(axis, int) for axis in inner):
                raise FixedBatchError(f"the output {name} has axes {value.axes}")

    def _add(self, step: int, operator: Operator) -> None:
        function = OPERATORS.get(operator.kind)
        if function is None:
            raise UnsupportedError(f"{kind_name(operator.kind)} runs on an interpreter only")
        graph = self._graph
        if not all(number < 0 or number in self._values for number in operator.inputs):
            raise ModelError(
                f"the program is damaged: {kind_name(operator.kind)} reads what nothing writes"
            )
        operation = Operation(
            operator.kind,
            tuple(self._values.get(number) for number in operator.inputs),
            tuple(self._last.get(number) == step for number in operator.inputs),
            operator.options,
            tuple(graph.shape(number) for number in operator.outputs),
            tuple(graph.dtype(number) for number in operator.outputs),
            tuple(self._places.get(number) for number in operator.outputs),
        )
        if sum(prod(shape) for shape in operation.shapes) * self._builder.agents * 4 > _MAX_BYTES:
            raise ModelError(f"{operation.name} makes {operation.shapes}: too large")
        found = function(self._builder, operation)
        for number, value in zip(operator.outputs, found, strict=True):
            shape = recorded(value.axes, self._builder.rows)
            if shape != graph.shape(number) or value.array.dtype != graph.dtype(number):
                raise UnsupportedError(
                    f"{operation.name} gives {value.array.dtype} {shape} here, the program says "
                    f"{graph.dtype(number)} {graph.shape(number)}"
                )
            self._values[number] = value
        for number in {*operator.inputs, *operator.outputs}:
            if self._last.get(number) == step and number in self._values:
                self._builder.pool.release(self._values[number].block)

    def _place_gradient(self, operators: Sequence[Operator], wanted: Wanted) -> None:
        """Lets the parts of the gradient be computed where they belong in the vector.

        The vector is the CONCATENATION of parts, each usually the flat form of a matrix.
        """
        graph, builder = self._graph, self._builder
        maker = {number: operator for operator in operators for number in operator.outputs}
        users: dict[int, int] = {}
        for operator in operators:
            for number in operator.inputs:
                users[number] = users.get(number, 0) + 1
        for name in wanted.outputs:
            vector = graph.outputs[name]
            last = maker.get(vector)
            if last is None or last.kind != Kind.CONCATENATION or len(graph.shape(vector)) != 1:
                continue
            place = np.zeros((builder.agents, *graph.shape(vector)), np.float32)
            self._places[vector] = place
            lengths = [prod(graph.shape(number)) for number in last.inputs]
            for part, length, stop in zip(last.inputs, lengths, accumulate(lengths), strict=True):
                number, piece = part, place[:, stop - length : stop]
                while users.get(number) == 1 and (made := maker.get(number)) is not None:
                    self._places[number] = piece.reshape(builder.agents, *graph.shape(number))
                    if made.kind != Kind.RESHAPE:
                        break
                    number = made.inputs[0]
