"""One training step: a TFLite program beside TensorFlow, Keras and PyTorch.

    python benchmarks/training.py [--repeats 5] [--models house_price,...] [--json] [--save]

Same model, batch and learning rate everywhere, plain SGD, one thread each. TensorFlow and
tflite_runtime cannot share a process, so each engine has one of its own; their turns alternate.
Times are processor time of the process: the wall clock of a shared machine measures the others too.

    train       `edge_agent.training.trainer.train`: rows picked and checked, gradient, SGD, sums
    program     `Program.gradient` and the SGD step alone, always on the same rows
    tf.function gradient tape and SGD in one graph, fed with tensors made beforehand
    fit         Keras, an epoch of 32 batches
    torch       PyTorch, eager, where it is installed (`torch_models.py`)

TensorFlow runs as it comes, with oneDNN's kernels, which are made for large x86-64 machines, and
once more without them. The limit is what the gradient's multiplications and additions take at the
speed of numpy's product of matrices. The models are the zoo's, and the dense 64-128-10 that stands
for what a small device learns.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import Report, budget, finish, option_parser, run_worker, shown, spread

RUNTIMES = ("tflite-runtime", "ai-edge-litert")
#: Environment of each engine's process.
ENGINES = {
    "tflite-runtime": {},
    "ai-edge-litert": {},
    "tensorflow": {"TF_ENABLE_ONEDNN_OPTS": "1"},
    "tensorflow, no oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "torch": {},
}
SMALL = "dense_64_128_10"
#: Times as fast as `tf.function`, by what most of the model is.
LIMITS = {
    **dict.fromkeys(
        (
            *("house_price", SMALL, "handwritten_digit", "anomaly_autoencoder"),
            *("comment_spam", "heart_disease", "machine_wear"),
        ),
        5.0,
    ),
    **dict.fromkeys(
        ("wearable_activity", "handwritten_digit_cnn", "keyword_spotting", "audio_visual_digit"),
        1.0,
    ),
    "road_traffic": 2.0,
}
RSS_LIMIT_MB = 64.0
ROWS = 1000  # in memory while RSS is measured
LEARNING_RATE = 1e-6  # random rows teach nothing: no model may diverge on them
BLOCK_S = 0.1  # one timing
BLOCKS = 5  # timings of a way in one process; the median counts
EPOCH = 32  # batches in Keras's
Step = Callable[[int], float]


def rows_for(spec: Any, rows: int) -> dict[str, Any]:
    """Random rows: what is in them does not change the time."""
    rng = np.random.default_rng(0)
    inputs = {t.name: rng.normal(size=(rows, *t.shape)).astype(t.dtype) for t in spec.inputs}
    for target in spec.targets:
        classes = len(target.classes) or 2
        shape = (rows, *target.shape)
        whole = target.dtype == "int32"
        drawn = rng.integers(0, classes, shape) if whole else rng.normal(size=shape)
        inputs[target.name] = drawn.astype(target.dtype)
    return inputs


def looped(step: Callable[[], object]) -> Step:
    """Seconds that so many steps take."""

    def run(count: int) -> float:
        started = time.process_time()
        for _ in range(count):
            step()
        return time.process_time() - started

    return run


def time_step(run: Step) -> float:
    """Microseconds a step: median of blocks, after a warm-up."""
    run(3)
    count = max(3, int(BLOCK_S / max(run(5) / 5, 1e-6)))
    return statistics.median(run(count) / count for _ in range(BLOCKS)) * 1e6


def fedge_ways(name: str, runtime: str, packages: Path) -> dict[str, Step]:
    """What a device does."""
    from edge_agent.training.trainer import train
    from learning.algorithms.training import TrainingPlan, make_optimizer
    from models.runtime.program import Program

    package = _package(name, packages)
    spec = package.spec
    program = Program(package.program, spec, runtime=runtime, threads=1)
    rows = rows_for(spec, 8 * spec.batch_size)
    batch = {key: value[: spec.batch_size] for key, value in rows.items()}
    theta = package.initial.copy()
    plan = TrainingPlan(learning_rate=LEARNING_RATE, batch_size=spec.batch_size)
    optimizer = make_optimizer(plan)

    def alone() -> None:
        optimizer.step(theta, program.gradient(theta, batch).vector)

    def whole(count: int) -> float:
        long = TrainingPlan(
            learning_rate=LEARNING_RATE, batch_size=spec.batch_size, epochs=10_000, max_steps=count
        )
        rng = np.random.default_rng(0)
        started = time.process_time()
        train(program, package.initial, rows, long, rng)
        return time.process_time() - started

    return {"train": whole, "program": looped(alone)}


def tensorflow_ways(name: str, packages: Path) -> dict[str, Step]:
    """What TensorFlow does with the Keras model that the program was made of."""
    import keras
    import tensorflow as tf

    from models.zoo import zoo_record

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    model = (small_record() if name == SMALL else zoo_record(name)).build()
    spec = _package(name, packages).spec
    arrays, labels = _arrays(spec, rows_for(spec, EPOCH * spec.batch_size), model)
    first = [tf.constant(array[: spec.batch_size]) for array in arrays]
    x, y = first if len(first) > 1 else first[0], tf.constant(labels[: spec.batch_size])

    @tf.function  # type: ignore[untyped-decorator,unused-ignore]
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            variable.assign_sub(LEARNING_RATE * gradient)
        return loss

    twin = keras.models.clone_model(model)
    twin.compile(optimizer=keras.optimizers.SGD(LEARNING_RATE), loss=model.loss)

    def fit(count: int) -> float:
        epochs = -(-count // EPOCH)
        started = time.process_time()
        twin.fit(
            arrays if len(arrays) > 1 else arrays[0],
            labels,
            batch_size=spec.batch_size,
            epochs=epochs,
            shuffle=False,
            verbose=0,
        )
        return (time.process_time() - started) * count / (epochs * EPOCH)

    return {"tf.function": looped(lambda: step().numpy()), "fit": fit}


def torch_ways(name: str, packages: Path) -> dict[str, Step]:
    """What PyTorch does with a model of the same shape."""
    from torch_models import BUILDERS, eager_step

    if name not in BUILDERS:
        return {}
    spec = _package(name, packages).spec
    rows = rows_for(spec, spec.batch_size)
    inputs = rows[spec.inputs[0].name]
    target = rows[spec.targets[0].name] if spec.targets else inputs
    return {"torch": looped(eager_step(name, spec, inputs, target, LEARNING_RATE))}


def _arrays(spec: Any, rows: dict[str, Any], model: Any) -> tuple[list[Any], Any]:
    """Inputs and target as Keras wants them."""
    arrays = [rows[tensor.name] for tensor in spec.inputs]
    labels = rows[spec.targets[0].name] if spec.targets else arrays[0]
    flat = labels.ndim == 1 and model.output_shape[1:] == (1,)
    return arrays, labels[:, None] if flat else labels


def _package(name: str, packages: Path) -> Any:
    from models.package.package import load_package
    from models.zoo import load_zoo

    return load_package(packages / name) if name == SMALL else load_zoo(name)


def small_record() -> Any:
    """64 numbers, 128 units, 10 classes: 9,610 parameters."""
    from models.package.spec import TensorSpec
    from models.zoo.record import ZooModel

    def build() -> Any:
        import keras

        layers = [keras.layers.Dense(128, "relu"), keras.layers.Dense(10, "softmax")]
        model = keras.Sequential([keras.Input((64,), name="features"), *layers])
        model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    inputs = (TensorSpec("features", (64,)),)
    classes = tuple("0123456789")
    return ZooModel(SMALL, "", "", build, inputs, classes, batch_size=16)


def rss_bytes(name: str, runtime: str, packages: Path) -> int:
    """Memory of a process with an agent's modules after training on `ROWS` rows."""
    import edge_agent.service  # noqa: F401 - what an agent has loaded
    from edge_agent.training.trainer import train
    from learning.algorithms.training import TrainingPlan
    from models.runtime.program import Program

    package = _package(name, packages)
    program = Program(package.program, package.spec, runtime=runtime, threads=1)
    plan = TrainingPlan(learning_rate=LEARNING_RATE, batch_size=package.spec.batch_size)
    rows = {t.name: np.zeros((ROWS, *t.shape), t.dtype) for t in package.spec.columns}
    train(program, package.initial, rows, plan, np.random.default_rng(0))
    program.evaluate(package.initial, rows)
    return resident_bytes()


