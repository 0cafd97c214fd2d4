"""Files that must be whole, and folders that one process at a time may change."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedge.errors import ConfigError

log = logging.getLogger(__name__)

PRIVATE = 0o600
PRIVATE_FOLDER = 0o700


@dataclass(frozen=True)
class Account:
    """A user of this machine and its group."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Account:
        """The account `name`.

        Raises:
            ConfigError: there is none.
        """
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise ConfigError(f"there is no user {name!r} on this machine") from error
        return cls(name, entry.pw_uid, entry.pw_gid)

    @classmethod
    def for_files(cls, name: str) -> Account:
        """Whom to give files that are for `name`: only root can give any away.

        Raises:
            ConfigError: root runs this process, and there is no such account.
        """
        return cls.named(name) if os.geteuid() == 0 else cls.current()

    @classmethod
    def current(cls) -> Account:
        """Who runs this process.

        Raises:
            ConfigError: a number without a name, as in a container.
        """
        try:
            entry = pwd.getpwuid(os.geteuid())
        except KeyError as error:
            raise ConfigError(f"user {os.geteuid()} has no name on this machine") from error
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    def may_enter(self, folder: Path) -> bool:
        """Whether it gets to what is in `folder`; True where this process cannot try it."""
        import subprocess  # no device needs it

        if os.geteuid() != 0:
            return True
        try:
            tried = subprocess.run(
                ["test", "-x", str(folder)],
                user=self.uid,
                group=self.gid,
                extra_groups=os.getgrouplist(self.name, self.gid),
                check=False,
            )
        except OSError:  # a container may leave root without this right
            return True
        return tried.returncode == 0


def _give_to_owner(descriptor: int, folder: Path) -> None:
    """What root made in a folder of somebody belongs to them: one command with sudo must not take
    a fleet, or a device's folder, away from its owner."""
    if os.geteuid() == 0:
        status = folder.stat()
        with contextlib.suppress(OSError):  # a container may leave root without this right
            os.fchown(descriptor, status.st_uid, status.st_gid)


def write_whole(path: Path, data: bytes, mode: int = PRIVATE, owner: Account | None = None) -> None:
    """Writes a file that is there as a whole or not at all, power cut or full disk included.

    Args:
        path: replaced when it exists.
        data: its content.
        mode: never wider than this, not even while it is written.
        owner: who it belongs to; None: who runs this process, or if that is root, whom the folder
            belongs to.

    Raises:
        ConfigError: it cannot be written; what was there before still is.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        # O_EXCL: no link that somebody prepared is followed.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask says
            if owner is None:
                _give_to_owner(descriptor, path.parent)
            elif owner.uid != os.geteuid():
                os.fchown(descriptor, owner.uid, owner.gid)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def touch_private(path: Path) -> None:
    """Makes an empty file, when there is none, that nobody but its owner may read.

    Raises:
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE)
        try:
            _give_to_owner(descriptor, path.parent)
        finally:
            os.close(descriptor)


def beside(path: Path) -> Path:
    """Where the successor of a file waits until it counts."""
    return path.with_name(f"{path.name}.new")


def put_in_place(path: Path) -> None:
    """Gives the file that waits `beside` this path its name.

    Raises:
        ConfigError: it cannot; it waits still.
    """
    try:
        beside(path).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be replaced: {error.strerror}; take {beside(path)}"
        ) from error


def sync_folder(folder: Path) -> None:
    """Puts a rename inside `folder` on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_folder(folder: Path) -> None:
    """Makes `folder` and those above it; only its owner may look inside.

    One that is there keeps the rights that somebody gave it.

    Raises:
        ConfigError: it cannot be made.
    """
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True, mode=PRIVATE_FOLDER)
        folder.chmod(PRIVATE_FOLDER)  # whatever the umask says
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One command at a time changes what is in `folder`; a second one waits.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        descriptor = _open_lock(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be changed: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claimed(folder: Path, role: str) -> Iterator[None]:
    """One process runs on a state folder, which is made when absent; a second one is refused.

    Args:
        folder: of the state.
        role: agent or coordinator: one of each may share a folder, their files are others.

    A folder that cannot be locked (read-only, full, on a file system without locks) is used all
    the same, with a warning: whether it can be written is for those to say who write.

    Raises:
        ConfigError: somebody else runs on it; names the process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(folder, f".{role}.lock")
    except OSError as error:
        _warn_not_locked(folder, error)
        yield
        return
    try:
        _claim(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _claim(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            _warn_not_locked(folder, error)
            return
        number = os.pread(descriptor, 20, 0).strip()
        who = f"process {number.decode()}" if number.isdigit() else "another process"
        raise ConfigError(
            f"{folder} is in use by {who}: stop it, or give this one another state_dir"
        ) from error


def _open_lock(folder: Path, name: str = ".lock") -> int:
    touch_private(folder / name)
    # A link is not followed: in a folder of somebody else root would write where it leads.
    return os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW)


def _warn_not_locked(folder: Path, error: OSError) -> None:
    reason = error.strerror
    log.warning("%s cannot be locked against a second process: %s", folder, reason)
