"""Zoo: small models, one task per file, with their exported packages.

`load_zoo` reads a committed package and needs neither TensorFlow nor an interpreter. After a change
of a builder, export its package again: `fedge model export models.zoo.NAME:package --out
models/zoo/packages/NAME`; `handwritten_digit` has `package_dense` and `package_cnn`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from fedge.errors import ModelError, did_you_mean
from models.package.package import SPEC_FILE, ModelPackage, load_package

if TYPE_CHECKING:
    from models.zoo.record import ZooModel

PACKAGES = Path(__file__).parent / "packages"

#: Name -> (module, attribute) of its record. Modules are imported by name, so that loading a
#: package does not depend on a builder, and through it on TensorFlow.
_RECORDS = {
    "anomaly_autoencoder": ("models.zoo.anomaly_autoencoder", "MODEL"),
    "audio_visual_digit": ("models.zoo.audio_visual_digit", "MODEL"),
    "comment_spam": ("models.zoo.comment_spam", "MODEL"),
    "credit_risk": ("models.zoo.credit_risk", "MODEL"),
    "handwritten_digit": ("models.zoo.handwritten_digit", "DENSE"),
    "handwritten_digit_cnn": ("models.zoo.handwritten_digit", "CNN"),
    "heart_disease": ("models.zoo.heart_disease", "MODEL"),
    "house_price": ("models.zoo.house_price", "MODEL"),
    "keyword_spotting": ("models.zoo.keyword_spotting", "MODEL"),
    "machine_wear": ("models.zoo.machine_wear", "MODEL"),
    "next_character": ("models.zoo.next_character", "MODEL"),
    "road_traffic": ("models.zoo.road_traffic", "MODEL"),
    "wearable_activity": ("models.zoo.wearable_activity", "MODEL"),
}


def zoo_names() -> list[str]:
    """Returns the names of the zoo's models, sorted."""
    return sorted(_RECORDS)


def load_zoo(name: str) -> ModelPackage:
    """Returns the committed package of a zoo model.

    Raises:
        ModelError: there is no such model; names the known ones.
    """
    _check(name)
    return load_package(PACKAGES / name)


def open_model(reference: str) -> ModelPackage:
    """Returns the package in a folder, or the zoo model of that name.

    A name of the zoo takes precedence; write `./name` for a folder of the same name.

    Raises:
        ModelError: the reference is neither, or the folder cannot be read; names the zoo's models
            and the files that a folder must hold.
    """
    if reference in _RECORDS:
        return load_zoo(reference)
    folder = Path(reference)
    try:
        is_folder = folder.is_dir()
    except OSError as error:
        raise ModelError(f"{reference}: {error.strerror}") from error
    if not is_folder:
        raise ModelError(
            f"{reference!r} is neither a package folder nor in the zoo; {_suggestion(folder)}"
            f"the zoo has: {', '.join(zoo_names())}"
        )
    return load_package(folder)


def _suggestion(folder: Path) -> str:
    """Returns the package folder or zoo model with the most similar name, as a question."""
    beside = [spec.parent.name for spec in folder.parent.glob(f"*/{SPEC_FILE}")]
    if folder.parent == Path():
        return did_you_mean(folder.name, [*beside, *zoo_names()])
    return did_you_mean(folder.name, beside, f"{folder.parent}/")


def zoo_record(name: str) -> ZooModel:
    """Returns task, source and builder of a zoo model.

    Raises:
        ModelError: there is no such model; names the known ones.
    """
    module, attribute = _RECORDS[_check(name)]
    record: ZooModel = getattr(importlib.import_module(module), attribute)
    return record


def _check(name: str) -> str:
    if name not in _RECORDS:
        known = zoo_names()
        raise ModelError(
            f"no model {name!r} in the zoo; {did_you_mean(name, known)}it has: {', '.join(known)}"
        )
    return name
