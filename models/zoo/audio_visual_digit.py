"""Audio-visual digit: recognizes a digit from an image, from sound, or from both.

Two small networks, one for the image and one for the sound, each ending in a score per digit; the
scores are added (late fusion, Baltrusaitis et al. 2019, Multimodal Machine Learning, arXiv
1705.09406, section 6.1). A device without camera or microphone has missing values there: the
model gets `missing` in their place and ignores that half, in training and in prediction.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

#: Below every scaled pixel and level.
_MISSING = -9.0
_IMAGE = TensorSpec(
    "image", (28, 28), units=("grey 0 to 255",), mean=(0.0,), std=(255.0,), missing=_MISSING
)
_SOUND = TensorSpec(
    "sound",
    (24, 16),  # frames; mel bands
    units=("log-mel level 0 to 255, -80 + 120 v / 255 dB",),
    # Over examples/data/spoken_written_digits.npz.
    mean=(58.0,),
    std=(65.0,),
    missing=_MISSING,
)
_CLASSES = tuple("0123456789")


def build() -> Any:
    """Builds a small CNN for each half: 6,020 parameters in all."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2021)
    layers, ops = keras.layers, keras.ops
    image = keras.Input((28, 28), name="image")
    strokes = layers.Reshape((28, 28, 1))(image)
    strokes = layers.Conv2D(8, 5, strides=2, activation="relu", name="strokes")(strokes)
    strokes = layers.Flatten()(layers.MaxPooling2D(2)(strokes))
    seen = layers.Dense(10, name="seen")(strokes)
    sound = keras.Input((24, 16), name="sound")
    voices = layers.Conv1D(32, 5, activation="relu", name="voice")(sound)
    heard = layers.Dense(10, name="heard")(layers.GlobalMaxPooling1D()(voices))
    # Not `equal`: an int8 release rounds.
    there = [ops.cast(x[:, :1, 0] > _MISSING + 0.5, "float32") for x in (image, sound)]
    digit = layers.Softmax(name="digit")(seen * there[0] + heard * there[1])
    model = keras.Model([image, sound], digit)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


MODEL = ZooModel(
    name="audio_visual_digit",
    task="which digit (0 to 9) is shown and said; one of the two may be missing",
    source="late fusion of two small CNNs, Baltrusaitis et al. 2019, arXiv 1705.09406, section 6.1",
    build=build,
    inputs=(_IMAGE, _SOUND),
    classes=_CLASSES,
    batch_size=16,
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
