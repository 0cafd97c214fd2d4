#!/bin/sh
# Installs the fedge coordinator, and the fleet's broker, as services: --help says how.
exec bash "$(dirname -- "$0")/install.sh" coordinator "$@"
