"""Where a run comes from: command, version, commit and machine of each time that it was started or continued."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import valueapprox
from valueapprox.checkpoint import write_whole

__all__ = ["PROVENANCE_FILE", "add", "read"]

PROVENANCE_FILE = "provenance.json"
PACKAGES = ("numpy", "numba", "gymnasium", "ray")


def add(folder: Path, step: int, command: str) -> dict[str, Any]:
    """Note in a run's folder that it goes on from a step, and return what was noted."""
    record = {"step": step, "command": command, "time": time.strftime("%Y-%m-%d %H:%M:%S %z"), **here()}
    text = json.dumps([*read(folder), record], indent=2)
    write_whole(folder / PROVENANCE_FILE, lambda file: file.write(text.encode()))
    return record


def read(folder: str | Path) -> list[dict[str, Any]]:
    """What is noted of a run, from its start; nothing if it is of a version that noted nothing."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        records: list[dict[str, Any]] = json.loads((Path(folder) / PROVENANCE_FILE).read_text(encoding="utf-8"))
        return records
    return []


def here() -> dict[str, Any]:
    """Versions and machine."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return {
        "valueapprox": valueapprox.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        **found,
        "system": platform.platform(),
        "host": platform.node(),
        "cores": os.cpu_count(),
    }


def commit() -> str | None:
    """The commit of the checkout that the code is of, with + if files in it were changed; None outside of one."""
    root = Path(valueapprox.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True, timeout=5).stdout

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD").strip() + changed
    return None
