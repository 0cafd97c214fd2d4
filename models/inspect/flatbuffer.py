"""Reads TFLite programs without a library: FlatBuffers tables with checked bounds.

The format: flatbuffers.dev, "FlatBuffer internals"; the field numbers: TensorFlow's public schema
`tensorflow/lite/schema/schema.fbs`, version 3. Fields are read on demand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from fedge.errors import ModelError

#: Limit of a vector's items, above that of any real program: bounds the work on a damaged file.
_MAX_ITEMS = 200_000
_ALIGNMENT = 64
#: `TensorType` of the schema -> bytes of a number; all others have 4.
_BYTES = {1: 2, 3: 1, 4: 8, 6: 1, 7: 2, 9: 1, 10: 8, 12: 8}


@dataclass(frozen=True)
class Tensor:
    """Tensor of a subgraph: shape, `TensorType` of the schema, bytes if it is a constant."""

    shape: tuple[int, ...]
    type: int
    constant: bytes

    @property
    def bytes(self) -> int:
        """Size, with the padding up to the next tensor."""
        size = prod(self.shape) * _BYTES.get(self.type, 4)
        return -(-size // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Operator:
    """Operator: `BuiltinOperator` of the schema, tensor numbers (-1: not given), options."""

    kind: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Table | None = field(repr=False)


@dataclass(frozen=True)
class Subgraph:
    """Subgraph: tensors, and operators in the order of execution."""

    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Arguments:
    """Tensor numbers of a signature's inputs and outputs, by name."""

    inputs: dict[str, int]
    outputs: dict[str, int]


@dataclass(frozen=True)
class File:
    """Program: subgraphs; the number of the subgraph behind each signature, and its arguments."""

    subgraphs: tuple[Subgraph, ...]
    signatures: dict[str, int]
    arguments: dict[str, Arguments]


@dataclass(frozen=True)
class Table:
    """FlatBuffers table at `place` in `data`; fields by number, defaults where absent."""

    data: bytes
    place: int

    def number(self, index: int, form: str, default: int = 0) -> int:
        """Returns a scalar field; `form` is a format of `struct`."""
        place = self._field(index)
        return default if place is None else _unpack(self.data, place, form)

    def table(self, index: int) -> Table | None:
        """Returns a table field; None if absent."""
        place = self._field(index)
        return None if place is None else Table(self.data, _follow(self.data, place))

    def bytes(self, index: int) -> bytes:
        """Returns a vector of bytes, or a string."""
        start, count = self._vector(index)
        return self.data[start : start + count]

    def numbers(self, index: int) -> tuple[int, ...]:
        """Returns a vector of int32."""
        start, count = self._vector(index, 4)
        return struct.unpack_from(f"<{count}i", self.data, start)

    def tables(self, index: int) -> Iterator[Table]:
        """Returns a vector of tables."""
        start, count = self._vector(index, 4)
        for item in range(count):
            yield Table(self.data, _follow(self.data, start + 4 * item))

    def _field(self, index: int) -> int | None:
        """Returns the offset of a field; None if absent."""
        layout = self.place - _unpack(self.data, self.place, "<i")
        entry = 4 + 2 * index
        if entry + 2 > _unpack(self.data, layout, "<H"):
            return None
        offset = _unpack(self.data, layout + entry, "<H")
        return self.place + offset if offset else None

    def _vector(self, index: int, size: int = 1) -> tuple[int, int]:
        """Returns the first byte and the number of items of a vector field."""
        place = self._field(index)
        if place is None:
            return 0, 0
        start = _follow(self.data, place)
        count = _unpack(self.data, start, "<I")
        if start + 4 + count * size > len(self.data) or (size > 1 and count > _MAX_ITEMS):
            raise ValueError(f"a vector of {count} items at byte {start}")
        return start + 4, count


def read(program: bytes) -> File:
    """Returns the program's subgraphs and signatures.

    Raises:
        ModelError: the file is damaged, or not a TFLite program.
    """
    try:
        model = Table(program, _follow(program, 0))
        buffers = [buffer.bytes(0) for buffer in model.tables(4)]
        codes = [max(code.number(3, "<i"), code.number(0, "<b")) for code in model.tables(1)]
        graphs = tuple(_subgraph(table, buffers, codes) for table in model.tables(2))
        named = {table.bytes(2).decode(): table for table in model.tables(7)}
        signatures = {name: table.number(4, "<I") for name, table in named.items()}
        if not all(0 <= index < len(graphs) for index in signatures.values()):
            raise ValueError("a signature without a subgraph")
        arguments = {
            name: _arguments(table, graphs[signatures[name]]) for name, table in named.items()
        }
    except (ValueError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"the program is damaged, or not a TFLite file: {error}") from error
    return File(graphs, signatures, arguments)


def tensor_bytes(program: bytes) -> int:
    """Returns the size of all tensors of the largest subgraph, if no two share memory.

    An upper bound: interpreters reuse the memory of tensors that are not needed any more.

    Raises:
        ModelError: the file is damaged.
    """
    graphs = read(program).subgraphs
    return max((sum(t.bytes for t in graph.tensors) for graph in graphs), default=0)


def _arguments(table: Table, graph: Subgraph) -> Arguments:
    inputs, outputs = (
        {entry.bytes(0).decode(): entry.number(1, "<I") for entry in table.tables(field_)}
        for field_ in (0, 1)
    )
    if not all(number < len(graph.tensors) for number in (*inputs.values(), *outputs.values())):
        raise ValueError("a signature refers to a tensor that does not exist")
    return Arguments(inputs, outputs)


def _subgraph(table: Table, buffers: list[bytes], codes: list[int]) -> Subgraph:
    tensors = tuple(
        Tensor(entry.numbers(0), entry.number(1, "<b"), buffers[entry.number(2, "<I")])
        for entry in table.tables(0)
    )
    operators = []
    for entry in table.tables(3):
        operator = Operator(
            codes[entry.number(0, "<I")], entry.numbers(1), entry.numbers(2), entry.table(4)
        )
        if not all(-1 <= number < len(tensors) for number in (*operator.inputs, *operator.outputs)):
            raise ValueError("an operator refers to a tensor that does not exist")
        operators.append(operator)
    inputs, outputs = table.numbers(1), table.numbers(2)
    if not all(0 <= number < len(tensors) for number in (*inputs, *outputs)):
        raise ValueError("a subgraph refers to a tensor that does not exist")
    if any(side < 0 for tensor in tensors for side in tensor.shape):
        raise ValueError("a tensor of unknown size")
    return Subgraph(tensors, inputs, outputs, tuple(operators))


def _follow(data: bytes, place: int) -> int:
    """Returns the target of the offset at `place`."""
    target = place + _unpack(data, place, "<I")
    if target >= len(data):
        raise ValueError(f"an offset at byte {place} points beyond the end")
    return target


def _unpack(data: bytes, place: int, form: str) -> int:
    if place < 0:
        raise ValueError("an offset points before the beginning")
    return int(struct.unpack_from(form, data, place)[0])
