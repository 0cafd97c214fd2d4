"""The loop and the events that agent and coordinator share."""
