"""`fedge agent`: what is done on a device."""

from __future__ import annotations

import logging
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import msgspec

from fedge.console import CommandGroup, FiniteRange, command_errors, log_less
from fedge.errors import ConfigError
from fedge.options import config_option, give_up_option
from models.cli.runtimes import runtime_option

_CONFIG = config_option("YAML file of this agent.")


@click.group(cls=CommandGroup)
def cli() -> None:
    """Train on this device's data for a federation."""


@cli.command()
@_CONFIG
@give_up_option
@command_errors
def run(config_path: Path, give_up_after: float | None) -> None:
    """Take part in a federation until stopped.

    Connects to the broker, waits for rounds, trains on the local data and sends quantized updates.
    Recordings never leave the device; what it writes is its state folder. Ctrl-C or SIGTERM ends
    it cleanly.
    """
    from fedge import openssl

    with nullcontext() if _needs_openssl(config_path) else openssl.left_out():
        from edge_agent.config import load_agent_config
        from edge_agent.service import run_agent

    run_agent(load_agent_config(config_path), config_path.parent, give_up_after)


def _needs_openssl(config_path: Path) -> bool:
    """Whether an agent's configuration has TLS, or what may use it."""
    from fedge.yaml_config import load_config

    class Document(msgspec.Struct):
        broker: dict[str, Any] = {}
        plugins: list[Any] = []

    try:
        found = load_config(config_path, Document)
    except ConfigError:
        return True  # it is reported once all of it is read
    return bool(found.plugins) or bool({"tls", "proxy"} & found.broker.keys())


@cli.command()
@click.option("--data", required=True, help="The data file, or a pattern: 'records/*.csv'.")
@click.option("--model", "model_name", help="The federation's: of the zoo, or a package folder.")
@click.option("--table", default="", help="Of an SQLite file; default: the one with the most rows.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("agent.yaml"),
    show_default=True,
    help="The configuration to write.",
)
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
@click.option("--federation", help="Its name; default: the model's.")
@click.option("--agent-id", help="Of this device; default: the machine's name.")
@click.option(
    "--broker",
    "host",
    default="127.0.0.1",
    show_default=True,
    metavar="HOST",
    help="Its address.",
)
@command_errors
def init(
    data: str,
    model_name: str | None,
    table: str,
    out: Path,
    force: bool,
    federation: str | None,
    agent_id: str | None,
    host: str,
) -> None:
    """Look at a data file and write a first agent.yaml for it.

    Finds columns or arrays, separator, decimal sign and times, and guesses which are the inputs and
    the target of the model. Prints what it is not sure of, and what still keeps the file from being
    read; the columns are in agent.yaml. What is uncertain has a comment beside it. The data
    stays as it is.
    """
    from edge_agent.first_config.init import write_first_config
    from models.zoo import open_model

    package = open_model(model_name) if model_name else None
    spec = package.spec if package else None
    written = write_first_config(
        data, spec, out, table,
        model=model_name or "",
        force=force, federation=federation, agent_id=agent_id, host=host,
    )  # fmt: skip
    click.echo(f"{out} written after a look at {data}")
    for line in written.doubts:
        click.echo(f"  look at     {line}")
    if written.problem:
        click.echo(f"  not yet     {written.problem}")
    if written.reads:
        click.echo(f"  reads       {written.reads}")
    checked = shlex.join(["fedge", "agent", "check", "--config", str(out)])
    click.echo(f"  next        {checked} --model {shlex.quote(model_name or 'MODEL')}")


@cli.command()
@_CONFIG
@click.option(
    "--model", "model_name", required=True, help="A model of the zoo, or a package folder."
)
@runtime_option
@command_errors
def check(config_path: Path, model_name: str, runtime: str | None) -> None:
    """Read the configuration and the data as the agent would, and say what it found.

    Goes once through all rows with the untrained model, which finds those that it cannot take.
    Changes nothing but the state folder (a fixed normalisation is stored there).
    """
    from edge_agent.config import load_agent_config
    from edge_agent.data.dataset import build_dataset, read_ready
    from edge_agent.doctor.data_checks import part_lines
    from edge_agent.doctor.row_check import try_rows
    from fedge.yaml_config import located
    from learning.vector.metrics import absent_metrics, metric_values
    from models.runtime.program import Program
    from models.zoo import open_model

    config = load_agent_config(config_path)
    package = open_model(model_name)
    program = Program(
        package.program, package.spec, frozen=package.frozen, runtime=runtime or config.runtime
    )
    base = config_path.parent
    state_dir = located(config.state_dir, base)
    table = read_ready(config.data, package.spec, base, state_dir)
    data = build_dataset(table, config.data, package.spec, state_dir, own=True)
    click.echo(f"model    {package.spec.name}, {package.spec.size:,} parameters, {program.runtime}")
    for line in part_lines(data, package.spec):
        click.echo(line)
    sums = try_rows(program, package.whole(package.initial), table, data)
    if not sums.weight:
        click.echo("nothing to measure: every row held out has weight 0")
        return
    for name, value in metric_values(sums, package.spec.metrics).items():
        click.echo(f"{name:8s} {value:.4f} (untrained)")
    for name, why in absent_metrics(sums, package.spec.metrics).items():
        click.echo(f"{name:8s} none: {why}")


