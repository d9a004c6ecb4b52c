"""Workers here and on Ray: the same results in the same order, whatever dies meanwhile."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from scripted_workers import Broken, Counter

from valueapprox.cluster import ONE_THREAD, LocalWorker, RayWorker, cluster, must_answer
from valueapprox.interrupts import Stopped, interruptible


def results(worker, n):
    return [worker.result() for _ in range(n)]


@pytest.fixture
def ray_worker(local_ray):
    """Makes workers and ends them."""
    made = []

    def make(*arguments, **settings):
        made.append(RayWorker(*arguments, **settings))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def test_a_local_worker_gives_results_in_the_order_of_the_calls():
    worker = LocalWorker(Counter, 10)
    for amount in (1, 2, 3):
        worker.submit("add", amount)
    assert results(worker, 3) == [(11, 11), (13, 13), (16, 16)]
    worker.close()


def test_a_local_worker_starts_from_a_snapshot():
    worker = LocalWorker(Counter, 10, snapshot=100)
    worker.submit("add", 1)
    assert worker.result() == (101, 101)


@pytest.mark.ray
def test_a_ray_worker_gives_the_same(ray_worker):
    worker, other = ray_worker(Counter, 10), ray_worker(Counter, 10, snapshot=100)
    for amount in (1, 2, 3):
        worker.submit("add", amount)
        other.submit("add", amount)
    assert results(worker, 3) == [(11, 11), (13, 13), (16, 16)]
    assert results(other, 3) == [(101, 101), (103, 103), (106, 106)]
    assert worker.pid() not in (os.getpid(), other.pid())


@pytest.mark.ray
def test_a_killed_worker_is_replaced_and_its_open_calls_are_made_again(ray_worker):
    notices = []
    worker = ray_worker(Counter, 10, on_death=notices.append)
    worker.submit("add", 1)
    assert worker.result() == (11, 11)
    pid = worker.pid()
    worker.submit("slow", 2)
    worker.submit("slow", 3)
    os.kill(pid, signal.SIGKILL)
    assert results(worker, 2) == [(13, 13), (16, 16)]
    assert worker.pid() != pid
    assert len(notices) == 1
    assert "a Ray worker died" in notices[0]
    assert "\n" not in notices[0]


@pytest.mark.ray
def test_a_worker_killed_between_calls_is_replaced_too(ray_worker):
    worker = ray_worker(Counter, 10, on_death=lambda sentence: None)
    worker.submit("add", 1)
    worker.result()
    os.kill(worker.pid(), signal.SIGKILL)
    time.sleep(0.3)
    worker.submit("add", 1)
    assert worker.result() == (12, 12)


@pytest.mark.ray
def test_a_worker_that_keeps_dying_is_given_up(ray_worker):
    notices = []
    worker = ray_worker(Counter, 10, 13, on_death=notices.append)
    for _ in range(3):
        worker.submit("add", 1)
    assert results(worker, 2) == [(11, 11), (12, 12)]
    notices.clear()  # the first process may have died before its second answer was on its way
    with pytest.raises(RuntimeError, match="died 4 times in a row"):
        worker.result()
    assert sum("died" in notice for notice in notices) == 3  # others say that a process starts slowly


@pytest.mark.ray
def test_an_error_in_a_call_is_raised_as_what_it_was_with_its_traceback(ray_worker):
    worker = ray_worker(Counter, 10)
    worker.submit("fail")
    with pytest.raises(ZeroDivisionError, match=r"in fail[\s\S]*no way to divide"):
        worker.result()


@pytest.mark.ray
def test_an_error_in_the_constructor_is_raised_at_once(ray_worker):
    notices = []
    worker = ray_worker(Broken, on_death=notices.append)
    worker.submit("add", 1)
    with pytest.raises((ValueError, RuntimeError), match="not with me"):
        worker.result()
    assert notices == []


@pytest.mark.ray
def test_a_worker_that_finds_no_cpu_is_said_and_given_up(ray_worker, monkeypatch):
    # As where a node is gone: Ray has four CPUs, and waits for a fifth without end.
    monkeypatch.setattr("valueapprox.cluster.SAY_AFTER", 0.5)
    others, notices = [ray_worker(Counter, 0) for _ in range(4)], []
    for other in others:
        other.submit("add", 1)
        other.result()
    fifth = ray_worker(Counter, 0, on_death=notices.append, patience=1.5)
    fifth.submit("add", 1)
    with pytest.raises(TimeoutError, match=r"no process for a Ray worker has started for 1.5 s \(Ray has 4 CPUs\)"):
        fifth.result()
    (notice,) = notices
    assert "given up after 1.5 s (--patience)" in notice


@pytest.mark.ray
def test_a_worker_that_does_not_answer_is_given_up(ray_worker):
    worker = ray_worker(Counter, 0, on_death=lambda sentence: None)
    worker.submit("add", 1)
    worker.result()
    worker._patience, worker._slowest = 0.05, 0.001
    worker.submit("slow", 1)  # 0.3 s
    with pytest.raises(TimeoutError, match=r"a Ray worker has not answered for 0.05 s"):
        worker.result()


@pytest.mark.ray
def test_waiting_for_a_worker_ends_when_the_process_is_asked_to_end(ray_worker):
    worker = ray_worker(Counter, 0)
    worker.submit("add", 1)
    worker.result()
    for _ in range(20):
        worker.submit("slow", 1)  # 6 s in all
    started = time.monotonic()
    with interruptible():
        worker.result()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            results(worker, 19)
    assert time.monotonic() - started < 5


# Addresses ------------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_answers_is_an_error_soon(scheme):
    address, started = f"{scheme}127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(ConnectionError, match=address), cluster_without_ray(address):
        pass
    assert time.monotonic() - started < 6


def test_a_port_where_something_else_listens_is_an_error_soon():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # accepts, and never says a word
        started = time.monotonic()
        with pytest.raises(ConnectionError, match="address"):
            must_answer(f"127.0.0.1:{listening.getsockname()[1]}")
    assert time.monotonic() - started < 8


def test_automatic_where_nothing_answers_any_more_is_an_error_soon(monkeypatch):
    address, started = f"127.0.0.1:{free_port()}", time.monotonic()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConnectionError, match=f"the Ray address is 'auto', which stands for '{address}' here"):
        must_answer("auto")
    assert time.monotonic() - started < 6


@pytest.mark.parametrize("address", ["nonsense", "host:", ":6379", "host:port", "127.0.0.1:99999", "ray://", ""])
def test_a_malformed_address_is_an_error(address):
    with pytest.raises(ConnectionError, match="address"), cluster_without_ray(address):
        pass


def cluster_without_ray(address):
    """`cluster`, as it would be if this process had no Ray yet."""
    import ray

    if not ray.is_initialized():
        return cluster(address)
    return _Checked(address)


class _Checked:
    def __init__(self, address):
        self.address = address

    def __enter__(self):
        must_answer(self.address)

    def __exit__(self, *_):
        pass


@pytest.mark.ray
def test_an_existing_connection_is_used_and_left(local_ray):
    import ray

    with cluster():
        assert ray.is_initialized()
    assert ray.is_initialized()


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_of_one_s_own_is_ended_and_the_environment_as_before():
    code = """
import json, os, ray
from valueapprox.cluster import ONE_THREAD, cluster

os.environ["OMP_NUM_THREADS"] = "3"
before = dict(os.environ)
with cluster(n_cpus=1):
    assert ray.cluster_resources()["CPU"] == 1
    print(json.dumps(ray.get(ray.remote(lambda: {name: os.environ.get(name) for name in ONE_THREAD}).remote())))
assert not ray.is_initialized()
for name in ONE_THREAD:
    assert os.environ.get(name) == before.get(name), name
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    # one thread each, but a number that the person chose stays
    assert json.loads(result.stdout) == {**ONE_THREAD, "OMP_NUM_THREADS": "3"}
