"""Enrolment by token: messages, the registrar and its broker."""
