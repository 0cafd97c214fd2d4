"""The documents say what the code does: keys and defaults, bytes, examples, commands, links."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import click.testing
import msgspec
import numpy as np
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import coordinator.machine.update_intake
import coordinator.machine.uploads
import coordinator.rounds.round
import fleet.cli.main
from broker.link.settings import BrokerSettings, TlsSettings
from broker.link.transport_settings import ProxySettings, WebSocketSettings
from broker.protocol import blobs, ed25519, messages, signed_messages
from broker.protocol.seeds import codec_seed
from broker.security.signing import SigningKeys
from coordinator import config as coordinator_config
from coordinator.machine import admission
from coordinator.records.records import AgentResult, RoundRecord
from edge_agent.config import AgentConfig
from edge_agent.data import columns, faults
from edge_agent.data.columns import StatisticsConfig
from edge_agent.data.config import DataConfig, InputSource, TargetSource, WeightSource
from edge_agent.data.dataset import load_dataset
from edge_agent.data.file_settings import CsvConfig, TimeConfig, WindowConfig
from edge_agent.data.formats.times import FEATURES
from edge_agent.machine import agent, decoded_plan, reports, rounds, status
from edge_agent.machine.limits import LimitsConfig
from fedge import console
from fedge.command import cli
from fedge.errors import FederationError
from fedge.yaml_config import load_config, parse_config
from fleet.baselines import Baselines
from fleet.experiments.execution.grid import Grid, GridOptions
from fleet.experiments.execution.plan import make_plan
from fleet.experiments.hooks.registry import HOOKS
from fleet.participants import make_participants
from fleet.partition import PartitionConfig
from fleet.report import ANSWER, build_report
from fleet.scenario import BaselineConfig, DetectionConfig, Scenario, load_scenario
from fleet.seeds import SeedsConfig
from fleet.virtual.faults import FaultPlan
from fleet.virtual.invariants import InvariantViolated
from learning.aggregation import norm_bound
from learning.aggregation.registry import AGGREGATORS
from learning.algorithms.registry import ALGORITHMS
from learning.algorithms.training import TrainingPlan
from learning.codecs.registry import CODECS
from learning.phases import statistics
from learning.phases.statistics import (
    MAX_COLUMNS,
    MAX_EDGES,
    StatisticsSettings,
    from_values,
    moments,
    to_values,
)
from models.package.spec import ModelSpec, TensorSpec
from models.zoo import load_zoo

ROOT = Path(__file__).parents[3]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
PROTOCOL = (ROOT / "docs/protocol.md").read_text()
MODELS = (ROOT / "docs/models.md").read_text()
REPORT = (ROOT / "docs/report.md").read_text()

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    match = re.search(rf"(?ms)^#+ {re.escape(heading)}$\n(.*?)(?=^#+ |\Z)", text)
    assert match, f"no heading {heading!r}"
    return match[1]


def rows(text: str) -> dict[str, list[str]]:
    """The cells of every table row that begins with a name in backticks."""
    lines = re.findall(r"(?m)^\| `(\w+)` \|(.*)\|$", text)
    return {name: [cell.strip() for cell in rest.split(" | ")] for name, rest in lines}


def shown(field: msgspec.structs.FieldInfo) -> str | None:
    """The default as the tables write it; None for a section of its own."""
    if field.required:
        return "required"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    text: dict[Any, str] = {None: "none", "": "empty"}
    if isinstance(value, str | None) and value in text:
        return text[value]
    if isinstance(value, msgspec.Struct):
        return None
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`"


def check_table(text: str, struct: Any, column: int) -> None:
    """Every field has a row, every row is a field, and the default is the right one."""
    found = rows(text)
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    assert set(fields) <= set(found), "undocumented keys"
    for name, field in fields.items():
        default = shown(field)
        if default is not None:
            assert found[name][column] == default, name
        else:
            assert found[name][column].startswith(("see", "`{}`")), name


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("Agent: top level", AgentConfig),
        ("limits", LimitsConfig),
        ("Agent: statistics", StatisticsConfig),
        ("data", DataConfig),
        ("data.inputs.NAME", InputSource),
        ("data.target", TargetSource),
        ("data.weight", WeightSource),
        ("data.csv", CsvConfig),
        ("data.time", TimeConfig),
        ("data.window", WindowConfig),
        ("broker", BrokerSettings),
        ("broker.tls", TlsSettings),
        ("broker.websocket", WebSocketSettings),
        ("broker.proxy", ProxySettings),
        ("Coordinator: top level", coordinator_config.CoordinatorConfig),
        ("cohort", coordinator_config.CohortConfig),
        ("round", coordinator_config.RoundConfig),
        ("start", coordinator_config.StartConfig),
        ("evaluation", coordinator_config.EvaluationConfig),
        ("stop", coordinator_config.StopConfig),
        ("training", TrainingPlan),
        ("Scenario: top level", Scenario),
        ("seeds", SeedsConfig),
        ("partition", PartitionConfig),
        ("baselines", BaselineConfig),
        ("detection", DetectionConfig),
    ],
)
def test_every_key_is_documented_with_its_default(heading: str, struct: Any) -> None:
    text = section(CONFIGURATION, heading)
    table = text[text.index("| key |") :].split("\n\n")[0]
    check_table(table, struct, 1)
    assert set(rows(table)) == {field.name for field in msgspec.structs.fields(struct)}


def test_every_key_of_a_grid_and_every_hook_are_documented() -> None:
    page = (ROOT / "docs/experiments.md").read_text()
    keys = {field.encode_name for struct in (Grid, GridOptions) for field in struct_fields(struct)}
    assert set(rows(section(page, "Grid files"))) == keys
    text = section(page, "TensorBoard and MLflow")
    for name in HOOKS:
        for field in struct_fields(HOOKS[name].settings_type):
            default = f"`{field.default}`" if field.default else "empty"
            assert re.search(rf"\| `{name}` \| `{field.name}` \|.*\| {default} \|", text)


def struct_fields(struct: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(struct)


def test_every_feature_of_times_and_the_limits_of_faults_are_documented() -> None:
    text = section(CONFIGURATION, "data.time")
    for name in FEATURES:
        assert f"`{re.sub('_(sin|cos)$', '', name)}`" in text
    text = section(CONFIGURATION, "Faults")
    assert (faults.LARGEST, faults.LARGEST_SCALED) == (1e18, 1e6)
    assert "10^18" in text
    assert "a million standard deviations" in text


@pytest.mark.parametrize(
    "struct",
    [
        *(messages.BlobRef, messages.CoordinatorStatus, messages.ProgramManifest),
        *(messages.RoundPlan, messages.Cohort, messages.AgentStatus, messages.Report),
        *(messages.TargetSummary, messages.Receipt, messages.Resend),
        messages.RoundResult,
    ],
    ids=lambda struct: struct.__name__,
)
def test_every_message_is_documented_and_its_example_decodes(struct: Any) -> None:
    text = section(PROTOCOL, struct.__name__)
    check_table(text, struct, 1)
    for example in re.findall(r"(?s)```json\n(.*?)```", text):
        message = messages.decode(example.encode(), struct)
        known = {f.name for f in msgspec.structs.fields(struct)}
        assert set(json.loads(example)) <= known | {struct.__struct_config__.tag_field}
        assert isinstance(message, struct)


def test_the_header_of_updates_is_documented() -> None:
    check_table(section(PROTOCOL, "Update"), messages.UpdateHeader, 1)
    check_table(section(PROTOCOL, "VectorRef"), messages.VectorRef, 1)


def test_the_spec_is_documented() -> None:
    text = section(MODELS, "spec.json")
    spec, tensor = text.split("A tensor is described")
    assert set(rows(spec)) == {field.name for field in msgspec.structs.fields(ModelSpec)}
    check_table(tensor, TensorSpec, 1)


def test_the_settings_of_statistics_are_documented() -> None:
    text = section(CONFIGURATION, "statistics")
    found = {name: cells[1] for name, cells in rows(text).items()}
    fields = msgspec.structs.fields(StatisticsSettings)
    assert found == {field.name: shown(field) for field in fields}
    assert f"at most {MAX_COLUMNS:,} columns, {MAX_EDGES:,} edges" in text


def test_the_numbers_of_a_statistics_answer_are_documented() -> None:
    text = section(PROTOCOL, "Statistics")
    (example,) = re.findall(r"(?s)```json\n(.*?)```", text)
    report = messages.decode(example.encode(), messages.Report)
    found = moments(np.array([1.0, 2.0, 3.0, 6.0]), None, (2.0,))
    assert report.values == to_values({"median_income": found})
    assert from_values(report.values, {"median_income": (2.0,)}) == {"median_income": found}


@pytest.mark.parametrize(
    ("heading", "registry"),
    [("codec", CODECS), ("algorithm", ALGORITHMS), ("aggregator", AGGREGATORS)],
)
def test_every_member_and_each_of_its_settings_is_documented(heading: str, registry: Any) -> None:
    text = section(CONFIGURATION, heading)
    assert set(rows(text)) >= set(registry)
    found = re.findall(r"(?m)^\| `(\w+)` \| `(\w+)` \| .* \| (\S+) \| [^|]* \|$", text)
    wanted = {
        (name, field.name, shown(field))
        for name in registry
        for field in msgspec.structs.fields(registry[name].settings_type)
    }
    assert set(found) == wanted


def test_every_codec_has_its_bytes_documented() -> None:
    for name in CODECS:
        assert f"- `{name}`:" in section(PROTOCOL, "Codecs")


# -- bytes ------------------------------------------------------------------------------------


def block(kind: str) -> str:
    match = re.search(rf"(?s)```{kind}\n(.*?)```", PROTOCOL)
    assert match, kind
    return match[1].strip()


def test_the_vector_of_int8_is_the_code_s() -> None:
    codec = CODECS.make({"name": "int8", "block_size": 2})
    vector = np.array([127, -3, 0, 0, 63.5], np.float32)
    wire = bytes.fromhex(block("hex int8"))
    assert codec.encode(vector, 0, np.random.default_rng(0)) == wire
    assert codec.decode(wire, 5, 0).tolist() == vector.tolist()


def test_the_seed_of_codecs_is_the_code_s() -> None:
    assert f"for seed 12345 and `pi-01` that is {codec_seed(12345, 'pi-01')}" in PROTOCOL


def test_the_update_frame_and_its_chunk_are_the_code_s() -> None:
    text = block("json update").encode()
    header = msgspec.json.decode(text, type=messages.UpdateHeader)
    body = bytes.fromhex(block("hex int8"))
    frame = bytes.fromhex(block("hex update")) + text + body
    assert messages.encode_update(header, body) == frame
    assert f"update of {len(frame)} bytes" in PROTOCOL
    assert messages.decode_update(frame)[1] == body
    _, chunks = blobs.split(frame)
    assert chunks == [bytes.fromhex(block("hex chunk")) + frame]
    assert f"header of {blobs.HEADER_BYTES} bytes" in PROTOCOL


def test_the_vector_of_signatures_is_the_code_s() -> None:
    private = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"  # RFC 8032, 7.1
    keys = SigningKeys([Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))])
    (public,) = keys.public
    topic = "fedge/v1/houses/coordinator/status"
    payload, signed = block("json payload").encode(), block("text signed").encode()
    message, envelope = signed_messages.split(payload)
    found = signed_messages.parse(envelope)
    assert msgspec.json.decode(payload).items() >= msgspec.json.decode(message).items()
    assert signed_messages.signed_bytes(topic, found.number, message) == signed
    assert f"The {len(signed)} bytes that are signed" in PROTOCOL
    assert signed_messages.join(message, keys.sign(topic, found.number, message)) == payload
    assert messages.decode(message, messages.CoordinatorStatus).keys == (public.hex(),)
    assert ed25519.is_valid(
        public, signed, bytes.fromhex(found.signatures[signed_messages.key_id(public)])
    )
    check_table(section(PROTOCOL, "Signatures"), signed_messages.SignatureEnvelope, 1)


def test_the_examples_of_fingerprint_and_cohort_are_the_code_s() -> None:
    layout = load_zoo("house_price").spec.layout
    compact = block("text").splitlines()[0]
    assert msgspec.json.encode(layout.parameters).decode() == compact
    assert hashlib.sha256(compact.encode()).hexdigest()[:16] == layout.fingerprint
    assert f"fingerprint {layout.fingerprint}" in block("text")
    rule = messages.Cohort(seed=42, fraction=0.5)
    draws = re.findall(r"\| `(pi-\d+)` \| `([0-9a-f]{16})` \| (yes|no) \|", PROTOCOL)
    assert len(draws) == 3
    for name, draw, asked in draws:
        assert hashlib.sha256(f"42:{name}".encode()).hexdigest()[:16] == draw
        assert rule.includes(name) == (asked == "yes")


def test_every_reason_is_documented() -> None:
    documented = set(rows(section(PROTOCOL, "Reasons")))
    places = (
        admission,
        norm_bound,
        coordinator.machine.update_intake,
        coordinator.rounds.round,
        coordinator.machine.uploads,
    )
    source = "\n".join(inspect.getsource(place) for place in places)
    refusals = set(re.findall(r'(?:Rejected|Reject|_reject)\((?:\w+, )?"(\w+)"', source))
    refusals |= set(re.findall(r'\("(\w+)", (?:header|set)', source))
    assert {"late", "norm", "session", "malformed", "metrics"} <= refusals
    assert refusals <= documented
    declining = (agent, columns, decoded_plan, reports, rounds, statistics, status)
    source = "\n".join(inspect.getsource(place) for place in declining)
    calls = r'(?:DeclinedError|_declines|decline_running|_decline|declined)\((?:plan, )?"(\w+)"'
    declined = set(re.findall(calls, source))
    assert {"phase", "algorithm", "codec", "weights", "training", "evaluation"} <= declined
    assert {"stopping", "not_allowed", "no_data"} <= declined <= documented
    told = re.search(r"(?s)reason: machine name: (.*?)\.", messages.Report.__doc__ or "")
    assert told
    assert set(re.findall(r"\w+", told[1])) <= documented


# -- results ----------------------------------------------------------------------------------


def first_cells(text: str) -> set[str]:
    """The names in backticks in the first cell of every row."""
    cells = re.findall(r"(?m)^\| (`[^|]*) \|", text)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_key_of_the_report_is_documented() -> None:
    text = section(REPORT, "report.json")
    scenario = load_scenario(ROOT / "examples/house_price.yaml")
    facts = dict.fromkeys(
        ("agents", "codec", "runtime", "broker", "reason", "seconds", "status"), ""
    )
    baselines = Baselines(failed={"own": "why"}, detection={"own": {"auc": 1.0}})
    report = build_report(scenario, load_zoo("house_price"), [], baselines, facts)
    record = {
        "seed",
        "configuration",
        "run",
        "virtual_seconds",
        "faults",
    }  # see tests/unit/fleet/runs
    assert first_cells(text) == {*report, *record, "statistics", ANSWER}
    (final,) = re.findall(r"(?m)^\| `final` \| (.*) \|$", text)
    assert set(re.findall(r"`(\w+)`", final)) == set(report["final"])


@pytest.mark.parametrize(("heading", "struct"), [("rounds", RoundRecord), ("agents", AgentResult)])
def test_every_key_of_a_round_is_documented(heading: str, struct: Any) -> None:
    fields = {field.name for field in msgspec.structs.fields(struct)}
    assert first_cells(section(REPORT, heading)) == fields


def all_subclasses(kind: type[FederationError]) -> set[type[FederationError]]:
    return {kind}.union(*map(all_subclasses, kind.__subclasses__()))


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs/exit-codes.md").read_text()
    documented = [int(code) for code in re.findall(r"(?m)^\| (\d+) \|", page)]
    codes = {0, console._INTERRUPTED, console._NO_READER, fleet.cli.main._LIMIT_MISSED}
    codes |= {kind.exit_code for kind in all_subclasses(FederationError)}
    assert InvariantViolated.exit_code in codes
    assert documented == sorted(codes)


# -- examples ---------------------------------------------------------------------------------


def yaml_blocks() -> list[Any]:
    return [
        pytest.param(text, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, text in enumerate(re.findall(r"(?s)```yaml\n(.*?)```", page.read_text()))
    ]


@pytest.mark.parametrize("text", yaml_blocks())
def test_every_yaml_block_loads(text: str, tmp_path: Path) -> None:
    path = tmp_path / "example.yaml"
    path.write_text(text)
    keys = set(yaml.safe_load(text))
    if "partition" in keys:
        load_scenario(path)
    elif "agent_id" in keys:
        load_config(path, AgentConfig)
    elif "model" in keys:
        load_config(path, coordinator_config.CoordinatorConfig)
    elif "until_s" in keys:
        load_config(path, FaultPlan)
    elif "scenario" in keys:
        path.write_text(text.replace("examples/", f"{ROOT}/examples/"))
        make_plan(path)
    else:
        assert keys == {"data"}
        parse_config(yaml.safe_load(text)["data"], DataConfig, str(path), key="data")


def test_the_files_in_deploy_load() -> None:
    load_config(ROOT / "deploy/agent.yaml", AgentConfig)
    load_config(ROOT / "deploy/coordinator.yaml", coordinator_config.CoordinatorConfig)


def test_every_example_and_its_model_are_described() -> None:
    readme, zoo = (ROOT / "README.md").read_text(), (ROOT / "docs/zoo.md").read_text()
    for path in (ROOT / "examples").glob("*.yaml"):
        assert f"](examples/{path.name}) |" in readme
        assert f"| `{load_scenario(path).federation['model']}` |" in zoo


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_example_loads(path: Path) -> None:
    assert load_scenario(path).name == path.stem


def worked_example(heading: str, kind: str, folder: Path) -> DataConfig:
    """Makes the data file of a section in `folder` and returns the section's configuration."""
    text = section(CONFIGURATION, heading)
    found = dict(re.findall(r"(?s)```(\w+)\n(.*?)```", text))
    config = parse_config(yaml.safe_load(found["yaml"])["data"], DataConfig, heading)
    if kind == "csv":
        (folder / config.path).write_text(found["csv"])
    else:
        code = found["python"].replace('"houses.npz"', repr(str(folder / config.path)))
        exec(compile(code, heading, "exec"), {})
    return config


