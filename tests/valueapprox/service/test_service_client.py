"""The client is the service it calls: same answers, same errors, whatever happens to connections in between."""

import contextlib
import copy
import pickle
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from valueapprox import SGD, Network
from valueapprox.service import (
    Client,
    GapError,
    InvalidRequestError,
    QueueFullError,
    ReadOnlyError,
    Service,
    ServiceSettings,
    StorageError,
    Transitions,
)
from valueapprox.service.server import Running

NET = Network((2, 2), bias=False, dtype="float64")
ONE = {"stream": "a", "sequence": 0, "state": [1.0, 0.0], "cumulants": [1.0, 2.0], "next_state": [0.0, 1.0]}


def make(cls=Service, **changes):
    plain = {"net": NET, "optimizer": SGD(0.1), "discounts": (0.0, 0.9), "lams": (0.0, 0.8), "names": ("now", "later")}
    return cls(ServiceSettings(**{**plain, **changes}))


@pytest.fixture
def pair():
    """A service and a client of it."""
    with make() as service, Running(service) as url, Client(url, retries=0) as client:
        yield service, client


def some(n, seed=0, first=0):
    """Transitions of two streams."""
    rng = np.random.default_rng(seed)
    return Transitions(
        ("left", "right \u00e4\u00f6"),
        np.arange(n) % 2,
        first + np.arange(n) // 2,
        rng.normal(size=(n, 2)),
        rng.normal(size=(n, 2)),
        rng.normal(size=(n, 2)),
        rng.random(n) < 0.1,
        rng.random(n) < 0.1,
        rng.random((n, 2)),
    )


class Relay:
    """A connection in between: `lose` answers are thrown away, and the connection with them."""

    def __init__(self, url, lose=0, lose_requests=0):
        self.target = ("127.0.0.1", int(url.rpartition(":")[2]))
        self.lose, self.lose_requests, self.connections = lose, lose_requests, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.relay, args=(one,), daemon=True).start()

    def relay(self, one):
        with one, socket.create_connection(self.target) as other:
            if self.lose_requests:
                self.lose_requests -= 1
                return
            threading.Thread(target=self.forward, args=(one, other), daemon=True).start()
            while answer := other.recv(2**20):
                if self.lose:
                    self.lose -= 1
                    one.shutdown(socket.SHUT_RDWR)
                    return
                one.sendall(answer)

    @staticmethod
    def forward(one, other):
        with contextlib.suppress(OSError):
            while request := one.recv(2**20):
                other.sendall(request)
            other.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


# --- the same answers ---------------------------------------------------------------------------------------------


def test_values_gradients_norms_and_weights_are_the_service_s(pair):
    service, client = pair
    few, many = [[0.5, -0.25]], np.random.default_rng(0).normal(size=(500, 2))
    for states in (few, many, many.astype(np.float32), np.asfortranarray(many), many[::2], [[1, 2]]):
        answer, own = client.values(states), service.values(np.array(states, np.float64))
        assert answer.values.tobytes() == own.values.tobytes()
        assert (answer.values.dtype, answer.values.shape, answer.version) == (np.float64, own.values.shape, 0)
    for output in (0, 1):
        assert client.gradients(many, output).gradients.tobytes() == service.gradients(many, output).gradients.tobytes()
    assert client.norms() == service.norms()
    found, own = client.weights(), service.weights()
    assert found.w.tobytes() == own.w.tobytes()
    assert found.block("W1").tolist() == own.block("W1").tolist()
    assert (found.version, found.net, found.names) == (own.version, own.net, own.names)
    assert client.about()["predictions"] == ["now", "later"]
    assert client.health()["version"] == client.version == 0


def test_learning_through_the_client_is_learning_in_the_service(pair):
    service, client = pair
    with make() as other:
        for first in (0, 25):
            batch = some(50, seed=first, first=first)
            far, near = client.learn(batch), other.learn(batch)
            assert far.version == near.version
            assert far.status.tolist() == near.status.tolist() == [0] * 50
            assert far.td_errors.tobytes() == near.td_errors.tobytes()
        assert service.weights().w.tobytes() == other.weights().w.tobytes()


def test_a_transition_from_its_parts(pair):
    _, client = pair
    assert client.learn(**ONE, terminated=1).learned == 1
    result = client.learn(Transitions.of(**ONE))
    assert (result.duplicates, result.version) == (1, 1)
    assert np.isnan(result.td_errors).all()
    with pytest.raises(TypeError, match="expected one or the other"):
        client.learn(some(3), stream="a")


def test_a_gap_is_the_same_error_through_the_client_and_in_the_service(pair):
    # Version 0.1 returned a status, which a caller who did not look at it took for success.
    service, client = pair
    client.learn(**ONE)
    for who in (service, client):
        with pytest.raises(GapError, match="sequence is 7; expected 1, the next number of stream 'a'") as gap:
            who.learn(Transitions.of(**{**ONE, "sequence": 7}))
        assert (gap.value.expected, gap.value.result.rejected, service.version) == (1, 1, 1)
        copied = pickle.loads(pickle.dumps(gap.value))
        assert (str(copied), copied.expected) == (str(gap.value), 1)


