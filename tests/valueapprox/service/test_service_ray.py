"""The service as a Ray actor: the same learner from everywhere, in order, still there after its process was killed."""

import contextlib
import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
from test_service import SETTINGS, learner, rows, transitions

from valueapprox.service import (
    GapError,
    InvalidRequestError,
    QueueFullError,
    ServiceError,
    StorageError,
    connect,
    start,
)
from valueapprox.service.records import decode
from valueapprox.service.segments import read

pytestmark = pytest.mark.ray


@pytest.fixture
def started(local_ray):
    """Starts services and ends them."""
    made = []

    def make(name, settings=SETTINGS, folder=None, **options):
        made.append(start(name, settings, folder, **options))
        return made[-1]

    yield make
    for service in made:
        with contextlib.suppress(ServiceError):  # it may be gone already
            service.stop()


def test_an_actor_learns_what_predictions_learn(started, tmp_path):
    started("critic", folder=tmp_path)
    service, p = connect("critic"), learner()
    a = transitions("a", 0, 20)
    result, expected = service.learn(a), p.learn(0, *rows(a))
    np.testing.assert_array_equal(result.td_errors, expected.td_errors)
    assert (result.learned, result.version, service.version) == (20, 20, 20)
    assert service.learn(a).duplicates == 20
    s = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_array_equal(service.weights().w, p.w)
    for values, version in (service.values(s), service.submit_values(s).result()):
        np.testing.assert_array_equal(values, p.predict(s))
        assert version == 20
    np.testing.assert_array_equal(service.gradients(s, 1).gradients, p.input_gradients(s, 1))
    assert service.norms().norms == p.layer_norms()
    assert service.load_weights(np.zeros(SETTINGS.net.size)) == 21
    assert (service.values(s).values == 0).all()
    assert service.health()["learned"] == 20
    service.checkpoint()
    assert service.health()["checkpoint_version"] == 21
    assert service.recent()[0]["id"] == 1
    assert service.recent(service.recent()[-1]["id"]) == []
    assert (service.settings, service.n_inputs, service.n_predictions) == (SETTINGS, 3, 2)


def test_what_is_submitted_is_learned_in_its_order(started, tmp_path):
    service, p = started("ordered", folder=tmp_path), learner()
    futures = [service.submit(transitions("a", i, 1)) for i in range(300)]
    assert [future.result().learned for future in futures] == [1] * 300
    assert [future.result().version for future in futures] == list(range(1, 301))
    p.learn(0, *rows(transitions("a", 0, 300)))
    np.testing.assert_array_equal(service.weights().w, p.w)
    states = [np.full((i % 3 + 1, 3), float(i)) for i in range(50)]
    for s, future in zip(states, [service.submit_values(s) for s in states], strict=True):
        np.testing.assert_allclose(future.result().values, p.predict(s), rtol=1e-12)


def test_after_cancelled_calls_every_other_gets_its_own_answer(started):
    service, p = started("cancelled"), learner()
    cancelled = set(range(0, 40, 3))
    with service._reading._wake:  # nothing is sent until all are there
        states = [np.full((i % 3 + 1, 3), float(i)) for i in range(40)]
        futures = [service.submit_values(s) for s in states]
        assert all(futures[i].cancel() for i in cancelled)
    for i in sorted(set(range(40)) - cancelled):
        np.testing.assert_allclose(futures[i].result(60).values, p.predict(states[i]), rtol=1e-12)
    with service._learning._wake:
        futures = [service.submit(transitions(f"stream {i}", 0, i % 4 + 1)) for i in range(40)]
        assert all(futures[i].cancel() for i in cancelled)
    version = 0
    for i in sorted(set(range(40)) - cancelled):
        batch = transitions(f"stream {i}", 0, i % 4 + 1)
        expected = p.learn(0, *rows(batch), cut=[True, *[False] * (i % 4)])
        version += i % 4 + 1
        result = futures[i].result(60)
        np.testing.assert_array_equal(result.td_errors, expected.td_errors)
        assert result.version == version


