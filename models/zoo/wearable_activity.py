"""Wearable activity: recognizes a shoulder exercise from two seconds of a wrist watch's motion.

Task and data: Burns et al. 2018, Shoulder Physiotherapy Exercise Recognition: Machine Learning the
Inertial Signals from a Smartwatch (arXiv 1802.01489); ten people, seven exercises. The aim is
accuracy on new wearers: each of the 24 filters detects one movement of 0.4 s, and global max
pooling keeps its strength, not its time. Deeper and larger networks were less accurate on people
held out.

A good training plan, chosen the same way: Adam with learning rate 0.002, 2 local epochs of batches
of 32, 30 rounds. Accuracy on the people 8 and 9, mean of 3 seeds: 0.64 when each of the people 0 to
7 trains alone, 0.78 federated, 0.82 with all their data in one place.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

_WINDOW = TensorSpec(
    "window",
    (100, 6),  # 2 s at 50 Hz
    features=("ax", "ay", "az", "wx", "wy", "wz"),
    units=("g", "g", "g", "rad/s", "rad/s", "rad/s"),
    # Over the people 0 to 7 of examples/data/har_watch.npz; 8 and 9 stay unseen.
    mean=(-0.0081, 0.376, -0.1389, 0.0195, -0.0073, 0.0116),
    std=(0.931, 0.4987, 0.552, 1.0119, 2.5589, 1.089),
)
#: Pendulum, abduction, forward elevation, internal and external rotation, trapezius extension, row.
_CLASSES = ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")


def build() -> Any:
    """Builds a strided convolution over time, max pooling, a dense layer: 3,223 parameters."""
    from models.export.backend import keras

    keras.utils.set_random_seed(2018)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((100, 6), name="window"),
            layers.Conv1D(24, 21, strides=3, activation="relu", name="movement"),
            layers.GlobalMaxPooling1D(),
            layers.Dense(len(_CLASSES), activation="softmax", name="exercise"),
        ]
    )
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


MODEL = ZooModel(
    name="wearable_activity",
    task="which of seven shoulder exercises, from 2 s of a wrist watch's motion sensors",
    source="small 1-D CNN; task: Burns et al. 2018, arXiv 1802.01489",
    build=build,
    inputs=(_WINDOW,),
    classes=_CLASSES,
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