def resident_bytes() -> int:
    """Memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def work(task: str, engine: str, models: list[str], packages: Path) -> Any:
    """One task in this process: steps by model and way, memory, limits, or an export."""
    if task == "export":
        from models.zoo.exporting import export_record

        export_record(small_record()).save(packages / SMALL)
        return {}
    if task == "rss":
        return rss_bytes(models[0], engine, packages)
    if task == "limits":
        from models.inspect.cost import analyse, matrix_flops

        rate = max(matrix_flops() for _ in range(5))
        costs = {name: analyse(_package(name, packages).program) for name in models}
        return {"flops_per_s": rate, "flops": {n: c["gradient"].flops for n, c in costs.items()}}
    found = {}
    for name in models:
        if engine == "torch":
            ways = torch_ways(name, packages)
        elif engine.startswith("tensorflow"):
            ways = tensorflow_ways(name, packages)
        else:
            ways = fedge_ways(name, engine, packages)
        found[name] = {way: time_step(run) for way, run in ways.items()}
    return {"steps": found, "rss": resident_bytes()}


def measure(models: list[str], repeats: int) -> Report:
    """Processes in turn; every time of every way."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    os.environ |= {"OPENBLAS_NUM_THREADS": "1"}
    engines = {name: it for name, it in ENGINES.items() if name != "torch" or _has_torch()}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    whole: dict[str, int] = {}
    names = ",".join(models)
    with tempfile.TemporaryDirectory(prefix="training-") as packages:
        if SMALL in models:
            run_worker(__file__, ["export", "", "", packages], 300)
        limits = run_worker(__file__, ["limits", "", names, packages], 300)
        for turn in range(repeats):
            for engine, environment in engines.items():
                print(f"turn {turn + 1} of {repeats}: {engine} ...", file=sys.stderr)
                os.environ |= environment
                found = run_worker(__file__, ["steps", engine, names, packages], 600)
                whole[engine] = max(whole.get(engine, 0), found["rss"])
                for name, ways in found["steps"].items():
                    for way, microseconds in ways.items():
                        times[name].setdefault(_label(way, engine), []).append(microseconds)
        memory = {
            name: {
                runtime: run_worker(__file__, ["rss", runtime, name, packages], 300) / 1e6
                for runtime in RUNTIMES
            }
            for name in models
        }
    report = summarise(times, limits, memory)
    frameworks = {name: it / 1e6 for name, it in whole.items() if name not in RUNTIMES}
    return {"repeats": repeats, "frameworks_rss_mb": frameworks, **report}


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _label(way: str, engine: str) -> str:
    same = engine in ("tensorflow", "torch")
    return way if same else f"{way}, {engine.removeprefix('tensorflow, ')}"


