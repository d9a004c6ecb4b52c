"""Folders that one process at a time may write, and new ones that no other process has."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

__all__ = ["LOCK_FILE", "FolderLock", "folder_for", "fresh_folder", "new_folder"]

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # of file systems that have none


class FolderLock:
    """Holds a folder that exists, until `close` or until the process ends; use it as a context manager, or close it.

    What is locked is a file in the folder that is opened for writing: on NFS a folder itself cannot be locked.

    Parameters
    ----------
    folder
        Which one.
    name
        Of the file in it that is locked. It is removed at the end; one that a killed process left behind does no harm.
    notice
        Called with a sentence where the file system has no locks: then nothing is locked, and the work goes on.

    Raises
    ------
    BlockingIOError
        If another process, or another lock of this one, holds the folder.
    """

    def __init__(
        self, folder: str | Path, name: str = LOCK_FILE, notice: Callable[[str], None] = warnings.warn
    ) -> None:
        self.path = Path(folder) / name
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    os.close(self._descriptor)
                    raise
                notice(
                    f"the file system of {folder} has no locks ({os.strerror(error.errno or 0)}); make sure that no "
                    "other process writes there"
                )
                return
            if self._is_there():
                return
            os.close(self._descriptor)  # whoever held it has removed it since it was opened

    def _is_there(self) -> bool:
        """Whether what is locked is what others would find."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let others have the folder."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                self.path.unlink()  # before it is unlocked: a file that another process has locked is not removed
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def new_folder(path: Path) -> Path:
    """Make a folder at `path`, or where that is taken at path-2, path-3, ...: no two processes get the same one."""
    for n in itertools.count(1):
        folder = path if n == 1 else path.with_name(f"{path.name}-{n}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError  # there are enough numbers


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """A `new_folder`, which is gone afterwards if nothing was put into it; so is its parent if it was made for it."""
    parent_was_there = path.parent.exists()
    folder = new_folder(path)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
            if not parent_was_there:
                path.parent.rmdir()


def folder_for(given: Path | None, name: str) -> AbstractContextManager[Path]:
    """Where a command writes: the folder that it was given, or a fresh one in runs/ with the time in its name."""
    if given is not None:
        return nullcontext(given)
    return fresh_folder(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
