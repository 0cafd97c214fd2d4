"""Comment spam: classifies a comment from its words.

Task and data: Alberto, Lochter and Almeida 2015, TubeSpam: Comment Spam Filtering on YouTube
(ICMLA). The words are hashed to columns (Weinberger et al. 2009, Feature Hashing for Large Scale
Multitask Learning, arXiv 0902.2206): devices need no common dictionary, which could leak words. A
hidden layer of 16 was tried: sixteen times the parameters, and no better.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

_WORDS = TensorSpec("words", (1024,), units=("count of a hashed word or word pair",))
_CLASSES = ("wanted", "spam")


def build() -> Any:
    """Builds a logistic regression on 1,024 counts: 1,025 parameters."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2015)
    model = keras.Sequential(
        [
            keras.Input((1024,), name="words"),
            keras.layers.Dense(1, activation="sigmoid", name="spam"),
        ]
    )
    model.compile(loss="binary_crossentropy", metrics=["accuracy"])
    return model


MODEL = ZooModel(
    name="comment_spam",
    task="whether a comment is spam, from counts of its hashed words and word pairs",
    source="logistic regression on hashed words; task: Alberto et al. 2015, TubeSpam, ICMLA",
    build=build,
    inputs=(_WORDS,),
    classes=_CLASSES,
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
