"""Credit risk: estimates from an application whether a loan will go bad.

Task and data: Hofmann 1994, Statlog (German Credit Data), UCI Machine Learning Repository; a
lending line (the purpose of the loan) is an agent, as one line of business may not show its files
to another. A scorecard: logistic regression, every weight of which can be read. A hidden layer of
16 was tried: sixteen times the parameters, and no better on new lines.

Left out of the data: sex and marital status, foreign worker, age and number of dependants, on which
nobody may be refused a loan. Leaving out the latter two costs no accuracy. Other columns (housing,
employment) go along with them: that they are absent does not make a model fair.
"""

from __future__ import annotations

from typing import Any

from models.package.package import ModelPackage
from models.package.spec import TensorSpec
from models.zoo.record import ZooModel

_NUMBERS = ("duration", "amount", "instalment_rate", "residence_since", "credits_here")
#: 1 for the answer that holds, 0 for the others.
_ANSWERS = {
    "checking": ("below_0", "from_200", "0_to_200", "no_account"),
    "history": ("paid_here", "critical", "delayed", "paid_till_now", "none_or_paid"),
    "savings": ("below_100", "from_1000", "100_to_500", "500_to_1000", "none_or_unknown"),
    "employed": ("below_1_year", "from_7_years", "1_to_4_years", "4_to_7_years", "no"),
    "others": ("co_applicant", "guarantor", "none"),
    "property": ("savings_agreement", "car_or_other", "real_estate", "none_or_unknown"),
    "instalments": ("bank", "none", "stores"),
    "housing": ("free", "own", "rent"),
    "job": ("manager", "skilled", "unskilled_non_resident", "unskilled_resident"),
    "telephone": ("no", "yes"),
}
_ONE_HOT = tuple(f"{key}_{answer}" for key, answers in _ANSWERS.items() for answer in answers)
_APPLICATION = TensorSpec(
    "application",
    (43,),
    features=(*_NUMBERS, *_ONE_HOT),
    units=("months", "DM of 1994", "class 1 to 4", "class 1 to 4", "1", *["1 yes"] * len(_ONE_HOT)),
    # Over all of examples/data/credit_german.npz.
    mean=(20.9, 3271.0, 2.97, 2.85, 1.41, *[0.0] * len(_ONE_HOT)),
    std=(12.1, 2821.0, 1.12, 1.1, 0.577, *[1.0] * len(_ONE_HOT)),
)
_CLASSES = ("good", "bad")


def build() -> Any:
    """Builds a logistic regression on 43 columns: 44 parameters, 0 at first."""
    from models.export.backend import keras

    model = keras.Sequential(
        [
            keras.Input((43,), name="application"),
            keras.layers.Dense(1, "sigmoid", kernel_initializer="zeros", name="bad"),
        ]
    )
    model.compile(loss="binary_crossentropy", metrics=["accuracy"])
    return model


MODEL = ZooModel(
    name="credit_risk",
    task="whether a loan will go bad, from 43 columns of its application",
    source="logistic regression; task: Hofmann 1994, Statlog (German Credit Data), UCI",
    build=build,
    inputs=(_APPLICATION,),
    classes=_CLASSES,
    batch_size=16,
    metrics=("auc", "recall"),
)


def package() -> ModelPackage:
    """Returns the package, for `fedge model export`."""
    from models.zoo.exporting import export_record

    return export_record(MODEL)
