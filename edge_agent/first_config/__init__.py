"""A first agent.yaml for a data file: `fedge agent init`."""
