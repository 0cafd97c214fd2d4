"""Limit of open files, and so of connections, of this process."""

from __future__ import annotations

import resource

from fedge.errors import ConfigError

#: Enough for the agents of one coordinator. Containers often allow a thousand million, for which
#: some libraries allocate memory.
_ENOUGH = 1 << 17
_NOFILE = resource.RLIMIT_NOFILE


def raise_file_limit(needed: int = 0) -> int:
    """Raises the soft limit towards the hard limit, for this process and its children.

    Many systems set the soft limit to 1,024 for programs that still use `select`.

    Args:
        needed: number of files that will be open; 0: as many as possible.

    Returns:
        The new soft limit.

    Raises:
        ConfigError: the hard limit is below `needed`; tells how to raise it.
    """
    soft, hard = (_finite(limit) for limit in resource.getrlimit(_NOFILE))
    if hard < needed:
        raise ConfigError(
            f"{needed} open files are needed; the hard limit is {hard}: raise it with "
            f"`ulimit -Hn {needed}` as root in this shell, or LimitNOFILE={needed} in the unit"
        )
    wanted = max(soft, min(hard, max(needed, _ENOUGH)))
    if soft < wanted:
        resource.setrlimit(_NOFILE, (wanted, resource.getrlimit(_NOFILE)[1]))
    return wanted


def _finite(limit: int) -> int:
    return 1 << 62 if limit == resource.RLIM_INFINITY else limit
