"""A run's log: scalars in TensorBoard's event files, and the same numbers as JSON Lines for programs to read.

One writer per folder, all values of one step in one event. The x axis is environment steps. After a resume no step
appears twice: the JSON Lines are cut back to the checkpoint, and the event file tells TensorBoard to do the same.
"""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, create_summary_metadata
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from valueapprox.checkpoint import write_whole
from valueapprox.files import FolderLock

__all__ = ["METRICS_FILE", "RunLog", "hold", "read_metrics"]

METRICS_FILE = "metrics.jsonl"
FLUSH_SECONDS = 2.0  # how late TensorBoard may see a number


class RunLog:
    """Writes one run's numbers into `folder`; use it as a context manager, or close it.

    Parameters
    ----------
    folder
        The run's folder. It must exist and, unless `resume_step` is given, hold no log yet.
    resume_step
        Continue a log: whatever was logged after this step is dropped, since it will be logged again.
    lock
        The lock of the folder, if the caller holds it and lets it go; without one the log holds the folder itself.
    notice
        Called with a sentence where the file system has no locks.

    Raises
    ------
    FileExistsError
        If the folder holds another log, or another process is writing in it. Nothing has been changed then.
    """

    def __init__(
        self,
        folder: str | Path,
        resume_step: int | None = None,
        *,
        lock: FolderLock | None = None,
        notice: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.folder = Path(folder)
        self._path = self.folder / METRICS_FILE
        self._lock = hold(self.folder, notice) if lock is None else None
        try:
            self._open(resume_step)
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise

    def _open(self, resume_step: int | None) -> None:
        events = sorted(self.folder.glob("events.out.tfevents.*"))
        if resume_step is None and (events or self._path.exists()):
            raise FileExistsError(
                f"{self.folder} holds the log of another run; choose a new folder, or resume that run"
            )
        if resume_step is not None:
            kept = [line for line in _lines(self._path) if json.loads(line)["step"] <= resume_step]
            write_whole(self._path, lambda file: file.write("".join(f"{line}\n" for line in kept).encode()))
        # Written here and not by a thread of its own, for which learning would wait.
        self._file = (self.folder / _event_file_name(events)).open("xb")
        self._events = RecordWriter(self._file)
        self._add(0, file_version="brain.Event:2")
        if resume_step is not None:
            # TensorBoard drops the events of older files from this step on.
            self._add(resume_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._metrics = self._path.open("a", buffering=1, encoding="utf-8")
        self.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers by tag at a step, as one event and one line."""
        self._add(step, Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]))
        self._metrics.write(json.dumps({"step": step, **values}) + "\n")
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _add(self, step: int, summary: Summary | None = None, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=step, summary=summary, **content)
        self._events.write(event.SerializeToString())

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Show a text in TensorBoard's text tab."""
        self._add(step, text_pb(tag, markdown))

    def layout(self, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
        """Lay out TensorBoard's custom scalars tab: category -> chart -> regular expressions for its tags."""
        layout = layout_pb2.Layout(
            category=[
                layout_pb2.Category(
                    title=category,
                    chart=[
                        layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
                        for title, tags in content.items()
                    ],
                )
                for category, content in charts.items()
            ]
        )
        tensor = make_tensor_proto(layout.SerializeToString())
        value = Summary.Value(tag=CONFIG_SUMMARY_TAG, tensor=tensor, metadata=create_summary_metadata())
        self._add(0, Summary(value=[value]))

    def flush(self) -> None:
        """Hand everything to the system: before a checkpoint that claims to come after it."""
        self._events.flush()
        self._metrics.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is pending and close the files."""
        self._events.close()
        self._metrics.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hold(folder: Path, notice: Callable[[str], None] = warnings.warn) -> FolderLock:
    """Hold a run's folder, or raise FileExistsError because another process does."""
    try:
        return FolderLock(folder, notice=notice)
    except BlockingIOError:
        raise FileExistsError(
            f"another process is writing the log in {folder}; end it, or choose a new folder"
        ) from None


def _event_file_name(others: list[Path]) -> str:
    """A name behind those of older files: TensorBoard reads a folder's files in the order of their names.

    A name holds the second in which its file was begun; a file begun in the same second gets the next one.
    """
    begun = [int(path.name.split(".")[3]) for path in others if path.name.split(".")[3].isdigit()]
    second = max(int(time.time()), max(begun, default=0) + 1)
    return f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}.0"


def _lines(path: Path) -> list[str]:
    """The complete lines of a file; a crash may have left half a line at its end."""
    if not path.exists():
        return []
    return [line[:-1] for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Every logged line of a run, in order: {"step": ..., tag: value, ...}."""
    return [json.loads(line) for line in _lines(Path(folder) / METRICS_FILE)]