def test_weights_are_replaced(pair):
    service, client = pair
    assert client.load_weights([1.0, 2.0, 3.0, 4.0]) == 1
    assert service.weights().w.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert client.values([[1, 0]]).values.tolist() == [[1.0, 2.0]]


# --- the same errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"state": [1.0, 2.0, 3.0]}, "state"),
        ({"next_state": [np.nan, 0.0]}, "next_state"),
        ({"cumulants": [1.0]}, "cumulants"),
        ({"sequence": -1}, "sequence"),
        ({"terminated": 0.5}, "terminated"),
        ({"discounts": [0.5, 1.5]}, "discounts"),
        ({"stream": ""}, "stream"),
        ({"stream": "a\0"}, "stream"),
        ({"stream": "a\n"}, "stream"),
    ],
)
def test_what_is_wrong_raises_what_the_service_raises(pair, changes, field):
    service, client = pair
    batch = Transitions.of(**{**ONE, **changes})
    said = []
    for who in (service, client):
        with pytest.raises(InvalidRequestError) as wrong:
            who.learn(batch)
        assert wrong.value.field.startswith(field)
        said.append(str(wrong.value))
    # There is one check and one sentence; only what an array of text cannot hold is refused by the client.
    assert said[0] == said[1] or "\0" in batch.names[0]
    assert service.version == 0


def test_states_that_are_wrong_are_value_errors(pair):
    service, client = pair
    for states in ([[1.0]], [[np.nan, 1.0]], np.full((100, 2), np.inf)):
        said = []
        for who in (service, client):
            with pytest.raises(InvalidRequestError, match="states") as wrong:
                who.values(states)
            said.append(str(wrong.value))
        assert said[0] == said[1] or len(states[0]) == 1  # in JSON, the row that is too short is named
    with pytest.raises(ValueError, match="output"):
        client.gradients([[1.0, 2.0]], output=2)


def test_errors_of_the_service_arrive_with_their_types():
    class Moody(Service):
        mood = None

        def submit(self, batch):
            raise self.mood

    with make(Moody) as service, Running(service) as url, Client(url, retries=0) as client:
        for service.mood in (QueueFullError("full", 3.0), StorageError("no space"), ReadOnlyError("no")):
            with pytest.raises(type(service.mood), match=str(service.mood)):
                client.learn(**ONE)
        service.mood = RuntimeError("a secret of the house")
        with pytest.raises(Exception, match="the service failed; see its log"):
            client.learn(**ONE)
    with pytest.raises(ConnectionError, match="no answer from"):
        Client(url, retries=0).values([[1.0, 2.0]])
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Client("127.0.0.1:8800")


def test_a_token_is_sent_and_a_wrong_one_is_no_connection_error():
    with make() as service, Running(service, token="0123456789abcdef") as url:
        assert Client(url, token="0123456789abcdef").version == 0
        with pytest.raises(PermissionError, match="authorization"):
            Client(url, token="another one").values([[1.0, 2.0]])


# --- connections --------------------------------------------------------------------------------------------------


def test_one_connection_serves_many_requests(pair):
    _, client = pair
    with Relay(client.url) as relay, Client(relay.url) as through:
        for _ in range(20):
            through.values([[1.0, 2.0]])
        assert relay.connections == 1


def test_a_lost_answer_is_asked_for_again_and_nothing_is_learned_twice(pair):
    service, client = pair
    with Relay(client.url, lose=2) as relay, Client(relay.url) as through:
        result = through.learn(**ONE)
        assert (result.duplicates, result.learned, service.version) == (1, 0, 1)
        assert relay.connections == 3
    with Relay(client.url, lose_requests=2) as relay, Client(relay.url) as through:
        assert through.learn(**{**ONE, "sequence": 1}).learned == 1
        assert through.values([[1.0, 2.0]]).version == 2


def test_weights_are_sent_once(pair):
    service, client = pair
    with Relay(client.url, lose=1) as relay, Client(relay.url) as through:
        through._free.clear()
        with pytest.raises(ConnectionError):
            through.load_weights(np.zeros(4))
        assert service.version == 1  # it had arrived; a second time would cut the traces of what was learned since


def test_a_service_that_comes_back_is_found_again():
    with make() as service:
        with Running(service) as url:
            client = Client(url)
            client.values([[1.0, 2.0]])
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.values, [[1.0, 2.0]])
            time.sleep(0.2)
            with Running(service, port=int(url.rpartition(":")[2])):
                assert waiting.result().version == 0


def test_threads_share_a_client_and_a_copy_is_a_client_of_its_own(pair):
    service, client = pair
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: client.learn(**{**ONE, "stream": str(i)}), range(64)))
    assert sum(result.learned for result in results) == service.version == 64
    assert len(client._free) <= 8
    other = copy.copy(client)
    assert (other.url, other._free) == (client.url, [])
    assert other.version == 64


def test_a_client_needs_neither_fastapi_nor_ray():
    code = (
        "import sys; from valueapprox.service import Client; Client('http://127.0.0.1:1');"
        "print([m for m in ('fastapi', 'pydantic', 'uvicorn', 'ray', 'tensorboard', 'gymnasium') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
