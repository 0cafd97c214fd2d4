"""A converted program made faster and smaller, operator by operator, in TFLite's own terms.

What the converter chooses suits constant weights. Here they are cut from θ, and other operators
are faster: XNNPACK multiplies any two matrices, if neither is to be transposed on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from models.runtime.program import MAIN_SIGNATURE

Operators = schema.BuiltinOperator
#: Multiplications below which a transposed operand is left to the operator: one more operator
#: takes about a microsecond.
_SMALL_PRODUCT = 1 << 16


def polish(model: Any) -> None:
    """Rewrites a `ModelT` in place; it computes the same, up to the order of sums."""
    _training_first(model)
    for subgraph in model.subgraphs:
        graph = _Graph(model, subgraph)
        graph.find_transposed()
        graph.rewrite(_plain_product)
        graph.rewrite(_pairwise_sum)
        _drop_copies(graph)
    _share_buffers(model)


def _training_first(model: Any) -> None:
    """The step of training becomes the main subgraph, which interpreters run with least ado."""
    key = MAIN_SIGNATURE.encode()
    main = next(s.subgraphIndex for s in model.signatureDefs if s.signatureKey == key)
    others = [index for index in range(len(model.subgraphs)) if index != main]
    order = [main, *others]
    places = {old: new for new, old in enumerate(order)}
    model.subgraphs = [model.subgraphs[index] for index in order]
    for signature in model.signatureDefs:
        signature.subgraphIndex = places[signature.subgraphIndex]
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            # WHILE, IF and the like name the subgraphs they run.
            options = vars(operator.builtinOptions) if operator.builtinOptions else {}
            for name, index in options.items():
                if name.endswith("SubgraphIndex"):
                    setattr(operator.builtinOptions, name, places[index])


@dataclass
class _Graph:
    """One subgraph while operators are replaced."""

    model: Any
    subgraph: Any
    #: Tensor -> the one with its last two axes exchanged.
    transposed: dict[int, int] = field(default_factory=dict)

    def find_transposed(self) -> None:
        """What need not be transposed back."""
        for operator in self.subgraph.operators:
            if self.kind(operator) == Operators.TRANSPOSE:
                source, axes = (int(index) for index in operator.inputs)
                data = self.model.buffers[self.subgraph.tensors[axes].buffer].data
                order = [] if data is None else np.frombuffer(bytes(data), "<i4").tolist()
                if order == _exchanged(len(order)):
                    self.transposed[int(operator.outputs[0])] = source

    def rewrite(self, rule: Callable[[_Graph, Any], list[Any] | None]) -> None:
        """Every operator replaced by what `rule` makes of it; None leaves it."""
        operators = []
        for operator in self.subgraph.operators:
            replaced = rule(self, operator)
            operators.extend([operator] if replaced is None else replaced)
        self.subgraph.operators = operators

    def kind(self, operator: Any) -> int:
        """The `BuiltinOperator`."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return int(max(code.builtinCode, code.deprecatedBuiltinCode))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Of a tensor; () for a number."""
        shape = self.subgraph.tensors[tensor].shape
        return () if shape is None else tuple(int(side) for side in shape)

    def tensor(self, shape: tuple[int, ...], like: int) -> int:
        """A new tensor of the type of `like`."""
        new = schema.TensorT()
        new.shape, new.type, new.buffer = list(shape), self.subgraph.tensors[like].type, 0
        self.subgraph.tensors.append(new)
        return len(self.subgraph.tensors) - 1

    def constant(self, values: list[int]) -> int:
        """An int32 vector in a buffer of its own."""
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.array(values, "<i4").tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        new = schema.TensorT()
        new.shape, new.type = [len(values)], schema.TensorType.INT32
        new.buffer = len(self.model.buffers) - 1
        self.subgraph.tensors.append(new)
        return len(self.subgraph.tensors) - 1

    def operator(
        self, kind: int, inputs: list[int], output: int, options: str, **values: Any
    ) -> Any:
        """A new operator with one output; `options` is the schema's name of its options."""
        new = schema.OperatorT()
        new.opcodeIndex = self._code(kind)
        new.inputs, new.outputs = inputs, [output]
        new.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        new.builtinOptions = getattr(schema, f"{options}T")()
        for name, value in values.items():
            setattr(new.builtinOptions, name, value)
        return new

    def _code(self, kind: int) -> int:
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == kind:
                return index
        new = schema.OperatorCodeT()
        new.builtinCode, new.deprecatedBuiltinCode, new.version = kind, min(kind, 127), 1
        self.model.operatorCodes.append(new)
        return len(self.model.operatorCodes) - 1


