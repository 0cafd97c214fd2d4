"""Messaging: protocol, links, brokers, security, enrolment and diagnostics."""