@cli.command()
@_CONFIG
@click.option("--model", "model_name", help="Instead of the federation's: of the zoo, or a folder.")
@click.option("--offline", is_flag=True, help="Leave the broker alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@command_errors
def doctor(config_path: Path, model_name: str | None, offline: bool, as_json: bool) -> None:
    """Look for what keeps this device from taking part, and say what to do about it.

    Clock, certificates, name, TCP, TLS, login, access rights and speed of the broker; disk, memory,
    temperature; a few steps of the model on this device's data, and a look at the data itself.
    Changes nothing. A broker that goes by certificates may cut a running agent off: it comes back
    by itself within a minute.

    Ends with 0 when nothing failed, 2 when something here has to be mended, 3 when it is the broker
    or the way to it.
    """
    from edge_agent.config import load_agent_config
    from edge_agent.doctor.doctor import diagnose
    from fedge.check_result import report
    from models.zoo import open_model

    config = load_agent_config(config_path)
    package = open_model(model_name) if model_name else None
    model = package.content if package else None
    # The lines below say the same, and what to do.
    click.get_current_context().call_on_close(log_less(logging.ERROR, "edge_agent"))
    checks = diagnose(config, config_path.parent, model, offline=offline)
    sys.exit(report(checks, as_json=as_json))


@cli.command()
@click.option(
    "--model",
    "model_path",
    required=True,
    type=click.Path(path_type=Path),
    help="A released model: a .tflite with its .json beside it (fedge model release).",
)
@click.option("--data", type=click.Path(path_type=Path), help="File with the inputs.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="agent.yaml, for its data section (columns, normalisation), its runtime and threads.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help=".npz, .csv or .jsonl; default: CSV on stdout.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row on stdout.")
@runtime_option
@command_errors
def predict(
    model_path: Path,
    data: Path | None,
    config_path: Path | None,
    out: Path | None,
    as_json: bool,
    runtime: str | None,
) -> None:
    """Predict with a released model.

    Rows come from --data, or from the data section of agent.yaml. A row's outputs are written as
    CSV, with the name of the class where the model has classes. Nothing is sent anywhere; what it
    writes is --out.
    """
    from edge_agent.config import AgentConfig
    from edge_agent.data.dataset import DataConfig
    from edge_agent.predict import inputs_only, write
    from edge_agent.predict import predict as run_model
    from fedge.yaml_config import load_config, located

    base, state_dir, threads = Path(), None, 1
    try:
        if config_path is not None:
            config = load_config(config_path, AgentConfig)
            base, threads = config_path.parent, config.threads
            state_dir = located(config.state_dir, base)
            source, runtime = inputs_only(config.data, data), runtime or config.runtime
        elif data is not None:
            source = DataConfig(path=str(data))
        else:
            raise click.UsageError("give --data FILE, or --config agent.yaml")
    except ValueError as error:
        raise click.UsageError(f"--data {data}: {error}") from error
    found = run_model(
        model_path, source, base, runtime=runtime, threads=threads, state_dir=state_dir
    )
    write(found, out, as_json=as_json)


@cli.command()
@click.argument("source", metavar="BUNDLE|TOKEN|-")
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="This device's folder; made when it does not exist.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Data file (default: DIR/data.npz).")
@click.option("--target", default="", help="Column or array (.npz) that is learned.")
@click.option(
    "--timeout",
    default=30.0,
    show_default=True,
    type=FiniteRange(min=1),
    metavar="SECONDS",
    help="With a token: how long to try to reach the enrolment service.",
)
@click.option(
    "--websockets", is_flag=True, help="Reach the broker through WebSockets (a new agent.yaml)."
)
@command_errors
def enrol(
    source: str,
    folder: Path,
    data: Path | None,
    target: str,
    timeout: float,
    websockets: bool,
) -> None:
    """Join a fleet with the bundle or the token that `fedge broker enrol` made.

    A BUNDLE is a file and brings the device's key. With a TOKEN (the line fedge://..., a file with
    it, or - to read it from stdin, which leaves it out of the list of processes) the device makes
    its own key, which never leaves it, and asks the fleet's enrolment service for a certificate.

    Writes certificates, the private key and agent.yaml into DIR, which only you can read. On the
    folder of the same device it replaces the certificates and keeps agent.yaml.
    """
    from broker.enrolment.token import Token
    from broker.link.settings import BrokerSettings
    from edge_agent.config import AgentConfig
    from edge_agent.enrolment import enrol as joining
    from fedge.yaml_config import load_config, located

    if source == "-":
        token: Token | None = Token.parse(sys.stdin.readline(1000))
    else:
        token = joining.token_in(source)
    if token is None:
        taken, is_new = joining.enrol(Path(source), folder, data, target, websockets=websockets)
    else:
        click.echo(f"asking {token.address} to let {token.agent_id} in ...", err=True)
        taken, is_new = joining.enrol_with_token(
            token, folder, data, target, timeout, websockets=websockets
        )
    config = folder / joining.CONFIG_FILE
    what = f"{config} written" if is_new else f"certificates renewed, {config} kept"
    click.echo(f"{taken.agent_id} of federation {taken.federation}: {what}; next:")
    written = load_config(config, AgentConfig)
    here, ports = written.broker, (taken.port, taken.websockets)
    if here.host != taken.host or here.port not in ports:
        told = BrokerSettings(host=taken.host, port=taken.port).address
        click.echo(f"  another broker?     {config} has {here.address}, this fleet's is {told}")
    if not is_new and (data is not None or target or websockets):
        click.echo(f"  the options:        they are for a new file; change {config} yourself")
    data_path = located(Path(written.data.path), folder)
    if not any(sign in str(data_path) for sign in "*?[") and not data_path.exists():
        click.echo(f"  put the data there: {data_path} is missing")
    if written.trusted_keys is None:
        click.echo(f"  check signatures:   add `trusted_keys: {joining.KEYS_FILE}` to {config}")
    click.echo(f"  start it:           fedge agent run --config {shlex.quote(str(config))}")
    if token is None:
        click.echo(f"  delete the bundle:  rm {shlex.quote(source)}")
