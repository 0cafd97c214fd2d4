"""`python -m fedge`: runs the command when its script is not on PATH."""

import sys

from fedge.shadowing import check_shadowing

try:
    check_shadowing()
except ImportError as error:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201  click may be hidden too
    sys.exit(2)  # as a ConfigError

from fedge.command import main

main()
