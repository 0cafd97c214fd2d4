"""Programs in numpy with a leading axis of agents: the gradients of a cohort in one call."""
