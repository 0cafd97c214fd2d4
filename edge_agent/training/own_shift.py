"""Own shift: whether this device's labels are off by a constant from what the model predicts.

The coordinator sees it in confusion matrices. A model without one is asked here: a few held-out
rows of a device where the federation's model, trained for a while, is nearly always wrong.
"""

from __future__ import annotations

import numpy as np

from edge_agent.data.dataset import LocalDataset
from learning.vector.label_shift import RIGHT, label_shift
from learning.vector.metrics import Sums
from learning.vector.parameters import F32
from models.package.spec import ModelSpec, TensorSpec
from models.runtime.program import Program

#: Held-out rows that are predicted, evenly over all.
_ROWS = 256
#: Version of θ before which every device is mostly wrong.
_TRAINED = 5


def own_shift(program: Program, theta: F32, dataset: LocalDataset, sums: Sums, version: int) -> int:
    """Returns label minus predicted class where most held-out rows have the same difference, or 0.

    Args:
        program: of the model.
        theta: float32, shape (spec.whole_size,), as it was measured.
        dataset: of this device.
        sums: of that measurement.
        version: of θ.

    Raises:
        TrainingError: the interpreter fails.
    """
    spec = program.spec
    pair = _classified(spec)
    if pair is None or version < _TRAINED or not dataset.num_test or _is_often_right(spec, sums):
        return 0
    target, output = pair
    held_out = dataset.part("test")
    step = -(-dataset.num_test // _ROWS)
    rows = {tensor.name: held_out[tensor.name][::step] for tensor in spec.inputs}
    classes = output.shape[-1]
    predicted = program.predict(theta, rows)[output.name].argmax(-1)
    labels = held_out[target.name][::step].astype(np.int64)
    pairs = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return label_shift(pairs.reshape(classes, classes).astype(np.float64))


def _classified(spec: ModelSpec) -> tuple[TensorSpec, TensorSpec] | None:
    """Returns the first target with one class a row and its output; None: the model has none.

    None also where a confusion matrix says it anyway.
    """
    if any(metric.kind == "confusion" for metric in spec.metrics):
        return None
    for target, output in zip(spec.targets, spec.outputs, strict=False):
        if (target.dtype, target.shape) == ("int32", ()) and len(output.shape) == 1:
            return target, output
    return None


def _is_often_right(spec: ModelSpec, sums: Sums) -> bool:
    """Whether a measured accuracy is too high for labels that are all wrong."""
    found = [sums.metrics.get(m.name) for m in spec.metrics if m.name.endswith("accuracy")]
    plain = [total for total in found if isinstance(total, float)]
    return bool(plain) and min(plain) > RIGHT * sums.weight
