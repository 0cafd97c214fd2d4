"""Anomaly autoencoder: detects sensor readings that differ from those of healthy machines.

A dense autoencoder with a bottleneck of eight, as in the anomaly detection task of MLPerf Tiny
(Banbury et al. 2021, arXiv 2106.07597; there 640-128-...-8-...-128-640 on sound). It learns to
reconstruct readings of healthy machines, without labels; readings that it cannot reconstruct are
anomalies. A row's score is its loss.

On the server and road series of the Numenta Anomaly Benchmark the method does not help:
linear reconstruction separated labelled anomalies from the rest with an area under the curve of 0.5
to 0.6 on most series, no better than a reading's distance from its mean.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.machine_wear import SENSORS, WINDOW_SHAPE
from models.zoo.record import ZooModel

_WINDOW = TensorSpec(
    "window",
    WINDOW_SHAPE,
    features=SENSORS,
    # Over the first 40 % of the life of engines 1 to 18 of examples/data/engine_wear.npz.
    mean=(
        *(642.334, 1586.5, 1401.79, 554.064, 2388.05, 9057.68, 47.3234),
        *(522.011, 2388.05, 8139.17, 8.41488, 392.15, 38.946, 23.3678),
    ),
    std=(
        *(0.3823, 4.687, 6.08, 0.641, 0.05562, 8.785, 0.1797),
        *(0.519, 0.05876, 8.386, 0.02705, 1.141, 0.1328, 0.07979),
    ),
)


def build() -> Any:
    """Builds the 420-32-8-32-420 autoencoder: 27,884 parameters."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2006)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((30, 14), name="window"),
            layers.Flatten(),
            layers.Dense(32, activation="relu", name="narrower"),
            layers.Dense(8, name="bottleneck"),
            layers.Dense(32, activation="relu", name="wider"),
            layers.Dense(30 * 14, name="readings"),
            layers.Reshape((30, 14)),
        ]
    )
    model.compile(loss="mean_squared_error")
    return model


MODEL = ZooModel(
    name="anomaly_autoencoder",
    task="reconstruct 30 cycles of 14 sensors: a large loss means an anomaly",
    source="dense autoencoder as in MLPerf Tiny, Banbury et al. 2021, arXiv 2106.07597",
    build=build,
    inputs=(_WINDOW,),
    reconstruct="window",
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
