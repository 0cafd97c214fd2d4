"""Many simulated agents as columns of arrays, one event for a cohort."""
