"""Rows of data as programs take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


def labelled(
    inputs: Mapping[str, Array], target: Array, weight: Array | None = None
) -> dict[str, Array]:
    """Inputs with their target, and perhaps a weight per row."""
    return {**inputs, "target": target, **({} if weight is None else {"weight": weight})}
