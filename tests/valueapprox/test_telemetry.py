"""The log, read back: event files and JSON Lines hold the same numbers, every step once."""

import json
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG
from tensorboard.summary.writer import event_file_writer
from tensorboard.util.tensor_util import make_ndarray

from valueapprox import SGD, Adam, Network, ValueFunction
from valueapprox.telemetry import METRICS_FILE, RunLog, read_metrics


def read_events(folder):
    """{tag: [(step, value), ...]} as TensorBoard reads it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def lines_by_tag(folder):
    """The same from the JSON Lines, in the events' float32."""
    tags = {}
    for line in read_metrics(folder):
        for tag, value in line.items():
            if tag != "step":
                tags.setdefault(tag, []).append((line["step"], float(np.float32(value))))
    return tags


def assert_log(folder, expected):
    assert lines_by_tag(folder) == expected
    assert read_events(folder) == expected


def test_what_is_logged_is_read_back(tmp_path):
    with RunLog(tmp_path) as log:
        for step in range(0, 50_000, 10):  # more than any reservoir keeps
            log.scalars(step, {"a/b": step / 4, "c": -1.0} if step % 20 else {"a/b": step / 4})
    every, second = range(0, 50_000, 10), range(10, 50_000, 20)
    assert_log(tmp_path, {"a/b": [(s, s / 4) for s in every], "c": [(s, -1.0) for s in second]})


