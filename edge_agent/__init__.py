"""The agent: the program that runs on a device."""
