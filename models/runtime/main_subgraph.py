"""Fast path for training: the main subgraph run without a signature runner."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fedge.errors import ModelError
from models.package.signatures import MAIN_SIGNATURE
from models.runtime.rows import Array


class MainSubgraph:
    """Callable main subgraph of a program: the signature `gradient`.

    A signature runner resizes every input and plans memory again at each call: 3 to 4 µs of a
    small model's 10. The interpreter's own methods do not. They reach the main subgraph only.

    Args:
        interpreter: with its tensors allocated.
        runner: of the signature `gradient`.

    Raises:
        ModelError: the main subgraph belongs to another signature.
    """

    def __init__(self, interpreter: Any, runner: Any) -> None:
        self._interpreter = interpreter
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        # No other signature has an output of the gradient's shape at that index.
        if _locations(outputs.values()) != _locations(interpreter.get_output_details()):
            raise ModelError(f"the program's main subgraph is not that of {MAIN_SIGNATURE!r}")
        self._inputs = {name: int(tensor["index"]) for name, tensor in inputs.items()}
        self._outputs = {name: int(tensor["index"]) for name, tensor in outputs.items()}

    def __call__(self, /, **arrays: Array) -> dict[str, Array]:
        """Returns the outputs by name; takes an array of the right shape and dtype per input."""
        for name, array in arrays.items():
            self._interpreter.set_tensor(self._inputs[name], array)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(at) for name, at in self._outputs.items()}


def main_runner(interpreter: Any, runner: Any) -> Callable[..., dict[str, Array]]:
    """Returns the fast path for the signature `gradient`; its runner where there is no such path.

    The interpreter's own methods refuse to run while anything else refers to its native object,
    which may be a view of the memory that they move. Kept runners are such references and no
    views, and no view is ever made here (`Interpreter.tensor`), so the check is switched off. An
    interpreter whose check is elsewhere goes on refusing, at once and by RuntimeError.

    Args:
        interpreter: with its tensors allocated.
        runner: of the signature `gradient`, kept by the caller like those of other signatures.

    Raises:
        ModelError: the main subgraph belongs to another signature.
    """
    interpreter._ensure_safe = _always_safe
    main = MainSubgraph(interpreter, runner)
    try:
        interpreter.allocate_tensors()  # nothing to do, but what checks before `invoke` checks here
    except RuntimeError:
        found: Callable[..., dict[str, Array]] = runner
        return found
    return main


def _always_safe() -> None:
    return


def _locations(details: Iterable[dict[str, Any]]) -> set[tuple[int, tuple[int, ...]]]:
    return {(int(d["index"]), tuple(int(side) for side in d["shape"])) for d in details}
