"""Signatures of a program: names, shapes and dtypes of what each takes and returns, by its spec."""

from __future__ import annotations

from models.package.spec import ModelSpec

#: Name of the signature behind a program's main subgraph (number 0).
MAIN_SIGNATURE = "gradient"

#: Tensor name -> (shape with the batch axis, dtype).
TensorTypes = dict[str, tuple[tuple[int, ...], str]]


def signature_name(kind: str, size: int, spec: ModelSpec) -> str:
    """Returns the name of the signature `kind` (gradient, evaluate, predict) for `size` rows."""
    return kind if size == spec.batch_size else f"{kind}_{size}"


def expected_signatures(spec: ModelSpec) -> dict[str, tuple[TensorTypes, TensorTypes]]:
    """Returns inputs and outputs of each signature that a program of this spec has."""
    return {
        signature_name(kind, size, spec): tensors
        for size in spec.batch_sizes
        for kind, tensors in _signatures(spec, size).items()
    }


def _signatures(spec: ModelSpec, rows: int) -> dict[str, tuple[TensorTypes, TensorTypes]]:
    theta: TensorTypes = {"theta": ((spec.whole_size,), "float32")}
    if spec.frozen:
        theta["frozen"] = ((spec.frozen,), "float32")
    inputs: TensorTypes = {t.name: ((rows, *t.shape), t.dtype) for t in spec.inputs}
    labels: TensorTypes = {t.name: ((rows, *t.shape), t.dtype) for t in spec.targets}
    labels["weight"] = ((rows,), "float32")
    metrics: TensorTypes = {m.name: (m.call_shape, "float32") for m in spec.metrics}
    loss: TensorTypes = {"loss": ((), "float32"), "gradient": ((spec.whole_size,), "float32")}
    sums: TensorTypes = {"loss_sum": ((), "float32"), "weight_sum": ((), "float32")}
    outputs: TensorTypes = {t.name: ((rows, *t.shape), t.dtype) for t in spec.outputs}
    seed: TensorTypes = {"seed": ((), "int32")} if spec.stochastic else {}
    return {
        "gradient": (theta | inputs | labels | seed, loss | metrics),
        "evaluate": (theta | inputs | labels, sums | metrics),
        "predict": (theta | inputs, outputs),
    }
