"""A signature's subgraph as operators on numbered tensors, with constants as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np

from fedge.errors import ModelError
from models.inspect.flatbuffer import File, Operator, Subgraph, Tensor
from models.inspect.operators import NAMES
from models.vectorized.axes import Array, UnsupportedError

#: `TensorType` of the schema -> dtype.
_DTYPES = {0: "<f4", 2: "<i4", 4: "<i8", 6: "?"}


@dataclass(frozen=True)
class Graph:
    """Signature of a program.

    Attributes:
        subgraph: tensors and operators.
        inputs: tensor numbers by name.
        outputs: tensor numbers by name.
        constants: by tensor number.
    """

    subgraph: Subgraph
    inputs: dict[str, int]
    outputs: dict[str, int]
    constants: dict[int, Array]

    def needed(self, outputs: Iterable[str]) -> list[Operator]:
        """Returns the operators that these outputs depend on, in order."""
        wanted = {self.outputs[name] for name in outputs}
        found: list[Operator] = []
        for operator in reversed(self.subgraph.operators):
            if wanted.intersection(operator.outputs):
                found.append(operator)
                wanted.update(number for number in operator.inputs if number >= 0)
        return found[::-1]

    def shape(self, number: int) -> tuple[int, ...]:
        """Returns a tensor's shape in the program."""
        return self.subgraph.tensors[number].shape

    def dtype(self, number: int) -> np.dtype:  # type: ignore[type-arg]
        """Returns a tensor's dtype."""
        return dtype_of(self.subgraph.tensors[number])


def read_graph(file: File, signature: str) -> Graph:
    """Returns a signature's graph.

    Raises:
        ModelError: there is no such signature, or a constant is damaged.
        UnsupportedError: a tensor has a type of quantized or other programs.
    """
    if signature not in file.signatures:
        raise ModelError(
            f"the program lacks the signature {signature!r}; it has: {', '.join(file.signatures)}"
        )
    subgraph = file.subgraphs[file.signatures[signature]]
    names = file.arguments[signature]
    constants = {
        number: _constant(tensor)
        for number, tensor in enumerate(subgraph.tensors)
        if tensor.constant
    }
    return Graph(subgraph, names.inputs, names.outputs, constants)


def kind_name(kind: int) -> str:
    """Returns the name of a kind of operator."""
    return NAMES.get(kind, f"operator {kind}")


def dtype_of(tensor: Tensor) -> np.dtype:  # type: ignore[type-arg]
    """Returns a tensor's dtype.

    Raises:
        UnsupportedError: no type of training programs.
    """
    if tensor.type not in _DTYPES:
        raise UnsupportedError(f"tensors of type {tensor.type} run on an interpreter only")
    return np.dtype(_DTYPES[tensor.type])


def _constant(tensor: Tensor) -> Array:
    dtype = dtype_of(tensor)
    if len(tensor.constant) != prod(tensor.shape) * dtype.itemsize:
        raise ModelError(
            f"the program is damaged: a constant of shape {tensor.shape} has "
            f"{len(tensor.constant)} bytes"
        )
    return np.frombuffer(tensor.constant, dtype).reshape(tensor.shape)
