"""Fold one update into the round's mean: parameters per second and peak memory.

    python benchmarks/fold.py [--parameters 250000] [--repeats 200] [--json]

Every way of folding runs in one process, in an order shuffled anew each time, so that a busy
machine slows all of them alike: the ratios hold even where the times do not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from learning.aggregation.aggregator import Update
from learning.aggregation.mean import MeanSettings, WeightedMean
from learning.codecs.codec import Codec
from learning.codecs.int8 import Int8Settings
from learning.codecs.registry import CODECS
from learning.vector.parameters import F32, F64

WEIGHT = 137.0  # any number of examples but 1
BUDGET = 1e9  # parameters/s for one int8 update of 250,000
BATCH = 3  # folds per timing
INT8 = "int8: decode + WeightedMean.add"
FLOAT32 = "float32: decode + WeightedMean.add"
Fold = Callable[[], object]


def codec(name: str) -> Codec:
    """A codec with its defaults."""
    made: Codec = CODECS.make(name)
    return made


def new_mean(size: int) -> WeightedMean:
    """Returns the mean of one vector."""
    return WeightedMean(MeanSettings(), {"delta": size})


def update(delta: F32) -> Update:
    """Returns an update as the coordinator adds it."""
    return Update("agent", {"delta": delta}, {"delta": WEIGHT})


def int8_plain(data: bytes, size: int, block_size: int) -> F64:
    """What one writes first: everything in float64, a new array for every step, nothing checked."""
    count = -(-size // block_size)
    scales = np.frombuffer(data, "<f4", count).astype(np.float64)
    levels = np.frombuffer(data, np.int8, size, 4 * count).astype(np.float64)
    vector: F64 = levels * np.repeat(scales, block_size)[:size]
    return vector


def int8_fused(data: bytes, total: F64, block_size: int, blocks: int = 64) -> None:
    """Scale × weight in float64 straight into the sum: no float32 vector, so nothing to check."""
    count = -(-total.size // block_size)
    scales = np.frombuffer(data, "<f4", count).astype(np.float64) * WEIGHT
    levels = np.frombuffer(data, np.int8, total.size, 4 * count)
    full = total.size // block_size
    scratch = np.empty(blocks * block_size)
    for start in range(0, full, blocks):
        end = min(start + blocks, full)
        place = slice(start * block_size, end * block_size)
        piece = scratch[: place.stop - place.start]
        np.copyto(piece, levels[place])
        piece.reshape(-1, block_size)[...] *= scales[start:end, None]
        total[place] += piece
    rest = full * block_size
    total[rest:] += levels[rest:] * scales[full:]


def folds(size: int) -> dict[str, Fold]:
    """Each way to fold, ready to be called; all fold the same vector."""
    block_size = Int8Settings().block_size
    int8, float32 = codec("int8"), codec("float32")
    rng = np.random.default_rng(0)
    delta = rng.normal(0, 0.01, size).astype(np.float32)
    small, large = int8.encode(delta, 0, rng), float32.encode(delta, 0, rng)
    mean, mean_32 = new_mean(size), new_mean(size)
    sums = {name: np.zeros(size) for name in ("int8", "fused", "float32")}
    sum_32 = np.zeros(size, np.float32)

    def plain_int8() -> None:
        sums["int8"] = sums["int8"] + int8_plain(small, size, block_size) * WEIGHT

    def plain_float32() -> None:
        vector = np.frombuffer(large, "<f4").astype(np.float64)
        sums["float32"] = sums["float32"] + vector * WEIGHT

    def float32_sum() -> None:
        np.add(sum_32, int8.decode(small, size, 0) * np.float32(WEIGHT), out=sum_32)

    return {
        INT8: lambda: mean.add(update(int8.decode(small, size, 0))),
        "int8: plain numpy, float64, unchecked": plain_int8,
        "int8: fused into float64, unchecked": lambda: int8_fused(small, sums["fused"], block_size),
        "int8: decode + float32 sum (order matters)": float32_sum,
        "int8: decode alone": lambda: int8.decode(small, size, 0),
        FLOAT32: lambda: mean_32.add(update(float32.decode(large, size, 0))),
        "float32: plain numpy, float64, unchecked": plain_float32,
    }


def measure_speed(size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Parameters/s by name: median and best of `repeats`."""
    ways = folds(size)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(repeats):
        random.shuffle(order)
        for name in order:
            fold = ways[name]
            fold()  # its own data in the caches, as in a busy round
            start = time.perf_counter()
            for _ in range(BATCH):
                fold()
            seconds[name].append((time.perf_counter() - start) / BATCH)
    return {
        name: {"median": size / statistics.median(times), "best": size / min(times)}
        for name, times in seconds.items()
    }


def fold_cohort(payload: bytes, size: int, cohort: int) -> F32:
    """A round as the coordinator runs it."""
    int8, mean = codec("int8"), new_mean(size)
    for _ in range(cohort):
        mean.add(update(int8.decode(payload, size, 0)))
    return mean.result(cohort).vectors["delta"]


def keep_cohort(payload: bytes, size: int, cohort: int) -> F32:
    """Collect first, average afterwards."""
    int8 = codec("int8")
    deltas = [int8.decode(payload, size, 0) for _ in range(cohort)]
    result: F32 = np.average(np.stack(deltas), axis=0).astype(np.float32)
    return result


def measure_memory(size: int) -> dict[str, int]:
    """Peak bytes allocated by a whole round (tracemalloc, which numpy reports to)."""
    rng = np.random.default_rng(0)
    delta = rng.normal(size=size).astype(np.float32)
    payload = codec("int8").encode(delta, 0, rng)
    rounds = [("streamed", fold_cohort, 10), ("streamed", fold_cohort, 1000)]
    rounds += [("kept", keep_cohort, 10), ("kept", keep_cohort, 100)]
    peaks = {}
    for name, run, cohort in rounds:
        tracemalloc.start()
        run(payload, size, cohort)
        peaks[f"{name}, cohort {cohort}"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peaks


def wire_bytes(size: int) -> dict[str, int]:
    """Payload bytes of one update by codec."""
    return {name: codec(name).max_bytes(size) for name in ("float32", "float16", "int8")}


def print_report(report: dict[str, Any]) -> None:
    size, speed, wire = report["parameters"], report["speed"], report["wire_bytes"]
    print(f"fold one update of P = {size:,} on one core ({report['machine']})\n")
    print(f"{'':<46}{'G param/s':>10}{'best':>8}{'ratio':>8}")
    for name, rate in speed.items():
        ratio = rate["median"] / speed[INT8]["median"]
        print(f"{name:<46}{rate['median'] / 1e9:>10.2f}{rate['best'] / 1e9:>8.2f}{ratio:>8.2f}")
    print(f"\nbudget {BUDGET / 1e9:.0f} G param/s for int8; ratio is to the first row\n")
    for name, peak in report["peak_bytes"].items():
        print(f"peak memory, {name:<22}{peak / 2**20:>10.1f} MiB")
    for name, size_bytes in wire.items():
        print(f"payload, {name:<26}{size_bytes:>10,} B {size_bytes / wire['float32']:>7.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parameters", type=int, default=250_000)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, "
        f"Python {platform.python_version()}",
        "parameters": options.parameters,
        "speed": measure_speed(options.parameters, options.repeats),
        "peak_bytes": measure_memory(options.parameters),
        "wire_bytes": wire_bytes(options.parameters),
    }
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        print_report(report)


if __name__ == "__main__":
    main()
