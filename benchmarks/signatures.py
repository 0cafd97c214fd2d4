"""What signatures cost: a device that verifies, a coordinator that signs, a round of both.

    python benchmarks/signatures.py [--repeats 5] [--rounds 12] [--agents 3] [--json] [--save]

Verifying and importing are measured in processes of their own: ours (Python's integers) beside the
package cryptography, after all that an agent imports anyway. Every message verified is another
one, since ours remembers the last verdicts. The rounds are those of a real federation over
Mosquitto on loopback (house_price, whose steps take microseconds), signed and unsigned in turn; the
first round of each, in which agents load the model, does not count.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import Report, budget, finish, option_parser, run_worker, shown, spread
from small_federation import run_rounds

from broker.local.broker import LocalBroker
from broker.protocol import signed_messages as signed_message

ROOT = Path(__file__).resolve().parent.parent
TOPIC = "fedge/v1/f/round"
#: As long as a plan.
MESSAGE = b'{"session":"8c1f","round_id":7,"state":"open"' + b" " * 650 + b"}"
MESSAGES = 30
PATIENCE_S = 60.0


# --- a message ------------------------------------------------------------------------------------


def resident_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise RuntimeError("no VmRSS")


def worker(kind: str, path: str) -> dict[str, float]:
    """Imports what verifies, and verifies the messages in a file."""
    document = json.loads(Path(path).read_text())
    import broker.protocol.ed25519
    import edge_agent.machine.agent  # noqa: F401  what an agent has loaded anyway

    before_kib, began = resident_kib(), time.perf_counter()
    public = bytes.fromhex(document["public"])
    if kind == "ours":
        is_valid = importlib.reload(broker.protocol.ed25519).is_valid  # was imported with the agent

        def verify(message: bytes, signature: bytes) -> bool:
            return bool(is_valid(public, message, signature))
    elif kind == "cryptography":
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        key = Ed25519PublicKey.from_public_bytes(public)

        def verify(message: bytes, signature: bytes) -> bool:
            key.verify(signature, message)
            return True
    else:
        raise ValueError(kind)
    imported_s = time.perf_counter() - began
    times = []
    for text, signature in document["signed"]:
        started = time.perf_counter()
        assert verify(bytes.fromhex(text), bytes.fromhex(signature))
        times.append(time.perf_counter() - started)
    return {
        "import_ms": imported_s * 1e3,
        "first_ms": times[0] * 1e3,
        "verify_ms": statistics.median(times[1:]) * 1e3,
        "memory_kib": resident_kib() - before_kib,
    }


def new_keys() -> Any:
    from broker.security.signing import SigningKeys  # loads cryptography, which a worker times

    return SigningKeys.generate()


def signed_messages(path: Path) -> None:
    keys = new_keys()
    signed = []
    for number in range(MESSAGES):
        text = signed_message.signed_bytes(TOPIC, number, MESSAGE)
        (signature,) = keys.sign(TOPIC, number, MESSAGE).signatures.values()
        signed.append((text.hex(), signature))
    path.write_text(json.dumps({"public": keys.public[0].hex(), "signed": signed}))


def signing_us() -> float:
    """Microseconds to seal a message."""
    keys = new_keys()
    times = []
    for number in range(200):
        started = time.perf_counter()
        signed_message.join(MESSAGE, keys.sign(TOPIC, number, MESSAGE))
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def keeping_ms(folder: Path) -> float:
    """Milliseconds to put on disk how far the coordinator's messages have come."""
    from edge_agent.machine.trust import TrustRecord
    from edge_agent.storage.trust_file import TrustFile

    file, times = TrustFile(folder), []
    for number in range(20):
        started = time.perf_counter()
        file.write(TrustRecord(numbers={"round": number}))
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def installed_mib() -> float:
    """Of cryptography and what it needs, which nothing else here does."""
    size = 0
    for name in ("cryptography", "cffi", "pycparser"):
        for file in importlib.metadata.files(name) or ():
            path = Path(str(file.locate()))
            size += path.stat().st_size if path.exists() else 0
    return size / (1 << 20)


