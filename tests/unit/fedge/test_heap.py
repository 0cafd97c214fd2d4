"""What the C library does with freed memory; each case in a process whose heap nobody touched."""

from __future__ import annotations

import subprocess
import sys

import pytest

MIB = 1 << 20
#: Blocks that Python leaves to the C library, none of them so large that it has pages of its own.
BLOCKS = f"blocks = [bytearray(10_000) for _ in range({16 * MIB // 10_000})]"
HEAP = """
def heap_bytes():
    lines = open("/proc/self/smaps").read().splitlines()
    found = next(n for n, line in enumerate(lines) if line.endswith("[heap]"))
    return 1024 * int(next(l for l in lines[found:] if l.startswith("Rss:")).split()[1])
"""


def numbers(script: str) -> list[int]:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("shared", [True, False])
def test_threads_share_one_heap_on_request(shared: bool) -> None:
    script = f"""{HEAP}
from threading import Thread
from fedge.system import share_one_heap
if {shared}: assert share_one_heap()
before = heap_bytes()
def work():
    {BLOCKS}
    print(heap_bytes() - before)
thread = Thread(target=work)
thread.start()
thread.join()
"""
    (grown,) = numbers(script)
    assert (grown >= 15 * MIB) == shared


def test_freed_memory_is_returned_to_the_system() -> None:
    script = f"""{HEAP}
from fedge.system import return_freed_memory
{BLOCKS}
del blocks[:-1]
before = heap_bytes()
return_freed_memory()
print(before, heap_bytes())
"""
    before, after = numbers(script)
    assert before - after >= 14 * MIB
