"""Loop and events that agent and coordinator share."""
