"""Runs a program that ends with its parent: `child_process.py PARENT_PID PROGRAM ARG...`.

With `PARENT_PID:UID:GID` root first changes to that account, for good.

The kernel ends the program (prctl PR_SET_PDEATHSIG), even if the parent is killed with SIGKILL.
This script runs between fork and exec instead of a `preexec_fn`, which may deadlock in a process
with threads. Linux only; elsewhere the program is started without this protection.

Two conditions, both met by `broker.local`: the program must not change its user, which clears the
setting; and "parent" means the thread that started the program, which must live as long.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def bound_to_parent(parent: str | int) -> list[str]:
    """Returns words to put before a command; `parent`: own process id, or `PID:UID:GID`."""
    return [sys.executable, "-I", "-S", __file__, str(parent)]


def main(parent: str, command: list[str]) -> None:
    """Replaces this process by `command`."""
    parent_pid, *account = map(int, parent.split(":"))
    if account:
        uid, gid = account
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # the parent died before prctl
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