def test_errors_arrive_as_what_they_were(started, tmp_path):
    service = started("strict", replace(SETTINGS, max_batch=50, max_queue=50), tmp_path)
    wrong = replace(transitions("a", 0, 2), state=np.full((2, 3), np.nan))
    futures = [service.submit(batch) for batch in (transitions("a", 0, 2), wrong, transitions("a", 2, 2))]
    assert [futures[i].result().learned for i in (0, 2)] == [2, 2]
    with pytest.raises(InvalidRequestError, match=r"state\[0\]\[0\] is nan") as caught:
        futures[1].result()
    assert (caught.value.field, caught.value.index) == ("state", 0)
    with pytest.raises(GapError, match="sequence is 9; expected 4, the next number of stream 'a'") as gap:
        service.learn(transitions("a", 9, 2))
    assert (gap.value.expected, gap.value.result.rejected) == (4, 2)
    with pytest.raises(ValueError, match=r"states\[0\]\[1\] is inf"):
        service.values([[0, np.inf, 0]])
    with pytest.raises(ValueError, match="output is 2; expected a prediction from 0 to 1"):
        service.gradients(np.zeros((1, 3)), 2)
    good, bad = service.submit_values(np.zeros((1, 3))), service.submit_values(np.full((1, 3), np.inf))
    assert good.result().values.shape == (1, 2)
    with pytest.raises(ValueError, match=r"states\[0\]\[0\] is inf"):
        bad.result()
    batch = transitions("b", 0, 40)
    with pytest.raises(QueueFullError, match="are waiting to be sent, and max_queue is 50"):
        _ = [service.submit(batch) for _ in range(1000)]


def test_a_name_is_asked_for_and_given_once(started, tmp_path):
    started("one", folder=tmp_path)
    with pytest.raises(ValueError, match="the name 'one' is taken by a running service; connect to it"):
        start("one", SETTINGS, tmp_path / "other")
    with pytest.raises(LookupError, match="no service on this cluster is called 'two'; expected one of one"):
        connect("two")
    with pytest.raises(StorageError, match="another service is using"):
        start("two", SETTINGS, tmp_path)
    started("two", folder=tmp_path / "two").stop()
    with pytest.raises(ValueError, match="discounts is"):
        start("three", replace(SETTINGS, discounts=(0.1, 0.2)), tmp_path / "two")
    with pytest.raises(LookupError, match="expected one of one"):  # what failed has left no actor
        connect("three")


def test_a_handle_can_be_given_to_tasks(started, tmp_path):
    import ray

    service = started("shared", folder=tmp_path)

    @ray.remote(num_cpus=0)
    def experiment(critic, first, second):
        return critic.learn(first).learned + connect("shared").learn(second).learned

    batches = [(transitions(name, 0, 10), transitions(name, 10, 5)) for name in "abc"]
    assert ray.get([experiment.remote(service, *pair) for pair in batches]) == [15, 15, 15]
    assert service.version == 45


def test_a_killed_actor_comes_back_with_everything_that_was_acknowledged(started, tmp_path):
    service = started("hardy", replace(SETTINGS, max_streams=2), tmp_path)
    first, acknowledged = service.health()["pid"], {"a": 0, "b": 0}

    def feed(name):
        for i in range(60):
            result = service.learn(transitions(name, 4 * i, 4))
            assert result.learned + result.duplicates == 4
            acknowledged[name] += 4

    threads = [threading.Thread(target=feed, args=(name,)) for name in acknowledged]
    for thread in threads:
        thread.start()
    while min(acknowledged.values()) < 40:
        threading.Event().wait(0.005)
    os.kill(first, signal.SIGKILL)
    values = service.values(np.ones((2, 3)))  # waits until it is back
    assert values.version >= 40
    for thread in threads:
        thread.join()
    assert acknowledged == {"a": 240, "b": 240}
    assert service.health()["pid"] != first
    p, places, seen = learner(2), {}, []
    for _, payload in read(tmp_path):
        batch, _ = decode(payload)
        for t, i in enumerate(batch.stream):
            name = batch.names[i]
            seen.append((name, int(batch.sequence[t])))
            p.learn(places.setdefault(name, len(places)), *(array[t : t + 1] for array in rows(batch)))
    assert sorted(seen) == sorted((name, i) for name in "ab" for i in range(240))
    np.testing.assert_array_equal(service.weights().w, p.w)
    assert service.version == 480


def test_without_a_folder_a_death_is_an_error(started):
    service = started("frail")
    service.learn(transitions("a", 0, 5))
    pid = service.health()["pid"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServiceError, match="the service 'frail' is gone"):
        service.learn(transitions("a", 5, 5))


def test_a_stopped_service_can_be_started_again(started, tmp_path):
    service = started("again", folder=tmp_path)
    service.learn(transitions("a", 0, 5))
    service.stop()
    with pytest.raises(LookupError, match="no service on this cluster is called 'again'"):
        connect("again")
    assert started("again", folder=tmp_path).version == 5