def test_the_worked_csv_example_gives_what_the_page_says(tmp_path: Path) -> None:
    config = worked_example("CSV files", "csv", tmp_path)
    spec = load_zoo("house_price").spec
    data = load_dataset(config, spec, tmp_path)
    assert (data.num_train, data.num_test) == (6, 2)
    np.testing.assert_allclose(data.arrays["features"][0], [-0.3174, -0.1008], atol=5e-5)
    assert data.arrays["target"][0] == pytest.approx(1.8)
    without = msgspec.structs.replace(config, inputs={})
    again = load_dataset(without, spec, tmp_path)
    np.testing.assert_array_equal(again.arrays["features"], data.arrays["features"])


def test_the_worked_npz_example_gives_what_the_page_says(tmp_path: Path) -> None:
    config = worked_example("NPZ files", "npz", tmp_path)
    data = load_dataset(config, load_zoo("house_price").spec, tmp_path)
    assert (data.num_train, data.num_test) == (3, 1)


def test_the_five_minutes_of_models_fit_together(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    text = section(MODELS, "From a Keras function to a fleet")
    code = re.findall(r"(?s)```python\n(.*?)```", text)
    exec(compile(next(part for part in code if "pumps.csv" in part), "pumps.py", "exec"), {})
    described = next(part for part in code if "TensorSpec(" in part)
    keywords = re.search(r"(?s)TensorSpec\((.*?)\n    \)", described)
    assert keywords
    sensors = eval(f"TensorSpec({keywords[1]})", {"TensorSpec": TensorSpec})
    spec = msgspec.structs.replace(load_zoo("house_price").spec, inputs=(sensors,))
    path = tmp_path / "pumps.yaml"
    path.write_text(next(t for t in re.findall(r"(?s)```yaml\n(.*?)```", text) if "partition" in t))
    participants = make_participants(load_scenario(path), path, spec, None)
    assert (len(participants.learners), participants.unseen) == (5, ["pump-5"])
    assert participants.dataset("pump-0").num_train == 240


def test_the_errors_on_the_page_are_the_code_s(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "coordinator.yaml": "federation: a\nmodel: b\nround: {deadline: 5}\n",
        "agent.yaml": "federation: a\nagent_id: b\ndata: {path: a.npz, test_fraction: a fifth}\n",
    }
    for name, text in files.items():
        Path(name).write_text(text)
        kind = name.removesuffix(".yaml")
        result = click.testing.CliRunner().invoke(cli, [kind, "run", "--config", name])
        assert result.exit_code == 2
        assert f"    {result.output.strip()}\n" in CONFIGURATION


# -- commands and links -----------------------------------------------------------------------

_COMMAND = re.compile(
    r"(?:sudo (?:-u \S+ )?)?(?:\S*/)?fedge ((?:agent|coordinator|broker|model|fleet)\b[^`]*)"
)


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that the first words name, and the rest."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words:
        found = command.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r}"
        command, words = found, words[1:]
    return command, words


