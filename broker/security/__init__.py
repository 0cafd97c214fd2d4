"""Certificates, access rules, bundles and keys of a fleet."""
