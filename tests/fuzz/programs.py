"""Damaged programs: TFLite interpreters do not check what they read, so each is a process' risk."""

from __future__ import annotations

import faulthandler
import os
import resource
from collections import Counter
from random import Random

from fedge.errors import ModelError
from models.package.package import ModelPackage
from models.runtime.program import Program
from models.zoo import load_zoo
from tests.fuzz.mutate import damaged

_REFUSED, _LOADED, _UNDECLARED = 0, 10, 11
_MOST_BYTES = 4 << 30


def crashes(count: int, seed: int) -> dict[str, int]:
    """Loads damaged programs, each in a process of its own; counts what became of them."""
    package = load_zoo("house_price")
    Program(package.program, package.spec)  # imported before forking: it takes a second
    rng = Random(seed)
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        outcomes[_load(damaged(package.program, [package.program], rng), package)] += 1
    return dict(outcomes)


def _load(data: bytes, package: ModelPackage) -> str:
    child = os.fork()
    if child == 0:
        _in_child(data, package)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    names = {_REFUSED: "refused", _LOADED: "loaded", _UNDECLARED: "undeclared exception"}
    return names.get(os.WEXITSTATUS(status), f"exit code {os.WEXITSTATUS(status)}")


def _in_child(data: bytes, package: ModelPackage) -> None:
    faulthandler.disable()  # of pytest
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the interpreter talks
    # A damaged size may ask for all the memory there is, and the kernel end somebody else for it.
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    code = _UNDECLARED
    try:
        Program(data, package.spec)
        code = _LOADED
    except ModelError:
        code = _REFUSED
    finally:
        os._exit(code)
