"""The service in this process: what it learns, what it refuses, and what is left of it after a crash."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_journal import in_old_format

from valueapprox import SGD, Adam, CheckpointError, Network, ValueFunction, checkpoint
from valueapprox.service import (
    ClosedError,
    GapError,
    InvalidRequestError,
    JournalError,
    QueueFullError,
    ReadOnlyError,
    Service,
    ServiceError,
    ServiceSettings,
    StorageError,
    Transitions,
)
from valueapprox.service.messages import DIVERGED, DUPLICATE, GAP, LEARNED
from valueapprox.service.records import decode, encode
from valueapprox.service.segments import read
from valueapprox.service.service import Job
from valueapprox.td.predictions import Predictions

ROOT = Path(__file__).parents[3]
SETTINGS = ServiceSettings(
    Network((3, 8, 2), dtype="float64"), Adam(), discounts=(0.5, 0.9), lams=(0.0, 0.8), retain_bytes=2**40
)


def transitions(stream, first, n, seed=0):
    """Transitions first, ..., first + n - 1 of a stream; the same whenever they are asked for."""
    rows = np.random.default_rng([seed, *stream.encode()]).normal(size=(first + n, 9))[first:]
    kinds = np.random.default_rng([seed, *stream.encode(), 1]).integers(0, 10, first + n)[first:]
    return Transitions.of(stream, first, rows[:, :3], rows[:, 3:5], rows[:, 6:], kinds == 0, kinds == 1)


def together(*batches):
    """One request of several."""
    names = [batch.names[i] for batch in batches for i in batch.stream]
    return Transitions.of(
        names,
        *(
            np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("sequence", "state", "cumulants", "next_state", "terminated", "truncated")
        ),
    )


def rows(batch):
    """The rows as `Predictions.learn` takes them, without streams."""
    return batch.state, batch.cumulants, batch.next_state, batch.terminated, batch.truncated


def learner(streams=1):
    return Predictions(SETTINGS.net, SETTINGS.optimizer, SETTINGS.discounts, SETTINGS.lams, streams=streams)


@pytest.fixture
def service():
    with Service(SETTINGS) as service:
        yield service


def wait_for(true, seconds=30.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def blocked(service):
    """Keep the writer busy; returns what lets it go on."""
    release, begun = threading.Event(), threading.Event()
    service._put(Job(Future(), action=lambda: (begun.set(), release.wait(30))))
    assert begun.wait(30)
    return release


# --- learning ---------------------------------------------------------------------------------------------------------


def test_a_service_learns_what_predictions_learn(service):
    p, a, b = learner(2), transitions("a", 0, 20), transitions("b", 5, 20)
    for batch, stream in ((a, 0), (b, 1)):
        result, expected = service.learn(batch), p.learn(stream, *rows(batch))
        np.testing.assert_array_equal(result.td_errors, expected.td_errors)
    assert (result.version, result.learned, result.duplicates, result.rejected) == (40, 20, 0, 0)
    np.testing.assert_array_equal(service.weights().w, p.w)
    s = np.random.default_rng(0).normal(size=(7, 3))
    values, version = service.values(s)
    np.testing.assert_array_equal(values, p.predict(s))
    gradients, _ = service.gradients(s, 1)
    np.testing.assert_array_equal(gradients, p.input_gradients(s, 1))
    assert service.norms().norms == p.layer_norms()
    assert version == service.version == service.health()["version"] == 40


def test_a_request_of_several_streams_is_learned_in_its_order(service):
    p, a, b = learner(2), transitions("a", 0, 10), transitions("b", 0, 10)
    order = np.random.default_rng(0).permutation(np.repeat([0, 1], 10))
    at = [0, 0]
    parts = []
    for i in order:
        batch = (a, b)[i]
        row = slice(at[i], at[i] + 1)
        parts.append(Transitions.of(batch.names[0], batch.sequence[row], *(array[row] for array in rows(batch))))
        p.learn(i, *rows(parts[-1]))
        at[i] += 1
    service.learn(together(*parts))
    np.testing.assert_array_equal(service.weights().w, p.w)


def test_a_repeated_delivery_is_acknowledged_and_not_learned_twice(service):
    service.learn(transitions("a", 0, 10))
    w = service.weights().w
    result = service.learn(transitions("a", 0, 10))
    assert (result.status == DUPLICATE).all()
    assert np.isnan(result.td_errors).all()
    assert result.version == 10
    np.testing.assert_array_equal(service.weights().w, w)
    result = service.learn(transitions("a", 7, 5))  # 7, 8, 9 are known
    assert result.status.tolist() == [DUPLICATE] * 3 + [LEARNED] * 2
    p = learner()
    p.learn(0, *rows(transitions("a", 0, 12)))
    np.testing.assert_array_equal(service.weights().w, p.w)


def test_a_gap_is_rejected_with_the_number_that_was_expected(service):
    service.learn(transitions("a", 3, 2))  # a stream may begin anywhere
    with pytest.raises(GapError, match="sequence is 7; expected 5, the next number of stream 'a'") as gap:
        service.learn(transitions("a", 7, 2))
    assert (gap.value.stream, gap.value.sequence, gap.value.expected, gap.value.index) == ("a", 7, 5, 0)
    result = gap.value.result
    assert result.status.tolist() == [GAP, GAP]
    assert result.expected.tolist() == [5, 5]
    assert service.submit(transitions("a", 7, 2)).result().status.tolist() == [GAP, GAP]
    assert (result.version, service.version) == (2, 2)
    result = service.learn(transitions("a", 5, 4))
    assert result.learned == 4
    assert result.expected.tolist() == [-1] * 4


def test_after_a_gap_the_rest_of_that_stream_is_rejected_and_others_go_on(service):
    service.learn(together(transitions("a", 0, 1), transitions("b", 0, 1)))
    mixed = together(*(transitions(*x) for x in (("a", 1, 1), ("a", 3, 1), ("b", 1, 1), ("a", 2, 1), ("a", 0, 1))))
    with pytest.raises(GapError) as gap:
        service.learn(mixed)
    assert (gap.value.stream, gap.value.expected, gap.value.index) == ("a", 2, 1)
    result = gap.value.result
    assert result.status.tolist() == [LEARNED, GAP, LEARNED, GAP, DUPLICATE]
    assert result.expected.tolist() == [-1, 2, -1, 2, -1]
    assert (result.learned, result.rejected, result.duplicates) == (2, 2, 1)


def test_a_gap_can_cut_the_trace_instead():
    p, a = learner(), transitions("a", 0, 20)
    with Service(replace(SETTINGS, on_gap="cut")) as service:
        service.learn(transitions("a", 0, 5))
        result = service.learn(transitions("a", 8, 12))
        assert (result.status == LEARNED).all()
        p.learn(0, *(array[:5] for array in rows(a)))
        p.cut_traces()
        p.learn(0, *(array[8:] for array in rows(a)))
        np.testing.assert_array_equal(service.weights().w, p.w)
        assert service.learn(transitions("a", 6, 1)).duplicates == 1  # too late


def test_discounts_of_the_transitions_replace_those_of_the_settings(service):
    a, b = transitions("a", 0, 5), transitions("a", 5, 5)
    gammas = np.random.default_rng(0).random((5, 2))
    release = blocked(service)  # so that both become one group
    futures = [service.submit(batch) for batch in (a, replace(b, discounts=gammas))]
    release.set()
    p = learner()
    expected = [p.learn(0, *rows(a)).td_errors, p.learn(0, *rows(b), discounts=gammas).td_errors]
    for future, errors in zip(futures, expected, strict=True):
        np.testing.assert_array_equal(future.result().td_errors, errors)


def test_a_divergence_uses_the_number_up_and_changes_nothing(service):
    service.learn(transitions("a", 0, 5))
    w = service.weights().w
    bad = Transitions.of("a", 5, [[1e200, 0, 0]], [[1e300, 0]], [[0, 0, 0]])
    result = service.learn(bad)
    assert result.status.tolist() == [DIVERGED]
    assert (result.version, result.diverged, service.version) == (5, 1, 5)
    np.testing.assert_array_equal(service.weights().w, w)
    assert service.learn(bad).duplicates == 1
    assert service.learn(transitions("a", 6, 1)).learned == 1
    counts = {name: service.health()[name] for name in ("learned", "duplicates", "rejected", "diverged")}
    assert counts == {"learned": 6, "duplicates": 1, "rejected": 0, "diverged": 1}


def test_the_least_recently_used_stream_loses_its_trace_but_not_its_number():
    names = ["a", "b", "a", "c", "b", "a", "c"]
    at, p = dict.fromkeys("abc", 0), learner(3)
    # two traces: c takes b's; b takes a's; a takes c's; c takes b's
    fresh = [True, True, False, True, True, True, True]
    with Service(replace(SETTINGS, max_streams=2)) as service:
        for name, cut in zip(names, fresh, strict=True):
            batch = transitions(name, at[name], 3)
            assert service.learn(batch).learned == 3
            p.learn("abc".index(name), *rows(batch), cut=[cut, False, False])
            at[name] += 3
        np.testing.assert_array_equal(service.weights().w, p.w)
        assert (service.health()["n_streams"], service.health()["n_traces"]) == (3, 2)
        assert service.learn(transitions("b", 0, 6)).duplicates == 6


def test_one_request_may_hold_more_streams_than_there_are_traces(tmp_path):
    # Two traces, in the order a b a c b: with c the two of a and b are full; a was used before b, so c takes a's.
    batches = [transitions(*x) for x in (("a", 0, 2), ("b", 0, 2), ("a", 2, 2), ("c", 0, 2), ("b", 2, 2))]
    p = learner(3)
    for batch, cut in zip(batches, (True, True, False, True, False), strict=True):
        p.learn("abc".index(batch.names[0]), *rows(batch), cut=[cut, False])
    with Service(replace(SETTINGS, max_streams=2), tmp_path) as service:
        service.learn(together(*batches))
        np.testing.assert_array_equal(service.weights().w, p.w)
        with crashed(service) as again:
            np.testing.assert_array_equal(again.weights().w, p.w)


def test_too_many_streams_are_refused(tmp_path):
    with Service(replace(SETTINGS, max_streams=1, max_known_streams=2), tmp_path) as service:
        service.learn(together(transitions("a", 0, 1), transitions("b", 0, 1)))
        release = blocked(service)
        futures = [service.submit(transitions(name, 1, 1)) for name in "acb"]
        release.set()
        assert [futures[i].result().learned for i in (0, 2)] == [1, 1]
        with pytest.raises(
            InvalidRequestError,
            match="stream is new; expected one of those that are known, since max_known_streams is 2",
        ):
            futures[1].result()
        assert service.version == 4


# --- recovery ---------------------------------------------------------------------------------------------------------


def crashed(service, **changes):
    """Another service from a copy of what is on disk now, as after a kill."""
    copy = service.folder.with_name(service.folder.name + "-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(service.folder, copy)
    return Service.open(copy, **changes)


def state(service):
    """All that was learned, without the sums for the log."""
    arrays, _ = service._state.learner.state_dict()
    learned = {name: array.copy() for name, array in arrays.items() if name not in ("stats", "errors")}
    return {**learned, "version": service.version}


def assert_same(service, other):
    expected = state(service)
    for name, array in state(other).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert other._state.streams.last == service._state.streams.last
    assert list(other._state.streams.slots.items()) == list(service._state.streams.slots.items())


@pytest.mark.parametrize("durability", ["batch", "every"])
def test_after_a_crash_everything_acknowledged_is_there_bit_for_bit(tmp_path, durability):
    with Service(replace(SETTINGS, durability=durability, max_streams=2), tmp_path / "s") as service:
        for i in range(12):
            service.learn(transitions("abc"[i % 3], i // 3 * 4, 4))
            if i == 5:
                service.checkpoint()
            if i == 8:
                service.load_weights(np.random.default_rng(0).normal(size=SETTINGS.net.size))
        with crashed(service) as again:
            assert_same(service, again)
            assert again.version == 49
            assert "24 transitions were learned again" in again.notices[0]
            for each in (service, again):
                assert each.learn(transitions("a", 12, 8)).status.tolist() == [DUPLICATE] * 4 + [LEARNED] * 4
            assert_same(service, again)
            with crashed(again) as third:
                assert_same(service, third)


def test_after_a_close_there_is_nothing_to_learn_again(tmp_path):
    with Service(SETTINGS, tmp_path) as service:
        service.learn(transitions("a", 0, 5))
    with Service.open(tmp_path) as again:
        assert_same(service, again)
        assert again.notices == []
        assert again.settings == SETTINGS
        assert again.learn(transitions("a", 0, 6)).learned == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_separate_networks_recover_too(tmp_path, dtype):
    settings = replace(SETTINGS, net=Network((3, 8, 1), dtype=dtype), separate=True, names=("soon", "late"))
    with Service(settings, tmp_path / "s") as service:
        for i in range(5):
            service.learn(transitions("a", 4 * i, 4))
        service.load_weights(service.weights().w / 2)
        service.learn(transitions("a", 20, 4))
        assert service.weights().w.shape == (2, settings.net.size)
        assert service.weights().w.dtype == dtype
        assert service.weights().block("A", 1).shape == (3, 8)
        with crashed(service) as again:
            assert_same(service, again)
            assert again.weights().names == ("soon", "late")


def test_divergences_and_cuts_are_the_same_when_they_are_learned_again(tmp_path):
    with Service(replace(SETTINGS, on_gap="cut"), tmp_path / "s") as service:
        service.learn(transitions("a", 0, 5))
        service.learn(Transitions.of("a", 5, [[1e200, 0, 0]], [[1e300, 0]], [[0, 0, 0]]))
        service.learn(transitions("a", 9, 5))
        with crashed(service, on_gap="reject") as again:
            assert_same(service, again)
            with pytest.raises(GapError):
                again.learn(transitions("a", 15, 1))


def test_without_a_journal_a_crash_goes_back_to_the_checkpoint_and_a_close_does_not(tmp_path):
    with Service(replace(SETTINGS, durability="none"), tmp_path / "s") as service:
        service.learn(transitions("a", 0, 5))
        service.checkpoint()
        service.learn(transitions("a", 5, 5))
        with crashed(service) as again:
            assert again.version == 5
            assert again.learn(transitions("a", 0, 10)).status.tolist() == [DUPLICATE] * 5 + [LEARNED] * 5
            assert_same(service, again)
        assert service.health()["journal_bytes"] == 0
        version = service.load_weights(np.zeros(SETTINGS.net.size))
        with crashed(service) as again:  # weights are written down at once
            assert again.version == version == 11
    with Service.open(tmp_path / "s", durability="batch") as again:
        assert again.version == 11


def test_a_stream_that_goes_on_behind_what_a_crash_lost_has_its_trace_cut(tmp_path):
    settings = replace(SETTINGS, durability="none", on_gap="cut", lams=(0.8, 0.9))
    weights = {}
    for cut in (True, False):
        p = Predictions(settings.net, settings.optimizer, settings.discounts, settings.lams)
        p.learn(0, *rows(transitions("a", 0, 5)))
        p.learn(0, *rows(transitions("a", 10, 5)), cut=[cut, *[False] * 4])
        weights[cut] = p.w
    assert not np.array_equal(weights[True], weights[False])
    with Service(settings, tmp_path / "s") as service:
        service.learn(transitions("a", 0, 5))
        service.checkpoint()
        service.learn(transitions("a", 5, 5))
        with crashed(service) as again:
            assert again.learn(transitions("a", 10, 5)).learned == 5
            np.testing.assert_array_equal(again.weights().w, weights[True])


def test_durability_may_change_between_runs(tmp_path):
    with Service(SETTINGS, tmp_path / "s") as service:
        service.learn(transitions("a", 0, 5))
        with crashed(service, durability="none") as again:
            again.learn(transitions("a", 5, 5))
            with crashed(again, durability="every") as third:
                assert third.version == 5
        service.learn(transitions("a", 5, 5))
        with Service.open(again.folder, durability="batch") as fourth:
            assert_same(service, fourth)
            fourth.learn(transitions("a", 10, 5))
            service.learn(transitions("a", 10, 5))
            with crashed(fourth) as fifth:
                assert_same(service, fifth)


@pytest.mark.parametrize("places", [1, 2, 5])
def test_the_number_of_traces_may_change_between_runs(tmp_path, places):
    p = learner(3)
    with Service(replace(SETTINGS, max_streams=3), tmp_path / "s") as service:
        for i, name in enumerate("abc"):
            service.learn(transitions(name, 0, 4))
            p.learn(i, *rows(transitions(name, 0, 4)))
        with crashed(service, max_streams=places) as again:
            for i, name in enumerate("cba"):  # the one used last first
                again.learn(transitions(name, 4, 4))
                p.learn(2 - i, *rows(transitions(name, 4, 4)), cut=[i >= places, *[False] * 3])
            np.testing.assert_array_equal(again.weights().w, p.w)
            with crashed(again) as third:
                assert_same(again, third)


def test_what_is_learned_may_not_change_between_runs(tmp_path):
    Service(SETTINGS, tmp_path).close()
    for changed, message in (
        (
            {"discounts": (0.5, 0.8)},
            r"discounts is \(0.5, 0.8\); expected \(0.5, 0.9\): the service in .* has learned with that",
        ),
        ({"optimizer": SGD()}, "optimizer is SGD"),
        ({"net": Network((3, 9, 2))}, r"net is 3-9-2 .*; expected 3-8-2"),
    ):
        with pytest.raises(ValueError, match=message):
            Service(replace(SETTINGS, **changed), tmp_path)
    Service(replace(SETTINGS, seed=5, max_batch=10), tmp_path).close()


def test_arrays_may_be_used_again_once_they_were_submitted(service):
    batch = transitions("a", 0, 10)
    batch = replace(batch, **{name: getattr(batch, name).copy() for name in ("state", "cumulants", "next_state")})
    release = blocked(service)
    future = service.submit(batch)
    for array in (batch.state, batch.cumulants, batch.next_state, batch.sequence, batch.stream):
        array[...] = 77
    release.set()
    np.testing.assert_array_equal(future.result().td_errors, learner().learn(0, *rows(transitions("a", 0, 10)))[0])


def test_a_folder_that_cannot_be_used_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file cannot be used as a folder of the service: .*exists"):
        Service(SETTINGS, tmp_path / "file")


def test_a_folder_belongs_to_one_service(tmp_path):
    with (
        Service(SETTINGS, tmp_path),
        pytest.raises(StorageError, match=rf"another service is using {tmp_path}; stop it"),
    ):
        Service(SETTINGS, tmp_path)
    Service(SETTINGS, tmp_path).close()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def test_a_torn_tail_is_cut_off_with_a_notice(tmp_path):
    with Service(SETTINGS, tmp_path / "s") as service:
        service.learn(transitions("a", 0, 5))
        service.learn(transitions("a", 5, 5))
        expected = state(service)
        (file,) = (tmp_path / "s").glob("journal-*.log")
        file.write_bytes(file.read_bytes() + b"VREC and a record that was not written whole")
        with crashed(service) as again:
            assert any("a record that was not written whole, were cut off" in notice for notice in again.notices)
            for name, array in state(again).items():
                np.testing.assert_array_equal(array, expected[name])
            assert again.learn(transitions("a", 0, 15)).learned == 5
            service.learn(transitions("a", 10, 5))
            assert_same(service, again)


@pytest.mark.parametrize("size", [-7, -300, None])
def test_a_damaged_last_record_that_was_acknowledged_is_restored(tmp_path, size):
    # Version 0.1 dropped it and called it one that was not written whole; or, without the file, said nothing.
    with Service(SETTINGS, tmp_path / "s") as service:
        service.learn(transitions("a", 0, 5))
        service.checkpoint()
        service.learn(transitions("a", 5, 5))
        file = max((tmp_path / "s").glob("journal-*.log"))
        if size is None:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:size])
        with crashed(service) as again:
            assert "restored from journal-end-" in again.notices[0]
            assert_same(service, again)
            assert again.learn(transitions("a", 0, 11)).status.tolist() == [DUPLICATE] * 10 + [LEARNED]
            with crashed(again) as third:
                assert_same(again, third)


@pytest.mark.parametrize("removed", [True, False])
def test_lost_records_that_were_acknowledged_are_an_error_that_names_them(tmp_path, removed):
    with Service(SETTINGS, tmp_path / "s") as service:
        for i in range(4):
            service.learn(transitions("a", 5 * i, 5))
        shutil.copytree(service.folder, tmp_path / "killed")
    (file,) = (tmp_path / "killed").glob("journal-*.log")
    where = "there is no segment that could hold what is missing"
    if removed:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:40])
        where = f"{file.name} ends at byte 40, before record 0"
    before = contents(tmp_path / "killed")
    with pytest.raises(JournalError, match=rf"^records 0 to 2 of the journal in .* had been on disk, .*: {where}"):
        Service.open(tmp_path / "killed")
    assert contents(tmp_path / "killed") == before


def test_damage_is_an_error_and_nothing_is_deleted(tmp_path):
    folder = tmp_path / "s"
    with Service(SETTINGS, folder) as service:
        service.learn(transitions("a", 0, 5))
        service.learn(transitions("a", 5, 5))
        shutil.copytree(folder, tmp_path / "copy")
    folder = tmp_path / "copy"
    (file,) = folder.glob("journal-*.log")
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(JournalError, match=f"{file} is damaged at byte 40, in record 0"):
        Service.open(folder)
    assert file.read_bytes() == data
    saved = (folder / "checkpoint.npz").read_bytes()
    (folder / "checkpoint.npz").write_bytes(saved[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        Service.open(folder)
    (folder / "checkpoint.npz").unlink()
    with pytest.raises(JournalError, match=r"holds a journal but no checkpoint.npz"):
        Service(SETTINGS, folder)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Service.open(folder)
    assert file.read_bytes() == data


def test_an_older_checkpoint_without_the_journal_behind_it_is_an_error(tmp_path):
    # Version 0.1 went on from it without a word.
    with Service(replace(SETTINGS, retain_bytes=0), tmp_path) as service:
        service.learn(transitions("a", 0, 5))
        service.checkpoint()
        older = (tmp_path / "checkpoint.npz").read_bytes()
        service.learn(transitions("a", 5, 5))
        service.learn(transitions("a", 10, 5))
    assert list(tmp_path.glob("journal-*.log")) == []
    (tmp_path / "checkpoint.npz").write_bytes(older)
    with pytest.raises(
        JournalError, match=r"^record 1 of the journal in .* there is no segment that could hold what is missing"
    ):
        Service.open(tmp_path)


def in_version_0_1(folder):
    """Make a service's folder one of version 0.1."""
    in_old_format(folder)
    arrays, meta = checkpoint.load(folder / "checkpoint.npz")
    del meta["identity"], meta["marked"]
    checkpoint.save(folder / "checkpoint.npz", arrays, meta)


