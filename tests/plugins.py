"""Plug-ins in tests: loaded for one test, and forgotten at its end."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.registry import ALGORITHMS
from learning.codecs.registry import CODECS
from learning.phases.registry import PHASES

REGISTRIES: tuple[Any, ...] = (ALGORITHMS, CODECS, AGGREGATORS, PHASES)


@contextmanager
def forgotten_plugins() -> Iterator[None]:
    """Forgets, at the end, what was loaded and registered inside."""
    members = [dict(registry._members) for registry in REGISTRIES]
    modules = set(sys.modules)
    try:
        yield
    finally:
        for registry, before in zip(REGISTRIES, members, strict=True):
            registry._members = before
        for name in [name for name in sys.modules if name.startswith("fedge_plugin_")]:
            if name not in modules:
                del sys.modules[name]


def extending_examples(folder: Path) -> dict[str, Path]:
    """Files with the examples of docs/extending.md, by name, in `folder`."""
    text = (Path(__file__).parents[1] / "docs/extending.md").read_text()
    found = {}
    for name, code in re.findall(r"(?ms)^```python\n# (\w+)\.py\n(.*?)^```", text):
        found[name] = folder / f"{name}.py"
        found[name].write_text(code)
    return found
