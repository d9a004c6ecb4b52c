"""Folders held by one process at a time, and fresh ones that nobody else has."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from valueapprox.files import LOCK_FILE, FolderLock, fresh_folder, new_folder

HOLD = """
import sys, time
from valueapprox.files import FolderLock
lock = FolderLock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_held_once_and_free_afterwards(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    assert list(tmp_path.iterdir()) == []
    FolderLock(tmp_path).close()


def test_another_process_holds_it_until_it_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            FolderLock(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / LOCK_FILE).exists()  # left behind, and no hindrance
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_let_go_while_it_is_waited_for_is_never_held_twice(tmp_path):
    # A lock file is removed at the end; who has opened it before must not believe that he holds the folder.
    inside, most, taken = [0], [0], [0]
    guard = threading.Lock()

    def contend():
        for _ in range(200):
            try:
                lock = FolderLock(tmp_path)
            except BlockingIOError:
                continue
            with guard:
                inside[0] += 1
                taken[0] += 1
                most[0] = max(most[0], inside[0])
            with guard:
                inside[0] -= 1
            lock.close()

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert taken[0] > 8


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_notice(tmp_path, monkeypatch, code):
    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    notices = []
    FolderLock(tmp_path, notice=notices.append).close()
    (notice,) = notices
    assert f"{tmp_path} has no locks" in notice


def test_another_error_of_the_lock_is_an_error(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        FolderLock(tmp_path)


def test_new_folders_are_all_different(tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(new_folder(tmp_path / "runs" / "a") for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in found) == sorted(["a", *(f"a-{n}" for n in range(2, 81))])
    assert all(path.is_dir() for path in found)


def test_a_fresh_folder_that_stays_empty_is_removed_and_one_that_does_not_is_kept(tmp_path):
    with fresh_folder(tmp_path / "runs" / "a") as folder:
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []
    with fresh_folder(tmp_path / "runs" / "a") as folder:
        (folder / "log").touch()
    assert [path.name for path in (tmp_path / "runs" / "a").iterdir()] == ["log"]