def killed(folder, settings=SETTINGS, weights=False):
    """The folder of a service that was killed when it had learned five transitions, or been given weights."""
    with Service(settings, folder / "service") as service:
        if weights:
            service.load_weights(np.zeros(settings.net.n_parameters))
        else:
            d = settings.net.n_inputs
            service.learn(Transitions.of("a", 0, np.full((5, d), 0.5), np.ones((5, 2)), np.full((5, d), 0.5)))
        shutil.copytree(service.folder, folder / "killed")
    return folder / "killed"


def test_the_journal_of_another_service_is_an_error(tmp_path):
    # The other one is of the same kind: nothing but the identity tells them apart.
    mine, others = killed(tmp_path / "mine"), killed(tmp_path / "others")
    names = ["journal-00000000000000000000.log", "journal-end-0"]
    assert sorted(path.name for path in mine.glob("journal-*")) == names
    for copied in (names[:1], names[1:], names):
        shutil.copytree(mine, tmp_path / "mixed")
        for name in copied:
            shutil.copy(others / name, tmp_path / "mixed")
        before = contents(tmp_path / "mixed")
        with pytest.raises(JournalError, match=r"the identity in .* is [0-9a-f]{32}; expected [0-9a-f]{32}, that of"):
            Service.open(tmp_path / "mixed")
        assert contents(tmp_path / "mixed") == before
        shutil.rmtree(tmp_path / "mixed")
    # Nor one of version 0.1, which says nothing about whose it is.
    in_version_0_1(others)
    (mine / "journal-end-0").unlink()
    shutil.copy(others / names[0], mine)
    with pytest.raises(JournalError, match="has no identity; expected that of the checkpoint beside it"):
        Service.open(mine)


