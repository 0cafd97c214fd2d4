"""The device's own data."""

from edge_agent.data.dataset import (
    DataConfig,
    EmptyDataError,
    InputSource,
    LocalDataset,
    TargetSource,
    WeightSource,
    build_dataset,
    load_dataset,
    read_table,
)

__all__ = [
    "DataConfig",
    "EmptyDataError",
    "InputSource",
    "LocalDataset",
    "TargetSource",
    "WeightSource",
    "build_dataset",
    "load_dataset",
    "read_table",
]
