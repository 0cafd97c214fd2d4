"""Recurrent layers over many steps, as two loops in the program instead of one copy per step.

Both loops go over blocks of a few unrolled steps, which share the overhead of an iteration. The
first loop stores the state at the beginning of each block; the second goes backwards, recomputes a
block from there, and computes its gradient (checkpointing: Chen et al. 2016, arXiv 1604.06174,
section 3). Memory grows with the number of blocks; the program does not grow with the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from models.export.backend import Tensor, keras, suppress_tensorflow_output, tf

# TensorFlow has no public name for the operator that becomes DYNAMIC_UPDATE_SLICE.
with suppress_tensorflow_output():
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

#: Largest number of steps that is unrolled. Measured with GRU(16), 32 rows: at 24 steps a loop
#: takes 1.7 times as long and 40 % of the bytes; at 100 steps 1.2 to 1.3 times as long and 9 %.
UNROLLED = 32
#: Candidate steps of a block; the one that leaves the fewest steps after the loop is taken. Blocks
#: of 10 or 16 steps are not faster, and each step adds to the program.
_BLOCKS = (5, 6, 4, 7)

Call = Callable[..., Any]


def recurrent_call(layer: Any, overrides: dict[str, str]) -> Call:
    """Returns a substitute for a recurrent layer's `call`.

    Args:
        layer: a `keras.layers.RNN` of any kind.
        overrides: gradients for `tf.Graph.gradient_override_map` in the second loop.
    """

    def call(
        sequences: Tensor, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        if sequences.shape[1] > UNROLLED and _can_loop(layer, initial_state, mask):
            return _looped(layer, sequences, overrides, initial_state, mask)
        with contextlib.ExitStack() as restored:
            if mask is not None and layer.go_backwards:
                # Unrolled, Keras 3.15 reverses the steps but not the mask that zeroes outputs.
                sequences, mask = tf.reverse(sequences, [1]), tf.reverse(mask, [1])
                layer.go_backwards = False
                restored.callback(setattr, layer, "go_backwards", True)
            return type(layer).call(
                layer, sequences, initial_state=initial_state, mask=mask, training=training
            )

    return call


def _can_loop(layer: Any, initial_state: Any, mask: Any) -> bool:
    """Whether a layer becomes loops; else it is unrolled."""
    if layer.return_state and _nested(layer.cell.state_size):
        return False
    # A masked step repeats the output before: of these layers their first state, which begins at 0.
    simple = isinstance(layer, keras.layers.SimpleRNN | keras.layers.GRU | keras.layers.LSTM)
    return mask is None or (simple and initial_state is None)


def _looped(
    layer: Any, sequences: Tensor, overrides: dict[str, str], initial_state: Any, mask: Any
) -> Any:
    if mask is not None:  # as the last feature
        told = tf.cast(tf.reshape(mask, [*sequences.shape[:2], 1]), tf.float32)
        sequences = tf.concat([sequences, told], -1)
    n, steps, features = sequences.shape
    x = tf.transpose(sequences, [1, 0, 2])
    if layer.go_backwards:
        x = tf.reverse(x, [0])
    size = min(_BLOCKS, key=lambda block: steps % block)
    blocks = steps // size
    weights = list(layer.weights)
    values = [tf.convert_to_tensor(variable) for variable in weights]
    shapes = [tuple(state.shape) for state in tf.nest.flatten(layer.get_initial_state(n))]
    # A 0 that is not a constant: constant tensors would enlarge the file.
    zero = tf.minimum(tf.abs(sequences[0, 0, 0]), 0.0)
    states = [tf.fill(shape, zero) for shape in shapes]
    if initial_state is not None:
        states = [tf.convert_to_tensor(state) for state in tf.nest.flatten(initial_state)]
    block = partial(_block, layer, weights, mask is not None)
    loop = _Loop(
        block=block,
        blocks=blocks,
        size=size,
        shape=(n, features),
        sequences=layer.return_sequences,
        states=shapes,
        zero=zero,
        overrides=overrides,
        needs_dx=_depends_on_theta(x),
    )
    first = tf.reshape(x[: blocks * size], [blocks, size * n * features])
    outputs, *states = tf.custom_gradient(loop.run)(first, *states, *values)
    rest = x[blocks * size :]
    if rest.shape[0]:
        more, states = block(rest, states, values, layer.return_sequences)
        outputs = tf.concat([outputs, more], 0) if layer.return_sequences else more
    if layer.return_sequences:
        outputs = tf.transpose(outputs, [1, 0, 2])
    return (outputs, *states) if layer.return_state else outputs


def _block(
    layer: Any,
    weights: Sequence[Any],
    masked: bool,
    x: Tensor,
    states: Sequence[Tensor],
    values: Sequence[Tensor],
    sequences: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Returns outputs (steps, n, units), or the last (n, units), and states after `x`.

    With `masked` the last feature of a step is 1, or 0 where the step leaves the states alone.
    """
    structure = layer.cell.state_size
    state = tf.nest.pack_sequence_as(structure, list(states)) if _nested(structure) else [*states]
    outputs = []
    with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
        for part in tf.split(x, x.shape[0], 0):
            step = tf.reshape(part, part.shape[1:])
            if masked:
                step, told = step[:, :-1], step[:, -1:]
            output, after = layer.cell(step, state)
            if masked:
                held = [
                    told * new + (1 - told) * old for new, old in zip(after, state, strict=True)
                ]
                output, after = held[0], held
                if getattr(layer, "zero_output_for_mask", False):
                    output = told * output
            state = after
            outputs.append(output)
    return tf.stack(outputs) if sequences else outputs[-1], tf.nest.flatten(state)


