"""Running an experiment: its grid, its plan, its jobs and their processes."""
