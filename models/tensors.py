"""How much memory a program's tensors would take, read off its file; nothing is loaded for it.

A TFLite file is a flatbuffer (tables of offsets, little-endian) of the schema that TensorFlow
publishes as `schema.fbs`. Of it only Model.subgraphs, SubGraph.tensors, Tensor.shape and
Tensor.type are read here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

#: TensorType of the schema: bytes of an element; others take 4.
_ELEMENT_BYTES = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 9: 1, 10: 8, 16: 2}
_SUBGRAPHS, _TENSORS, _SHAPE, _TYPE = 2, 0, 0, 1
#: More is no program of ours; bounds the work on a damaged file.
_MOST_TENSORS = 200_000
_MOST_BYTES = 1 << 50


def tensor_bytes(program: bytes) -> int:
    """Bytes of all tensors of the subgraph that has most of them, were none to share memory.

    Interpreters let tensors share memory where one is not needed any more: they take less.

    Raises:
        ValueError: damaged.
    """
    try:
        file = _File(program)
        return max((sum(file.tensors(s)) for s in file.subgraphs()), default=0)
    except (struct.error, IndexError) as error:
        raise ValueError(f"not a TFLite program: {error}") from error


class _File:
    """The tables of a flatbuffer."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._seen = 0

    def subgraphs(self) -> Iterator[int]:
        """Where each begins."""
        root = self._u32(0)
        return self._vector_of_tables(root, _SUBGRAPHS)

    def tensors(self, subgraph: int) -> Iterator[int]:
        """Bytes of each tensor."""
        for tensor in self._vector_of_tables(subgraph, _TENSORS):
            self._seen += 1
            if self._seen > _MOST_TENSORS:
                raise ValueError(f"more than {_MOST_TENSORS} tensors")
            kind = self._field(tensor, _TYPE)
            size = _ELEMENT_BYTES.get(self._data[kind] if kind else 0, 4)
            for side in self._shape(tensor):
                size *= max(1, side)  # an unknown side is -1
            yield min(size, _MOST_BYTES)

    def _shape(self, tensor: int) -> tuple[int, ...]:
        at = self._field(tensor, _SHAPE)
        if not at:
            return ()
        start = at + self._u32(at)
        count = self._u32(start)
        if count > 16:
            raise ValueError(f"a tensor of {count} dimensions")
        return struct.unpack_from(f"<{count}i", self._data, start + 4)

    def _vector_of_tables(self, table: int, field: int) -> Iterator[int]:
        at = self._field(table, field)
        if not at:
            return
        start = at + self._u32(at)
        for number in range(self._u32(start)):
            place = start + 4 + 4 * number
            yield place + self._u32(place)

    def _field(self, table: int, field: int) -> int:
        """Where a table's field lies; 0 when it has its default."""
        (back,) = struct.unpack_from("<i", self._data, table)
        vtable = table - back
        if vtable < 0:
            raise ValueError("not a TFLite program: an offset before its begin")
        (length,) = struct.unpack_from("<H", self._data, vtable)
        entry = 4 + 2 * field
        if entry + 2 > length:
            return 0
        (offset,) = struct.unpack_from("<H", self._data, vtable + entry)
        return table + offset if offset else 0

    def _u32(self, at: int) -> int:
        value: int = struct.unpack_from("<I", self._data, at)[0]
        return value
