"""Algorithms: one file each, with the device's half and the coordinator's half."""
