"""`python -m fedge`: the command where its script is not on PATH."""

from fedge.command import main

main()
