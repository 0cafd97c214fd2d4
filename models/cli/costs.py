"""Cost section of `fedge model inspect`: operators, arithmetic, memory, time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from models.inspect.cost import (
    DEVICES,
    THIS,
    analyse,
    epoch_seconds,
    matrix_flops,
    measured_epoch_seconds,
    memory_bytes,
)
from models.package.package import ModelPackage

#: Kinds of operators shown per line.
_SHOWN = 6


def cost_report(
    package: ModelPackage, device: str, rows: int, runtime: str | None
) -> dict[str, Any]:
    """Returns the costs of the signatures and of training on a device, as JSON has them.

    Raises:
        ModelError: the program is damaged, or does not run on this machine.
    """
    costs = analyse(package.program)
    estimate: dict[str, Any] = {
        "device": device,
        "rows": rows,
        "memory_bytes": memory_bytes(package.spec, costs, rows),
    }
    if device == THIS:
        estimate["epoch_s"] = measured_epoch_seconds(package, rows, runtime)
        estimate["matrix_flops"] = matrix_flops()
        estimate["source"] = "measured here, one thread"
    else:
        board = DEVICES[device]
        estimate["epoch_s"] = epoch_seconds(package.spec, costs, rows, board)
        estimate["matrix_flops"] = board.flops
        estimate["board_memory_bytes"] = board.memory_bytes
        estimate["source"] = board.source
    return {
        "costs": {name: msgspec.to_builtins(cost) for name, cost in costs.items()},
        "estimate": estimate,
    }


def cost_lines(report: dict[str, Any]) -> Iterator[str]:
    """Returns the cost report as lines of text."""
    yield "cost of one call"
    for name, cost in report["costs"].items():
        kinds = cost["operators"]
        shown = ", ".join(f"{count} {kind}" for kind, count in list(kinds.items())[:_SHOWN])
        more = f", {len(kinds) - _SHOWN} kinds more" if len(kinds) > _SHOWN else ""
        yield (
            f"  {name:<10} {cost['flops']:>13,} flops  {cost['arena_bytes']:>11,} bytes of arena  "
            f"{sum(kinds.values()):>5} operators: {shown}{more}"
        )
    it = report["estimate"]
    board = it.get("board_memory_bytes")
    of = f" of {board / 1e6:,.0f} MB" if board else ""
    measured = "measured" if it["device"] == THIS else "about"
    yield f"training on {it['device']}, {it['rows']:,} rows"
    yield f"  memory     about {it['memory_bytes'] / 1e6:,.0f} MB{of}, the whole agent"
    yield f"  an epoch   {measured} {_seconds(it['epoch_s'])}, one thread"
    yield f"  arithmetic {it['matrix_flops'] / 1e9:.3g} GFLOP/s in products of matrices"
    yield f"  source     {it['source']}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"
