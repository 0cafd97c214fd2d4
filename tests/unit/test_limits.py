"""The limit of open files, in processes of their own: it is the whole process's."""

from __future__ import annotations

import subprocess
import sys

_BEGIN = """
import resource, subprocess
from broker.limits import raise_file_limit
from models.errors import ConfigError

resource.setrlimit(resource.RLIMIT_NOFILE, (200, 400))
"""


def said(lines: str) -> str:
    """What a script prints that may open 200 files, and 400 when it asks."""
    command = [sys.executable, "-c", _BEGIN + lines]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def test_the_soft_limit_is_raised_and_inherited() -> None:
    lines = """
print(raise_file_limit(300), flush=True)
subprocess.run(["sh", "-c", "ulimit -Sn"])
"""
    assert said(lines).split() == ["400", "400"]


def test_a_hard_limit_that_is_too_low_says_how_to_raise_it() -> None:
    lines = """
try:
    raise_file_limit(401)
except ConfigError as error:
    print(error)
"""
    assert said(lines) == (
        "401 open files are needed, the hard limit is 400: raise it with `ulimit -Hn 401` as root "
        "in this shell, or LimitNOFILE=401 in the unit\n"
    )


def test_the_limit_is_never_lowered() -> None:
    lines = """
resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400))
print(raise_file_limit(10), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    assert said(lines).split() == ["400", "400", "400"]
