"""The coordinator's state machine: events in, actions out."""
