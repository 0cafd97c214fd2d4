"""Base package of all others, and the `fedge` command."""

import sys

from fedge.shadowing import check_shadowing

__version__ = "0.1.0"

# `python -m fedge` would print an exception of this file without its place: `__main__` checks.
if sys.argv[:1] != ["-m"]:
    check_shadowing()