def _nested(structure: Any) -> bool:
    return isinstance(structure, list | tuple) and any(
        isinstance(part, list | tuple) for part in structure
    )


@dataclass(frozen=True, eq=False)
class _Loop:
    """Both loops over the blocks of one layer call.

    Attributes:
        block: computes a block: `_block` without its first arguments.
        blocks: number of blocks.
        size: steps of a block.
        shape: shape of one step's input.
        sequences: whether every step's output is returned, or only the last.
        states: shapes of the states.
        zero: scalar 0 that is not a constant.
        overrides: gradients for `tf.Graph.gradient_override_map`.
        needs_dx: whether the gradient of the input is needed.
    """

    block: Callable[..., tuple[Tensor, list[Tensor]]]
    blocks: int
    size: int
    shape: tuple[int, int]
    sequences: bool
    states: list[tuple[int, ...]]
    zero: Tensor
    overrides: dict[str, str]
    needs_dx: bool

    def run(self, x: Tensor, *tensors: Tensor) -> tuple[list[Tensor], Call]:
        """Returns outputs and last states, and their gradient function.

        Args:
            x: shape (blocks, steps of a block · rows · features).
            tensors: the initial states, then the weights.
        """
        count = len(self.states)
        values = tensors[count:]

        def iteration(index: Tensor, output: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
            states, stores = kept[:count], kept[count:]
            stores = tuple(map(partial(_put, index), stores, states))
            new, after = self._block(tf.gather(x, index), states, values)
            output = _put(index, output, new) if self.sequences else new
            return (index + 1, output, *after, *stores)

        stores = [tf.fill([self.blocks, prod(shape)], self.zero) for shape in self.states]
        start = (tf.constant(0), self._blank_output(tensors), *tensors[:count], *stores)
        _, output, *kept = self._while(iteration, start)
        after, stores = kept[:count], kept[count:]
        result = (
            tf.reshape(output, [-1, *self._output_shape(tensors)]) if self.sequences else output
        )
        return [result, *after], partial(self._gradient, x, values, stores)

    def _gradient(
        self, x: Tensor, values: Sequence[Tensor], stores: Sequence[Tensor], *dys: Tensor
    ) -> list[Tensor | None]:
        """Returns the gradients of x, initial states and weights."""
        count = len(self.states)
        dy, *dstates = dys
        if self.sequences:
            dy = tf.reshape(dy, [self.blocks, -1])

        def iteration(index: Tensor, last: Tensor, dx: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
            place = self.blocks - 1 - index
            states = [
                tf.reshape(tf.gather(store, place), shape)
                for store, shape in zip(stores, self.states, strict=True)
            ]
            part = tf.gather(x, place)
            inner = [tf.identity(value) for value in values]
            with tf.compat.v1.get_default_graph().gradient_override_map(self.overrides):
                output, after = self._block(part, states, inner)
            dout = tf.reshape(tf.gather(dy, place), output.shape) if self.sequences else last
            wanted = [*states, *inner, *([part] if self.needs_dx else [])]
            found = tf.gradients(
                [output, *after], wanted, [dout, *sums[:count]], unconnected_gradients="zero"
            )
            if self.needs_dx:
                dx = _put(place, dx, found.pop())
            totals = [a + b for a, b in zip(sums[count:], found[count:], strict=True)]
            return (index + 1, tf.zeros_like(last), dx, *found[:count], *totals)

        last = self.zero if self.sequences else dy
        dx = tf.fill(x.shape if self.needs_dx else [], self.zero)
        totals = [tf.fill(value.shape, self.zero) for value in values]
        start = (tf.constant(0), last, dx, *dstates, *totals)
        _, _, dx, *sums = self._while(iteration, start)
        return [dx if self.needs_dx else None, *sums]

    def _block(
        self, part: Tensor, states: Sequence[Tensor], values: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        steps = tf.reshape(part, [self.size, *self.shape])
        return self.block(steps, states, values, self.sequences)

    def _output_shape(self, tensors: Sequence[Tensor]) -> list[int]:
        """Returns the output shape of one step, by tracing it."""
        with tf.Graph().as_default():
            states = [tf.zeros(shape) for shape in self.states]
            values = [tf.zeros(value.shape) for value in tensors[len(self.states) :]]
            step = tf.zeros([1, *self.shape])
            return list(self.block(step, states, values, False)[0].shape)

    def _blank_output(self, tensors: Sequence[Tensor]) -> Tensor:
        shape = self._output_shape(tensors)
        whole = [self.blocks, self.size * prod(shape)] if self.sequences else shape
        return tf.fill(whole, self.zero)

    def _while(self, iteration: Call, start: Sequence[Tensor]) -> Any:
        limit = self.blocks
        return tf.while_loop(
            lambda index, *_: index < limit, iteration, start, parallel_iterations=1
        )


def _put(index: Tensor, store: Tensor, row: Tensor) -> Tensor:
    """Returns `store` with its row at `index` replaced."""
    update = tf.reshape(row, [1, store.shape[1]])
    return gen_xla_ops.xla_dynamic_update_slice(store, update, tf.stack([index, 0]))


def _depends_on_theta(tensor: Tensor) -> bool:
    """Whether a tensor depends on θ, so that its gradient is needed."""
    seen, waiting = set(), [tensor.op]
    while waiting:
        op = waiting.pop()
        if op.name in seen:
            continue
        seen.add(op.name)
        if op.type == "Placeholder" and op.name == "theta":
            return True
        waiting.extend(source.op for source in op.inputs)
    return False