@pytest.mark.parametrize(
    "other", [Network((2, 8, 2), dtype="float64"), Network((3, 8, 2)), Network((3, 4, 2))], ids=str
)
@pytest.mark.parametrize("weights", [False, True])
def test_the_journal_of_another_service_of_version_0_1_is_an_error_where_it_shows(tmp_path, other, weights):
    # Read as if it were of this network, its numbers would be learned as others, or memory behind them.
    mine, others = killed(tmp_path / "mine"), killed(tmp_path / "others", replace(SETTINGS, net=other), weights)
    for folder in (mine, others):
        in_version_0_1(folder)
    shutil.copy(others / "journal-00000000000000000000.log", mine)
    with pytest.raises(JournalError, match=r"record 0 .*: it holds .*; expected .*: the journal is of another service"):
        Service.open(mine)


def test_a_folder_of_version_0_1_is_gone_on_with(tmp_path):
    with Service(SETTINGS, tmp_path / "s") as service:
        service.learn(transitions("a", 0, 5))
        service.checkpoint()
        service.learn(transitions("a", 5, 5))
        service.learn(transitions("a", 10, 5))
        shutil.copytree(service.folder, tmp_path / "old")
        in_version_0_1(tmp_path / "old")
        with Service.open(tmp_path / "old") as again:
            assert_same(service, again)
            assert again.notices == ["10 transitions were learned again from the journal, up to 15"]
            for each in (service, again):
                each.learn(transitions("a", 15, 5))
            with crashed(again) as third:
                assert_same(service, third)
        assert len(checkpoint.load(tmp_path / "old" / "checkpoint.npz").meta["identity"]) == 32


