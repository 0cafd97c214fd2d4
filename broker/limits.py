"""The number of files (and so of connections) that this process may hold open."""

from __future__ import annotations

import resource

from models.errors import ConfigError


def raise_file_limit(needed: int = 0) -> int:
    """Raises the soft limit to the hard one, for this process and those it starts from now on.

    Many systems set the soft limit to 1,024 for the sake of programs that still use `select`.

    Args:
        needed: files that will be open; 0 takes what there is.

    Returns:
        The limit that holds now.

    Raises:
        ConfigError: the hard limit is below `needed`; says how to raise it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{needed} open files are needed, the hard limit is {hard}: raise it with "
            f"`ulimit -Hn {needed}` as root in this shell, or LimitNOFILE={needed} in the unit"
        )
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
