"""Machine wear: predicts the remaining cycles of an engine from its last thirty.

Task and data: Saxena et al. 2008, Damage Propagation Modeling for Aircraft Engine Run-to-Failure
Simulation (PHM); the remaining life is capped at 125 cycles as in Heimes 2008, Recurrent Neural
Networks for Remaining Useful Life Estimation (PHM). Wear is slow and the sensors are noisy: means
of ten cycles and two dense layers. 1-D convolutions over the thirty cycles were tried: no better.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

#: Sensors whose readings change, by the simulator's numbers.
SENSORS = tuple(f"sensor_{n}" for n in (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21))
#: (cycles, sensors).
WINDOW_SHAPE = (30, len(SENSORS))
_WINDOW = TensorSpec(
    "window",
    WINDOW_SHAPE,
    features=SENSORS,
    # Over the engines 1 to 18 of examples/data/engine_wear.npz; 19 to 24 stay unseen.
    mean=(
        *(642.574, 1589.28, 1406.6, 553.617, 2388.07, 9066.98, 47.4707),
        *(521.624, 2388.07, 8146.01, 8.43299, 392.898, 38.8581, 23.3135),
    ),
    std=(
        *(0.4753, 5.77, 8.31, 0.8253, 0.06739, 21.68, 0.2455),
        *(0.6793, 0.06878, 18.77, 0.03434, 1.444, 0.1676, 0.1006),
    ),
)
_LEFT = TensorSpec("target", units=("cycles",))


def build() -> Any:
    """Builds means of ten cycles, two dense layers of 16, an output in cycles: 977 parameters."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2008)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((30, 14), name="window"),
            layers.AveragePooling1D(10),
            layers.Flatten(),
            layers.Dense(16, activation="relu", name="state"),
            layers.Dense(16, activation="relu", name="wear"),
            layers.Dense(1, name="life"),
            # Weights stay near 1 while the output is in cycles.
            layers.Rescaling(100.0),
        ]
    )
    model.compile(loss="mean_squared_error", metrics=["mae"])
    return model


MODEL = ZooModel(
    name="machine_wear",
    task="how many cycles an engine has left (at most 125), from 14 sensors over 30 cycles",
    source="dense network on means; task: Saxena et al. 2008 (PHM), capped as in Heimes 2008 (PHM)",
    build=build,
    inputs=(_WINDOW,),
    targets=(_LEFT,),
    metrics=("rmse",),
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