def test_what_a_service_leaves_that_is_killed_while_it_writes_a_checkpoint_is_removed(tmp_path):
    child = os.fork()
    if child == 0:
        service = Service(SETTINGS, tmp_path)
        service.learn(transitions("a", 0, 5))
        fsync = os.fsync
        os.fsync = lambda descriptor: (fsync(descriptor), os.kill(os.getpid(), signal.SIGKILL))
        service.checkpoint()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = (path for path in tmp_path.iterdir() if path.suffix == ".tmp")
    assert left.stat().st_size > 1000
    with Service.open(tmp_path) as service:
        assert service.version == 5
        assert [path for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_the_journal_stays_bounded(tmp_path):
    settings = replace(SETTINGS, retain_bytes=0, segment_bytes=2000, checkpoint_bytes=10_000)
    sizes = []
    with Service(settings, tmp_path) as service:
        for i in range(200):
            service.learn(transitions("a", 4 * i, 4))
            sizes.append(service.health()["journal_bytes"])
        on_disk = sum(path.stat().st_size for path in tmp_path.glob("journal-*.log"))
        assert service.health()["checkpoint_version"] > 400
    assert max(sizes) < 15_000 < 200 * 400  # a record of four transitions takes more than 400 bytes
    assert on_disk < 15_000
    assert list(tmp_path.glob("journal-*.log")) == []  # all is in the checkpoint


@pytest.mark.parametrize("when", [{"checkpoint_transitions": 10}, {"checkpoint_seconds": 0.05}])
def test_checkpoints_are_written_at_intervals(tmp_path, when):
    with Service(replace(SETTINGS, **when), tmp_path) as service:
        service.learn(transitions("a", 0, 10))
        for _ in range(200):
            if service.health()["checkpoint_version"] == 10:
                break
            threading.Event().wait(0.05)
        assert checkpoint.load(tmp_path / "checkpoint.npz").meta["version"] == 10


def test_killed_under_load_again_and_again(tmp_path):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kill_service.py")), str(tmp_path), "6", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["kills"] == 6
    assert summary["learned"] >= summary["acknowledged"] > 100


# --- a full disk ------------------------------------------------------------------------------------------------------

FULL = """
import json, resource, signal, sys
import numpy as np
sys.path.append(sys.argv[2])
from test_service import SETTINGS, transitions, crashed, assert_same
from valueapprox.service import Service, StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
service = Service(SETTINGS, sys.argv[1])
service.learn(transitions("a", 0, 5))
values = service.values(np.ones((2, 3)))
resource.setrlimit(resource.RLIMIT_FSIZE, (service.health()["journal_bytes"] + 100, hard))
errors = []
for first in (5, 5):
    try:
        service.learn(transitions("a", first, 5))
    except StorageError as error:
        errors.append(str(error))
health = service.health()
assert (service.values(np.ones((2, 3))).values == values.values).all()
assert service.version == values.version == 5
assert service.learn(transitions("a", 0, 5)).duplicates == 5  # nothing to write
try:
    service.checkpoint()
except StorageError as error:
    errors.append(str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert service.learn(transitions("a", 5, 5)).learned == 5
with crashed(service) as again:
    assert_same(service, again)
print(json.dumps([errors, health["learning"], health["reason"], health["ready"], service.health()["learning"]]))
service.close()
"""


def test_a_full_disk_stops_learning_while_values_are_served(tmp_path):
    # The system refuses to let files grow, after writing what fits.
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "s"), str(Path(__file__).parent)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    errors, learning, reason, ready, learns_again = json.loads(done.stdout)
    assert len(errors) == 3
    assert "the journal cannot be written: [Errno 27] File too large; nothing was learned, try again" in errors[0]
    assert "checkpoint could not be written" in errors[2]
    assert (learning, ready, learns_again) == (False, True, True)
    assert "the journal cannot be written" in reason


