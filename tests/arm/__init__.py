"""The agent on Arm: installed from the wheel in a Debian for Arm, which an emulator runs.

Not collected with the other tests: `make test-arm`. See docs/runtimes.md, "Tests on Arm".
"""
