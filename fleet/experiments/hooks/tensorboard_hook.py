"""TensorBoard: `tensorboard --logdir DIR` shows the curves of all runs below the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from fleet.experiments.hooks.hook import RunStart, need
from learning.registry import Settings


class TensorBoardSettings(Settings, frozen=True, tag="tensorboard"):
    """Settings of the hook.

    Attributes:
        dir: folder of all runs' event files, relative to the experiment's or the run's.
    """

    dir: str = "tensorboard"


class TensorBoardHook:
    """Writes event files with tensorboardX: scalars a round, the configuration, pictures.

    Args:
        settings: the folder.

    Raises:
        ConfigError: tensorboardX is not installed.
    """

    settings_type: ClassVar[type[Settings]] = TensorBoardSettings

    def __init__(self, settings: TensorBoardSettings) -> None:
        need("tensorboardX", "tensorboardX")
        self._settings = settings
        self._writer: Any = None
        self._varied: dict[str, Any] = {}

    def begin(self, run: RunStart) -> None:
        """See `Hook.begin`."""
        from tensorboardX import SummaryWriter

        folder = run.base / self._settings.dir / run.name
        for old in folder.glob("events.out.tfevents.*"):  # of a run that is repeated
            old.unlink()
        self._writer = SummaryWriter(str(folder))
        lines = (f"    {key}: {value}" for key, value in run.parameters.items())
        self._writer.add_text("configuration", "\n".join(lines), 0)
        self._varied = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in run.varied.items()
        }

    def round(self, number: int, values: Mapping[str, float]) -> None:
        """See `Hook.round`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()  # what is shown while the run goes on

    def end(self, values: Mapping[str, float], files: Sequence[Path]) -> None:
        """See `Hook.end`."""
        if self._varied and values:
            self._add_settings({f"final/{name}": value for name, value in values.items()})
        for file in files:
            if file.suffix == ".png":
                from matplotlib.image import imread  # it drew the picture

                self._writer.add_image(file.stem, imread(file)[..., :3], dataformats="HWC")
        self._writer.close()

    def _add_settings(self, final: Mapping[str, float]) -> None:
        """Writes what HPARAMS shows, as `SummaryWriter.add_hparams` does with a writer of its own.

        A second writer in the same second would have the same file.
        """
        from tensorboardX.summary import hparams

        for summary in hparams(self._varied, final):
            self._writer.file_writer.add_summary(summary)
        for name, value in final.items():
            self._writer.add_scalar(name, value)
