"""Who owns the names that we import: another project may have installed the same."""

from __future__ import annotations

import importlib.metadata

import fedge
from broker.diagnosis import Check, failed, ok

#: What the wheel installs.
NAMES = ("broker", "coordinator", "edge_agent", "fedge", "fleet", "models")
_OURS = "fedge"


def owner_check() -> Check:
    """Whether two distributions installed one name: pip says nothing, and the later one wins."""
    owners = importlib.metadata.packages_distributions()
    others = {
        name: sorted({o for o in owners.get(name, ()) if o.lower() != _OURS}) for name in NAMES
    }
    foreign = {name: found for name, found in others.items() if found}
    if not foreign:
        version = fedge.__version__
        return ok("packages", f"fedge {version}, and nobody else has its names", version=version)
    told = "; ".join(f"{name} also of {', '.join(found)}" for name, found in foreign.items())
    advice = "install fedge into an environment of its own: python3 -m venv"
    return failed("packages", told, advice, owners=foreign)