# --- many threads -----------------------------------------------------------------------------------------------------


def test_requests_that_wait_share_a_record_of_the_journal(tmp_path):
    for durability, expected in (("batch", 1), ("every", 10)):
        with Service(replace(SETTINGS, durability=durability), tmp_path / durability) as service:
            release = blocked(service)
            futures = [service.submit(transitions("a", 2 * i, 2)) for i in range(10)]
            release.set()
            # each gets the version after its own transitions
            assert [future.result().version for future in futures] == list(range(2, 21, 2))
            assert len(list(read(service.folder))) == expected
            p = learner()
            p.learn(0, *rows(transitions("a", 0, 20)))
            np.testing.assert_array_equal(service.weights().w, p.w)


def test_a_repetition_in_the_same_group_is_a_duplicate(service):
    release = blocked(service)
    futures = [service.submit(transitions("a", first, 3)) for first in (0, 0, 3, 7)]
    release.set()
    assert [future.result().status.tolist() for future in futures] == [
        [LEARNED] * 3,
        [DUPLICATE] * 3,
        [LEARNED] * 3,
        [GAP] * 3,
    ]


def test_many_threads_learn_everything_once_and_readers_see_whole_versions(tmp_path):
    n_threads, n_requests, size = 6, 25, 4
    with Service(SETTINGS, tmp_path) as service:
        stop, seen = threading.Event(), []

        def feed(name):
            for i in range(n_requests):
                assert service.learn(transitions(name, size * i, size)).learned == size

        def look():
            s, last = np.random.default_rng(0).normal(size=(300, 3)), -1
            while not stop.is_set():
                values, version = service.values(s)
                weights = service.weights()
                if weights.version == version:
                    np.testing.assert_array_equal(values, service.net.forward(weights.w[0], s))
                    seen.append(version)
                assert version >= last
                last = version

        readers = [threading.Thread(target=look) for _ in range(2)]
        feeders = [threading.Thread(target=feed, args=(f"stream {i}",)) for i in range(n_threads)]
        for thread in readers + feeders:
            thread.start()
        for thread in feeders:
            thread.join()
        stop.set()
        for thread in readers:
            thread.join()
        assert service.version == n_threads * n_requests * size
        assert len(set(seen)) > 1
        p, places = learner(n_threads), {}
        for _, payload in read(tmp_path):
            batch, _ = decode(payload)
            for t, i in enumerate(batch.stream):
                place = places.setdefault(batch.names[i], len(places))
                p.learn(place, *(array[t : t + 1] for array in rows(batch)))
        np.testing.assert_array_equal(service.weights().w, p.w)


def test_swapping_weights_gives_no_mixed_answer(service):
    size = SETTINGS.net.size
    s = np.random.default_rng(0).normal(size=(500, 3))
    choices = [np.random.default_rng(i).normal(size=size) for i in range(2)]
    expected = [service.net.forward(w, s) for w in choices]
    service.load_weights(choices[1])  # version 1; from now on its parity says which
    stop, checked, wrong = threading.Event(), [], []

    def look():
        while not stop.is_set():
            values, version = service.values(s)
            checked.append(version)
            if not np.array_equal(values, expected[version % 2]):
                wrong.append(version)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    version = 1
    while version < 100 or (len(set(checked)) < 10 and version < 20_000):
        version += 1
        assert service.load_weights(choices[version % 2]) == version
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert len(set(checked)) >= 10


def test_a_full_queue_refuses_with_a_time_to_wait(tmp_path):
    with Service(replace(SETTINGS, max_queue=10), tmp_path) as service:
        release = blocked(service)
        first = service.submit(transitions("a", 0, 20))  # what is larger than the queue still gets in when it is empty
        with pytest.raises(
            QueueFullError, match="20 transitions are waiting to be learned, and max_queue is 10"
        ) as caught:
            service.submit(transitions("b", 0, 1))
        assert 0 < caught.value.retry_after <= 60
        assert (service.health()["queued"], service.health()["refused"]) == (20, 1)
        release.set()
        assert first.result().learned == 20
        assert service.learn(transitions("b", 0, 1)).learned == 1
        assert service.health()["queued"] == 0


def test_closing_finishes_what_waits(tmp_path):
    service = Service(SETTINGS, tmp_path)
    release = blocked(service)
    futures = [service.submit(transitions("a", 5 * i, 5)) for i in range(4)]
    closer = threading.Thread(target=service.close)
    closer.start()
    while service.health()["reason"] != "the service is closing":
        threading.Event().wait(0.01)
    with pytest.raises(ClosedError, match="the service was closed"):
        service.submit(transitions("a", 20, 1))
    with pytest.raises(TimeoutError, match=r"has not finished after 0\.01 seconds"):
        service.close(0.01)
    release.set()
    assert [future.result().learned for future in futures] == [5] * 4
    closer.join()
    service.close()  # again does no harm
    assert service.values(np.ones((1, 3))).version == 20
    with Service.open(tmp_path) as again:
        assert (again.version, again.notices) == (20, [])


def test_a_request_that_was_cancelled_is_not_learned(service):
    release = blocked(service)
    futures = [service.submit(transitions(name, 0, 1)) for name in "ab"]
    assert futures[0].cancel()
    release.set()
    assert futures[1].result().learned == 1
    assert service.version == 1


@pytest.mark.parametrize("durability", ["batch", "every"])
def test_after_a_cancelled_request_every_other_gets_its_own_values(tmp_path, durability):
    with Service(replace(SETTINGS, durability=durability), tmp_path) as service:
        p = learner()
        release = blocked(service)
        sizes = [3, 1, 4, 1, 5, 2]
        futures = [service.submit(transitions(f"stream {i}", 0, n)) for i, n in enumerate(sizes)]
        assert futures[1].cancel()
        assert futures[4].cancel()
        release.set()
        version = 0
        for i, n in enumerate(sizes):
            if i in (1, 4):
                continue
            batch = transitions(f"stream {i}", 0, n)
            expected = p.learn(0, *rows(batch), cut=[True, *[False] * (n - 1)])
            version += n
            result = futures[i].result(30)
            np.testing.assert_array_equal(result.td_errors, expected.td_errors)
            assert result.version == version
        assert service.health()["queued"] == 0


