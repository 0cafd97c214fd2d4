"""Atomic writes of files, and locks of folders."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import pwd
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedge.errors import ConfigError

log = logging.getLogger(__name__)

#: A look at a lock (`holder`) holds it for microseconds.
_LOOKS, _LOOK_S = 4, 0.02

PRIVATE = 0o600
PRIVATE_FOLDER = 0o700


@dataclass(frozen=True)
class Account:
    """User of this machine and its group."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Account:
        """Returns the account `name`.

        Raises:
            ConfigError: no such user.
        """
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise ConfigError(f"there is no user {name!r} on this machine") from error
        return cls(name, entry.pw_uid, entry.pw_gid)

    @classmethod
    def for_files(cls, name: str) -> Account:
        """Returns the owner for files of `name`: that account if root runs this process.

        Otherwise the current account: only root can change the owner of a file.

        Raises:
            ConfigError: root runs this process, and there is no such user.
        """
        return cls.named(name) if os.geteuid() == 0 else cls.current()

    @classmethod
    def current(cls) -> Account:
        """Returns the account of this process.

        Raises:
            ConfigError: the user id has no name, as in a container.
        """
        try:
            entry = pwd.getpwuid(os.geteuid())
        except KeyError as error:
            raise ConfigError(f"user {os.geteuid()} has no name on this machine") from error
        return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)

    def may_enter(self, folder: Path) -> bool:
        """Returns whether the account can enter `folder`; True if this process cannot test it."""
        import subprocess  # not needed on devices

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
        except OSError:  # in a container root may lack this right
            return True
        return tried.returncode == 0


def _give_to_owner(descriptor: int, folder: Path) -> None:
    """Gives a file that root made in another user's folder to that user.

    One command with sudo must not lock the owner of a fleet or device folder out.
    """
    if os.geteuid() == 0:
        status = folder.stat()
        with contextlib.suppress(OSError):  # in a container root may lack this right
            os.fchown(descriptor, status.st_uid, status.st_gid)


def write_whole(path: Path, data: bytes, mode: int = PRIVATE, owner: Account | None = None) -> None:
    """Writes a file completely or not at all, even after a power cut or on a full disk.

    Args:
        path: replaced if it exists.
        data: content.
        mode: permissions, also while the file is being written.
        owner: owner of the file; None: the user of this process, or for root the folder's owner.

    Raises:
        ConfigError: the file cannot be written; an existing file is unchanged.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        # O_EXCL: does not follow a symbolic link that another user prepared.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # independent of the umask
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
    """Makes an empty file, readable by its owner only, if there is none.

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
    """Returns the path of a file's replacement before `put_in_place`."""
    return path.with_name(f"{path.name}.new")


def put_in_place(path: Path) -> None:
    """Renames the file `beside` this path to it.

    Raises:
        ConfigError: the rename failed; the file is still `beside`.
    """
    try:
        beside(path).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be replaced: {error.strerror}; use {beside(path)}"
        ) from error


def sync_folder(folder: Path) -> None:
    """Flushes a rename inside `folder` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_folder(folder: Path) -> None:
    """Makes `folder` and its parents; only the owner may enter it.

    An existing folder keeps its permissions.

    Raises:
        ConfigError: it cannot be made.
    """
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True, mode=PRIVATE_FOLDER)
        folder.chmod(PRIVATE_FOLDER)  # independent of the umask
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks `folder` for changes by one process; others wait.

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
    """Locks a state folder, made if missing, for one process; a second process is refused.

    A folder that cannot be locked (read-only, full, on a file system without locks) is used with a
    warning: a later write reports whether the folder can be written.

    Args:
        folder: folder of the state.
        role: agent or coordinator: one of each may share a folder, with different files.

    Raises:
        ConfigError: another process uses the folder; names the process.
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


def holder(folder: Path, role: str) -> int | None:
    """Returns the number of the process that uses a state folder; None when none does.

    Args:
        folder: folder of the state.
        role: as for `claimed`. The number is 0 when the process did not write it.
    """
    try:
        descriptor = os.open(folder / f".{role}.lock", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        number = os.pread(descriptor, 20, 0).strip()
        return int(number) if number.isdigit() else 0
    finally:
        os.close(descriptor)
    return None


def _lock(descriptor: int) -> None:
    """Locks a file; waits for those who only look whether it is locked (`holder`)."""
    for _ in range(_LOOKS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_LOOK_S)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _claim(descriptor: int, folder: Path) -> None:
    try:
        _lock(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, b"%d\n" % os.getpid())
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            _warn_not_locked(folder, error)
            return
        number = os.pread(descriptor, 20, 0).strip()
        user = f"process {number.decode()}" if number.isdigit() else "another process"
        raise ConfigError(
            f"{folder} is in use by {user}: stop that process, or use another state_dir"
        ) from error


def _open_lock(folder: Path, name: str = ".lock") -> int:
    touch_private(folder / name)
    # O_NOFOLLOW: in another user's folder root must not write where a symbolic link leads.
    return os.open(folder / name, os.O_RDWR | os.O_NOFOLLOW)


def _warn_not_locked(folder: Path, error: OSError) -> None:
    log.warning("%s cannot be locked against a second process: %s", folder, error.strerror)
