"""Heart disease: diagnosis from thirteen findings, of which many are missing.

Task and data: Detrano et al. 1989, International Application of a New Probability Algorithm for the
Diagnosis of Coronary Artery Disease (American Journal of Cardiology 64); by hospital as in FLamby
(Ogier du Terrail et al. 2022, arXiv 2210.04620), which trains a logistic regression too and drops
patients with gaps. Here no patient is dropped and no value imputed: the model also gets a mask
of the known findings, and a missing finding counts as the mean.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

#: No finding is nine standard deviations below the mean.
_MISSING = -9.0
_PATIENT = TensorSpec(
    "patient",
    (13,),
    features=(
        *("age", "sex", "chest_pain", "blood_pressure", "cholesterol", "sugar", "ecg"),
        *("heart_rate", "angina", "st_depression", "slope", "vessels", "thallium"),
    ),
    units=(
        *("years", "1 male", "kind 1 to 4", "mm Hg", "mg/dl", "1 above 120 mg/dl", "0 to 2"),
        *("1/min", "1 yes", "mm", "kind 1 to 3", "0 to 3", "3, 6 or 7"),
    ),
    # Over the findings that are there in examples/data/heart_hospitals.npz.
    mean=(
        *(53.51, 0.7891, 3.25, 132.1, 246.8, 0.1663, 0.6046),
        *(137.5, 0.3896, 0.8788, 1.771, 0.6764, 5.088),
    ),
    std=(
        *(9.42, 0.4079, 0.9305, 19.05, 58.49, 0.3723, 0.8054),
        *(25.91, 0.4877, 1.091, 0.6187, 0.9341, 1.917),
    ),
    missing=_MISSING,
)
_CLASSES = ("healthy", "diseased")


def build() -> Any:
    """Builds a logistic regression on the findings and their mask: 27 parameters."""
    from models.export.backend import keras

    keras.utils.set_random_seed(1989)
    layers, ops = keras.layers, keras.ops
    patient = keras.Input((13,), name="patient")
    # Not `equal`: an int8 release rounds.
    known = ops.cast(patient > _MISSING + 0.5, "float32")
    findings = layers.Concatenate()([patient * known, known])
    disease = layers.Dense(1, activation="sigmoid", name="disease")(findings)
    model = keras.Model(patient, disease)
    model.compile(loss="binary_crossentropy", metrics=["accuracy"])
    return model


MODEL = ZooModel(
    name="heart_disease",
    task="whether a patient has a heart disease, from 13 findings, any of which may be missing",
    source="logistic regression with a mask; task: Detrano et al. 1989, Am J Cardiol 64",
    build=build,
    inputs=(_PATIENT,),
    classes=_CLASSES,
    batch_size=16,
    metrics=("auc", "recall"),
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
