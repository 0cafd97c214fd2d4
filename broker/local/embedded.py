"""Child process that runs the embedded broker: `python -P embedded.py CONFIG.toml`.

The broker runs in a process of its own because it cannot be stopped otherwise. This script imports
nothing else of the project, so it can be started by its path. It ends when its standard input
closes, which the kernel does when the parent ends for any reason.
"""

from __future__ import annotations

import logging
import os
import sys
import threading


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main(config_file: str) -> None:
    """Serves until the process ends."""
    from iotcore.iotcore import IotCoreBroker

    logging.basicConfig(level=logging.WARNING)
    # rumqttd logs an "error span" for every packet it routes.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    IotCoreBroker(config_path=config_file).run_forever()


if __name__ == "__main__":
    main(sys.argv[1])
