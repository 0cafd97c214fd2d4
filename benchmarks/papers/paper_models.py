"""Packages of the experiments: networks of the papers, with the batch sizes of their runs.

Needs TensorFlow, once: an exported package is kept in `runs/papers/packages`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from paper_runs import SCRATCH

from models.zoo.handwritten_digit import CNN, DENSE
from models.zoo.next_character import MODEL as NEXT_CHARACTER
from models.zoo.record import ZooModel

#: Of the second signatures, for measuring on many rows.
MANY_ROWS = 500


def build_paper_cnn() -> Any:
    """Builds the CNN of McMahan et al. 2017, section 3: 1,663,370 parameters."""
    from models.export.backend import keras

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28), name="image"),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(32, 5, padding="same", activation="relu", name="strokes"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 5, padding="same", activation="relu", name="shapes"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(512, activation="relu", name="hidden"),
            layers.Dense(10, activation="softmax", name="digit"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def build_lstm() -> Any:
    """Builds the zoo's `next_character` with an LSTM of 64 cells in place of the GRU."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2017)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((40,), dtype="int32", name="text"),
            layers.Embedding(len(NEXT_CHARACTER.classes), 8, name="characters"),
            layers.LSTM(64, name="memory"),
            layers.Dense(len(NEXT_CHARACTER.classes), activation="softmax", name="next"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


_CNN = "the CNN of McMahan et al. 2017, arXiv 1602.05629, section 3"
_LSTM = "LSTM of Hochreiter and Schmidhuber 1997; task: McMahan et al. 2017, arXiv 1602.05629"
#: Name -> record, rows of a step.
_MODELS: dict[str, tuple[ZooModel, int]] = {
    "2nn": (DENSE, 10),
    "cnn": (replace(DENSE, name="mcmahan_cnn", source=_CNN, build=build_paper_cnn), 10),
    "small_cnn": (CNN, 20),
    "gru": (NEXT_CHARACTER, 32),
    "lstm": (replace(NEXT_CHARACTER, source=_LSTM, build=build_lstm), 32),
}


def package(name: str) -> Path:
    """Returns the folder of an exported model, which is exported where it is not there yet."""
    folder = SCRATCH / "packages" / name
    if not (folder / "spec.json").exists():
        from models.zoo.exporting import export_record

        record, rows = _MODELS[name]
        export_record(replace(record, batch_size=(rows, MANY_ROWS))).save(folder)
    return folder
