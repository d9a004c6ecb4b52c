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

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, create_summary_metadata
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG
from tensorboard.plugins.hparams.metadata import create_summary_metadata as hparams_metadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from valueapprox.checkpoint import write_whole
from valueapprox.files import FolderLock

__all__ = ["METRICS_FILE", "MemoryLog", "RunLog", "hold", "network_charts", "read_metrics"]

METRICS_FILE = "metrics.jsonl"
FLUSH_SECONDS = 2.0  # how late TensorBoard may see a number
BINS = 30  # of a histogram

#: What there may be of a network in the log, and the title of its chart.
NETWORK_CHARTS = {
    "grad_norm": "gradient norm per layer",
    "clipped_grad_norm": "gradient norm per layer, after clipping",
    "trace_norm": "trace norm per layer",
    "update_ratio": "update norm / weight norm per layer",
    "weight_norm": "weight norm per layer",
    "step_size": "step size",
    "dead_units": "share of dead units per layer",
}


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

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Show how the numbers of arrays are distributed, by tag."""
        for tag, array in arrays.items():
            self._add(step, histogram_pb(tag, array[np.isfinite(array)], buckets=BINS))

    def film(self, tag: str, gif: bytes, size: tuple[int, int], step: int = 0) -> None:
        """Show an animated GIF of (width, height) pixels among TensorBoard's images."""
        image = Summary.Image(width=size[0], height=size[1], colorspace=3, encoded_image_string=gif)
        self._add(step, Summary(value=[Summary.Value(tag=tag, image=image)]))

    def hparams(self, settings: Mapping[str, Any]) -> None:
        """Give TensorBoard's table of hyper-parameters this run's settings."""
        plain = {
            name: value if isinstance(value, bool | int | float) else json.dumps(value).strip('"')
            for name, value in settings.items()
        }
        trial = "/".join(self.folder.resolve().parts[-2:])
        self._add(0, hparams_pb(plain, trial_id=trial, start_time_secs=time.time()))

    def hparams_done(self) -> None:
        """Tell that table that the run has ended well."""
        end = plugin_data_pb2.SessionEndInfo(status="STATUS_SUCCESS", end_time_secs=time.time())
        metadata = hparams_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
        self._add(0, Summary(value=[Summary.Value(tag=SESSION_END_INFO_TAG, metadata=metadata)]))

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
        self._add_layout(layout)

    def bands(self, tags: Mapping[str, str]) -> None:
        """Lay out that tab with a band for each tag: between TAG/low and TAG/high, around TAG/mean. By title."""

        def chart(title: str, tag: str) -> layout_pb2.Chart:
            series = layout_pb2.MarginChartContent.Series(value=f"{tag}/mean", lower=f"{tag}/low", upper=f"{tag}/high")
            return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))

        charts = [chart(title, tag) for title, tag in tags.items()]
        self._add_layout(layout_pb2.Layout(category=[layout_pb2.Category(title="over seeds", chart=charts)]))

    def _add_layout(self, layout: layout_pb2.Layout) -> None:
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


class MemoryLog:
    """Keeps what a run logs, as `read_metrics` gives it back, and draws nothing."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keep numbers by tag at a step."""
        self.points.append({"step": step, **values})

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Draw nothing."""


def network_charts(name: str, *tags: str) -> dict[str, list[str]]:
    """The charts of a network whose tags begin with a name, all layers in one: of `NETWORK_CHARTS`, what it logs."""
    return {NETWORK_CHARTS[tag]: [f"{name}/{tag}(/.*)?"] for tag in tags}


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
