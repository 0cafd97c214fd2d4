"""Check of the interpreter in a process of its own: a wheel for another processor ends its process.

Illegal instructions, missing symbols and the like are no exceptions that Python could catch.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from fedge.check_result import Check, failed, ok
from fedge.errors import FederationError
from models.runtime.interpreters import find_runtime

#: Python, numpy, the interpreter and a model: some seconds on the smallest boards.
_PATIENCE_S = 120.0
_TRY = """
import sys
import numpy as np
from models.runtime.program import Program
from models.zoo import load_zoo

package = load_zoo("house_price")
program = Program(package.program, package.spec, runtime=sys.argv[1] or None)
rows = {t.name: np.zeros((1, *t.shape), t.dtype) for t in package.spec.columns}
assert np.isfinite(program.gradient(package.initial, rows).vector).all(), "the gradient is NaN"
"""


def runtime_check(name: str | None) -> Check:
    """Checks whether the interpreter that the agent would take is there, and survives a step.

    Args:
        name: of the configuration; None: the first that is installed.
    """
    try:
        _, runtime = find_runtime(name)
    except FederationError as error:
        advice = "install it, or drop `runtime` from the configuration (docs/runtimes.md)"
        return failed("runtime", str(error), advice)
    advice = "another version of it, or another runtime (docs/runtimes.md)"
    command = [sys.executable, "-P", "-c", _TRY, name or ""]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return failed("runtime", f"{runtime}: no answer in {_PATIENCE_S:g} s", advice)
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
        return failed("runtime", f"{runtime} crashes here ({how})", advice)
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return failed("runtime", f"{runtime} does not work: {words[:300]}", advice)
    return ok("runtime", f"{runtime} works", runtime=runtime)
