"""Training on the device: steps, personal layers, throttle."""
