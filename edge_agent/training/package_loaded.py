"""Event of a package that is ready: its program runs here, and these are the device's rows."""

from __future__ import annotations

from collections.abc import Sequence

from edge_agent.data.dataset import LocalDataset
from edge_agent.data.targets import Finding, target_summaries
from edge_agent.machine.device_state import model_key
from edge_agent.machine.events import PackageLoaded
from models.runtime.program import Program

#: As `broker.protocol.messages.AgentStatus.warnings` allows.
_WARNINGS, _WARNING_CHARS = 8, 500


def package_loaded(
    package: str,
    program: Program,
    dataset: LocalDataset,
    findings: Sequence[Finding] = (),
    *,
    describe: bool = True,
) -> PackageLoaded:
    """Returns the event for the machine, whose status says all of it.

    Args:
        package: its SHA-256.
        program: of the package.
        dataset: of the device.
        findings: what is odd about it.
        describe: whether the status may say which targets the rows have, and the findings.
    """
    spec = program.spec
    warnings = tuple(str(odd)[:_WARNING_CHARS] for odd in findings[:_WARNINGS])
    return PackageLoaded(
        package,
        spec.fingerprint,
        model_key(spec),
        program.runtime,
        dataset.num_train,
        dataset.num_test,
        dataset.weight("train"),
        dataset.weight("test"),
        target_summaries(dataset.arrays, spec) if describe else {},
        warnings if describe else (),
    )
