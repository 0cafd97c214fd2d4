"""House prices: linear regression on two features.

Task and data: Pace and Barry 1997, Sparse Spatial Autoregressions (California, census of 1990, one
row per block group), used as a first regression by Géron, Hands-On Machine Learning, chapter 2.
With least squares these two features explain 42 % of the variance.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

_HOUSEHOLD = TensorSpec(
    "features",
    (2,),
    features=("median_income", "rooms_per_household"),
    units=("10,000 USD", "rooms"),
    # Over the 19,202 block groups of examples/data/housing_california.npz.
    mean=(3.69958837, 5.30921159),
    std=(1.57397993, 2.0757893),
)
_VALUE = TensorSpec("target", units=("100,000 USD",))


def build() -> Any:
    """Builds one dense unit without activation: 3 parameters, initially zero."""
    from models.export.backend import keras

    model = keras.Sequential(
        [
            keras.Input((2,), name="features"),
            keras.layers.Dense(1, kernel_initializer="zeros", name="price"),
        ]
    )
    model.compile(loss="mean_squared_error", metrics=["mae"])
    return model


MODEL = ZooModel(
    name="house_price",
    task="median house value (100,000 USD) from median income and rooms per household",
    source="linear regression; task: Pace and Barry 1997, Sparse Spatial Autoregressions",
    build=build,
    inputs=(_HOUSEHOLD,),
    targets=(_VALUE,),
    # The program is a few multiplications: the overhead of a call dominates.
    batch_size=256,
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
