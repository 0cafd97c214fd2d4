"""Enrolment by token: messages, state machine, service and its broker."""