@pytest.mark.parametrize("durability", ["batch", "every"])
def test_after_an_error_of_its_own_the_service_learns_no_more_and_nobody_waits(tmp_path, monkeypatch, durability):
    service = Service(replace(SETTINGS, durability=durability, max_batch=10), tmp_path)
    service.learn(transitions("a", 0, 5))
    expected = state(service)
    with monkeypatch.context() as patch:
        patch.setattr(service._state.learner, "_learn", lambda *_: 1 / 0)
        release = blocked(service)
        futures = [service.submit(transitions(name, 5 * (name == "a"), 5)) for name in "abcdef"]
        assert futures[4].cancel()
        release.set()
        for i in (0, 1, 2, 3, 5):  # those of the group that failed, and those behind it
            with pytest.raises(Exception, match=r"stopped learning after an error of its own .*ZeroDivisionError"):
                futures[i].result(30)
    with pytest.raises(Exception, match="stopped learning"):
        service.submit(transitions("a", 5, 5))
    assert service.health()["learning"] is False
    np.testing.assert_array_equal(service.weights().w, expected["w"])
    service.close()
    assert checkpoint.load(tmp_path / "checkpoint.npz").meta["position"] == 0  # that of the start
    with Service.open(tmp_path) as again:  # the journal had it, and learning is done over
        assert again.version == (15 if durability == "batch" else 10)


def test_an_error_in_the_middle_of_a_group_leaves_no_checkpoint_of_half_of_it(tmp_path, monkeypatch):
    settings = replace(SETTINGS, max_streams=1, checkpoint_transitions=1)  # one call of the learner for each stream
    service = Service(settings, tmp_path)
    learn, calls = service._state.learner._learn, []
    monkeypatch.setattr(
        service._state.learner, "_learn", lambda *rows: calls.append(1) or (learn if calls == [1] else 1 / 0)(*rows)
    )
    with pytest.raises(Exception, match="stopped learning"):
        service.learn(together(transitions("a", 0, 3), transitions("b", 0, 3)))
    service.close()
    meta = checkpoint.load(tmp_path / "checkpoint.npz").meta
    assert (meta["position"], meta["version"]) == (0, 0)
    with Service.open(tmp_path) as again, Service(settings) as other:
        other.learn(together(transitions("a", 0, 3), transitions("b", 0, 3)))
        assert_same(other, again)


def test_weights_that_are_in_the_journal_and_could_not_be_used_are_in_no_checkpoint(tmp_path, monkeypatch):
    # Version 0.1 went on, and wrote a checkpoint that covered the record: the new weights were lost.
    service = Service(SETTINGS, tmp_path)
    w = np.random.default_rng(0).normal(size=SETTINGS.net.size)
    with monkeypatch.context() as patch:
        patch.setattr(service._state.learner, "restart", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            service.load_weights(w)
    wait_for(lambda: not service.health()["learning"])
    with pytest.raises(ServiceError, match=r"stopped learning after an error of its own .*record 0 of the journal was"):
        service.learn(transitions("a", 0, 5))
    service.close()
    with Service.open(tmp_path) as again:
        assert again.version == 1
        np.testing.assert_array_equal(again.weights().w[0], w)


def test_a_last_checkpoint_that_cannot_be_made_is_an_error_of_close(tmp_path, monkeypatch):
    service = Service(SETTINGS, tmp_path)
    service.learn(transitions("a", 0, 5))
    with monkeypatch.context() as patch:
        patch.setattr(service._state.learner, "state_dict", lambda *_: 1 / 0)
        with pytest.raises(StorageError, match="the last checkpoint could not be written: division by zero"):
            service.close()
    with Service.open(tmp_path) as again:
        assert again.version == 5


@pytest.mark.parametrize("durability", ["batch", "every"])
def test_a_group_that_cannot_be_written_fails_alone_and_those_behind_it_are_learned(tmp_path, monkeypatch, durability):
    # Injected, since no disk fails on demand: the first sync of the journal is an error, the others are not.
    with Service(replace(SETTINGS, durability=durability, max_batch=10), tmp_path) as service:
        release = blocked(service)
        futures = [service.submit(transitions(name, 0, 5)) for name in "abcdef"]
        fdatasync, calls = os.fdatasync, []

        def fail_once(descriptor):
            calls.append(1)
            if len(calls) == 1:
                raise OSError(5, "Input/output error")
            fdatasync(descriptor)

        monkeypatch.setattr(os, "fdatasync", fail_once)
        release.set()
        n_failed = 2 if durability == "batch" else 1  # of ten transitions, or of one request
        for future in futures[:n_failed]:
            with pytest.raises(StorageError, match="Input/output error; nothing was learned, try again later"):
                future.result(30)
        assert [future.result(30).version for future in futures[n_failed:]] == list(range(5, 5 * (6 - n_failed) + 1, 5))
        assert service.health()["learning"] is True
        assert service.learn(transitions("a", 0, 5)).learned == 5
        with crashed(service) as again:
            assert_same(service, again)


def test_under_load_groups_are_shared_and_what_is_kept_stays_small(tmp_path, monkeypatch):
    n_threads, n_requests, size = 16, 30, 5
    settings = replace(
        SETTINGS, checkpoint_transitions=400, checkpoint_seconds=1e6, segment_bytes=6000, retain_bytes=0, max_batch=50
    )
    saved, sizes, waits, segments = [], [], [], []
    save = checkpoint.save

    def counted(path, arrays, meta, **options):
        saved.append(meta["version"])
        save(path, arrays, meta, **options)

    monkeypatch.setattr(checkpoint, "save", counted)
    with Service(settings, tmp_path) as service:
        learn_group = service._learn_group

        def measured(group):
            sizes.append([len(job.batch) for job in group])
            segments.append(service.health()["journal_segments"])
            learn_group(group)

        service._learn_group = measured

        def feed(name):
            for i in range(n_requests):
                began = time.monotonic()
                assert service.learn(transitions(name, size * i, size), 60).learned == size
                waits.append(time.monotonic() - began)

        threads = [threading.Thread(target=feed, args=(f"stream {i}",)) for i in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    total = n_threads * n_requests * size
    assert saved[-1] == service.version == total == 2400
    # One more than the first and the last: every 400 transitions, and up to 50 later; none for the sake of time.
    assert 2400 // 450 <= len(saved) - 2 <= 2400 // 400
    assert all(after - before >= 400 for before, after in itertools.pairwise(saved[:-1]))
    # All that wait are a group: on average more than two of the sixteen, and never more than fit.
    assert sum(len(group) for group in sizes) == n_threads * n_requests
    assert max(sum(group) for group in sizes) <= 50
    assert len(sizes) < n_threads * n_requests / 2
    # 450 transitions of about 90 bytes: seven segments of 6 KB and the one that is written to.
    assert 1 < max(segments) <= 9
    assert list(tmp_path.glob("journal-*.log")) == []
    # Nobody waits for more than a few groups.
    assert len(waits) == n_threads * n_requests
    assert max(waits) < 30
    assert np.median(waits) < 1


# --- weights, values, trained functions -------------------------------------------------------------------------------


def test_a_trained_value_function_is_served(tmp_path):
    v = ValueFunction(Network((3, 8, 1)), SGD(0.01), 0.9, 0.8)
    batch = transitions("a", 0, 50)
    v.learn_stream(batch.state, batch.cumulants[:, 0], batch.next_state, batch.terminated, batch.truncated)
    v.save(tmp_path / "v.npz")
    s = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    with Service.from_checkpoint(tmp_path / "v.npz") as service:
        values, version = service.values(s)
        np.testing.assert_array_equal(values[:, 0], v.predict(s))
        assert version == 50
        assert (service.settings.discounts, service.settings.lams) == ((0.9,), (0.8,))
        with pytest.raises(ReadOnlyError, match="read-only"):
            service.submit(Transitions.of("a", 0, np.ones(3), 1.0, np.ones(3)))
        assert service.health()["learning"] is False
        assert service.load_weights(tmp_path / "v.npz") == 51
    with Service.from_checkpoint(tmp_path / "v.npz", tmp_path / "s", on_gap="cut") as service:
        service.learn(Transitions.of("a", 0, s, np.ones(5), s))
        v.cut_trace()
        v.learn_stream(s, np.ones(5), s, np.zeros(5))
        np.testing.assert_array_equal(service.weights().w[0], v.w)
        assert service.version == 55
    with Service.from_checkpoint(tmp_path / "s") as service:  # a service's folder
        np.testing.assert_array_equal(service.weights().w[0], v.w)
        assert service.version == 55
        assert service.settings.read_only
    with Service.from_checkpoint(tmp_path / "v.npz", tmp_path / "s") as service:  # goes on
        assert service.version == 55


def test_what_cannot_be_learned_here_is_refused(tmp_path):
    ValueFunction(Network((3, 1)), method="n-step", n=3).save(tmp_path / "v.npz")
    Service.from_checkpoint(tmp_path / "v.npz").close()
    with pytest.raises(ValueError, match=r"the method of .* is n-step; expected td, by which a service learns"):
        Service.from_checkpoint(tmp_path / "v.npz", tmp_path / "s")
    checkpoint.save(tmp_path / "other.npz", {"w": np.zeros(3)}, {"kind": "other"})
    with pytest.raises(CheckpointError, match="holds no value function"):
        Service.from_checkpoint(tmp_path / "other.npz")
    with pytest.raises(CheckpointError, match="is not the checkpoint of a service"):
        Service.open(_folder_with(tmp_path / "other.npz", tmp_path / "o"))


def _folder_with(file, folder):
    folder.mkdir()
    shutil.copy(file, folder / "checkpoint.npz")
    return folder


def test_a_service_may_begin_at_given_weights(tmp_path):
    w = np.random.default_rng(0).normal(size=SETTINGS.net.size)
    with Service(SETTINGS, tmp_path, weights=w) as service:
        np.testing.assert_array_equal(service.weights().w[0], w)
        service.learn(transitions("a", 0, 1))
        now = service.weights().w
    with Service(SETTINGS, tmp_path, weights=w) as service:  # what lies in the folder counts
        np.testing.assert_array_equal(service.weights().w, now)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(5), r"weights has shape \(1, 5\); .*\(1, 50\)"),
        (np.full(50, np.nan), r"weights\[0\]\[0\] is nan; expected a number of at most 5.64e\+102"),
        (["a"] * 50, "weights holds <U1; .*real numbers"),
        (
            np.full(50, 1e200),
            r"weights\[0\]\[0\] is 1e\+200; expected a number of at most 5.64e\+102 in magnitude",
        ),  # 1.8e308 ^ (1/3)
    ],
)
def test_weights_that_do_not_fit_are_refused(service, weights, message):
    with pytest.raises((ValueError, TypeError), match=message):
        service.load_weights(weights)
    assert service.version == 0


