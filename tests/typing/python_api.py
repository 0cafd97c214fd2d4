"""The Python API as a person uses it, with its types (`make check` runs mypy over it)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import fedge


def first_steps(x: NDArray[np.float32], y: NDArray[np.int64]) -> fedge.Result:
    clients = fedge.partition(x, y, kind="dirichlet", clients=10, alpha=0.1)
    assert_type(clients, fedge.Clients)
    assert_type(len(clients), int)
    result = fedge.simulate(
        "handwritten_digit",
        clients,
        algorithm={"name": "fedprox", "mu": 0.1},
        rounds=3,
        learning_rate=0.1,
        hooks=[lambda row: print(row["loss"])],  # noqa: T201
    )
    assert_type(result, fedge.Result)
    assert_type(result.history, list[dict[str, Any]])
    assert_type(result.theta, NDArray[np.float32])
    assert_type(result.weights, dict[str, NDArray[np.float32]])
    assert_type(result.package, fedge.ModelPackage)
    assert_type(result.save("out"), Path)
    return result


def the_rest(result: fedge.Result) -> None:
    scenario = fedge.Scenario("house_price", {"federation.rounds": 2})
    assert_type(scenario.simulate(mode="arrays"), fedge.Result)
    assert_type(fedge.compare({"a": result}, target=0.9), fedge.Comparison)
    assert_type(fedge.load_report("out"), fedge.Report)
    assert_type(fedge.__version__, str)


def wrong_uses(result: fedge.Result) -> None:
    fedge.simulate("house_price", [], rounds="ten")  # type: ignore[arg-type]
    fedge.simulat  # type: ignore[attr-defined]  # noqa: B018
    fedge.partition([1.0], kind="even")  # type: ignore[arg-type]
    result.history = []  # type: ignore[misc]
