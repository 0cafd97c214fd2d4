"""Keyword spotting: recognizes one of twelve words in a second of sound.

Architecture: the DS-CNN of Zhang et al. 2017, Hello Edge: Keyword Spotting on Microcontrollers
(arXiv 1711.07128), section 3: a convolution, then depthwise separable ones. Task: Warden 2018,
Speech Commands (arXiv 1804.03209), with its twelve classes; MLPerf Tiny (Banbury et al. 2021, arXiv
2106.07597) has the same pair. Far smaller here: two blocks of 24 channels instead of four of 64.

The paper's network has batch normalization and an activation after each half of a block, and pools
averages. Without normalization, federated learning reached an accuracy of about .17 after ten
rounds with activations between the halves, about .62 without; average pooling was slower too. With
batch normalization the accuracy on a new speaker after twenty rounds was .65 instead of .62, for a
program of 1.7 times the size.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

_SOUND = TensorSpec(
    "sound",
    (39, 16),  # frames of 32 ms every 25 ms; mel bands
    units=("log-mel level 0 to 255, -80 + 120 v / 255 dB",),
    # Over all of examples/data/spoken_words.npz.
    mean=(115.0,),
    std=(47.0,),
)
_CLASSES = (
    *("silence", "unknown", "down", "go", "left", "no"),
    *("off", "on", "right", "stop", "up", "yes"),
)


def build() -> Any:
    """Builds a 10x4 convolution, two depthwise separable blocks, max pooling, a dense layer."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2017)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((39, 16), name="sound"),
            layers.Reshape((39, 16, 1)),
            layers.Conv2D(16, (10, 4), strides=2, padding="same", activation="relu", name="edges"),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise_1"),
            layers.Conv2D(24, 1, activation="relu", name="pointwise_1"),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise_2"),
            layers.Conv2D(24, 1, activation="relu", name="pointwise_2"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(len(_CLASSES), activation="softmax", name="word"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


MODEL = ZooModel(
    name="keyword_spotting",
    task="which of twelve words, from the log-mel spectrogram of a second of sound",
    source="small DS-CNN after Zhang et al. 2017, arXiv 1711.07128; task: Warden 2018, 1804.03209",
    build=build,
    inputs=(_SOUND,),
    classes=_CLASSES,
    batch_size=16,
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