def test_weights_of_another_network_are_refused(service, tmp_path):
    ValueFunction(Network((3, 8, 1))).save(tmp_path / "v.npz")
    with pytest.raises(CheckpointError, match=r"the network of .* is 3-8-1 .*; expected 3-8-2"):
        service.load_weights(tmp_path / "v.npz")


def test_weights_can_be_read_by_name_and_not_be_changed(service):
    weights = service.weights()
    np.testing.assert_array_equal(weights.block("B"), service.net.unpack(weights.w[0])[1][0])
    assert Network(**weights.net) == SETTINGS.net
    with pytest.raises(ValueError, match="read-only"):
        weights.w[0, 0] = 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_states_that_are_not_finite_are_refused(service, bad):
    with pytest.raises(ValueError, match=r"states\[1\]\[2\] is (nan|inf); expected a finite number of float64"):
        service.values([[0, 0, 0], [0, 0, bad]])
    with pytest.raises(ValueError, match=r"states has shape \(3,\); .*\(n, 3\)"):
        service.gradients([0, 0, 0])


def test_diagnostics_can_be_read_by_many():
    with Service(replace(SETTINGS, norms_every=1)) as service:
        service.learn(transitions("a", 0, 20))
        for _ in range(100):
            if "grad_norm/A" in service.diagnostics():
                break
            threading.Event().wait(0.05)
        p = learner()
        p.norms_every = 1
        p.learn(0, *rows(transitions("a", 0, 20)))
        expected = p.diagnostics()
        assert service.diagnostics() == expected
        assert service.diagnostics() == expected
        assert set(expected) >= {"td_error/mean/0", "td_error/rms/1", "grad_norm/B", "trace_norm/A", "weight_norm/A"}


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_norms_are_shown_until_others_are_measured():
    # They are measured at updates 0, 2, ... here; a slow stream has seconds in which there is none of those.
    with Service(replace(SETTINGS, norms_every=2)) as service:
        service.learn(transitions("a", 0, 1))
        wait_for(lambda: "grad_norm/B" in service.diagnostics())
        before = service.diagnostics()
        service.learn(transitions("a", 1, 1))
        wait_for(lambda: service.diagnostics()["td_error/rms/0"] != before["td_error/rms/0"])
        assert service.diagnostics()["grad_norm/B"] == before["grad_norm/B"] > 0


