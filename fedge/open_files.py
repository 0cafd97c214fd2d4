"""The number of files (and so of connections) that this process may hold open."""

from __future__ import annotations

import resource

from fedge.errors import ConfigError

#: As many agents as one coordinator takes, and room. Containers often allow a thousand million,
#: and there are libraries that prepare for each.
_ENOUGH = 1 << 17
_FILES = resource.RLIMIT_NOFILE


def raise_file_limit(needed: int = 0) -> int:
    """Raises the soft limit towards the hard one, for this process and those it starts.

    Many systems set the soft limit to 1,024 for the sake of programs that still use `select`.

    Args:
        needed: files that will be open; 0 takes what there is.

    Returns:
        The limit that holds now.

    Raises:
        ConfigError: the hard limit is below `needed`; says how to raise it.
    """
    soft, hard = (_finite(limit) for limit in resource.getrlimit(_FILES))
    if hard < needed:
        raise ConfigError(
            f"{needed} open files are needed, the hard limit is {hard}: raise it with "
            f"`ulimit -Hn {needed}` as root in this shell, or LimitNOFILE={needed} in the unit"
        )
    wanted = max(soft, min(hard, max(needed, _ENOUGH)))
    if soft < wanted:
        resource.setrlimit(_FILES, (wanted, resource.getrlimit(_FILES)[1]))
    return wanted


def _finite(limit: int) -> int:
    return 1 << 62 if limit == resource.RLIM_INFINITY else limit
