"""A replica reads with weights of its own, which follow the learner's; under Ray Serve itself where it is installed."""

import importlib.util
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from valueapprox import SGD, Network
from valueapprox.service import Client, ReadOnlyError, Service, ServiceSettings, StorageError, Transitions
from valueapprox.service.ray_serve import Follower
from valueapprox.service.server import Running

LINEAR = Network((2, 1), bias=False, dtype="float64")
ONE = Transitions.of("a", 0, [1.0, 0.0], 1.0, [0.0, 1.0])


def make(**changes):
    plain = {"net": LINEAR, "optimizer": SGD(0.5), "discounts": (0.9,), "lams": (0.0,), "init": "zeros"}
    return Service(ServiceSettings(**{**plain, **changes}))


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_a_follower_answers_with_the_weights_and_the_version_of_the_learner():
    with make() as learner:
        learner.load_weights([1.0, 2.0])
        follower = Follower(learner, 0.02)
        assert (follower.version, follower.values([[1.0, 1.0]]).values.tolist()) == (1, [[3.0]])
        learner.load_weights([3.0, 4.0])
        until(lambda: follower.version == 2)
        assert follower.values([[1.0, 1.0]]).values.tolist() == [[7.0]]
        assert follower.gradients([[1.0, 1.0]]) == (pytest.approx(np.array([[3.0, 4.0]])), 2)
        assert follower.weights().version == follower.norms().version == 2
        result = follower.submit(ONE).result(10)  # delta = 1 + 0.9 * 4 - 3 = 1.6
        assert result.td_errors.tolist() == [[pytest.approx(1.6)]]
        until(lambda: follower.version == 3)
        assert follower.weights().w.tobytes() == learner.weights().w.tobytes()
        assert follower.health()["learned"] == 1
        (point,) = follower.recent()
        assert (point["stream"], point["values"]) == ("a", [pytest.approx(3.8)])  # 3 + 0.5 * 1.6
        assert follower.recent(1) == []
        follower.close()


def test_no_answer_of_a_follower_mixes_weights_and_versions():
    # All weights equal the learner's version.
    with make() as learner:
        follower, stop = Follower(learner, 0.001), threading.Event()

        def swap():
            while not stop.is_set():
                learner.load_weights(np.full(2, learner.version + 1.0))

        swapper = threading.Thread(target=swap)
        swapper.start()
        seen = set()
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            values, version = follower.values([[1.0, 0.0], [0.0, 1.0]])
            assert values.tolist() == [[version], [version]]
            seen.add(version)
        stop.set()
        swapper.join()
        follower.close()
        assert len(seen) > 5


def test_values_are_served_while_the_learner_is_away():
    class Away(Service):
        away = False

        @property
        def version(self):
            if self.away:
                raise StorageError("gone")
            return super().version

    learner = Away(ServiceSettings(LINEAR, init="zeros"), weights=[1.0, 2.0])
    with learner:
        follower = Follower(learner, 0.02)
        with Running(follower) as url, Client(url, retries=0) as client:
            learner.away = True
            until(lambda: not client.health()["learning"])
            assert client.values([[1.0, 1.0]]).values.tolist() == [[3.0]]
            assert "gone" in client.health()["reason"]
            learner.away = False
            until(lambda: client.health()["learning"])
        follower.close()
    with make(read_only=True) as learner:
        follower = Follower(learner)
        with pytest.raises(ReadOnlyError):
            follower.submit(ONE)
        follower.close()


SERVE = Path(__file__).parents[3] / "scripts" / "serve.py"


@pytest.mark.ray
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("grpc_reflection", "opencensus")),
    reason="Ray Serve is not installed",
)
def test_under_ray_serve_itself(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = [
        "--new",
        "--inputs",
        "2",
        "--data",
        str(tmp_path / "service"),
        "--ray-serve",
        "critic",
        "--port",
        str(port),
    ]
    process = subprocess.Popen([sys.executable, str(SERVE), *options], stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if "Read on" in line:
                break
        client = Client(f"http://127.0.0.1:{port}")
        assert client.learn(ONE).learned == 1
        assert client.learn(ONE).duplicates == 1
        until(lambda: client.version == 1)
        assert client.values([[1.0, 0.0]]).version == 1
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with Service.open(tmp_path / "service") as service:
        assert service.version == 1
