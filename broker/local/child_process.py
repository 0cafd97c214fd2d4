"""Starts a program that dies with its parent: `child_process.py PARENT_PID PROGRAM ARG...`.

With `PARENT_PID:UID:GID` root gives up its rights first, for good.

The kernel keeps the promise (prctl PR_SET_PDEATHSIG), so it holds when the parent is killed with
SIGKILL, too. A step of its own between fork and exec instead of a `preexec_fn`, which may deadlock
in a process with threads. Linux only; elsewhere the program is just started.

Two conditions, both kept by `broker.local`: the program must not change its user, which makes
the kernel forget; and "parent" means the thread that started it, which must live as long.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def dying_with(who: str | int) -> list[str]:
    """Returns what to put before a command; `who`: our process id, or `PID:UID:GID`."""
    return [sys.executable, "-I", "-S", __file__, str(who)]


def main(who: str, command: list[str]) -> None:
    """Becomes `command`."""
    parent_pid, *account = map(int, who.split(":"))
    if account:
        uid, gid = account
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # it died before we asked
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
