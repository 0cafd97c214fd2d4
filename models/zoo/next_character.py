"""Next character: predicts the character that follows forty others, in the words of a role.

Task: McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized Data
(arXiv 1602.05629), section 3, a character language model on Shakespeare's plays in which every
speaking role is a client. There a character is embedded in 8 numbers and two LSTM layers of 256
units follow, 866,578 parameters; here one gated recurrent unit (Cho et al. 2014, arXiv 1406.1078)
of 64 cells: 18,734 parameters, an update of 20 kB.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

#: Characters by their number in the data: those of the plays that occur often enough.
_CLASSES = (
    "newline",
    "space",
    *"!&',-.:;?",
    *"ABCDEFGHIJKLMNOPQRSTUVWYZ",
    *"abcdefghijklmnopqrstuvwxyz",
)
_TEXT = TensorSpec("text", (40,), "int32", units=("number of a character, 0 to 61",))


def build() -> Any:
    """Builds an embedding in 8 numbers, a GRU of 64 cells and a softmax over 62 characters."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2017)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((40,), dtype="int32", name="text"),
            layers.Embedding(len(_CLASSES), 8, name="characters"),
            layers.GRU(64, name="memory"),
            layers.Dense(len(_CLASSES), activation="softmax", name="next"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


MODEL = ZooModel(
    name="next_character",
    task="which of 62 characters follows the 40 before it, in what a role of a play says",
    source="GRU of Cho et al. 2014, arXiv 1406.1078; task: McMahan et al. 2017, arXiv 1602.05629",
    build=build,
    inputs=(_TEXT,),
    classes=_CLASSES,
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
