"""Our wheel again, as another version or as one that does not run."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path


def release(wheel: Path, folder: Path, version: str, *, broken: bool = False) -> Path:
    """A copy of `wheel` that calls itself `version`.

    Args:
        wheel: as built.
        folder: for the copy.
        version: of the copy.
        broken: it installs and shows its help, but the agent cannot start.
    """
    old = wheel.name.split("-")[1]
    copy = folder / wheel.name.replace(f"-{old}-", f"-{version}-")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "fedge/__init__.py":
                text = data.decode().replace(f'__version__ = "{old}"', f'__version__ = "{version}"')
                data = text.encode()
            elif name.endswith("METADATA"):
                data = re.sub(rb"(?m)^Version: .*$", b"Version: " + version.encode(), data)
            elif name == "edge_agent/service.py" and broken:
                data += b'\nraise RuntimeError("a release that does not run")\n'
            target.writestr(name.replace(f"fedge-{old}.dist", f"fedge-{version}.dist"), data)
    return copy
