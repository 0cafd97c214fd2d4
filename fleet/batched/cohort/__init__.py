"""A cohort of simulated agents: their rows, their work in a phase, their messages."""