def _plain_product(graph: _Graph, operator: Any) -> list[Any] | None:
    """FULLY_CONNECTED and BATCH_MATMUL -> the product of two matrices as they lie in memory.

    Transposed operands become operators of their own, and where the right one is a matrix, the left
    one becomes one too: tflite-runtime 2.14 repeats the right one for every matrix on the left.
    """
    turns = _turns(graph, operator)
    if turns is None:
        return None
    left, right = (int(index) for index in operator.inputs[:2])
    output = int(operator.outputs[0])
    flat = len(graph.shape(right)) == 2 and len(graph.shape(left)) != 2
    if not (any(turns) or flat):
        return None
    depth = graph.shape(right)[-1 if turns[1] else -2]
    if prod(graph.shape(output)) * depth < _SMALL_PRODUCT:
        return None
    new: list[Any] = []
    left = _turned(graph, left, new) if turns[0] else left
    right = _turned(graph, right, new) if turns[1] else right
    product = output
    if flat:
        left = _reshaped(graph, left, (-1, depth), new)
        if len(graph.shape(output)) != 2:
            rows, units = graph.shape(left)[0], graph.shape(right)[1]
            product = graph.tensor((rows, units), output)
    plain = {"adjX": False, "adjY": False}
    new.append(
        graph.operator(
            Operators.BATCH_MATMUL, [left, right], product, "BatchMatMulOptions", **plain
        )
    )
    if product != output:
        _reshaped(graph, product, graph.shape(output), new, output)
    return new


def _turns(graph: _Graph, operator: Any) -> tuple[bool, bool] | None:
    """Whether a product transposes its left and right operand; None for all other operators."""
    kind, options = graph.kind(operator), operator.builtinOptions
    if kind == Operators.BATCH_MATMUL:
        return bool(options.adjX), bool(options.adjY)
    bias = len(operator.inputs) > 2 and operator.inputs[2] >= 0
    if kind != Operators.FULLY_CONNECTED or bias or options.fusedActivationFunction:
        return None
    left, right = (graph.shape(int(index)) for index in operator.inputs[:2])
    # Otherwise it cuts its left operand into other rows.
    return (False, True) if left[-1] == right[-1] else None


def _reshaped(
    graph: _Graph,
    tensor: int,
    shape: tuple[int, ...],
    new: list[Any],
    output: int | None = None,
) -> int:
    """`tensor` in another shape (one side may be -1); the operator is appended to `new`."""
    known = prod(side for side in shape if side != -1)
    shape = tuple(prod(graph.shape(tensor)) // known if side == -1 else side for side in shape)
    output = graph.tensor(shape, tensor) if output is None else output
    inputs = [tensor, graph.constant(list(shape))]
    new.append(
        graph.operator(Operators.RESHAPE, inputs, output, "ReshapeOptions", newShape=list(shape))
    )
    return output


def _turned(graph: _Graph, tensor: int, new: list[Any]) -> int:
    """`tensor` with its last two axes exchanged; an operator for it may be appended to `new`."""
    if tensor not in graph.transposed:
        shape = graph.shape(tensor)
        axes = _exchanged(len(shape))
        output = graph.tensor(tuple(shape[axis] for axis in axes), tensor)
        inputs = [tensor, graph.constant(axes)]
        new.append(graph.operator(Operators.TRANSPOSE, inputs, output, "TransposeOptions"))
        graph.transposed[tensor] = output
    return graph.transposed[tensor]


def _exchanged(rank: int) -> list[int]:
    """The permutation that exchanges the last two of so many axes."""
    return [*range(rank - 2), rank - 1, rank - 2]


def _pairwise_sum(graph: _Graph, operator: Any) -> list[Any] | None:
    """ADD_N -> ADDs, which XNNPACK has."""
    if graph.kind(operator) != Operators.ADD_N:
        return None
    first, *rest = (int(index) for index in operator.inputs)
    output = int(operator.outputs[0])
    new = []
    for place, index in enumerate(rest, 1):
        total = output if place == len(rest) else graph.tensor(graph.shape(output), output)
        new.append(graph.operator(Operators.ADD, [first, index], total, "AddOptions"))
        first = total
    return new


def _drop_copies(graph: _Graph) -> None:
    """Without RESHAPEs of RESHAPEs, those to the same shape, and what then nobody reads."""
    sources: dict[int, int] = {}
    final = {int(tensor) for tensor in graph.subgraph.outputs}
    same: dict[int, int] = {}
    shaped: dict[tuple[int, tuple[int, ...]], int] = {}
    for operator in graph.subgraph.operators:
        operator.inputs = [same.get(int(index), int(index)) for index in operator.inputs]
        if graph.kind(operator) != Operators.RESHAPE:
            continue
        source, output = operator.inputs[0], int(operator.outputs[0])
        source = sources.get(source, source)
        operator.inputs[0] = sources[output] = source
        shaped.setdefault((source, graph.shape(source)), source)
        twin = shaped.setdefault((source, graph.shape(output)), output)
        if twin != output and output not in final:
            same[output] = twin
    used = set(final)
    kept = []
    for operator in reversed(graph.subgraph.operators):
        if used.intersection(int(tensor) for tensor in operator.outputs):
            used.update(int(tensor) for tensor in operator.inputs)
            kept.append(operator)
    graph.subgraph.operators = kept[::-1]


def _share_buffers(model: Any) -> None:
    """One buffer for all constants of the same bytes; those that nothing reads are dropped."""
    places: dict[bytes, int] = {b"": 0}
    kept = [model.buffers[0]]  # by convention the empty one
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            tensor.quantization = None  # without numbers in it, as nothing is quantized
            data = model.buffers[tensor.buffer].data
            key = b"" if data is None else bytes(np.asarray(data, np.uint8))
            if key not in places:
                places[key] = len(kept)
                kept.append(model.buffers[tensor.buffer])
            tensor.buffer = places[key]
    model.buffers = kept
