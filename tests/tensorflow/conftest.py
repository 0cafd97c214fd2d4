"""Tests of the exporter run in a process of their own: `pytest tests/tensorflow`.

TensorFlow and tflite_runtime cannot share a process (the second one loaded fails), so together with
other tests, and without TensorFlow, every module here is skipped before it is imported.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest

HERE = Path(__file__).parent

# What TensorFlow and Keras say about themselves, on import and while tracing; all other warnings
# stay errors.
_FOREIGN = (
    "ignore::DeprecationWarning:(tensorflow|keras|google|flatbuffers|ai_edge_litert)",
    "ignore::PendingDeprecationWarning:(tensorflow|keras)",
)


def _obstacle(config: pytest.Config) -> str | None:
    """Returns why the tests of this folder cannot run; empty if they can."""
    if importlib.util.find_spec("tensorflow") is None:
        return "TensorFlow is not installed: install fedge with its extra, fedge[export]"
    asked = [config.invocation_params.dir / argument.split("::")[0] for argument in config.args]
    if not all(path.resolve().is_relative_to(HERE) for path in asked):
        return "TensorFlow needs a process of its own: pytest tests/tensorflow"
    return None


class _Skipped(pytest.Module):
    """A test module that is reported as skipped without being imported."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip(_obstacle(self.config) or "")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    if _obstacle(parent.config) is not None:
        skipped: pytest.Module = _Skipped.from_parent(parent, path=module_path)
        return skipped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("models.export.exporter")
    return None


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.tensorflow)
    for warning in _FOREIGN:
        item.add_marker(pytest.mark.filterwarnings(warning))