def test_transitions_from_what_is_at_hand():
    one = Transitions.of("a", 7, [1, 2, 3], 0.5, [4, 5, 6], terminated=True)
    assert (one.names, one.sequence.tolist(), one.cumulants.tolist()) == (("a",), [7], [[0.5]])
    assert one.state.shape == (1, 3)
    several = Transitions.of(
        "a", 7, np.ones((2, 3)), [1, 2], np.ones((2, 3)), truncated=[False, True], discounts=[1, 0]
    )
    assert several.sequence.tolist() == [7, 8]
    assert several.cumulants.shape == several.discounts.shape == (2, 1)
    assert several.terminated.tolist() == [False, False]
    mixed = Transitions.of(["b", "a", "b"], [1, 1, 2], np.ones((3, 3)), np.ones((3, 2)), np.ones((3, 3)))
    assert (mixed.names, mixed.stream.tolist()) == (("b", "a"), [0, 1, 0])
    with pytest.raises(InvalidRequestError, match=r"stream holds \['a'\]; expected names"):
        Transitions.of([["a"]], 1, np.ones((1, 3)), np.ones(1), np.ones((1, 3)))
    with pytest.raises(
        InvalidRequestError, match="sequence is one number; expected 2, since there are several streams"
    ):
        Transitions.of(["b", "a"], 1, np.ones((2, 3)), np.ones(2), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("field", "value", "message", "index"),
    [
        ("state", [[0, 0, 0], [0, np.nan, 0]], r"state\[1\]\[1\] is nan; expected a finite number of float64", 1),
        ("state", [[0, 0]], r"state has shape \(1, 2\); .*\(n, 3\)", None),
        ("state", [["a", "b", "c"]] * 2, "state holds <U1; .*real numbers", None),
        ("next_state", [[0, 0, 0], [-np.inf, 0, 0]], r"next_state\[1\]\[0\] is -inf", 1),
        ("next_state", [[0, 0, 0]], r"next_state has shape \(1, 3\); .*\(2, 3\)", None),
        ("cumulants", [[0, np.inf], [0, 0]], r"cumulants\[0\]\[1\] is inf", 0),
        ("cumulants", [[0], [0]], r"cumulants has shape \(2, 1\); .*\(2, 2\)", None),
        ("discounts", [[0, 0], [1.5, 0]], r"discounts\[1\]\[0\] is 1.5; expected a number in \[0, 1\]", 1),
        ("terminated", [0, 2], r"terminated\[1\] is 2; expected a boolean", 1),
        ("truncated", [0], r"truncated has shape \(1,\); expected \(2,\)", None),
        ("sequence", [0, -1], r"sequence\[1\] is -1; expected a whole number from 0", 1),
        ("sequence", [0, 0.5], "sequence holds float64; expected whole numbers", None),
        ("sequence", [True, False], "sequence holds bool; expected whole numbers", None),
        (
            "sequence",
            np.array([0, 2**63], np.uint64),
            r"sequence\[1\] is 9223372036854775808; expected a whole number from",
            1,
        ),
        (
            "sequence",
            [0, 2.0**63],
            r"sequence\[1\] is 9.22\d*e\+18; expected a whole number from 0 to 9007199254740992",
            1,
        ),
        ("stream", [0, 1], r"stream\[1\] is 1; expected a whole number from 0 to 0", 1),
        ("names", ("",), r"stream\[0\] is ''; expected a name of 1 to 200 printable characters", 0),
        ("names", ("a\nb",), r"stream\[0\] is 'a\\nb'", 0),
        ("names", ("x" * 201,), "expected a name of 1 to 200 printable", 0),
        ("names", (7,), r"stream\[0\] is 7", 0),
        ("names", ("a", "a"), "names holds a name twice", None),
    ],
)
def test_transitions_that_are_not_well_formed_are_refused(service, field, value, message, index):
    good = Transitions.of("a", 0, np.zeros((2, 3)), np.zeros((2, 2)), np.zeros((2, 3)))
    value = value if field == "names" else np.asarray(value)
    with pytest.raises(InvalidRequestError, match=message) as caught:
        service.submit(replace(good, **{field: value}))
    assert caught.value.field == ("stream" if field == "names" and index is not None else field)
    assert caught.value.index == index
    assert service.learn(good).learned == 2


def test_numbers_too_large_for_the_network_are_refused():
    with Service(ServiceSettings(Network((1, 1)))) as service:
        for field in ("state", "next_state", "cumulants"):
            good = Transitions.of("a", 0, [0.0], 0.0, [0.0])
            with pytest.raises(
                InvalidRequestError,
                match=rf"{field}\[0\]\[0\] is 1e\+39; expected a (finite )?number of (float32|at most 3.4e\+38)",
            ):
                service.submit(replace(good, **{field: np.array([[1e39]])}))


def test_too_many_transitions_in_a_request_are_refused():
    with Service(replace(SETTINGS, max_batch=3)) as service:
        assert service.learn(transitions("a", 0, 3)).learned == 3
        with pytest.raises(InvalidRequestError, match="transitions has 4 entries; expected at most 3") as caught:
            service.submit(transitions("a", 3, 4))
        assert caught.value.field == "transitions"
        assert service.learn(transitions("a", 3, 0)).status.shape == (0,)


def test_streams_may_have_odd_names(tmp_path):
    names = [" ", "a/../b", 'quote"', "名前", "\N{SNOWMAN}", "x" * 200, "%00", "-"]
    with Service(SETTINGS, tmp_path / "s") as service:
        service.learn(together(*(transitions(name, 0, 2) for name in names)))
        service.checkpoint()
        service.learn(together(*(transitions(name, 2, 2) for name in names)))
        with crashed(service) as again:
            assert_same(service, again)
            assert list(again._state.streams.last) == names


def test_a_record_holds_what_was_put_in():
    batch = together(transitions("a", 3, 4), transitions("b", 0, 2)).checked(SETTINGS.net, 2, 100)
    batch = replace(batch, discounts=np.random.default_rng(0).random((6, 2)))
    cut = np.arange(6) == 4
    for dtype in (np.float32, np.float64):
        typed = replace(batch, state=batch.state.astype(dtype), next_state=batch.next_state.astype(dtype))
        for given in (typed, replace(typed, discounts=None)):
            back, back_cut = decode(encode((given, cut)))
            assert back.names == ("a", "b")
            np.testing.assert_array_equal(back_cut, cut)
            for name in (
                "stream",
                "sequence",
                "state",
                "cumulants",
                "next_state",
                "terminated",
                "truncated",
                "discounts",
            ):
                np.testing.assert_array_equal(getattr(back, name), getattr(given, name))
            assert back.state.dtype == dtype
        w = np.random.default_rng(0).normal(size=(2, 5)).astype(dtype)
        np.testing.assert_array_equal(decode(encode(w)), w)
    with pytest.raises(ValueError, match="a record of kind 9"):
        decode(b"\x09" + encode(w)[1:])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"durability": "bach"}, "did you mean 'batch'"),
        ({"on_gap": "ignore"}, "on_gap is 'ignore'"),
        ({"max_streams": 0}, "max_streams is 0; "),
        ({"max_known_streams": 5, "max_streams": 6}, "max_known_streams is 5; expected at least max_streams, 6"),
        ({"checkpoint_seconds": 0}, "checkpoint_seconds is 0; expected a positive, finite number"),
        ({"checkpoint_seconds": np.inf}, "checkpoint_seconds is inf"),
        ({"seed": -1}, "seed is -1"),
        ({"retain_bytes": -1}, "retain_bytes is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **setting)


def test_settings_survive_json():
    settings = replace(SETTINGS, optimizer=SGD({"A": 0.1, "B": 0.2}), names=("soon", "late"), durability="every")
    assert ServiceSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


def test_importing_the_service_loads_no_server_and_no_cluster():
    script = (
        "import sys, valueapprox.service as s; s.Service, s.ServiceSettings, s.Transitions, s.JournalError; "
        "print(sorted({'ray', 'fastapi', 'httpx', 'uvicorn', 'tensorboard', 'gymnasium'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_is_its_owner_s(tmp_path):
    before = os.umask(0o022)
    try:
        with Service(SETTINGS, tmp_path / "new" / "service") as service:
            service.learn(transitions("a", 0, 5))
            service.checkpoint()
            modes = {path.name: path.stat().st_mode & 0o777 for path in service.folder.iterdir()}
            assert service.folder.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert "checkpoint.npz" in modes
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize("name", ["learner/w", "learner/traces", "learner/moments"])
def test_a_checkpoint_with_numbers_that_are_none_is_not_gone_on_with(tmp_path, name):
    with Service(SETTINGS, tmp_path) as service:
        service.learn(transitions("a", 0, 5))
    arrays, meta = checkpoint.load(tmp_path / "checkpoint.npz")
    arrays[name].flat[0] = np.nan
    checkpoint.save(tmp_path / "checkpoint.npz", arrays, meta)
    with pytest.raises(CheckpointError, match="is nan; expected a finite number"):
        Service.open(tmp_path)
