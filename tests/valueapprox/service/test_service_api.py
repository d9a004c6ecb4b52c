"""The HTTP door, over real sockets: answers, errors that name the field, limits, tokens, and what the page says."""

import concurrent.futures
import contextlib
import errno
import http.client
import io
import json
import os
import re
import socket
import threading
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from valueapprox import SGD, Network
from valueapprox.service import InvalidRequestError, Service, ServiceSettings
from valueapprox.service.batcher import Batcher
from valueapprox.service.bodies import NPY, NPZ, read_npy, read_npz, write_npy, write_npz
from valueapprox.service.schemas import Limits
from valueapprox.service.server import Running

LINEAR = Network((2, 1), bias=False, dtype="float64")  # v(s) = w . s
FORM = "application/x-www-form-urlencoded"


def make(folder=None, **changes):
    """A linear value function: alpha 0.5, gamma 0.9, no trace."""
    plain = {"net": LINEAR, "optimizer": SGD(0.5), "discounts": (0.9,), "lams": (0.0,), "init": "zeros"}
    return Service(ServiceSettings(**{**plain, **changes}), folder)


class Answer:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


def ask(url, method, path, body=None, kind=None, **headers):
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    if isinstance(body, dict | list):
        body = json.dumps(body)
    if kind is not None:
        headers["Content-Type"] = kind
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def post(url, path, body, kind=None, **headers):
    return ask(url, "POST", path, body, kind, **headers)


def transition(sequence, reward=1.0, stream="a", state=(1.0, 0.0), next_state=(0.0, 1.0), **more):
    return {"stream": stream, "sequence": sequence, "state": state, "reward": reward, "next_state": next_state, **more}


@pytest.fixture
def learner():
    """A fresh service and its address."""
    with make() as service, Running(service) as url:
        yield service, url


@pytest.fixture(scope="module")
def fixed():
    """v(s) = s_0 + 2 s_1, which no test changes; and a small limit for everything."""
    limits = Limits(max_body=20_000, max_states=100, body_seconds=0.5)
    with make(max_batch=50) as service:
        service.load_weights([1.0, 2.0])
        with Running(service, limits=limits) as url:
            yield url


# --- what a request may cost ---


def test_a_body_that_is_wrong_everywhere_costs_no_more_than_one_that_is_wrong_once(learner):
    # Describing every mistake of 10 MB took 20 s and 3 GB.
    _, url = learner
    wrong = [["a", "b"]] * 60_000
    assert post(url, "/v1/values", {"states": wrong}).error["message"] == "is 'a'; expected a valid number"
    answer = post(url, "/v1/transitions", {"transitions": [{"x": 1}] * 60_000})
    assert answer.error["field"] == "transitions[0].x"
    assert answer.error["message"].endswith("(and 5 more)")  # of the same transition: x, and five fields are missing
    unknown = {f"{i:x}": 1 for i in range(100_000)}
    nested = {f"{i:x}": {} for i in range(100_000)}
    for path, body in (("values", unknown), ("transitions", unknown), ("transitions", {"transitions": [unknown]})):
        message = post(url, f"/v1/{path}", body).error["message"]
        assert message.startswith("the body has too many fields; expected st")
    assert (
        post(url, "/v1/values", nested)
        .error["message"]
        .startswith("the body has 100,001 fields that are wrong or not known")
    )


def test_names_full_of_colons_are_no_fields(learner):
    _, url = learner
    body = {"transitions": [transition(i, stream=":" * 200) for i in range(300)]}
    assert post(url, "/v1/transitions", body).json["learned"] == 300


@pytest.mark.parametrize(("sizes", "most"), [((4, 64, 1), 8192), ((64, 1024, 1024, 1), 15), ((8192, 4096, 1), 1)])
def test_a_large_network_computes_few_states_in_the_event_loop(sizes, most):
    # 64-1024-1024-1 has 64 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 + 1 = 1,117,185 weights; 2^24 / 1,117,185 = 15.02
    net = Network(sizes)
    assert Batcher(SimpleNamespace(settings=SimpleNamespace(net=net))).max_states == most


@pytest.mark.parametrize("name", ["max_body", "max_reading", "max_states"])
def test_limits_are_positive(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})


# --- values, gradients, weights -----------------------------------------------------------------------------------


def test_values_of_states_as_json_however_it_is_labelled(fixed):
    # v(3, 4) = 3 + 2 * 4 = 11, v(0, 1) = 2
    for kind in (None, FORM, "application/json", "application/json; charset=utf-8"):
        answer = post(fixed, "/v1/values", {"states": [[3, 4], [0, 1]]}, kind)
        assert (answer.status, answer.json) == (200, {"values": [[11.0], [2.0]], "version": 1})
        assert answer.headers["X-Version"] == "1"


def test_values_of_states_as_npy(fixed):
    for states in (
        np.array([[3.0, 4.0]]),
        np.array([[3, 4]]),
        np.array([[3, 4]], ">f4"),
        np.asfortranarray([[3.0, 4]]),
    ):
        answer = post(fixed, "/v1/values", write_npy(states) if states.dtype.isnative else raw_npy(states), NPY)
        assert answer.headers["Content-Type"] == NPY
        assert np.load(io.BytesIO(answer.body)).tolist() == [[11.0]]
        assert answer.headers["X-Version"] == "1"


def raw_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_the_answer_has_the_form_that_is_asked_for(fixed):
    npy = post(fixed, "/v1/values", {"states": [[3, 4]]}, Accept=NPY)
    assert np.load(io.BytesIO(npy.body)).tolist() == [[11.0]]
    assert post(fixed, "/v1/values", raw_npy(np.array([[3.0, 4.0]])), NPY, Accept="application/json").json[
        "values"
    ] == [[11.0]]


def test_gradients_say_how_the_value_changes_with_each_input(fixed):
    # v = s_0 + 2 s_1 everywhere
    assert post(fixed, "/v1/gradients", {"states": [[3, 4], [0, 0]]}).json == {
        "gradients": [[1.0, 2.0], [1.0, 2.0]],
        "version": 1,
    }
    answer = post(fixed, "/v1/gradients?output=0", raw_npy(np.zeros((40, 2))), NPY)
    assert np.load(io.BytesIO(answer.body)).tolist() == [[1.0, 2.0]] * 40


