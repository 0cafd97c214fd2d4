"""`python -m fedge`: runs the command when its script is not on PATH."""

from fedge.command import main

main()
