"""The installers in a Debian of its own: see conftest.py."""