def test_weights_as_json_and_as_npz(fixed):
    found = ask(fixed, "GET", "/v1/weights").json
    assert found["w"] == [[1.0, 2.0]]
    assert found["blocks"] == {"W1": [0, [2, 1]]}
    assert Network(**found["net"]) == LINEAR
    arrays = np.load(io.BytesIO(ask(fixed, "GET", "/v1/weights", Accept=NPZ).body))
    assert arrays["w"].tolist() == [[1.0, 2.0]]
    assert arrays["block/W1"].tolist() == [[[1.0], [2.0]]]
    # the norm of (1, 2)
    assert ask(fixed, "GET", "/v1/norms").json == {"norms": {"W1": pytest.approx(5**0.5)}, "version": 1}


def test_weights_are_replaced(learner):
    service, url = learner
    answer = ask(url, "PUT", "/v1/weights", raw_npy(np.array([5.0, 7.0])), NPY)
    assert (answer.status, answer.json) == (200, {"version": 1})
    assert service.weights().w.tolist() == [[5.0, 7.0]]
    assert ask(url, "PUT", "/v1/weights", raw_npy(np.array([5.0])), NPY).error["field"] == "weights"
    assert ask(url, "PUT", "/v1/weights", b"[5, 7]", "application/json").status == 415


def test_a_number_too_large_for_the_network_is_null():
    # 1.5e308 + 1.5e308 is more than float64 holds.
    with make() as service:
        service.load_weights([1.0, 1.0])
        with Running(service) as url:
            assert post(url, "/v1/values", {"states": [[1.5e308, 1.5e308], [1, 1]]}).json["values"] == [[None], [2.0]]


def test_several_predictions_have_names_cumulants_and_gradients_of_their_own():
    net = Network((2, 2), bias=False, dtype="float64")
    with make(net=net, discounts=(0.0, 0.9), lams=(0.0, 0.0), names=("now", "later")) as service:
        service.load_weights([1.0, 10.0, 2.0, 20.0])  # v_now = s_0 + 2 s_1, v_later ten times that
        with Running(service) as url:
            assert ask(url, "GET", "/v1").json["predictions"] == ["now", "later"]
            assert post(url, "/v1/values", {"states": [[1, 1]]}).json["values"] == [[3.0, 30.0]]
            assert post(url, "/v1/gradients?output=1", {"states": [[1, 1]]}).json["gradients"] == [[10.0, 20.0]]
            assert post(url, "/v1/gradients?output=2", {"states": [[1, 1]]}).error["field"] == "output"
            row = transition(0, state=[1.0, 0.0], next_state=[0.0, 1.0])
            assert post(url, "/v1/transitions", row).error["field"] == "reward"
            del row["reward"]
            # delta_now = 5 - 1 = 4; delta_later = 6 + 0.9 * 20 - 10 = 14
            answer = post(url, "/v1/transitions", row | {"cumulants": [5.0, 6.0]}).json
            assert answer["td_errors"] == pytest.approx([4.0, 14.0])


# --- learning ---------------------------------------------------------------------------------------------------------


def test_a_transition_is_learned_and_its_repetition_is_not(learner):
    service, url = learner
    # w = 0: delta = 1 + 0.9 * 0 - 0 = 1, and w_0 = 0.5 * 1
    first = post(url, "/v1/transitions", transition(4711, terminated=False))
    assert first.json == {"status": "learned", "td_errors": [1.0], "expected": None, "version": 1}
    again = post(url, "/v1/transitions", transition(4711.0, terminated=False))  # the same number in JSON
    assert (again.status, again.json["status"], again.json["td_errors"]) == (200, "duplicate", None)
    assert service.weights().w.tolist() == [[0.5, 0.0]]


def test_a_gap_says_what_is_due_and_is_not_learned(learner):
    service, url = learner
    post(url, "/v1/transitions", transition(7))
    answer = post(url, "/v1/transitions", transition(9))
    assert answer.status == 409
    assert answer.json["expected"] == 8
    assert answer.error == {
        "type": "GapError",
        "field": "sequence",
        "message": "is 9; expected 8, the next number of stream 'a'",
    }
    assert service.version == 1
    assert post(url, "/v1/transitions", transition(8)).status == 200


def test_a_batch_holds_streams_that_fail_and_streams_that_go_on(learner):
    _, url = learner
    rows = [transition(0), transition(2), transition(0, stream="b"), transition(1), transition(0)]
    answer = post(url, "/v1/transitions", {"transitions": rows})
    assert answer.status == 409
    found = answer.json
    assert found["status"] == ["learned", "gap", "learned", "gap", "duplicate"]
    assert [found[name] for name in ("learned", "duplicates", "rejected", "diverged")] == [2, 1, 2, 0]
    assert found["expected"] == [None, 1, None, 1, None]
    assert [error is None for error in found["td_errors"]] == [False, True, False, True, True]
    assert found["error"]["field"] == "transitions[1].sequence"


def test_some_transitions_of_a_request_may_have_a_discount_of_their_own():
    # w = (1, 1), no reward: delta = gamma v(s') - v(s) = gamma - 1, with the service's gamma 0.9 where none is given;
    # alpha is 0, so that all are computed with the same weights
    with make(optimizer=SGD(0.0)) as service, Running(service) as url:
        service.load_weights([1.0, 1.0])
        rows = [transition(0, 0.0), transition(1, 0.0, discount=0.5), transition(2, 0.0, discount=None)]
        errors = post(url, "/v1/transitions", {"transitions": rows}).json["td_errors"]
        assert errors == [[pytest.approx(-0.1)], [-0.5], [pytest.approx(-0.1)]]


def test_endings_and_discounts_arrive_as_they_were_sent(learner):
    _, url = learner
    ask(url, "PUT", "/v1/weights", raw_npy(np.array([1.0, 2.0])), NPY)
    # v(s) = 1, v(s') = 2; alpha 0.5 moves w_0 by half of delta, which the next number shows
    send = lambda sequence, **more: post(url, "/v1/transitions", transition(sequence, 0.0, **more)).json["td_errors"]  # noqa: E731
    assert send(0, terminated=True) == [-1.0]  # 0 - 1; w_0 = 0.5
    assert send(1, truncated=True) == [pytest.approx(0.9 * 2 - 0.5)]  # 1.3; w_0 = 1.15
    assert send(2, discount=0.5) == [pytest.approx(0.5 * 2 - 1.15)]


