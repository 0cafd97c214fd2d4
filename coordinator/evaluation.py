"""Measuring θ where the coordinator itself has data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.package import ModelPackage
from models.runtime.central_rows import read_rows
from models.runtime.program import Program


def central_measure(path: Path, package: ModelPackage) -> Callable[[F32], Sums]:
    """A function from θ to sums of loss and metrics over the rows of `path`.

    Args:
        path: .npz with one array of shape (n, *shape) per input and target of the model, in the
            units of the spec before its mean and std are applied.
        package: whose program measures; a personal part is the initial one.

    Raises:
        DataError: see `read_rows`.
        ModelError: no interpreter here.
    """
    program = Program(package.program, package.spec, frozen=package.frozen)
    rows = read_rows(path, package.spec)
    return lambda theta: program.evaluate(package.whole(theta), rows)
