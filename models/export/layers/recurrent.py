"""Recurrent layers over many steps, as two loops in the program instead of one copy a step.

Both loops go over blocks of some steps, unrolled, which share what a turn costs beyond its work.
The first keeps the state at the beginning of each block; the second goes backwards, computes a
block once more from there, and its gradient (checkpointing: Chen et al. 2016, arXiv 1604.06174,
section 3). So memory grows with the blocks, and the program does not grow with the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from models.export.backend import Tensor, hushed, keras, tf

# TensorFlow has no public name for the operator that becomes DYNAMIC_UPDATE_SLICE.
with hushed():
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

#: Steps up to which a layer is unrolled. Measured with GRU(16), 32 rows: at 24 steps a loop takes
#: 1.7 times as long and 40 % of the bytes; at 100 steps 1.2 to 1.3 times as long and 9 %.
UNROLLED = 32
#: Steps of a block; the first that leaves the fewest steps for after the loop is taken. Blocks of
#: 10 or 16 steps are no faster, and every step adds its bytes.
_BLOCKS = (5, 6, 4, 7)

Call = Callable[..., Any]


def recurrent_call(layer: Any, overrides: dict[str, str]) -> Call:
    """In place of a recurrent layer's `call`.

    Args:
        layer: a `keras.layers.RNN` of any kind.
        overrides: for `tf.Graph.gradient_override_map`, in the second loop.
    """

    def call(
        sequences: Tensor, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        long = sequences.shape[1] > UNROLLED
        if long and mask is None and initial_state is None and not layer.return_state:
            return _looped(layer, sequences, overrides)
        with contextlib.ExitStack() as turned:
            if mask is not None and layer.go_backwards:
                # Unrolled, Keras 3.15 turns the steps and not the mask by which it zeroes outputs.
                sequences, mask = tf.reverse(sequences, [1]), tf.reverse(mask, [1])
                layer.go_backwards = False
                turned.callback(setattr, layer, "go_backwards", True)
            return type(layer).call(
                layer, sequences, initial_state=initial_state, mask=mask, training=training
            )

    return call


def _looped(layer: Any, sequences: Tensor, overrides: dict[str, str]) -> Tensor:
    n, steps, features = sequences.shape
    x = tf.transpose(sequences, [1, 0, 2])
    if layer.go_backwards:
        x = tf.reverse(x, [0])
    size = min(_BLOCKS, key=lambda block: steps % block)
    blocks = steps // size
    weights = list(layer.weights)
    values = [tf.convert_to_tensor(variable) for variable in weights]
    shapes = [tuple(state.shape) for state in tf.nest.flatten(layer.get_initial_state(n))]
    # A number that is 0 and no constant: constants would fill the file.
    zero = tf.minimum(tf.abs(sequences[0, 0, 0]), 0.0)
    states = [tf.fill(shape, zero) for shape in shapes]
    loop = _Loop(
        block=partial(_block, layer, weights),
        blocks=blocks,
        size=size,
        shape=(n, features),
        sequences=layer.return_sequences,
        states=shapes,
        zero=zero,
        overrides=overrides,
        backwards_to_x=_depends_on_theta(x),
    )
    first = tf.reshape(x[: blocks * size], [blocks, size * n * features])
    outputs, *states = tf.custom_gradient(loop.run)(first, *states, *values)
    rest = x[blocks * size :]
    if rest.shape[0]:
        more, states = _block(layer, weights, rest, states, values, layer.return_sequences)
        outputs = tf.concat([outputs, more], 0) if layer.return_sequences else more
    return tf.transpose(outputs, [1, 0, 2]) if layer.return_sequences else outputs


def _block(
    layer: Any,
    weights: Sequence[Any],
    x: Tensor,
    states: Sequence[Tensor],
    values: Sequence[Tensor],
    sequences: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Outputs (steps, n, units), or the last one (n, units), and states after `x` (steps, n, …)."""
    structure = layer.cell.state_size
    state = tf.nest.pack_sequence_as(structure, list(states)) if _nested(structure) else [*states]
    outputs = []
    with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
        for part in tf.split(x, x.shape[0], 0):
            output, state = layer.cell(tf.reshape(part, part.shape[1:]), state)
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
        block: of steps, as `_block` without layer and weights.
        blocks: how many.
        size: steps in each.
        shape: of one step's input.
        sequences: whether every step's output is wanted, or the last one's.
        states: their shapes.
        zero: a number.
        overrides: of gradients.
        backwards_to_x: whether anybody wants the gradient of the input.
    """

    block: Callable[..., tuple[Tensor, list[Tensor]]]
    blocks: int
    size: int
    shape: tuple[int, int]
    sequences: bool
    states: list[tuple[int, ...]]
    zero: Tensor
    overrides: dict[str, str]
    backwards_to_x: bool

    def run(self, x: Tensor, *tensors: Tensor) -> tuple[list[Tensor], Call]:
        """Outputs and last states; and their gradient.

        Args:
            x: (blocks, steps of a block · rows · features).
            tensors: the states before, then the weights.
        """
        count = len(self.states)
        values = tensors[count:]

        def turn(index: Tensor, output: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
            states, stores = kept[:count], kept[count:]
            stores = tuple(map(partial(_put, index), stores, states))
            new, after = self._block(tf.gather(x, index), states, values)
            output = _put(index, output, new) if self.sequences else new
            return (index + 1, output, *after, *stores)

        stores = [tf.fill([self.blocks, prod(shape)], self.zero) for shape in self.states]
        start = (tf.constant(0), self._blank_output(tensors), *tensors[:count], *stores)
        _, output, *kept = self._while(turn, start)
        after, stores = kept[:count], kept[count:]
        result = (
            tf.reshape(output, [-1, *self._output_shape(tensors)]) if self.sequences else output
        )
        return [result, *after], partial(self._gradient, x, values, stores)

    def _gradient(
        self, x: Tensor, values: Sequence[Tensor], stores: Sequence[Tensor], *dys: Tensor
    ) -> list[Tensor | None]:
        """Of x, the states before, and the weights; `dys`: of the outputs and the last states."""
        count = len(self.states)
        dy, *dstates = dys
        if self.sequences:
            dy = tf.reshape(dy, [self.blocks, -1])

        def turn(index: Tensor, last: Tensor, dx: Tensor, *sums: Tensor) -> tuple[Tensor, ...]:
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
            wanted = [*states, *inner, *([part] if self.backwards_to_x else [])]
            found = tf.gradients(
                [output, *after], wanted, [dout, *sums[:count]], unconnected_gradients="zero"
            )
            if self.backwards_to_x:
                dx = _put(place, dx, found.pop())
            totals = [a + b for a, b in zip(sums[count:], found[count:], strict=True)]
            return (index + 1, tf.zeros_like(last), dx, *found[:count], *totals)

        last = self.zero if self.sequences else dy
        dx = tf.fill(x.shape if self.backwards_to_x else [], self.zero)
        totals = [tf.fill(value.shape, self.zero) for value in values]
        start = (tf.constant(0), last, dx, *dstates, *totals)
        _, _, dx, *sums = self._while(turn, start)
        return [dx if self.backwards_to_x else None, *sums]

    def _block(
        self, part: Tensor, states: Sequence[Tensor], values: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        steps = tf.reshape(part, [self.size, *self.shape])
        return self.block(steps, states, values, self.sequences)

    def _output_shape(self, tensors: Sequence[Tensor]) -> list[int]:
        """Of one step, as tracing one says."""
        with tf.Graph().as_default():
            states = [tf.zeros(shape) for shape in self.states]
            values = [tf.zeros(value.shape) for value in tensors[len(self.states) :]]
            step = tf.zeros([1, *self.shape])
            return list(self.block(step, states, values, False)[0].shape)

    def _blank_output(self, tensors: Sequence[Tensor]) -> Tensor:
        shape = self._output_shape(tensors)
        whole = [self.blocks, self.size * prod(shape)] if self.sequences else shape
        return tf.fill(whole, self.zero)

    def _while(self, turn: Call, start: Sequence[Tensor]) -> Any:
        limit = self.blocks
        return tf.while_loop(lambda index, *_: index < limit, turn, start, parallel_iterations=1)


def _put(index: Tensor, store: Tensor, row: Tensor) -> Tensor:
    """`store` with another row at `index`."""
    update = tf.reshape(row, [1, store.shape[1]])
    return gen_xla_ops.xla_dynamic_update_slice(store, update, tf.stack([index, 0]))


def _depends_on_theta(tensor: Tensor) -> bool:
    """Whether weights are in it, so that its gradient is wanted."""
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
