"""Road traffic: predicts a road sensor's mean reading in the next hour from its last two hours.

A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078) of eight cells over twelve steps; data:
the road sensors of the Numenta Anomaly Benchmark (Lavin and Ahmad 2015, arXiv 1510.03336). The time
of day is given as sine and cosine. Differences from the last reading or from the window's mean as
input were tried, and were worse.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

_RECENT = TensorSpec(
    "recent",
    (12, 3),  # 2 h in steps of 10 min
    features=("reading", "sine_of_day", "cosine_of_day"),
    # Scaled by each sensor's own past: speeds and occupancies have no common unit.
    units=("standard deviations", "1", "1"),
)
_NEXT = TensorSpec("target", units=("standard deviations",))


def build() -> Any:
    """Builds a GRU(8) and a dense unit: 321 parameters."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2014)
    model = keras.Sequential(
        [
            keras.Input((12, 3), name="recent"),
            keras.layers.GRU(8, name="memory"),
            keras.layers.Dense(1, name="next_hour"),
        ]
    )
    model.compile(loss="mean_squared_error", metrics=["mae"])
    return model


MODEL = ZooModel(
    name="road_traffic",
    task="a road sensor's mean reading in the next hour, from its last two hours",
    source="GRU of Cho et al. 2014, arXiv 1406.1078; data: Lavin and Ahmad 2015, arXiv 1510.03336",
    build=build,
    inputs=(_RECENT,),
    targets=(_NEXT,),
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