def test_one_event_holds_all_values_of_a_step(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(5, {"a": 1.0, "b": 2.0, "c": 3.0})
    (path,) = tmp_path.glob("events.out.tfevents.*")
    events = [Event.FromString(raw) for raw in RawEventFileLoader(str(path)).Load()]
    assert [len(e.summary.value) for e in events if e.HasField("summary")] == [3]
    assert events[0].file_version == "brain.Event:2"  # older versions do not purge on a restart


def test_the_json_lines_keep_every_digit(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(2**53, {"a": 1 / 3})
    assert read_metrics(tmp_path) == [{"step": 2**53, "a": 1 / 3}]


def test_lines_are_there_at_once_and_events_after_a_flush(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(1, {"a": 2.0})
        assert read_metrics(tmp_path) == [{"step": 1, "a": 2.0}]
        log.flush()
        assert read_events(tmp_path) == {"a": [(1, 2.0)]}


@pytest.mark.parametrize("kept", [0, 3, 6, 100])
def test_after_a_resume_no_step_appears_twice(tmp_path, kept):
    with RunLog(tmp_path) as log:
        for step in range(1, 7):
            log.scalars(step, {"a": step, "b": -step})
    with RunLog(tmp_path, resume_step=kept) as log:
        for step in range(min(kept, 6) + 1, 9):
            log.scalars(step, {"a": 10 * step})
    first = range(1, min(kept, 6) + 1)
    expected = {"a": [(s, s) for s in first] + [(s, 10 * s) for s in range(min(kept, 6) + 1, 9)]}
    if kept:
        expected["b"] = [(s, -s) for s in first]
    events = {tag: points for tag, points in read_events(tmp_path).items() if points}
    assert lines_by_tag(tmp_path) == expected == events


def test_many_short_sessions_are_read_in_their_order(tmp_path, monkeypatch):
    # Readers sort event files by name: second, host, process, number in the process. Nine comes before ten.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(8))
    for session in range(4):
        with RunLog(tmp_path, resume_step=session if session else None) as log:
            for step in (session + 1, session + 2):  # the second is lost and logged again
                log.scalars(step, {"a": 10 * session + step})
    assert_log(tmp_path, {"a": [(1, 1), (2, 12), (3, 23), (4, 34), (5, 35)]})


def test_half_a_last_line_is_survived(tmp_path):
    with RunLog(tmp_path) as log:
        for step in (1, 2):
            log.scalars(step, {"a": step})
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes() + b'{"step": 3, "a"')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    with RunLog(tmp_path, resume_step=2) as log:
        log.scalars(3, {"a": 3})
    assert read_metrics(tmp_path) == [{"step": s, "a": s} for s in (1, 2, 3)]


@pytest.mark.parametrize("left", ["both", METRICS_FILE, "events.out.tfevents.*"])
def test_a_second_writer_in_a_folder_is_refused(tmp_path, left):
    with RunLog(tmp_path) as log:
        log.scalars(1, {"a": 1.0})
    for path in list(tmp_path.iterdir()):
        if left != "both" and not path.match(left):
            path.unlink()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="holds the log of another run"):
        RunLog(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_log_is_not_continued_while_another_writes_it(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars(1, {"a": 1.0})
        with pytest.raises(OSError, match="another"):
            RunLog(tmp_path, resume_step=1)
        log.scalars(2, {"a": 2.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_texts_and_the_layout_are_there(tmp_path):
    with RunLog(tmp_path) as log:
        log.text("settings", "**gamma** 0.9")
        log.layout({"Values": {"error": ["value/error/.*"], "norms": ["a", "b"]}})
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert set(events.Tags()["tensors"]) == {"settings", CONFIG_SUMMARY_TAG}
    assert make_ndarray(events.Tensors("settings")[0].tensor_proto).item() == b"**gamma** 0.9"
    layout = layout_pb2.Layout.FromString(make_ndarray(events.Tensors(CONFIG_SUMMARY_TAG)[0].tensor_proto).item())
    (category,) = layout.category
    assert category.title == "Values"
    assert [(c.title, list(c.multiline.tag)) for c in category.chart] == [
        ("error", ["value/error/.*"]),
        ("norms", ["a", "b"]),
    ]


def test_a_folder_without_log_has_no_metrics(tmp_path):
    assert read_metrics(tmp_path) == []


# The numbers themselves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hidden", "layers"), [((5,), ["A", "B"]), ((5, 3), ["W1", "W2", "W3"])])
def test_tags_name_the_layers(hidden, layers):
    v = ValueFunction(Network((2, *hidden, 1)), lam=0.5)
    v.norms_every = 1
    v.learn([1, 0], 1.0, [0, 1])
    names = {tag.rpartition("/")[2] for tag in v.diagnostics() if "norm/" in tag or "ratio/" in tag}
    assert names == set(layers)


@pytest.mark.parametrize("hidden", [(6,), (4, 3)])
@pytest.mark.parametrize("optimizer", [SGD(0.01), Adam(0.01)], ids=["sgd", "adam"])
@pytest.mark.parametrize("every", [1, 3])
def test_logged_norms_equal_recomputed_ones(hidden, optimizer, every):
    rng, gamma, lam, steps = np.random.default_rng(0), 0.9, 0.7, 9
    net = Network((3, *hidden, 1), dtype="float64")
    v = ValueFunction(net, optimizer, gamma, lam, seed=1)
    v.norms_every = every
    z = np.zeros_like(v.w)
    sums, deltas, n = {}, [], 0
    for t in range(steps):
        s, s_next, before = rng.normal(size=3), rng.normal(size=3), v.w.copy()
        gradient = net.gradient(before, s)
        z = gamma * lam * z + gradient
        deltas.append(v.learn(s, rng.normal(), s_next))
        if t % every == 0:
            n += 1
            norms = {"grad_norm": net.layer_norms(gradient), "trace_norm": net.layer_norms(z)}
            change, length = net.layer_norms(v.w - before), net.layer_norms(v.w)
            norms["update_ratio"] = {name: change[name] / length[name] for name in change}
            for tag, by_layer in norms.items():
                for name, value in by_layer.items():
                    sums[f"{tag}/{name}"] = sums.get(f"{tag}/{name}", 0.0) + value
    logged = v.diagnostics()
    for tag, total in sums.items():
        assert logged[tag] == pytest.approx(total / n, rel=1e-9), tag
    for name, value in net.layer_norms(v.w).items():
        assert logged[f"weight_norm/{name}"] == pytest.approx(value)
    assert logged["td_error/mean"] == pytest.approx(np.mean(deltas))
    assert logged["td_error/rms"] == pytest.approx(math.sqrt(np.mean(np.square(deltas))))
    assert json.dumps(logged)  # plain numbers


def test_averages_begin_anew_after_each_look():
    v = ValueFunction(Network((1, 1), bias=False, dtype="float64"), SGD(0.0), gamma=0.0, init="zeros")
    v.learn([1], 3.0, [1])
    assert v.diagnostics()["td_error/mean"] == 3.0
    v.learn([1], 5.0, [1])
    assert v.diagnostics()["td_error/mean"] == 5.0
    assert "td_error/mean" not in v.diagnostics()


def test_looking_changes_nothing_that_is_learned():
    def learn(every, look):
        v = ValueFunction(Network((2, 8, 1)), Adam(0.01), 0.9, 0.8)
        v.norms_every = every
        rng = np.random.default_rng(0)
        for _ in range(5):
            s = rng.normal(size=(11, 2))
            v.learn_stream(s[:-1], rng.normal(size=10), s[1:], np.zeros(10, bool))
            if look:
                v.diagnostics()
        return v.w

    np.testing.assert_array_equal(learn(1, True), learn(0, False))