def test_transitions_as_npz_are_those_as_json():
    rng = np.random.default_rng(0)
    n = 40
    state, following, reward = rng.normal(size=(n, 2)), rng.normal(size=(n, 2)), rng.normal(size=n)
    ended, stream = rng.random(n) < 0.2, np.array(["left", "right"])[np.arange(n) % 2]
    sequence = np.arange(n) // 2
    rows = [
        transition(
            int(sequence[i]), reward[i], str(stream[i]), list(state[i]), list(following[i]), terminated=bool(ended[i])
        )
        for i in range(n)
    ]
    arrays = {
        "sequence": sequence,
        "state": state,
        "cumulants": reward[:, None],
        "next_state": following,
        "terminated": ended,
    }
    bodies = [
        ({"transitions": rows}, None),
        (write_npz({**arrays, "stream": stream}), NPZ),
        (write_npz({**arrays, "stream": np.arange(n) % 2, "names": np.array(["left", "right"])}), NPZ),
        (write_npz({**arrays, "cumulants": reward, "stream": stream}), NPZ),
    ]
    weights = []
    for body, kind in bodies:
        with make(lams=(0.9,), optimizer=SGD(0.01)) as service, Running(service) as url:
            answer = post(url, "/v1/transitions", body, kind)
            assert answer.status == 200, answer.body
            weights.append(service.weights().w.tobytes())
            if kind == NPZ:
                assert set(np.load(io.BytesIO(answer.body))["status"].tolist()) == {0}
            else:
                assert answer.json["learned"] == n
    assert len(set(weights)) == 1
    assert np.frombuffer(weights[0]).any()


def test_what_diverges_is_said_and_not_learned(learner):
    service, url = learner
    assert ask(url, "PUT", "/v1/weights", raw_npy(np.array([1e154, -1e154])), NPY).status == 200
    # v = 1e200 * 1e154 is not finite
    answer = post(url, "/v1/transitions", transition(0) | {"state": [1e200, 0.0]})
    assert (answer.status, answer.json["status"], answer.json["td_errors"]) == (200, "diverged", None)
    assert service.weights().w.tolist() == [[1e154, -1e154]]


def test_weights_that_are_too_large_for_values_are_refused(learner):
    service, url = learner
    answer = ask(url, "PUT", "/v1/weights", raw_npy(np.array([1.5e308, -1.5e308])), NPY)
    assert (answer.status, answer.error["field"]) == (422, "weights[0][0]")
    assert (
        answer.error["message"] == "is 1.5e+308; expected a number of at most 1.34e+154 in magnitude"
    )  # 1.8e308 ^ (1/2)
    assert service.version == 0


def test_a_service_that_only_answers_refuses_to_learn():
    with make(read_only=True) as service, Running(service) as url:
        assert post(url, "/v1/values", {"states": [[1, 1]]}).status == 200
        answer = post(url, "/v1/transitions", transition(0))
        assert (answer.status, answer.error["type"]) == (403, "ReadOnlyError")
        assert ask(url, "PUT", "/v1/weights", raw_npy(np.zeros(2)), NPY).status == 403
    key = {"Authorization": "Bearer 0123456789abcdef"}
    with make(read_only=True) as service, Running(service, token="0123456789abcdef") as url:
        assert post(url, "/v1/transitions", transition(0), **key).status == 403
        # Who has the token can swap the weights while values are served.
        assert ask(url, "PUT", "/v1/weights", raw_npy(np.ones(2)), NPY, **key).json == {"version": 1}
        assert post(url, "/v1/values", {"states": [[1, 1]]}, **key).json["values"] == [[2.0]]


def test_no_answer_mixes_two_sets_of_weights():
    # All weights equal the version, so v(1, 0) and v(0, 1) must both be the version that the answer names.
    with make() as service, Running(service) as url:
        stop = threading.Event()

        def swap():
            while not stop.is_set():
                service.load_weights(np.full(2, service.version + 1.0))

        def read(_):
            seen = []
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
            for _ in range(100):
                connection.request("POST", "/v1/values", b'{"states": [[1, 0], [0, 1], [1, 0]]}')
                found = json.loads(connection.getresponse().read())
                assert found["values"] == [[found["version"]]] * 3
                seen.append(found["version"])
            connection.close()
            assert seen == sorted(seen)
            return seen[-1]

        swapper = threading.Thread(target=swap)
        swapper.start()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            last = list(pool.map(read, range(8)))
        stop.set()
        swapper.join()
        assert max(last) > 10


def test_requests_that_come_together_share_one_forward_pass():
    class Counting(Service):
        passes = 0

        def values(self, states):
            self.passes += 1
            return super().values(states)

    service = Counting(ServiceSettings(LINEAR, init="zeros"))
    service.load_weights([1.0, 2.0])
    with service, Running(service) as url:
        # Sent down one connection each before the server wakes up: they are read in one or few turns of its loop.
        host, port = url.removeprefix("http://").split(":")
        sockets = [socket.create_connection((host, int(port))) for _ in range(40)]
        time.sleep(0.2)
        for i, one in enumerate(sockets):
            body = json.dumps({"states": [[i, 0]]}).encode()
            one.sendall(
                b"POST /v1/values HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
            )
        answers = [read_answer(one) for one in sockets]
        assert [json.loads(body)["values"] for _, body in answers] == [[[float(i)]] for i in range(40)]
        assert service.passes < 40


