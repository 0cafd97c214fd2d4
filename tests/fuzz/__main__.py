"""`python -m tests.fuzz --inputs 1000000 [--seconds N] [--seed S] [--only NAME] [--programs N]`."""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.decoders import decoders
from tests.fuzz.programs import crashes
from tests.fuzz.run import Failure, Outcome, fuzz

#: Address space beyond what is used when the run begins: what asks for more gets a MemoryError.
_ROOM_BYTES = 1 << 30


def main() -> int:
    """0 when every decoder did as declared."""
    parser = argparse.ArgumentParser(description="Damaged inputs for every decoder.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="the decoder of this name")
    parser.add_argument("--programs", type=int, default=0, help="damaged programs to load, too")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # a warning for every damaged file
    if options.programs:
        print(crashes(options.programs, options.seed))
    with tempfile.TemporaryDirectory(prefix="fedge-fuzz-") as folder:
        chosen = [d for d in decoders(Path(folder)) if options.only in (None, d.name)]
        before = _limit_memory()
        began_s = time.monotonic()
        outcomes = fuzz(chosen, options.inputs, options.seed, options.seconds)
    _show(outcomes, time.monotonic() - began_s, _peak_bytes() - before)
    failures = [failure for outcome in outcomes.values() for failure in outcome.failures]
    for failure in failures:
        _show_failure(failure)
    return 1 if failures else 0


def _limit_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return _peak_bytes()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _show(outcomes: dict[str, Outcome], took_s: float, grew_bytes: int) -> None:
    print(f"{'decoder':28s}{'inputs':>10s}{'taken':>10s}{'slowest':>10s}  refused as")
    for name, outcome in outcomes.items():
        refused = [(kind, n) for kind, n in outcome.raised.most_common() if kind]
        words = ", ".join(f"{kind} {n:,}" for kind, n in refused)
        taken = outcome.raised[""]
        slow = f"{outcome.slowest_s * 1e3:.0f} ms"
        print(f"{name:28s}{outcome.inputs:>10,}{taken:>10,}{slow:>10s}  {words}")
    total = sum(outcome.inputs for outcome in outcomes.values())
    print(f"{total:,} inputs in {took_s:.0f} s; memory grew by {grew_bytes >> 20} MiB at most")


def _show_failure(failure: Failure) -> None:
    shown = failure.data[:200].hex() + ("…" if len(failure.data) > 200 else "")
    print(f"FAILED {failure.decoder}: {failure.why}\n  {len(failure.data)} bytes: {shown}")


if __name__ == "__main__":
    sys.exit(main())
