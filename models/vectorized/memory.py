"""Memory of a plan: blocks that are used again as soon as nothing refers to them."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from models.vectorized.axes import Array

#: Blocks begin at a cache line.
_ALIGNMENT = 64
#: A block is taken for numbers that fill at least this part of it.
_FILL = 0.5


class Block:
    """Piece of memory.

    Attributes:
        raw: uint8.
        holders: how many tensors lie in it.
    """

    def __init__(self, size: int) -> None:
        raw = np.zeros(size + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self.raw = raw[start : start + size]
        self.holders = 0

    def array(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Returns the beginning of the block as an array."""
        size = prod(shape) * np.dtype(dtype).itemsize
        found: Array = self.raw[:size].view(dtype).reshape(shape)
        return found


class Pool:
    """Blocks of a plan.

    Attributes:
        bytes: size of all blocks.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._free: list[Block] = []

    def take(self, size: int) -> Block:
        """Returns a block of at least `size` bytes, held once: the last that was freed, if any."""
        for at in range(len(self._free) - 1, -1, -1):
            if _FILL * self._free[at].raw.size <= size <= self._free[at].raw.size:
                block = self._free.pop(at)
                break
        else:
            block = Block(max(size, 1))
            self.bytes += size
        block.holders = 1
        return block

    def release(self, block: Block | None) -> None:
        """Takes one holder from a block; the last one frees it."""
        if block is None:
            return
        block.holders -= 1
        if block.holders == 0:
            self._free.append(block)