def summarise(
    times: dict[str, dict[str, list[float]]], limits: Report, memory: dict[str, dict[str, float]]
) -> Report:
    """Spreads, ratios within each turn, distance to the limit, and budgets for `train`."""
    steps, ratios, floors, budgets = {}, {}, {}, []
    for name, ways in times.items():
        steps[name] = {way: spread(values) for way, values in ways.items()}
        ratios[name] = {
            way: spread(np.array(ways["tf.function"]) / np.array(values))
            for way, values in ways.items()
        }
        floors[name] = limits["flops"][name] / limits["flops_per_s"] * 1e6
        for runtime in RUNTIMES:
            value = ratios[name][f"train, {runtime}"]["median"]
            what = f"{name}, {runtime}: times as fast as tf.function"
            budgets.append(budget(value, LIMITS.get(name, 1.0), what, at_least=True))
            what = f"{name}, {runtime}: MB of memory, the whole process"
            budgets.append(budget(memory[name][runtime], RSS_LIMIT_MB, what))
    return {
        "microseconds": steps,
        "times_as_fast_as_tf_function": ratios,
        "limit_microseconds": floors,
        "matrix_flops_per_s": limits["flops_per_s"],
        "rss_mb": memory,
        "budgets": budgets,
    }


def show(report: Report) -> None:
    """One block a model."""
    for name, ways in report["microseconds"].items():
        floor = report["limit_microseconds"][name]
        memory = ", ".join(f"{it:.1f} MB on {key}" for key, it in report["rss_mb"][name].items())
        print(f"{name}: arithmetic limit {floor:,.1f} µs; {memory}")
        head = ("µs a step: median (min-max)", "times tf.function's speed", "times the limit")
        print(f"  {'':<26}{head[0]:>34}{head[1]:>30}{head[2]:>18}")
        for way, values in ways.items():
            ratio = report["times_as_fast_as_tf_function"][name][way]
            above = values["median"] / floor
            print(f"  {way:<26}{shown(values):>34}{shown(ratio, digits=2):>30}{above:>18,.1f}")
        print()
    for name, it in report["frameworks_rss_mb"].items():
        print(f"{name}: {it:,.0f} MB with all models")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        task, engine, models, packages = sys.argv[2:]
        print(json.dumps(work(task, engine, models.split(","), Path(packages))))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns of every engine")
    parser.add_argument("--models", default=",".join(LIMITS), help="of the zoo, with commas")
    options = parser.parse_args()
    report = measure(options.models.split(","), options.repeats)
    finish("training", report, options, show)


if __name__ == "__main__":
    main()
