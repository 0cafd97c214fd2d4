"""The agent's state machine: events in, actions out; no sockets, threads, files or clocks."""
