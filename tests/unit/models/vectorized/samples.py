"""Packages, their programs and rows, made once for all tests."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from models.package.package import ModelPackage
from models.package.spec import ModelSpec
from models.runtime.program import Program
from models.vectorized.axes import Array
from models.vectorized.kernel import VectorizedProgram
from models.zoo import load_zoo


@lru_cache
def package_of(name: str) -> ModelPackage:
    return load_zoo(name)


@lru_cache
def kernel_of(name: str) -> VectorizedProgram:
    package = package_of(name)
    return VectorizedProgram(package.program, package.spec, frozen=package.frozen)


@lru_cache
def program_of(name: str) -> Program:
    package = package_of(name)
    return Program(package.program, package.spec, frozen=package.frozen)


def rows_of(spec: ModelSpec, agents: int, count: int, seed: int = 0) -> dict[str, Array]:
    """Random rows of several agents."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for tensor in spec.columns:
        shape = (agents, count, *tensor.shape)
        if tensor.dtype == "int32":
            classes = max(2, spec.class_count(tensor))
            found[tensor.name] = rng.integers(0, classes, shape, np.int32)
        else:
            found[tensor.name] = rng.normal(size=shape).astype(np.float32)
    return found