@every_page
def test_every_command_parses(page: Path) -> None:
    text = page.read_text()
    for line in re.findall(r"(?m)^ {4}(.*)$", text):
        if match := _COMMAND.match(line):
            command, words = resolved(shlex.split(match[1], comments=True))
            assert not isinstance(command, click.Group), line
            command.make_context("fedge", words)
    for inline in re.findall(r"`([^`\n]+)`", text):
        if match := _COMMAND.fullmatch(inline):
            command, words = resolved(shlex.split(match[1]))
            known = {name for parameter in command.params for name in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, inline


def anchor(heading: str) -> str:
    """As the usual renderers make them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@every_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, fragment = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        if fragment:
            headings = re.findall(r"(?m)^#+ (.*)$", path.read_text())
            assert fragment in {anchor(heading) for heading in headings}, target


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=lambda page: page.name)
def test_every_make_target_exists(page: Path) -> None:
    targets = set(re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text()))
    named = re.findall(r"(?m)(?:^ {4}|`)make (\w+)", page.read_text())
    assert set(named) <= targets


@every_page
def test_python_blocks_compile(page: Path) -> None:
    for code in re.findall(r"(?s)```python\n(.*?)```", page.read_text()):
        compile(code, page.name, "exec")


def test_the_readme_and_the_zoo_give_the_same_figures_for_the_demo() -> None:
    zoo = (ROOT / "docs/zoo.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `wearable_activity` \|.*$", zoo, re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("accuracy on new people |")[2].partition("\n\n")[0]
    figures = re.compile(r"\.\d\d\b")
    assert figures.findall(table) == figures.findall(row)[:3], "alone, federated, pooled"
