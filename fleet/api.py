"""Python API of fedge: `import fedge` takes its names from here, when they are first used.

import fedge

clients = fedge.partition(x, y, kind="dirichlet", clients=100, alpha=0.3)
result = fedge.simulate(model, clients, algorithm="scaffold", rounds=50)
result.plot()

See docs/python.md.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError, ModelError
from fleet.experiments.results import Report, load_report
from fleet.in_memory.clients import Clients, deal_out
from fleet.in_memory.columns import row_count
from fleet.in_memory.comparison import Comparison, compare
from fleet.in_memory.federation import Wanted, prepare_arrays
from fleet.in_memory.keras_models import is_keras_model, package_of
from fleet.in_memory.result import Interrupted, Result
from fleet.in_memory.run import How, run
from fleet.in_memory.scenario_file import Scenario
from fleet.in_memory.values import plain
from fleet.partition import SETTINGS_OF_KIND, Kind, unused
from fleet.scenario import no_model
from models.package.package import ModelPackage, load_package
from models.zoo import load_zoo, zoo_names

__all__ = [
    "Clients",
    "Comparison",
    "Interrupted",
    "ModelPackage",
    "Report",
    "Result",
    "Scenario",
    "compare",
    "export",
    "load_report",
    "partition",
    "simulate",
]

#: Rows of one call of an exported program, where nothing says how many are a batch.
_BATCH_SIZE = 32
#: Share of a client's rows that is held out, where the coordinator has no rows of its own.
_TEST_FRACTION = 0.2
#: Arrays that a partition goes by, by its kind.
_ARRAYS = {"shards": ("labels",), "dirichlet": ("labels",), "client": ("client_id",)}
#: Arguments of a partition by its kind, beside those that all have.
_OF_KIND = {kind: names + _ARRAYS.get(kind, ()) for kind, names in SETTINGS_OF_KIND.items()}
_NOT_AN_ID = re.compile(r"[^A-Za-z0-9_-]+")


def simulate(
    model: Any,
    clients: Any,
    *,
    algorithm: str | Mapping[str, Any] = "fedavg",
    rounds: int = 10,
    codec: str | Mapping[str, Any] = "int8",
    aggregator: str | Mapping[str, Any] = "mean",
    learning_rate: float | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    optimizer: str | None = None,
    training: Mapping[str, Any] | None = None,
    fraction: float = 1.0,
    test: Any = None,
    test_fraction: float | None = None,
    evaluate_every: int = 1,
    unseen: Any = (),
    seed: int = 0,
    federation: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    mode: str = "auto",
    processes: int | None = None,
    out: Path | str | None = None,
    progress: bool = True,
    hooks: Sequence[Any] = (),
    name: str | None = None,
) -> Result:
    """Trains a model on the rows of many clients, as a federation of devices would.

    Args:
        model: a compiled Keras model, a `ModelPackage` or the folder of one, or the name of a model
            of the zoo. Training begins at its weights; it is not changed itself.
        clients: a mapping from names to `(x, y)`; a list of `(x, y)`; `(x, y, client_id)`, or a
            mapping or table of columns with `client_id`; or what `partition` returns. With row
            weights `(x, y, weight)`. With several inputs or targets, `x` and `y` are mappings by
            name. Arrays that clients share are not copied for each of them.
        algorithm: name, or name and settings: `{"name": "fedprox", "mu": 0.1}`.
        rounds: committed rounds at most.
        codec: of updates, likewise.
        aggregator: of updates, likewise.
        learning_rate: of the local optimizer; 0.1 when not given.
        batch_size: rows a step; 32 when not given, 0 takes all of a client's rows.
        epochs: passes over its rows that a client makes in a round; 1 when not given.
        optimizer: "sgd" or "adam", local.
        training: further settings of local training: `momentum`, `max_steps` ...
        fraction: of the clients that each round asks.
        test: rows of the coordinator's own, `(x, y)`: each new model is measured on them
            (`central_…`).
        test_fraction: share of each client's rows, its last ones, that is held out to measure on;
            0.2 when not given, 0 with `test`.
        evaluate_every: rounds between evaluations on the clients; 0: none.
        unseen: names of clients that only measure (`unseen_…`), or a mapping of more clients.
        seed: of cohorts, order of rows, and rounding; the initial weights are the model's.
        federation: further keys of a scenario's `federation` section: `stop`, `weighting` ...
        data: further keys of its `data` section: `split`, `nan`, `normalise` ...
        mode: bytes (real messages), arrays (sizes in their place), exact (every message an event,
            on devices of profiles), or auto: bytes up to 10,000 clients, else arrays.
        processes: that work; more than one needs `if __name__ == "__main__":` in a script.
        out: folder to keep report and model in; a KeyboardInterrupt leaves them there too.
        progress: show a line of progress.
        hooks: functions that are called with the figures of each round, and names of hooks
            ("tensorboard", "mlflow", or name and settings).
        name: of the run.

    Raises:
        ConfigError: a setting, an array or the model cannot be used; says what to do.
        FleetError: no round had a result.
        Interrupted: Ctrl-C, or a notebook's stop (a KeyboardInterrupt); has the result so far, None
            before the first round.
    """
    package = _package(model, plain(batch_size))
    plan = {
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "epochs": epochs,
        "optimizer": optimizer,
    }
    section = {
        "algorithm": _choice("algorithm", algorithm),
        "rounds": rounds,
        "codec": _choice("codec", codec),
        "aggregator": _choice("aggregator", aggregator),
        "training": {k: v for k, v in plan.items() if v is not None} | dict(training or {}),
        "cohort": {"fraction": fraction},
        "evaluation": {"every": evaluate_every},
    }
    if test_fraction is None:
        test_fraction = _TEST_FRACTION if test is None else 0.0
    wanted = Wanted(
        name=_NOT_AN_ID.sub("_", name or package.spec.name)[:64],
        data={"test_fraction": test_fraction, **(data or {})},
        federation=_merged(section, federation or {}),
        seed=seed,
        unseen=unseen,
        test=test,
        options={"api": "simulate"},
    )
    how = How(mode, processes, None if out is None else Path(out), progress, hooks)
    return run(lambda folder: prepare_arrays(package, clients, wanted, folder), how)


def partition(
    x: Any,
    y: Any = None,
    *,
    kind: Kind | None = None,
    clients: int | None = None,
    alpha: float | None = None,
    shards_per_client: int | None = None,
    rows: int | None = None,
    minimum: int | None = None,
    client_id: Any = None,
    labels: Any = None,
    weight: Any = None,
    seed: int = 0,
    prefix: str = "client",
) -> Clients:
    """Deals rows out to clients; the arrays are not copied.

    Args:
        x: rows: an array, or arrays by name of the model's inputs.
        y: targets; None where the model needs none.
        kind: iid: evenly at random; shards: each client has rows of a few labels (McMahan et al.
            2017); dirichlet: each client has its own mix of labels (Hsu et al. 2019); sample: each
            draws rows with replacement; client: by `client_id`. iid, or client with a `client_id`,
            when not given.
        clients: number of clients.
        alpha: of dirichlet: 0.1 gives each client one or two labels, 100 all the same mix; 0.5 when
            not given.
        shards_per_client: of shards; 2 when not given.
        rows: of sample: rows of each client; 16 when not given.
        minimum: of dirichlet: rows that each client must get.
        client_id: of client: the client of each row, whole numbers or texts, shape (n,).
        labels: of dirichlet and shards: to go by; `y` when not given.
        weight: of each row in the loss, shape (n,).
        seed: the same gives the same partition.
        prefix: of the clients' names: `client-7`.

    Raises:
        ConfigError: a setting is wrong or not of this kind, arrays differ in their numbers of rows,
            or there are too few rows.
    """
    kind = kind or ("iid" if client_id is None else "client")
    settings = {
        "kind": kind,
        "clients": clients,
        "alpha": alpha,
        "shards_per_client": shards_per_client,
        "rows": rows,
        "minimum": minimum,
        "prefix": prefix,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    arrays = {"x": x, "y": y, "weight": weight, "labels": labels, "client_id": client_id}
    arrays = {key: value for key, value in arrays.items() if value is not None}
    _check_is_of_kind(kind, given.keys() | arrays.keys())
    by = y if labels is None else labels
    if by is None and kind in ("shards", "dirichlet"):
        raise ConfigError(f"partition: kind {kind} goes by labels: give y, or labels=")
    total = row_count(arrays)
    if kind in ("iid", "sample"):  # the number of rows counts alone
        by = range(total)
    data = {key: arrays[key] for key in ("x", "y", "weight") if key in arrays}
    return deal_out(data, by, client_id, seed, given)


def _check_is_of_kind(kind: str, given: Collection[str]) -> None:
    """Raises ConfigError for an argument that the kind of partition has no use for."""
    for name, kinds in unused(kind, given, _OF_KIND).items():
        raise ConfigError(
            f"partition: kind {kind} has no use for {name}=, which is of kind "
            f"{' and '.join(kinds)}: leave it out, or give kind="
        )


def export(model: Any, *, batch_size: int = _BATCH_SIZE, **options: Any) -> ModelPackage:
    """Returns a compiled Keras model as a package, to be simulated many times or saved.

    Args:
        model: a built and compiled `keras.Model`.
        batch_size: rows of one call of the program; best that of training.
        options: of `models.export.exporter.export_model` (docs/models.md).

    Raises:
        ExportError: the model cannot become a program; names the layer, loss or metric.
    """
    if not is_keras_model(model):
        raise ModelError(f"export takes a compiled keras.Model, not a {type(model).__name__}")
    return package_of(model, batch_size, options)


def _package(model: Any, batch_size: int | None) -> ModelPackage:
    if isinstance(model, ModelPackage):
        return model
    if isinstance(model, Path):
        return load_package(model)
    if isinstance(model, str):
        return _named(model)
    if is_keras_model(model):
        return package_of(model, batch_size or _BATCH_SIZE, {})
    raise ModelError(
        f"model is a {type(model).__name__}: give a compiled keras.Model, a package (fedge.export, "
        "or the folder that `fedge model export` wrote), or the name of a model of the zoo: "
        f"{', '.join(zoo_names())}"
    )


def _named(model: str) -> ModelPackage:
    if model in zoo_names():
        return load_zoo(model)
    if not Path(model).is_dir():
        raise ModelError(f"model {no_model(model)}")
    return load_package(Path(model))


def _choice(key: str, given: str | Mapping[str, Any]) -> Any:
    if not isinstance(given, str | Mapping):
        raise ConfigError(f"{key} is {given!r}: give a name, or {{'name': …}} with its settings")
    return given if isinstance(given, str) else dict(given)


def _merged(section: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Returns keys of a federation with further ones; sections of both are joined."""
    joined = {
        key: {**section[key], **value}
        for key, value in more.items()
        if isinstance(value, Mapping) and key in ("training", "cohort", "evaluation")
    }
    return {**section, **more, **joined}
