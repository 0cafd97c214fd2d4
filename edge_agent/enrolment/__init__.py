"""Enrolment on the device: bundle or token, key and certificate."""
