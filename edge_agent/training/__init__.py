"""Training on the device: local task, trainer, throttle, memory estimate."""
