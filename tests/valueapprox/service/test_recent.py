"""What a service keeps of the last minutes: which points, how many, of which streams, and that it changes nothing."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from valueapprox import SGD, Network
from valueapprox.service import Service, ServiceSettings, Transitions, recent
from valueapprox.service.recent import Recent

LINEAR = Network((2, 1), bias=False, dtype="float64")


def make(**changes):
    """A linear value function: alpha 0.5, gamma 0.9, no trace."""
    plain = {"net": LINEAR, "optimizer": SGD(0.5), "discounts": (0.9,), "lams": (0.0,), "init": "zeros"}
    return Service(ServiceSettings(**{**plain, **changes}))


def one(stream="a", sequence=0, state=(1.0, 0.0), reward=1.0):
    return Transitions.of(stream, sequence, state, reward, (0.0, 1.0))


@pytest.fixture
def every(monkeypatch):
    """Every group leaves points."""
    for name in ("INTERVAL", "LOOK", "SHARE"):
        monkeypatch.setattr(recent, name, 0)


def clock(now):
    return SimpleNamespace(monotonic=lambda: now[0], thread_time=lambda: now[0])


def settled(service):
    """The points, once the writer has done what it does after an answer."""
    service.load_weights(service.weights().w)
    return service.recent()


def test_a_point_has_the_prediction_after_learning_and_the_error_before(every):
    with make() as service:
        assert service.recent() == []
        service.learn(one())  # w = 0: delta = 1; w_0 = 0.5
        (point,) = settled(service)
        assert 0 <= point.pop("seconds") < 60
        assert point == {"id": 1, "stream": "a", "version": 1, "values": [0.5], "td_errors": [1.0]}


def test_a_group_gives_the_last_transition_of_each_of_its_streams(every):
    with make() as service:
        # w_0: 0.5 after the first, delta of the second 1 - 0.5; the third starts at w_1 = 0
        rows = Transitions.of(["a", "a", "b"], [0, 1, 0], [[1, 0], [1, 0], [0, 1]], [1.0, 1, 2], np.zeros((3, 2)))
        service.learn(rows)
        points = {point["stream"]: (point["values"], point["td_errors"]) for point in settled(service)}
        assert points == {"a": ([0.75], [0.5]), "b": ([1.0], [2.0])}


def test_most_groups_are_passed_over(monkeypatch):
    monkeypatch.setattr(recent, "INTERVAL", 1e9)
    with make() as service:
        for i in range(100):
            service.learn(one(sequence=i))
        assert [point["version"] for point in settled(service)] == [1]


@pytest.mark.parametrize("pauses", [[0.01] * 10, [0.001, 0.099], [0.001, 0.001, 0.001, 0.097], [0.0001] * 10], ids=str)
def test_each_stream_has_points_of_its_own(monkeypatch, pauses):
    # the last of the streams is the one that is missed first: it is rare, or it comes right after another
    random.seed(0)
    now, streams = [0.0], "b" * (len(pauses) - 1) + "a"
    monkeypatch.setattr(recent, "time", clock(now))
    kept, i = Recent(1), 0
    while now[0] < 10:  # seconds, and two points in each
        kept.offer(one(streams[i % len(pauses)], i), np.zeros((1, 1)), i, lambda s: np.zeros((len(s), 1)))
        now[0] += pauses[i % len(pauses)]
        i += 1
    counts = {name: [point["stream"] for point in kept.since(0)].count(name) for name in "ab"}
    assert 15 <= counts["b"] <= 20
    assert 10 <= counts["a"] <= 20


def test_an_update_takes_a_small_part_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(recent, "time", clock(now))
    kept = Recent(1)

    def slow(states):
        now[0] += 0.1  # seconds; 200 times that are 20
        return np.zeros((len(states), 1))

    for i in range(200):
        kept.offer(one(sequence=i), np.zeros((1, 1)), i, slow)
        now[0] += 1.0
    pauses = np.diff([point["seconds"] for point in kept.since(0)])
    assert pauses[0] < 2  # one slow time says little
    assert 20 <= min(pauses[-5:]) <= max(pauses[-5:]) < 22


def test_what_diverged_has_no_error(every):
    with make() as service:
        service.load_weights([1e154, -1e154])
        assert service.learn(one(state=(1e200, 0.0))).diverged == 1
        (point,) = settled(service)
        assert np.isnan(point["td_errors"]).all()


def test_four_streams_are_followed_until_one_is_quiet(every, monkeypatch):
    kept, error, sequence = Recent(1), np.zeros((1, 1)), iter(range(100))

    def seen(*streams):
        last = max((point["id"] for point in kept.since(0)), default=0)
        for stream in streams:
            kept.offer(one(stream, next(sequence)), error, 0, lambda s: np.zeros((len(s), 1)))
        return [point["stream"] for point in kept.since(last)] if last else [p["stream"] for p in kept.since(0)]

    assert seen(*"abcdefab") == list("abcdab")
    monkeypatch.setattr(recent, "QUIET_SECONDS", -1.0)  # each is quiet at once
    assert seen("f") == ["f"]
    monkeypatch.setattr(recent, "QUIET_SECONDS", 30.0)
    assert seen(*"abcde") == list("abc")


@pytest.mark.parametrize(("k", "width", "most"), [(1, 1, 1200), (32, 32, 625), (1000, 32, 625)])
def test_the_record_is_bounded(every, k, width, most):
    kept = Recent(k)
    for i in range(1300):
        kept.offer(one(sequence=i), np.zeros((1, k)), i, lambda s: np.full((len(s), k), 1 / 3))
    points = kept.since(0)
    assert [point["id"] for point in points] == list(range(1301 - most, 1301))
    assert points[0]["values"] == [0.333333] * width
    assert len(points[0]["td_errors"]) == width


def test_only_what_is_new_is_given_and_all_of_it_to_who_knew_another_service(every):
    with make() as service:
        for i in range(5):
            service.learn(one(sequence=i))
        settled(service)
        assert [point["id"] for point in service.recent(3)] == [4, 5]
        assert service.recent(5) == []
        assert len(service.recent(6)) == 5


def test_learning_is_the_same_whether_it_is_recorded_or_not(monkeypatch):
    rng = np.random.default_rng(0)
    states, rewards = rng.normal(size=(201, 4)), rng.normal(size=200)
    weights = []
    for interval in (0, 1e9):
        for name in ("INTERVAL", "LOOK", "SHARE"):
            monkeypatch.setattr(recent, name, interval)
        with make(net=Network((4, 16, 1)), lams=(0.9,), init="he_normal", optimizer=SGD(0.01)) as service:
            for i in range(0, 200, 4):
                service.learn(Transitions.of("a", i, states[i : i + 4], rewards[i : i + 4], states[i + 1 : i + 5]))
            weights.append(service.weights().w.tobytes())
            assert len(settled(service)) == (50 if interval == 0 else 1)
    assert weights[0] == weights[1]
