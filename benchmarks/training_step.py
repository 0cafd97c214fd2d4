"""One training step: gradient and SGD in a TFLite program beside TensorFlow's own.

    python benchmarks/training_step.py [--repeats 5] [--models house_price,...] [--json] [--save]

Same model, weights, batch and learning rate everywhere, one thread each. TensorFlow and
tflite_runtime cannot share a process, so each engine has one of its own; their turns alternate,
so that a busy machine slows all of them alike.

    train       `edge_agent.trainer.train`: rows picked and checked, gradient, SGD, sums
    program     `Program.gradient` and the SGD step alone, always on the same rows
    tf.function gradient tape and SGD in one graph, fed with tensors made beforehand
    keras       `train_on_batch`, fed with arrays

TensorFlow runs as it comes, with oneDNN's kernels, which are made for large x86-64 machines, and
once more without them. The models are the zoo's, and the dense 64-128-10 that stands for what a
small device learns.
"""

from __future__ import annotations

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
}
SMALL = "dense_64_128_10"
DENSE = ("house_price", SMALL, "handwritten_digit")
MODELS = (*DENSE, "wearable_activity", "handwritten_digit_cnn")
LEARNING_RATE = 0.01
BLOCK_S = 0.25  # one timing
BLOCKS = 4  # timings of a way in one process; the median counts
Step = Callable[[int], float]


def rows_for(spec: Any, rows: int) -> dict[str, Any]:
    """Random rows: what is in them does not change the time."""
    rng = np.random.default_rng(0)
    inputs = {t.name: rng.normal(size=(rows, *t.shape)).astype(t.dtype) for t in spec.inputs}
    for target in spec.targets:
        classes, shape = len(target.classes), (rows, *target.shape)
        drawn = rng.integers(0, classes, shape) if classes else rng.normal(size=shape)
        inputs[target.name] = drawn.astype(target.dtype)
    return inputs


def looped(step: Callable[[], object]) -> Step:
    """Seconds that so many steps take."""

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step()
        return time.perf_counter() - started

    return run


def time_step(run: Step) -> float:
    """Microseconds a step: median of blocks, after a warm-up."""
    run(3)
    count = max(3, int(BLOCK_S / (run(5) / 5)))
    return statistics.median(run(count) / count for _ in range(BLOCKS)) * 1e6


def fedge_ways(name: str, runtime: str, packages: Path) -> dict[str, Step]:
    """What a device does."""
    from broker.messages import TrainingPlan
    from edge_agent.trainer import make_optimizer, train
    from models.package import load_package
    from models.program import Program
    from models.zoo import load_zoo

    package = load_package(packages / name) if name == SMALL else load_zoo(name)
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
        started = time.perf_counter()
        train(program, package.initial, rows, long, rng)
        return time.perf_counter() - started

    return {"train": whole, "program": looped(alone)}


def tensorflow_ways(name: str) -> dict[str, Step]:
    """What TensorFlow does with the Keras model that the program was made of."""
    import keras
    import tensorflow as tf

    from models.zoo import zoo_record

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    record = small_record() if name == SMALL else zoo_record(name)
    model = record.build()
    rows = rows_for(_Rows(record, model), record.batch_size)
    array, target = rows[record.inputs[0].name], rows["target"]
    x, y = tf.constant(array), tf.constant(target)

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
    return {
        "tf.function": looped(lambda: step().numpy()),
        "keras": looped(lambda: twin.train_on_batch(array, target)),
    }


class _Rows:
    """Of a spec, what `rows_for` needs: TensorFlow's process loads no package."""

    def __init__(self, record: Any, model: Any) -> None:
        self.inputs = record.inputs
        self.targets = (_Target(record.classes, tuple(model.output_shape[1:])),)


class _Target:
    def __init__(self, classes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        self.name, self.classes = "target", classes
        self.shape = () if classes else shape
        self.dtype = "int32" if classes else "float32"


def small_record() -> Any:
    """64 numbers, 128 units, 10 classes: 9,610 parameters."""
    from models.spec import TensorSpec
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


def work(engine: str, models: list[str], packages: Path) -> dict[str, dict[str, float]]:
    """Microseconds a step by model and way, in this process."""
    if engine == "export":
        from models.export.zoo import export_record

        export_record(small_record()).save(packages / SMALL)
        return {}
    found = {}
    for name in models:
        tensorflow = engine.startswith("tensorflow")
        ways = tensorflow_ways(name) if tensorflow else fedge_ways(name, engine, packages)
        found[name] = {way: time_step(run) for way, run in ways.items()}
    return found


def measure(models: list[str], repeats: int) -> Report:
    """Processes in turn; every time of every way."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    times: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    with tempfile.TemporaryDirectory(prefix="training-step-") as packages:
        if SMALL in models:
            run_worker(__file__, ["export", "", packages], 300)
        for _ in range(repeats):
            for engine, environment in ENGINES.items():
                os.environ |= environment
                found = run_worker(__file__, [engine, ",".join(models), packages], 300)
                for name, ways in found.items():
                    for way, microseconds in ways.items():
                        times[name].setdefault(_label(way, engine), []).append(microseconds)
    return {"repeats": repeats, **summarise(times)}


def _label(way: str, engine: str) -> str:
    return way if engine == "tensorflow" else f"{way}, {engine.removeprefix('tensorflow, ')}"


def summarise(times: dict[str, dict[str, list[float]]]) -> Report:
    """Spreads, ratios within each turn, and budgets for what a device does (`train`)."""
    steps, ratios, budgets = {}, {}, []
    for name, ways in times.items():
        steps[name] = {way: spread(values) for way, values in ways.items()}
        ratios[name] = {
            way: spread(np.array(ways["tf.function"]) / np.array(values))
            for way, values in ways.items()
        }
        for runtime in RUNTIMES:
            value = ratios[name][f"train, {runtime}"]["median"]
            limit = 5.0 if name in DENSE else 1.0
            what = f"{name}, {runtime}: times as fast as tf.function"
            budgets.append(budget(value, limit, what, at_least=True))
    return {"microseconds": steps, "times_as_fast_as_tf_function": ratios, "budgets": budgets}


def show(report: Report) -> None:
    """One block a model."""
    for name, ways in report["microseconds"].items():
        print(f"{name:<28}{'µs a step: median (min-max)':>34}{'times as fast as tf.function':>32}")
        for way, values in ways.items():
            ratio = report["times_as_fast_as_tf_function"][name][way]
            print(f"  {way:<26}{shown(values):>34}{shown(ratio, digits=2):>32}")
        print()


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(work(sys.argv[2], sys.argv[3].split(","), Path(sys.argv[4]))))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns of every engine")
    parser.add_argument("--models", default=",".join(MODELS), help="of the zoo, with commas")
    options = parser.parse_args()
    report = measure(options.models.split(","), options.repeats)
    finish("training_step", report, options, show)


if __name__ == "__main__":
    main()
