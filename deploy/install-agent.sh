#!/bin/sh
# Installs the fedge agent as a service on Raspberry Pi OS or Debian: --help says how.
exec bash "$(dirname -- "$0")/install.sh" agent "$@"
