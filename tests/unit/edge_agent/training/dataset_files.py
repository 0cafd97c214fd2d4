"""Data files and specs that tests make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data.dataset import DataConfig, load_dataset
from fedge.errors import DataError
from fedge.yaml_config import parse_config
from learning.vector.parameters import Layout, ParameterSpec
from models.package.spec import ModelSpec, TensorSpec

EXAMPLES = Path(__file__).parents[4] / "examples" / "data"


def make_spec(*inputs: TensorSpec, target: TensorSpec | None = None) -> ModelSpec:
    target = target or TensorSpec("target")
    return ModelSpec(
        name="tiny",
        inputs=inputs or (TensorSpec("x", (2,)),),
        targets=(target,),
        outputs=(TensorSpec("prediction", (len(target.classes),) if target.classes else ()),),
        loss="mse",
        metrics=(),
        batch_size=4,
        layout=Layout((ParameterSpec("kernel", (1,)),)),
    )


CLASSES = TensorSpec("target", (), "int32", classes=("rest", "walk", "run"))


def config(path: str = "data.npz", **keys: Any) -> DataConfig:
    return parse_config({"path": path, **keys}, DataConfig, "agent.yaml", key="data")


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder


def csv(folder: Path, text: str | bytes) -> Path:
    (folder / "data.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def csv_config(**keys: Any) -> DataConfig:
    return config(
        **{
            "path": "data.csv",
            "inputs": {"x": {"columns": ["a", "b"]}},
            "target": {"column": "price"},
            **keys,
        },
    )


def refusal(
    base: Path, cfg: DataConfig, spec: ModelSpec | None = None, state_dir: Path | None = None
) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(cfg, spec or make_spec(), base, state_dir)
    line = str(caught.value)
    assert "\n" not in line
    return line.replace(f"{base}/", "")
