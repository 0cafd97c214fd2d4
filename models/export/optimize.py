"""Optimizes a converted program: rewrites operators, removes copies, shares buffers.

The converter chooses operators for constant weights. In a program weights are cut from θ, and other
operators are faster: XNNPACK multiplies any two matrices, unless one has to be transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from models.package.signatures import MAIN_SIGNATURE

Operators = schema.BuiltinOperator
#: Multiplications below which the product transposes its operand itself: a separate operator
#: takes about a microsecond.
_SMALL_PRODUCT = 1 << 16


def optimize_program(model: Any) -> None:
    """Rewrites a `ModelT` in place; results stay the same, up to the order of sums."""
    _make_gradient_main(model)
    for subgraph in model.subgraphs:
        graph = _Graph(model, subgraph)
        graph.find_transposed()
        graph.rewrite(_rewrite_product)
        graph.rewrite(_rewrite_sum)
        _remove_copies(graph)
    _share_buffers(model)


def _make_gradient_main(model: Any) -> None:
    """Makes `gradient` the main subgraph, which interpreters run with the least overhead."""
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
            # WHILE, IF and similar operators hold the numbers of their subgraphs.
            options = vars(operator.builtinOptions) if operator.builtinOptions else {}
            for name, index in options.items():
                if name.endswith("SubgraphIndex"):
                    setattr(operator.builtinOptions, name, places[index])


@dataclass
class _Graph:
    """Subgraph during rewriting.

    Attributes:
        model: the `ModelT` that holds the subgraph.
        subgraph: the `SubGraphT`.
        transposed: tensor -> the tensor with its last two axes swapped.
    """

    model: Any
    subgraph: Any
    transposed: dict[int, int] = field(default_factory=dict)

    def find_transposed(self) -> None:
        """Records tensors that are results of a transposition of the last two axes."""
        for operator in self.subgraph.operators:
            if self.kind(operator) == Operators.TRANSPOSE:
                source, axes = (int(index) for index in operator.inputs)
                data = self.model.buffers[self.subgraph.tensors[axes].buffer].data
                order = [] if data is None else np.frombuffer(bytes(data), "<i4").tolist()
                if order == _swap_last_axes(len(order)):
                    self.transposed[int(operator.outputs[0])] = source

    def rewrite(self, rule: Callable[[_Graph, Any], list[Any] | None]) -> None:
        """Replaces every operator by the operators that `rule` returns; None keeps it."""
        operators = []
        for operator in self.subgraph.operators:
            replaced = rule(self, operator)
            operators.extend([operator] if replaced is None else replaced)
        self.subgraph.operators = operators

    def kind(self, operator: Any) -> int:
        """Returns the `BuiltinOperator` of an operator."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return int(max(code.builtinCode, code.deprecatedBuiltinCode))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Returns the shape of a tensor; () for a number."""
        shape = self.subgraph.tensors[tensor].shape
        return () if shape is None else tuple(int(side) for side in shape)

    def tensor(self, shape: tuple[int, ...], like: int) -> int:
        """Adds a tensor with the type of `like`."""
        new = schema.TensorT()
        new.shape, new.type, new.buffer = list(shape), self.subgraph.tensors[like].type, 0
        self.subgraph.tensors.append(new)
        return len(self.subgraph.tensors) - 1

    def constant(self, values: list[int]) -> int:
        """Adds an int32 vector in a buffer of its own."""
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
        """Returns a new operator with one output; `options` is the schema's name of its options."""
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


def _rewrite_product(graph: _Graph, operator: Any) -> list[Any] | None:
    """Rewrites FULLY_CONNECTED and BATCH_MATMUL to products of matrices without transposition.

    Transpositions become separate operators. If the right operand is a matrix, the left one is
    reshaped to a matrix: tflite-runtime 2.14 repeats the right one for every matrix on the left.
    """
    transposes = _transposes(graph, operator)
    if transposes is None:
        return None
    left, right = (int(index) for index in operator.inputs[:2])
    output = int(operator.outputs[0])
    flat = len(graph.shape(right)) == 2 and len(graph.shape(left)) != 2
    if not (any(transposes) or flat):
        return None
    depth = graph.shape(right)[-1 if transposes[1] else -2]
    if prod(graph.shape(output)) * depth < _SMALL_PRODUCT:
        return None
    new: list[Any] = []
    left = _transposed(graph, left, new) if transposes[0] else left
    right = _transposed(graph, right, new) if transposes[1] else right
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


def _transposes(graph: _Graph, operator: Any) -> tuple[bool, bool] | None:
    """Returns whether a product transposes its left and right operand; None for other operators."""
    kind, options = graph.kind(operator), operator.builtinOptions
    if kind == Operators.BATCH_MATMUL:
        return bool(options.adjX), bool(options.adjY)
    bias = len(operator.inputs) > 2 and operator.inputs[2] >= 0
    if kind != Operators.FULLY_CONNECTED or bias or options.fusedActivationFunction:
        return None
    left, right = (graph.shape(int(index)) for index in operator.inputs[:2])
    # Otherwise FULLY_CONNECTED reshapes its left operand to other rows.
    return (False, True) if left[-1] == right[-1] else None


def _reshaped(
    graph: _Graph,
    tensor: int,
    shape: tuple[int, ...],
    new: list[Any],
    output: int | None = None,
) -> int:
    """Appends a RESHAPE of `tensor` to `new` and returns its output; one side may be -1."""
    known = prod(side for side in shape if side != -1)
    shape = tuple(prod(graph.shape(tensor)) // known if side == -1 else side for side in shape)
    output = graph.tensor(shape, tensor) if output is None else output
    inputs = [tensor, graph.constant(list(shape))]
    new.append(
        graph.operator(Operators.RESHAPE, inputs, output, "ReshapeOptions", newShape=list(shape))
    )
    return output


def _transposed(graph: _Graph, tensor: int, new: list[Any]) -> int:
    """Returns `tensor` with its last two axes swapped; appends a TRANSPOSE to `new` if needed."""
    if tensor not in graph.transposed:
        shape = graph.shape(tensor)
        axes = _swap_last_axes(len(shape))
        output = graph.tensor(tuple(shape[axis] for axis in axes), tensor)
        inputs = [tensor, graph.constant(axes)]
        new.append(graph.operator(Operators.TRANSPOSE, inputs, output, "TransposeOptions"))
        graph.transposed[tensor] = output
    return graph.transposed[tensor]


def _swap_last_axes(rank: int) -> list[int]:
    """Returns the permutation that swaps the last two of `rank` axes."""
    return [*range(rank - 2), rank - 1, rank - 2]


def _rewrite_sum(graph: _Graph, operator: Any) -> list[Any] | None:
    """Rewrites ADD_N to ADDs, which XNNPACK has."""
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


def _remove_copies(graph: _Graph) -> None:
    """Removes RESHAPEs of RESHAPEs and to the same shape, then operators without readers."""
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
    """Shares one buffer among constants of the same bytes, and removes unused buffers."""
    places: dict[bytes, int] = {b"": 0}
    kept = [model.buffers[0]]  # by convention the empty one
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            tensor.quantization = None  # empty: nothing is quantized
            data = model.buffers[tensor.buffer].data
            key = b"" if data is None else bytes(np.asarray(data, np.uint8))
            if key not in places:
                places[key] = len(kept)
                kept.append(model.buffers[tensor.buffer])
            tensor.buffer = places[key]
    model.buffers = kept
