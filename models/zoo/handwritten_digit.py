"""Handwritten digits: two networks of the paper that introduced federated averaging.

McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data
(arXiv 1602.05629), section 3: "a simple multilayer-perceptron with 2-hidden layers with 200 units
each using ReLu activations (199,210 total parameters)", there called the 2NN; and a CNN of two 5x5
convolutions, each followed by 2x2 max pooling. The CNN here has fewer channels (8 and 16 instead of
32 and 64) and no wide dense layer: 5,994 parameters instead of 1,663,370, for small devices.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

_PAPER = "McMahan et al. 2017, arXiv 1602.05629, section 3"
_CLASSES = tuple("0123456789")
# Pixels from 0 to 255 are scaled to 0 to 1.
_IMAGE = TensorSpec("image", (28, 28), units=("grey 0 to 255",), mean=(0.0,), std=(255.0,))


def build_dense() -> Any:
    """Builds the 2NN: 784-200-200-10, 199,210 parameters."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2017)
    model = keras.Sequential(
        [
            keras.Input((28, 28), name="image"),
            keras.layers.Flatten(),
            keras.layers.Dense(200, activation="relu", name="hidden_1"),
            keras.layers.Dense(200, activation="relu", name="hidden_2"),
            keras.layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def build_cnn() -> Any:
    """Builds a CNN: 5x5 convolutions of 8 and 16 channels, 2x2 max pooling, a dense layer."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2017)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28), name="image"),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(8, 5, activation="relu", name="strokes"),
            layers.MaxPooling2D(2),
            layers.Conv2D(16, 5, activation="relu", name="shapes"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


DENSE = ZooModel(
    name="handwritten_digit",
    task="which digit (0 to 9) a 28x28 grey image shows; dense network",
    source=f"the 2NN of {_PAPER}",
    build=build_dense,
    inputs=(_IMAGE,),
    classes=_CLASSES,
)
CNN = ZooModel(
    name="handwritten_digit_cnn",
    task="which digit (0 to 9) a 28x28 grey image shows; small convolutional network",
    source=f"after the CNN of {_PAPER}, with fewer channels and no wide dense layer",
    build=build_cnn,
    inputs=(_IMAGE,),
    classes=_CLASSES,
)


def package_dense() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(DENSE)


def package_cnn() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(CNN)
