"""Every hook: follows a run, is made before it begins, and its failure costs the run nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from coordinator.records.records import new_record
from fedge.errors import ConfigError
from fleet.cli.main import cli
from fleet.experiments.hooks.follow import Followed, figures, flattened
from fleet.experiments.hooks.hook import Hook, RunStart
from fleet.experiments.hooks.registry import HOOKS
from fleet.runs.prepared import prepare
from learning.registry import Settings

HOUSE = Path(__file__).parents[2] / "examples/house_price.yaml"
each_hook = pytest.mark.parametrize("name", list(HOOKS))


def start(base: Path, name: str = "case/0") -> RunStart:
    parameters = {"federation.rounds": 3, "name": "tiny", "unseen": ["a", "b"], "long": "x" * 9000}
    return RunStart("group", name, base, parameters, {"algorithm": {"name": "fedprox"}, "seed": 0})


def files_of(folder: Path) -> list[Path]:
    """A report, a picture of two by two pixels, and a folder."""
    from matplotlib.image import imsave

    (folder / "model").mkdir(parents=True)
    (folder / "model/spec.json").write_text("{}")
    (folder / "report.json").write_text("{}")
    imsave(folder / "curves.png", [[0.0, 1.0], [1.0, 0.0]])
    return [folder / "report.json", folder / "model", folder / "curves.png"]


@each_hook
def test_a_hook_follows_a_run_into_a_folder_below_its_base(name: str, tmp_path: Path) -> None:
    hook = HOOKS.make(name)
    assert list(tmp_path.iterdir()) == []  # nothing before the run
    hook.begin(start(tmp_path))
    hook.round(1, {"loss": 0.5, "accuracy": 0.5, "bytes_up": 100.0})
    hook.round(2, {"loss": 0.25})
    hook.end({"loss": 0.25}, files_of(tmp_path / "run"))
    assert {path.name for path in tmp_path.iterdir()} - {"run"}


@each_hook
def test_two_runs_share_a_base(name: str, tmp_path: Path) -> None:
    hooks = [HOOKS.make(name) for _ in range(2)]
    for number, hook in enumerate(hooks):
        hook.begin(start(tmp_path, f"case/{number}"))
    for hook in hooks:
        hook.round(1, {"loss": 0.5})
        hook.end({}, [])


@each_hook
def test_a_run_that_failed_ends_its_hook(name: str, tmp_path: Path) -> None:
    hook = HOOKS.make(name)
    hook.begin(start(tmp_path, ""))
    hook.end({}, [])


@each_hook
def test_a_missing_package_is_found_before_the_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _module: None)
    with pytest.raises(ConfigError, match=r"is missing: pip install 'fedge\[track\]'"):
        HOOKS.make(name)


@each_hook
def test_an_unknown_setting_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        HOOKS.make({"name": name, "nonsense": 1})


def test_tensorboard_has_scalars_by_round(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    hook = HOOKS.make({"name": "tensorboard", "dir": "boards"})
    hook.begin(start(tmp_path))
    hook.round(1, {"loss": 0.5})
    hook.round(2, {"loss": 0.25})
    hook.end({"loss": 0.25}, files_of(tmp_path / "run"))
    found: dict[str, list[tuple[int, float]]] = {}
    images = []
    for file in (tmp_path / "boards/case/0").glob("events.out.tfevents.*"):
        for data in tfrecords(file.read_bytes()):
            event = Event.FromString(data)
            for value in event.summary.value:
                if value.HasField("image"):
                    images.append(value.tag)
                elif value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert found["loss"] == [(1, 0.5), (2, 0.25)]
    assert images == ["curves"]
    assert [value for _, value in found["final/loss"]] == [0.25]


def tfrecords(data: bytes) -> list[bytes]:
    """Records of a TFRecord file: length in 8 bytes, its check sum in 4, data, 4 more."""
    found = []
    while data:
        length = int.from_bytes(data[:8], "little")
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_mlflow_has_parameters_metrics_by_round_and_files(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    hook = HOOKS.make({"name": "mlflow", "uri": "tracked", "experiment": "ours"})
    hook.begin(start(tmp_path))
    hook.round(1, {"loss": 0.5})
    hook.round(2, {"loss": 0.25})
    hook.end({"loss": 0.25}, files_of(tmp_path / "run"))
    client = MlflowClient(tracking_uri=(tmp_path / "tracked").as_uri())
    experiment = client.get_experiment_by_name("ours")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "case/0"
    assert run.data.params["federation.rounds"] == "3"
    assert run.data.tags["fedge.seed"] == "0"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((one.step, one.value) for one in history) == [(1, 0.5), (2, 0.25)]
    kept = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert kept == {"report.json", "model", "curves.png"}


# -- following --------------------------------------------------------------------------------


@dataclass
class Shown:
    """Watcher that keeps what it is told."""

    notes: list[str] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    def begin(self, *_: Any) -> None: ...

    def round(self, record: Any) -> None:
        self.rounds.append(record.round_id)

    def waiting(self, *_: Any) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def working(self, *_: Any) -> None: ...


class BrokenSettings(Settings, frozen=True, tag="broken"):
    pass


class Broken:
    """Hook that fails in its second round."""

    settings_type: ClassVar[type[Settings]] = BrokenSettings
    calls: ClassVar[list[str]] = []
    begun: ClassVar[list[RunStart]] = []

    def __init__(self, settings: BrokenSettings) -> None:
        self.calls.clear()
        self.begun.clear()

    def begin(self, run: RunStart) -> None:
        self.calls.append("begin")
        self.begun.append(run)

    def round(self, number: int, values: Mapping[str, float]) -> None:
        self.calls.append(f"round {number}")
        if number == 2:
            raise OSError("the server\nis gone")

    def end(self, values: Mapping[str, float], files: Sequence[Path]) -> None:
        self.calls.append("end")


def test_a_hook_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HOOKS._members, "broken", Broken)
    hook: Hook = HOOKS.make("broken")
    assert isinstance(hook, Broken)
    shown = Shown()
    followed = Followed(shown, ["broken"], tmp_path)
    for number in (1, 2, 3):
        followed.round(new_record(number, number, 1))
    followed.end(is_done=False)
    assert shown.rounds == [1, 2, 3]
    assert shown.notes == [
        "hook broken failed in round 2: OSError: the server; the run goes on without it"
    ]
    assert Broken.calls == ["round 1", "round 2"]


def test_a_hook_is_told_the_resolved_configuration_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HOOKS._members, "broken", Broken)
    made = prepare(HOUSE, {"agents": 2, "federation.algorithm": "fedprox", "seed": 5})
    Followed(Shown(), ["broken"], tmp_path).begin(made.participants, made.config, "none")
    (start,) = Broken.begun
    assert start.parameters["federation.algorithm.mu"] == 0.01
    assert start.parameters["seeds.partition"] == 5
    assert start.parameters["partition.kind"] == "iid"
    assert "partition.alpha" not in start.parameters
    assert not [key for key in start.parameters if key.startswith("federation.broker")]


def test_figures_of_a_round_are_finite_numbers() -> None:
    import msgspec

    record = msgspec.structs.replace(
        new_record(1, 1, 2),
        loss=float("nan"),
        metrics={"accuracy": 0.5},
        evaluated=True,
        bytes_up=7,
    )
    found = figures(record)
    assert found["accuracy"] == 0.5
    assert found["bytes_up"] == 7.0
    assert "loss" not in found
    assert "train_loss" not in found


def test_a_configuration_is_flat_and_without_empty_values() -> None:
    nested: dict[str, Any] = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None, "f": "", "g": []}
    assert flattened(nested) == {"a.b": 1, "a.c.d": [1, 2]}


@each_hook
def test_a_hook_follows_a_single_run_from_the_command_line(name: str, tmp_path: Path) -> None:
    words = ["simulate", str(HOUSE), "--agents", "2", "--rounds", "2", "--set", "baselines={}"]
    words += ["--no-check", "--no-trace", "--out", str(tmp_path), "--hook", f"{{name: {name}}}"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert f"hook {name} failed" not in done.output
    folder = {"tensorboard": "tensorboard", "mlflow": "mlruns"}[name]
    assert [path for path in (tmp_path / folder).rglob("*") if path.is_file()]


def test_a_wrong_hook_is_refused_before_the_run(tmp_path: Path) -> None:
    words = ["simulate", str(HOUSE), "--out", str(tmp_path / "out"), "--hook", "tensorbord"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert "unknown hook 'tensorbord'; did you mean tensorboard?" in done.output
    assert not (tmp_path / "out").exists()
