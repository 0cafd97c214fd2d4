"""Orders of an operator: carried out on the store, by the coordinator itself where it runs.

A running coordinator owns its state. It looks for orders every few seconds, stops its machine,
carries them out and begins again from the store, as after a restart.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from pathlib import Path

from broker.protocol.messages import name_of
from coordinator.config import CoordinatorConfig
from coordinator.result import make_result
from coordinator.rounds.stopping import stop_rule
from coordinator.storage.backup import copy_back
from coordinator.storage.orders import Forget, Order, Outcome, Quarantine, Release, Rollback
from coordinator.storage.store import Store, ranges
from fedge.errors import ConfigError, StoreError
from fedge.files import claimed, holder
from learning.algorithms.algorithm import Algorithm
from learning.algorithms.registry import ALGORITHMS
from models.package.package import ModelPackage
from models.package.stored_versions import STORE_FILE

log = logging.getLogger(__name__)

ROLE = "coordinator"
#: A coordinator that measures on its own data may take a while to look.
_PATIENCE_S = 60.0
_LOOK_S = 0.2


def open_store(config: CoordinatorConfig, state_dir: Path | None) -> Store:
    """Returns the store of a federation; raises as `Store`."""
    return Store(
        state_dir, config.keep_versions, keep_rounds=config.keep_rounds, erase=config.erase
    )


def give(
    config: CoordinatorConfig, state_dir: Path, package: ModelPackage, order: Order
) -> Outcome:
    """Carries out an order, or leaves it to the coordinator that runs and waits for it.

    Args:
        config: of the federation.
        state_dir: its state folder.
        package: its model.
        order: the order.

    Raises:
        ConfigError: there is no such federation, or its store is damaged.
        StoreError: the disk is full or failed.
    """
    with closing(Store.open_existing(state_dir)) as store:
        _check_federation(store, config)
        number = store.give_order(order)
        until_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until_s:
            if (outcome := store.order_outcome(number)) is not None:
                return outcome
            if holder(state_dir, ROLE) is None:
                return _carry_out_here(config, state_dir, package, number)
            time.sleep(_LOOK_S)
    process = holder(state_dir, ROLE)
    return Outcome(f"left to the coordinator (process {process}), which has not taken it up yet")


def _check_federation(store: Store, config: CoordinatorConfig) -> None:
    found = store.meta("federation")
    if found != config.federation:
        raise ConfigError(f"{store.path} is of the federation {found!r}, not {config.federation!r}")


def _carry_out_here(
    config: CoordinatorConfig, state_dir: Path, package: ModelPackage, number: int
) -> Outcome:
    with claimed(state_dir, ROLE), closing(open_store(config, state_dir)) as store:
        take_up(config, state_dir, package, store)
        outcome = store.order_outcome(number)
    assert outcome is not None, "all orders were taken up"
    return outcome


def take_up(
    config: CoordinatorConfig, state_dir: Path, package: ModelPackage, store: Store
) -> list[tuple[Order, Outcome]]:
    """Carries out all orders in the store of a coordinator that is not at work."""
    done = []
    for number, order in store.open_orders():
        try:
            outcome = _carry_out(order, config, state_dir, package, store)
        except ConfigError as error:
            outcome = Outcome(str(error), is_done=False)
        store.close_order(number, outcome)
        done.append((order, outcome))
    return done


def _carry_out(
    order: Order,
    config: CoordinatorConfig,
    state_dir: Path,
    package: ModelPackage,
    store: Store,
) -> Outcome:
    match order:
        case Quarantine(agent_id, reason):
            return _quarantine(store, agent_id, reason)
        case Release(agent_id):
            return _release(store, agent_id)
        case Forget(agent_id):
            return _forget(store, agent_id)
        case Rollback(version):
            return _roll_back(store, version, config, state_dir, package)


def _quarantine(store: Store, agent_id: str, reason: str) -> Outcome:
    is_known = store.knows_agent(agent_id)
    standing = store.standing(agent_id).quarantined(reason, by_operator=True)
    store.save_standing(agent_id, standing)
    store.flush()
    lines = [f"{agent_id} is in quarantine until it is released: it is not asked"]
    if not is_known:
        lines.append(f"note: no agent {agent_id} was ever heard of")
    opened = store.open_round()
    if opened is not None and agent_id in opened[1]:
        lines.append(f"its update for the open round {opened[0]} came before, and counts")
    return Outcome("\n".join(lines))


def _release(store: Store, agent_id: str) -> Outcome:
    standing = store.standing(agent_id)
    if not standing.quarantined_until_round:
        raise ConfigError(f"{agent_id} is not in quarantine")
    store.save_standing(agent_id, standing.released())
    store.flush()
    return Outcome(f"{agent_id} is released: it is asked again")


def _forget(store: Store, agent_id: str) -> Outcome:
    parts = store.parts_of(agent_id)
    opened = store.open_round()
    if not parts and not store.knows_agent(agent_id):
        raise ConfigError(
            f"no agent {agent_id} is known here; `fedge coordinator status` names all"
        )
    by_operator = store.standing(agent_id).by_operator
    store.forget_agent(agent_id)
    lines = [f"{agent_id} is forgotten: its status, counts and its part in {len(parts)} records"]
    made = [part.version for part in parts if part.version is not None]
    if made:
        lines.append(
            f"its updates count in the versions {ranges(made)} and all that follow: what one agent "
            "gave cannot be taken out of them"
        )
        without = [version for version in store.versions() if version < made[0]]
        lines.append(
            f"`fedge coordinator rollback --to {without[-1]}` goes back to the latest before them"
            if without
            else "no version before them is kept"
        )
    if opened is not None and agent_id in opened[1]:
        lines.append(f"its update for the open round {opened[0]} counts too")
    if by_operator:
        lines.append("its quarantine stays: release it if it may come back")
    lines.append(
        "its next birth brings it back: take its access away (`fedge broker revoke`), and clear "
        "its retained status at the broker"
    )
    return Outcome("\n".join(lines))


def _roll_back(
    store: Store,
    version: int,
    config: CoordinatorConfig,
    state_dir: Path,
    package: ModelPackage,
) -> Outcome:
    if name_of(config.task) != "train":
        raise ConfigError(f"task: {name_of(config.task)!r} makes no versions to go back to")
    algorithm: Algorithm = ALGORITHMS.make(config.algorithm, config.training)
    made = store.roll_back(version, package.spec.size, algorithm.without_devices)
    progress = store.load(package.spec.size, stop_rule(config))
    assert progress is not None, "it holds versions"
    lines = [
        f"version {made} has the weights of version {version}; rounds since are undone, "
        f"{progress.course.committed} of {config.rounds} count",
        "updates under way are refused, and devices begin anew with what they remember of the "
        "algorithm; personal layers stay",
    ]
    try:
        make_result(config, state_dir, package, progress, store).save()
    except StoreError as error:
        lines.append(f"note: {error}")
    return Outcome("\n".join(lines))


def restore(
    config: CoordinatorConfig, state_dir: Path, package: ModelPackage, path: Path
) -> list[str]:
    """Puts a backup into an empty state folder, to go on from there.

    Args:
        config: of the federation.
        state_dir: its state folder, without a store.
        package: its model.
        path: the backup.

    Returns:
        Lines for people.

    Raises:
        ConfigError: the folder is in use or has a store, or the file is no whole backup of this
            federation and model.
        StoreError: the disk is full or failed.
    """
    algorithm: Algorithm = ALGORITHMS.make(config.algorithm, config.training)
    with claimed(state_dir, ROLE):
        copy_back(path, state_dir)
        try:
            with closing(open_store(config, state_dir)) as store:
                store.adopt(config.federation, package)
                made = time.localtime(int(store.meta("backup_at") or 0))
                store.begin_session(package.spec.size, algorithm.without_devices)
                progress = store.load(package.spec.size, stop_rule(config))
        except ConfigError:
            for file in state_dir.glob(f"{STORE_FILE}*"):
                file.unlink()
            raise
    assert progress is not None, "a version was loaded"
    return [
        f"restored to {state_dir}: version {progress.version}, {progress.course.committed} rounds, "
        f"as of {time.strftime('%Y-%m-%d %H:%M:%S', made)}",
        "rounds since are lost; updates under way are refused once, then devices train anew",
    ]
