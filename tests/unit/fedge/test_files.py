"""Locks of state folders."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from fedge.files import claimed, holder


def test_who_uses_a_folder_is_known_while_it_does(tmp_path: Path) -> None:
    assert holder(tmp_path, "coordinator") is None
    with claimed(tmp_path, "coordinator"):
        assert holder(tmp_path, "coordinator") == os.getpid()
        assert holder(tmp_path, "agent") is None
    assert holder(tmp_path, "coordinator") is None


def test_a_look_at_a_lock_does_not_keep_a_process_from_its_folder(tmp_path: Path) -> None:
    with claimed(tmp_path, "agent"):
        pass
    with (tmp_path / ".agent.lock").open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        threading.Timer(0.01, fcntl.flock, (look, fcntl.LOCK_UN)).start()
        with claimed(tmp_path, "agent"):
            assert holder(tmp_path, "agent") == os.getpid()