# --- a round --------------------------------------------------------------------------------------


def federation(folder: Path, port: int, agents: int, rounds: int, *, signed: bool) -> Report:
    """Seconds and bytes of the rounds of a new federation."""
    coordinator, trust = {}, {}
    if signed:
        keys = new_keys()
        (folder / "signing.key").write_bytes(keys.encode())
        (folder / "coordinator.pub").write_bytes(signed_message.encode_public_keys(keys.public))
        coordinator["signing_key"] = "signing.key"
        trust["trusted_keys"] = "../coordinator.pub"
    broker = {"host": "127.0.0.1", "port": port}
    records, _ = run_rounds(folder, broker, agents, rounds, coordinator=coordinator, agent=trust)
    return {
        "ms": statistics.median(record["seconds"] for record in records) * 1e3,
        "down": statistics.median(record["bytes_down"] for record in records) / agents,
        "up": statistics.median(record["bytes_up"] for record in records) / agents,
    }


def measure(repeats: int, rounds: int, agents: int) -> Report:
    found: dict[str, list[Report]] = {"ours": [], "cryptography": [], "signed": [], "unsigned": []}
    signing: list[float] = []
    keeping: list[float] = []
    with (
        LocalBroker("mosquitto") as broker,
        tempfile.TemporaryDirectory(prefix="signatures-") as name,
    ):
        path = Path(name) / "messages.json"
        signed_messages(path)
        for number in range(repeats):
            for kind in ("ours", "cryptography"):
                found[kind].append(run_worker(__file__, [kind, str(path)], PATIENCE_S))
            signing.append(signing_us())
            keeping.append(keeping_ms(Path(name)))
            for kind in ("unsigned", "signed"):
                folder = Path(name) / f"{kind}-{number}"
                folder.mkdir()
                found[kind].append(
                    federation(folder, broker.port, agents, rounds, signed=kind == "signed")
                )
    spreads = {
        kind: {key: spread(row[key] for row in rows) for key in rows[0]}
        for kind, rows in found.items()
    }
    return {
        **spreads,
        "sign_us": spread(signing),
        "keep_ms": spread(keeping),
        "cryptography_installed_mib": installed_mib(),
        "agents": agents,
    }


def show(report: Report) -> None:
    print(f"{'verifying a plan':<26}{'ours':>24}{'cryptography':>24}")
    rows = {
        "import_ms": "import, ms",
        "first_ms": "first message, ms",
        "verify_ms": "each more, ms",
        "memory_kib": "memory, KiB",
    }
    for key, what in rows.items():
        ours, theirs = (report[kind][key] for kind in ("ours", "cryptography"))
        print(f"{what:<26}{shown(ours, digits=2):>24}{shown(theirs, digits=2):>24}")
    print(f"{'installed, MiB':<26}{0:>24}{report['cryptography_installed_mib']:>24.1f}")
    print(f"\nsealing a message, us: {shown(report['sign_us'])}")
    print(f"trust.json to disk, ms: {shown(report['keep_ms'])}")
    print(f"\n{'a round, ' + str(report['agents']) + ' agents':<26}{'unsigned':>24}{'signed':>24}")
    for key, what in (("ms", "ms"), ("down", "bytes down, an agent"), ("up", "bytes up, an agent")):
        plain, signed = (report[kind][key] for kind in ("unsigned", "signed"))
        print(f"{what:<26}{shown(plain):>24}{shown(signed):>24}")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(*sys.argv[2:])))
        return
    parser = option_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12, help="of each federation")
    parser.add_argument("--agents", type=int, default=3)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    report = measure(options.repeats, options.rounds, options.agents)
    report["budgets"] = [
        budget(report["ours"]["memory_kib"]["median"], 1024, "KiB of an agent's memory"),
    ]
    finish("signatures", report, options, show)


if __name__ == "__main__":
    main()