def read_answer(connection):
    """Status and body of an answer on a raw socket."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    body = response.read()
    connection.close()
    return response.status, body


# --- errors -----------------------------------------------------------------------------------------------------------

T = transition(0)
WITHOUT = {name: value for name, value in T.items() if name != "next_state"}
WRONG = [  # path, body, status, field, words of the message
    ("/v1/values", b"", 400, None, "empty"),
    ("/v1/values", b"{", 400, None, "not JSON"),
    ("/v1/values", b"\xff\xfe", 400, None, "not JSON"),
    ("/v1/values", b"[" * 10_000, 400, None, "not JSON"),
    ("/v1/values", b"3", 422, None, "object"),
    ("/v1/values", {}, 422, "states", "missing"),
    ("/v1/values", {"states": []}, 422, "states", "has 0 rows; expected 1 to 100"),
    ("/v1/values", {"states": [[1, 2]] * 101}, 422, "states", "has 101 rows; expected 1 to 100"),
    ("/v1/values", {"states": [1, 2]}, 422, "states[0]", "array"),
    ("/v1/values", {"states": [[1, 2], [1]]}, 422, "states[1]", "has 1 entries; expected 2"),
    ("/v1/values", {"states": [[1, 2, 3]]}, 422, "states[0]", "has 3 entries; expected 2"),
    ("/v1/values", {"states": [[1, "2"]]}, 422, "states[0][1]", "is '2'; expected a valid number"),
    ("/v1/values", {"states": [[1, True]]}, 422, "states[0][1]", "valid number"),
    ("/v1/values", {"states": [[1, None]]}, 422, "states[0][1]", "valid number"),
    ("/v1/values", b'{"states": [[1, NaN]]}', 422, "states[0][1]", "finite"),
    ("/v1/values", b'{"states": [[1, 1e400]]}', 422, "states[0][1]", "finite"),
    ("/v1/values", b'{"states": [[1, -Infinity]]}', 422, "states[0][1]", "finite"),
    ("/v1/values", {"states": [[1, 2]], "state": 3}, 422, "state", "not a known field; expected states"),
    ("/v1/values?n=3", {"states": [[1, 2]]}, 422, "n", "not known"),
    ("/v1/gradients", {"states": [[1, 2]], "output": 0}, 422, "output", "not a known field"),
    ("/v1/gradients?output=1", {"states": [[1, 2]]}, 422, "output", "is '1'; expected 0"),
    ("/v1/transitions", WITHOUT, 422, "next_state", "missing"),
    ("/v1/transitions", {"transitions": [T, WITHOUT]}, 422, "transitions[1].next_state", "missing"),
    ("/v1/transitions", {"transitions": []}, 422, "transitions", "is empty; expected at least one transition"),
    ("/v1/transitions", {"transitions": [T] * 51}, 422, "transitions", "has 51 entries; expected at most 50"),
    ("/v1/transitions", {"transitions": T}, 422, "transitions", "array"),
    ("/v1/transitions", {"transitions": [T], "stream": "a"}, 422, "stream", "expected transitions"),
    ("/v1/transitions", {"transitions": [T | {"x": 1}]}, 422, "transitions[0].x", "expected stream, sequence"),
    (
        "/v1/transitions",
        T | {"sequence": -1},
        422,
        "sequence",
        "is -1; expected a whole number from 0 to 9223372036854775807",
    ),
    (
        "/v1/transitions",
        T | {"sequence": 2**63},
        422,
        "sequence",
        "is 9223372036854775808; expected a whole number from 0 to",
    ),
    ("/v1/transitions", T | {"sequence": "1"}, 422, "sequence", "integer"),
    ("/v1/transitions", T | {"sequence": 0.5}, 422, "sequence", "integer"),
    ("/v1/transitions", T | {"stream": ""}, 422, "stream", "is ''; expected a name of 1 to 200 printable characters"),
    ("/v1/transitions", T | {"stream": "x" * 201}, 422, "stream", "expected a name of 1 to 200 printable characters"),
    ("/v1/transitions", T | {"stream": "a\nb"}, 422, "stream", "printable"),
    ("/v1/transitions", T | {"stream": 7}, 422, "stream", "string"),
    ("/v1/transitions", T | {"terminated": 1}, 422, "terminated", "boolean"),
    ("/v1/transitions", T | {"discount": 1.1}, 422, "discount", "is 1.1; expected a number in [0, 1]"),
    ("/v1/transitions", T | {"cumulants": [1.0]}, 422, "cumulants", "not a known field"),
]


@pytest.mark.parametrize(("path", "body", "status", "field", "words"), WRONG)
def test_what_is_wrong_is_named(fixed, path, body, status, field, words):
    answer = post(fixed, path, body)
    assert (answer.status, answer.error["field"]) == (status, field), answer.body
    assert words in answer.error["message"]
    assert answer.json["version"] == 1
    assert answer.headers["X-Version"] == "1"
    assert answer.headers["Content-Type"] == "application/json"


GOOD = {
    "stream": np.array("a"),
    "sequence": np.arange(3),
    "state": np.zeros((3, 2)),
    "cumulants": np.ones((3, 1)),
    "next_state": np.zeros((3, 2)),
}
NPZ_PARTS = {name: write_npy(array) for name, array in GOOD.items()}
WRONG_ARRAYS = [
    ({"state": None}, "state", "missing"),
    ({"state": np.zeros((3, 3))}, "state", "(n, 2)"),
    ({"state": np.array([["a", "b"]] * 3)}, "state", "real numbers"),
    ({"state": np.array([[0, 0], [0, np.nan], [0, 0]])}, "state[1][1]", "is nan"),
    ({"state": np.zeros((0, 2)), "next_state": np.zeros((0, 2))}, "cumulants", "has shape (3, 1)"),
    ({name: array[:0] for name, array in GOOD.items() if name != "stream"}, "transitions", "is empty"),
    ({"sequence": np.full(3, 0.5)}, "sequence", "expected whole numbers"),
    ({"sequence": np.array([0, -1, 2])}, "sequence[1]", "is -1"),
    ({"sequence": np.array([0, 2**63, 2], np.uint64)}, "sequence[1]", "is 9223372036854775808"),
    ({"cumulants": np.ones((3, 2))}, "cumulants", "(3, 1)"),
    ({"cumulants": np.array([1, np.inf, 1])}, "cumulants[1][0]", "is inf"),
    ({"next_state": np.zeros((2, 2))}, "next_state", "(3, 2)"),
    ({"terminated": np.full(3, 2)}, "terminated[0]", "is 2; expected a boolean"),
    ({"stream": np.zeros(3, np.int64)}, "stream", "expected text, or indices and names"),
    ({"stream": np.zeros(3, np.int64), "names": np.zeros(0, "U1")}, "names", "is empty"),
    ({"stream": np.array(["a", "b"])}, "stream", "expected (3,)"),
    ({"stream": np.array(["a", "", "b"])}, "stream", ""),
    ({"discounts": np.full((3, 1), 1.5)}, "discounts", ""),
    ({"reward": np.zeros(3)}, "reward", "is not a known array; expected stream"),
]


@pytest.mark.parametrize(("changes", "field", "words"), WRONG_ARRAYS)
def test_what_is_wrong_in_npz_is_named(fixed, changes, field, words):
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    answer = post(fixed, "/v1/transitions", write_npz(arrays), NPZ)
    assert answer.status == 422, answer.body
    assert answer.error["field"] == field or answer.error["field"].startswith(field)
    assert words in answer.error["message"]


def test_what_is_not_there_or_not_taken_is_json_too(fixed):
    assert (ask(fixed, "GET", "/v2").status, ask(fixed, "GET", "/v2").error["type"]) == (404, "NotFound")
    answer = ask(fixed, "GET", "/v1/values")
    assert (answer.status, answer.headers["Allow"], answer.error["type"]) == (405, "POST", "NotAllowed")
    assert ask(fixed, "DELETE", "/v1/weights").headers["Allow"] == "GET, HEAD, PUT"
    answer = post(fixed, "/v1/values", b"<a/>", "text/xml")
    assert (answer.status, answer.error["field"]) == (415, "content-type")


def npy_of(descr, shape, data=b"", order=False):
    """An npy file whose header says what it likes."""
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    return npy_with(header) + data


def npy_with(header):
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


UCS4 = b"".join(code.to_bytes(4, "little") for code in (0x61, 0x110000, 0xD800))
ABSURD = [  # version 0.1 answered most of these with 500 and a traceback in its log
    *(
        npy_of("<f8", shape)
        for shape in (f"(0, {10**30})", f"(0, {2**63})", f"({10**30}, 0)", f"({2**62}, 0, {2**62})")
    ),
    *(npy_of("<f8", shape) for shape in (f"(0, -{10**30})", f"({hex(10**8000)}, 0)", f"(True, {hex(10**8000)})")),
    *(npy_of("<f8", shape) for shape in ("(0.0, 2)", "('a', 2)", "(None,)", "(0, 0, 0, 0, 0)", "2", "[1, 2]")),
    npy_of("<f8", f"({2**61}, 2)", b"x" * 32, order=True),
    npy_of("<U1", "(1,)", UCS4[4:8]),
    npy_of(">U1", "(1,)", UCS4[:4]),
    npy_of("<U1", "(1,)", UCS4[8:]),
    npy_of("<U1073741823", "(0,)"),
    npy_of("|b1", "(2, 1)", b"\x01\xff"),
    npy_of("|O", "(1, 2)", b"x" * 16),
    npy_of("|V8", "(1, 2)", b"x" * 16),
    npy_of("|S8", "(1, 2)", b"x" * 16),
    npy_of("<M8[s]", "(1, 2)", b"x" * 16),
    npy_of([("a", "<f8")], "(1, 2)", b"x" * 16),
    npy_of([("a" * 9000, "<f8")], "(1, 2)", b"x" * 16),
    npy_of("<f8" * 3000, "(1, 2)", b"x" * 16),
]


@pytest.mark.parametrize("body", ABSURD, ids=range(len(ABSURD)))
def test_an_absurd_npy_is_refused_and_no_failure(fixed, caplog, body):
    for answer in (
        post(fixed, "/v1/values", body, NPY),
        ask(fixed, "PUT", "/v1/weights", body, NPY),
        post(fixed, "/v1/transitions", npz_of({**NPZ_PARTS, "terminated": body}), NPZ),
        post(fixed, "/v1/transitions", npz_of({**NPZ_PARTS, "stream": body}), NPZ),
    ):
        assert (answer.status, len(answer.error["message"]) < 400) in ((400, True), (422, True))
    assert caplog.records == []


def npz_of(parts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as members:
        for name, data in parts.items():
            members.writestr(f"{name}.npy", data)
    return file.getvalue()


def test_a_name_that_ends_in_zero_bytes_is_refused_whatever_it_comes_in(learner):
    # NumPy drops them, so that "nul\0" was learned as "nul", another stream.
    service, url = learner
    names = {"stream": np.zeros(3, np.int64)}
    for arrays in (
        {"stream": np.array("nul\0")},
        {"stream": np.array(["nul\0"] * 3)},
        {"stream": np.array(["nul\0", "b", "nul\0\0"])},
        {**names, "names": np.array(["nul\0"])},
        {**names, "names": np.array(["nul\0", "b\0"])},
    ):
        answer = post(url, "/v1/transitions", write_npz({**GOOD, **arrays}), NPZ)
        assert (answer.status, answer.error["field"]) == (422, "names" if "names" in arrays else "stream")
        assert "zero bytes at the end of a name would be lost" in answer.error["message"]
    for name in ("nul\0", "n\0l", "\0"):
        assert post(url, "/v1/transitions", transition(0, stream=name)).error["field"] == "stream"
    assert post(url, "/v1/transitions", write_npz({**GOOD, "stream": np.array("n\0l")}), NPZ).status == 422
    assert service.health()["n_streams"] == 0


def test_a_directory_of_countless_members_is_not_read():
    # 16 MB of entries became 350,000 objects, in seconds in which nobody else was answered.
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        for i in range(5000):
            members.writestr(f"{i}.npy", b"")
    with pytest.raises(InvalidRequestError, match="has 5,000 members; expected at most 64"):
        read_npz(file.getvalue())


def test_a_number_of_five_thousand_digits_is_refused(fixed):
    for digits in ("9" * 5000, "-" + "9" * 5000, "1" + "0" * 400, "9" * 5000 + ".5", "1e" + "9" * 5000):
        for path, body in (("values", '{"states": [[1, %s]]}'), ("transitions", json.dumps(T).replace("4711", "%s"))):
            answer = post(fixed, f"/v1/{path}", (body % digits) if "%s" in body else body.replace("1.0", digits, 1))
            assert answer.status in (400, 422)
            assert len(answer.error["message"]) < 300


def test_headers_of_npy_that_lie_are_refused_before_anything_is_allocated():
    lies = [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 2), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1, 2), }",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (0,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 0, 0, 0, 0), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': " + "(" * 5000 + ", }",
        "__import__('os').abort()",
    ]
    for lie in lies:
        with pytest.raises(InvalidRequestError) as refused:
            read_npy(npy_with(lie), "states")
        assert refused.value.status == 400


def test_npz_takes_plain_arrays_only():
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(100_000))
    with pytest.raises(InvalidRequestError, match="compressed"):
        read_npz(file.getvalue())
    whole = write_npz({"a": np.arange(3)})
    assert read_npz(whole)["a"].tolist() == [0, 1, 2]
    broken = bytearray(whole)
    broken[whole.index(np.arange(3).tobytes()) + 1] ^= 1  # its checksum tells
    with pytest.raises(InvalidRequestError, match="damaged"):
        read_npz(bytes(broken))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr("a.txt", "x")
    with pytest.raises(InvalidRequestError, match="only arrays"):
        read_npz(file.getvalue())


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(fixed):
    large = b'{"states": [' + b"[1, 2]," * 5000
    answer = post(fixed, "/v1/values", large)
    assert (answer.status, "at most 20,000" in answer.error["message"]) == (413, True)
    answer = post(fixed, "/v1/values", iter([large[i : i + 1000] for i in range(0, len(large), 1000)]))  # chunked
    assert answer.status == 413


def test_a_body_that_does_not_come_is_not_waited_for(fixed):
    with socket.create_connection(tuple(fixed.removeprefix("http://").split(":")), timeout=10) as slow:
        slow.sendall(b"POST /v1/values HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        status, body = read_answer(slow)
    assert status == 408
    assert "0.5 s" in json.loads(body)["error"]["message"]


def test_a_head_without_end_is_cut_off(fixed):
    address = tuple(fixed.removeprefix("http://").split(":"))
    for start in (b"GET /healthz HTTP/1.1\r\nX: ", b"GET /"):
        with socket.create_connection(address, timeout=10) as endless:
            endless.sendall(start)
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 2**24:
                    sent += endless.send(b"x" * 4096)
            assert sent < 2**23
    with socket.create_connection(address, timeout=10) as endless:
        endless.sendall(start)
        time.sleep(0.1)
        endless.sendall(b"x" * 60_000)
        time.sleep(0.3)
        status, body = read_answer(endless)
    assert status == 431
    assert json.loads(body)["version"] == 1


def test_what_is_not_http_gets_an_answer_all_the_same(fixed):
    with socket.create_connection(tuple(fixed.removeprefix("http://").split(":")), timeout=10) as other:
        other.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        status, body = read_answer(other)
    assert status == 400
    assert json.loads(body)["error"]["message"] == "this is not HTTP"


def test_a_body_that_breaks_off_in_nonsense_is_no_failure_of_the_service(fixed, caplog):
    for end in (b"zz\r\n", b"5\r\n{\r\n", b"", b"-1\r\n"):
        with socket.create_connection(tuple(fixed.removeprefix("http://").split(":")), timeout=10) as broken:
            broken.sendall(b"POST /v1/values HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            time.sleep(0.02)
            broken.sendall(end)
            if not end.startswith((b"zz", b"-1")):
                continue
            status, body = read_answer(broken)
            message = "the request is not HTTP/1.1 (Invalid character in chunk size)"
            assert (status, json.loads(body)["error"]["message"]) == (400, message)
    one = b"POST /v1/values HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n" + b'{"states": [[1, 2]]}'
    with socket.create_connection(tuple(fixed.removeprefix("http://").split(":")), timeout=10) as hasty:
        hasty.sendall(one + one + one)
        response = http.client.HTTPResponse(hasty)
        response.begin()
        assert json.loads(response.read())["values"] == [[5.0]]
    for _ in range(20):
        with socket.create_connection(tuple(fixed.removeprefix("http://").split(":")), timeout=10) as hasty:
            hasty.sendall(one + one + b"\x00nonsense\r\n\r\n" + one)
            hasty.recv(10_000)
    time.sleep(0.1)
    assert ask(fixed, "GET", "/healthz").status == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_when_the_disk_is_full_learning_stops_and_values_are_served(tmp_path):
    with make(folder=tmp_path) as service, Running(service) as url:
        post(url, "/v1/transitions", transition(0))
        append = service._store.journal.append

        def full(payload):
            raise OSError(errno.ENOSPC, "No space left on device")

        service._store.journal.append = full
        answer = post(url, "/v1/transitions", transition(1))
        assert (answer.status, answer.error["type"], answer.headers["Retry-After"]) == (503, "StorageError", "5")
        assert "No space left" in answer.error["message"]
        assert post(url, "/v1/values", {"states": [[1, 1]]}).json == {"values": [[0.5]], "version": 1}
        ready = ask(url, "GET", "/readyz")
        assert (ready.status, ready.json["learning"]) == (200, False)
        assert "No space left" in ready.json["reason"]
        assert samples(ask(url, "GET", "/metrics").body.decode())["valueapprox_learning"] == 0
        service._store.journal.append = append
        assert post(url, "/v1/transitions", transition(1)).json["status"] == "learned"
        assert ask(url, "GET", "/readyz").json["learning"]


def test_a_full_queue_says_when_to_come_again():
    entered, go = threading.Event(), threading.Event()

    class Held(Service):
        def _learn_group(self, group):
            entered.set()
            go.wait(20)
            super()._learn_group(group)

    settings = ServiceSettings(LINEAR, init="zeros", max_queue=2)
    with Held(settings) as service, Running(service) as url, concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(post, url, "/v1/transitions", transition(0))]
        assert entered.wait(10)
        waiting.append(pool.submit(post, url, "/v1/transitions", {"transitions": [transition(0, stream="b")] * 2}))
        while service.health()["queued"] < 2:
            time.sleep(0.01)
        answer = post(url, "/v1/transitions", transition(0, stream="c"))
        assert (answer.status, answer.error["type"]) == (429, "QueueFullError")
        assert int(answer.headers["Retry-After"]) >= 1
        assert post(url, "/v1/values", {"states": [[1, 1]]}).status == 200  # readers wait for nobody
        go.set()
        assert [future.result().status for future in waiting] == [200, 200]


# --- who may come in --------------------------------------------------------------------------------------------------


def test_a_token_opens_everything_but_probes_and_the_description():
    with make() as service, Running(service, token="0123456789abcdef") as url:
        for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert ask(url, "GET", path).status == 200
        for header in ({}, {"Authorization": "Bearer 0123456789abcdeX"}, {"Authorization": "0123456789abcdef"},
                       {"Authorization": "Bearer \xe9"}):  # fmt: skip
            for method, path in (("GET", "/metrics"), ("GET", "/v1"), ("GET", "/v1/recent"), ("POST", "/v1/values"),
                                 ("GET", "/nothing")):  # fmt: skip
                answer = ask(url, method, path, **header)
                assert (answer.status, answer.error["field"]) == (401, "authorization")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        key = {"Authorization": "Bearer 0123456789abcdef"}
        assert post(url, "/v1/values", {"states": [[1, 1]]}, **key).status == 200
        assert ask(url, "GET", "/v1", Host="anything", **key).status == 200
        for host in ("[", "a b", "\xff", ""):  # a name that is no name is no failure
            assert ask(url, "GET", "/nothing/", Host=host, **key).status == 404
            assert ask(url, "GET", "/v1/values/", Host=host, **key).status == 404
        description = ask(url, "GET", "/openapi.json").json
        assert description["paths"]["/v1/values"]["post"]["security"] == [{"token": []}]
        assert "security" not in description["paths"]["/healthz"]["get"]


def test_without_a_token_pages_of_other_sites_are_kept_out(fixed):
    assert ask(fixed, "GET", "/v1", Host="localhost:8800").status == 200
    assert ask(fixed, "GET", "/v1", Host="elsewhere.example").error["field"] == "host"
    assert post(fixed, "/v1/values", {"states": [[1, 2]]}, Origin="http://elsewhere.example").error["field"] == "origin"
    assert post(fixed, "/v1/values", {"states": [[1, 2]]}, Origin="null").status == 403
    assert post(fixed, "/v1/values", {"states": [[1, 2]]}, Origin=fixed).status == 200


# --- operations -------------------------------------------------------------------------------------------------------


def samples(text):
    return {m[1]: float(m[2]) for m in re.finditer(r"^(valueapprox\S+) (\S+)$", text, re.MULTILINE)}


def test_metrics_count_requests_transitions_and_what_was_learned(learner):
    _, url = learner
    post(url, "/v1/transitions", transition(0))
    post(url, "/v1/transitions", transition(0))
    post(url, "/v1/transitions", transition(5))
    post(url, "/v1/values", {})
    ask(url, "BREW", "/somewhere")
    ask(url, "GET", "/somewhere/else")
    found = samples(ask(url, "GET", "/metrics").body.decode())
    assert found['valueapprox_requests_total{method="POST",path="/v1/transitions",status="200"}'] == 2
    assert found['valueapprox_requests_total{method="POST",path="/v1/transitions",status="409"}'] == 1
    assert found['valueapprox_requests_total{method="POST",path="/v1/values",status="422"}'] == 1
    assert found['valueapprox_requests_total{method="GET",path="other",status="404"}'] == 1
    assert found['valueapprox_request_seconds_count{path="/v1/transitions"}'] == 3
    for status, count in {"learned": 1, "duplicates": 1, "rejected": 1, "diverged": 0}.items():
        assert found[f'valueapprox_transitions_total{{status="{status}"}}'] == count
    assert found["valueapprox_version"] == found["valueapprox_n_updates"] == found["valueapprox_n_streams"] == 1
    deadline = time.monotonic() + 10
    while True:  # averages over the last second with learning: there soon
        found = samples(ask(url, "GET", "/metrics").body.decode())
        if 'valueapprox_td_error_rms{prediction="0"}' in found or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert found['valueapprox_td_error_rms{prediction="0"}'] == 1.0
    assert found['valueapprox_weight_norm{layer="W1"}'] == 0.5  # w = (0.5, 0)


def test_probes_and_health(learner):
    service, url = learner
    assert ask(url, "GET", "/healthz").json == {"status": "ok", "version": 0}
    assert ask(url, "GET", "/readyz").json == {"ready": True, "learning": True, "reason": None, "version": 0}
    assert ask(url, "GET", "/v1/health").json["queue_limit"] == service.settings.max_queue
    service.close()
    answer = ask(url, "GET", "/readyz")
    assert (answer.status, answer.json["ready"]) == (503, False)
    answer = post(url, "/v1/transitions", transition(0))
    assert (answer.status, answer.error["type"], answer.headers["Retry-After"]) == (503, "ClosedError", "5")


def test_the_description_says_how_long_a_state_is(fixed):
    schemas = ask(fixed, "GET", "/openapi.json").json["components"]["schemas"]
    states = schemas["States"]["properties"]["states"]
    assert (states["maxItems"], states["items"]["minItems"], states["items"]["maxItems"]) == (100, 2, 2)
    assert schemas["Transitions"]["properties"]["transitions"]["maxItems"] == 50
    assert schemas["Transition"]["additionalProperties"] is False
    assert set(schemas["Transition"]["required"]) == {"stream", "sequence", "state", "reward", "next_state"}


# --- what nobody thought of -------------------------------------------------------------------------------------------


def malformed(rng):
    """A request that is wrong in one way: path, body, content type."""
    kind = rng.integers(6)
    junk = [None, True, "x", [], {}, [[]], -1.5, "1", [None], {"a": 1}, [[1, 2], [3]], 1e308, "\x00"]
    pick = lambda options: options[int(rng.integers(len(options)))]  # noqa: E731
    if kind == 0:  # cut off, or with bytes in it that no JSON has
        whole = json.dumps(pick([T, {"transitions": [T, T]}, {"states": [[1, 2]]}])).encode()
        place = int(rng.integers(len(whole) - 1))
        body = whole[:place] if rng.random() < 0.5 else whole[:place] + b"\x00\xff" + whole[place:]
        return pick(["/v1/values", "/v1/transitions", "/v1/gradients"]), body, pick([None, FORM, "application/json"])
    if kind == 1:  # a field of another type
        name = pick(["stream", "sequence", "state", "reward", "next_state", "terminated", "truncated"])
        taken = {"stream": str, "reward": float, "terminated": bool, "truncated": bool}.get(name, ())
        row = T | {name: pick([value for value in junk if type(value) is not taken])}
        return "/v1/transitions", json.dumps(pick([row, {"transitions": [T, row]}])).encode(), None
    if kind == 2:  # a field too few or too many
        row = dict(T)
        if rng.random() < 0.5:
            del row[pick(list(row))]
        else:
            row[pick(["State", "states", "", "x" * 300, "sequence ", "__class__"])] = pick(junk)
        return "/v1/transitions", json.dumps(pick([row, {"transitions": [row]}])).encode(), None
    if kind == 3:  # states of other shapes
        states = pick([*junk, [1, 2], [[1, 2, 3]], [[1], [1, 2]], [[[1, 2]]], [["a", "b"]]])
        return pick(["/v1/values", "/v1/gradients"]), json.dumps({"states": states}).encode(), None
    if kind == 4:  # npy: damaged head, damaged length, another shape or type
        whole = raw_npy(pick([np.zeros((3, 2)), np.zeros((3, 2), np.float32), np.ones((1, 2), np.int8)]))
        broken = pick([whole[: int(rng.integers(len(whole)))], whole + b"\0", bytes(rng.integers(0, 256, 80, np.uint8)),
                       raw_npy(np.zeros((3, 5))), raw_npy(np.array(3.0)), raw_npy(np.array(["a"])),
                       raw_npy(np.full((2, 2), np.nan)), raw_npy(np.zeros((2, 2), complex)),
                       raw_npy(np.zeros(2, [("a", "<f4")]))])  # fmt: skip
        return pick(["/v1/values", "/v1/gradients"]), broken, NPY
    whole = bytearray(write_npz(GOOD))
    if rng.random() < 0.5:
        return "/v1/transitions", bytes(whole[: int(rng.integers(len(whole)))]), NPZ
    arrays = {name: array for name, array in GOOD.items() if rng.random() < 0.7}
    arrays[pick(["state", "sequence", "cumulants", "other"])] = pick(
        [np.zeros((7, 7, 7)), np.array("x"), np.zeros((3, 2), complex), np.full((3, 2), np.inf), np.zeros((0, 0))]
    )
    return "/v1/transitions", write_npz(arrays), NPZ


def test_a_thousand_malformed_bodies_are_each_refused_with_a_message(fixed):
    rng = np.random.default_rng(5)
    connection = http.client.HTTPConnection(fixed.removeprefix("http://"), timeout=20)
    seen = set()
    for _ in range(1000):
        path, body, kind = malformed(rng)
        connection.request("POST", path, body, {"Content-Type": kind} if kind else {})
        answer = Answer(connection.getresponse())
        assert answer.status in (400, 413, 422), (path, body, kind, answer.status, answer.body)
        error = answer.error
        assert len(error["message"]) > 5, (path, body, kind)
        assert error["field"] is not None or answer.status == 400 or not body.startswith(b"{"), (
            path,
            body,
            kind,
            error,
        )
        seen.add((path, answer.status, error["field"]))
    assert len(seen) > 50  # many different things were wrong
    connection.request("GET", "/v1/weights")
    assert json.loads(connection.getresponse().read())["w"] == [[1.0, 2.0]]  # and nothing was learned
    connection.close()


FINITE = st.floats(-1e100, 1e100)
STATE = st.lists(FINITE, min_size=2, max_size=2)


@st.composite
def transitions_npz(draw):
    n = draw(st.integers(1, 4))
    rows = lambda d: np.array(draw(st.lists(st.lists(FINITE, min_size=d, max_size=d), min_size=n, max_size=n)))  # noqa: E731
    sequence = np.arange(n) + draw(st.integers(0, 5))
    state, cumulants, following = rows(2), rows(1), rows(2)
    arrays = {"stream": np.array(draw(st.sampled_from("ab"))), "sequence": sequence, "state": state}
    return write_npz({**arrays, "cumulants": cumulants, "next_state": following})


# What the description cannot say: which bytes are an npy file of the right shape (one row fits states and weights).
schemathesis.openapi.media_type(NPY, STATE.map(lambda row: write_npy(np.array([row]))))
schemathesis.openapi.media_type(NPZ, transitions_npz())
schemathesis.openapi.format("printable", st.text(min_size=1, max_size=200).filter(str.isprintable))


OPERATIONS = [
    ("GET", "/v1"),
    ("POST", "/v1/values"),
    ("POST", "/v1/gradients"),
    ("POST", "/v1/transitions"),
    ("GET", "/v1/weights"),
    ("PUT", "/v1/weights"),
    ("GET", "/v1/norms"),
    ("GET", "/v1/health"),
    ("GET", "/v1/recent"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]


@pytest.fixture(scope="module")
def described():
    with make() as service, Running(service) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


EXAMPLES = int(os.environ.get("VALUEAPPROX_EXAMPLES", "12"))  # tests/bars/description.py tries more
VALID, INVALID = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
TRIED = [(*one, VALID) for one in OPERATIONS] + [(*one, INVALID) for one in OPERATIONS if one[0] != "GET"]


@pytest.mark.parametrize(("method", "path", "mode"), TRIED, ids=lambda part: getattr(part, "value", part))
def test_the_service_does_what_its_description_says(described, method, path, mode):
    """No 5xx, no hang; what the description allows is taken, what it forbids is refused, answers look as it says."""
    operation = described[path][method]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def check(case):
        case.call_and_validate(timeout=10)

    check()


def test_every_operation_is_tried(described):
    known = {(found.ok().method.upper(), found.ok().path) for found in described.get_all_operations()}
    assert known == set(OPERATIONS)
