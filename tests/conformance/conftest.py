"""Members from elsewhere take part in the suites: installed packages, and files named here.

FEDGE_TEST_PLUGINS=my_codec.py pytest tests/conformance/test_codecs.py -k my_codec
"""

from __future__ import annotations

import os
from pathlib import Path

from fedge.plugins import load_plugin
from tests.plugins import REGISTRIES

# Before the suites, which list the members of the registries, are imported.
for file in filter(None, os.environ.get("FEDGE_TEST_PLUGINS", "").split(os.pathsep)):
    load_plugin(Path(file).absolute())
for registry in REGISTRIES:
    for name in registry.names():
        registry[name]
