"""Phases: what a round is made of; one file each, with the device's half and the coordinator's."""
