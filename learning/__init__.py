"""The mathematics of federated learning on flat vectors: pure functions, no I/O and no clock."""
