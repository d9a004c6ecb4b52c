"""The service's page without a browser: its address, its policy, what it reveals, and what it asks for."""

import base64
import hashlib
import html
import http.client
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import valueapprox
from valueapprox import SGD, Network
from valueapprox.service import Service, ServiceSettings, recent
from valueapprox.service.server import Running

ROOT = Path(__file__).parents[3]
LINEAR = Network((2, 1), bias=False, dtype="float64")  # v(s) = w . s
ONE = {"stream": "a", "sequence": 0, "state": [1.0, 0.0], "reward": 1.0, "next_state": [0.0, 1.0]}


def make(**changes):
    plain = {"net": LINEAR, "optimizer": SGD(0.5), "discounts": (0.9,), "lams": (0.0,), "init": "zeros"}
    return Service(ServiceSettings(**{**plain, **changes}))


def ask(url, path, body=None, **headers):
    """Status, headers, and the body, read as JSON if it is that."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, response.headers, json.loads(content) if is_json else content.decode()
    finally:
        connection.close()


class Read(HTMLParser):
    """Every tag and attribute of a page, and the texts of script and style."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self._in = set(), [], {"script": [], "style": []}, None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self._in = tag

    def handle_data(self, data):
        if self._in in self.texts:
            self.texts[self._in].append(data)

    def handle_endtag(self, tag):
        self._in = None


@pytest.fixture(scope="module")
def url():
    with make() as service, Running(service) as url:
        yield url


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_is_one_file_and_its_policy_allows_nothing_else(url, path):
    status, headers, page = ask(url, path)
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    read = Read(page)
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    for tag, (text,) in read.texts.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert (policy.pop("connect-src"), policy.pop("img-src")) == ("'self'", "data:")
    assert policy.pop("require-trusted-types-for") == "'script'"
    none = {"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"}
    assert policy == dict.fromkeys(none, "'none'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    # nothing that the policy would stop, and no way to put text into the page as HTML
    assert not read.tags & {"img", "iframe", "object", "embed", "base"}
    for name, value in read.attributes:
        assert not name.startswith("on")
        assert name not in ("style", "src")
        assert name != "href" or value == "data:," or not value.startswith(("http", "//"))
    code = read.texts["script"][0] + read.texts["style"][0]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|@import|url\(", code
    )


def test_a_page_says_nothing_of_the_model(url):
    # With a token, pages are open, and what they show is not.
    net = Network((3, 2), bias=False)
    other = make(net=net, discounts=(0.0, 0.5), lams=(0.0, 0.0), names=("p", "q"))
    with other, Running(other, token="0123456789abcdef") as there:
        assert ask(there, "/")[2] == ask(url, "/")[2]
        for path in ("/v1", "/v1/recent", "/v1/health"):
            assert ask(there, path)[0] == 401
            assert ask(there, path, Authorization="Bearer 0123456789abcdef")[0] == 200


def test_it_says_how_it_learns_and_which_program_it_is(url):
    about = ask(url, "/v1")[2]
    assert about["optimizer"] == SGD(0.5).as_dict()
    assert about["valueapprox"] == valueapprox.__version__


def test_what_was_learned_lately(monkeypatch):
    for name in ("INTERVAL", "LOOK", "SHARE"):
        monkeypatch.setattr(recent, name, 0)
    script = "<img src=x onerror=alert(1)>"
    with make() as service, Running(service) as url:
        assert ask(url, "/v1/recent")[2]["points"] == []
        ask(url, "/v1/transitions", ONE | {"stream": script})  # delta = 1, w_0 = 0.5
        ask(url, "/v1/transitions", {})
        service.load_weights([2.0, 0.0])
        ask(url, "/v1/transitions", ONE | {"stream": script, "sequence": 1})  # delta = 1 - 2, w_0 = 1.5
        service.load_weights([1.0, 1.0])  # after what the writer does last
        status, headers, answer = ask(url, "/v1/recent")
        assert (status, headers["Content-Type"], headers["X-Version"]) == (200, "application/json", "4")
        assert answer["predictions"] == ["0"]
        assert (answer["health"]["learned"], answer["health"]["queued"]) == (2, 0)
        # the one that is answered here is not counted yet
        assert answer["requests"] == {"none": 0, "1xx": 0, "2xx": 3, "3xx": 0, "4xx": 1, "5xx": 0}
        for point in answer["points"]:
            assert point.pop("seconds") >= 0
        assert answer["points"] == [
            {"id": 1, "stream": script, "version": 1, "values": [0.5], "td_errors": [1.0]},
            {"id": 2, "stream": script, "version": 3, "values": [1.5], "td_errors": [-1.0]},
        ]
        assert [point["id"] for point in ask(url, "/v1/recent?after=1")[2]["points"]] == [2]
        assert ask(url, "/v1/recent?after=2")[2]["points"] == []


def test_what_has_no_number_is_null(monkeypatch):
    for name in ("INTERVAL", "LOOK", "SHARE"):
        monkeypatch.setattr(recent, name, 0)
    with make() as service, Running(service) as url:
        service.load_weights([1e154, -1e154])
        assert ask(url, "/v1/transitions", ONE | {"state": [1e200, 0.0]})[2]["status"] == "diverged"
        service.load_weights([0.0, 0.0])
        (point,) = ask(url, "/v1/recent")[2]["points"]
        assert point["td_errors"] == point["values"] == [None]


@pytest.mark.parametrize("after", ["-1", "x", "", "1.5", "01", "%C2%B2", "%D9%A3", "9" * 19, "9" * 5000, "1&after=1"])
def test_after_is_the_id_of_a_point(url, after):
    status, _, answer = ask(url, f"/v1/recent?after={after}")
    assert (status, answer["error"]["field"]) == (422, "after")
    assert ask(url, f"/v1/recent?after={2**63 - 1}")[0] == 200


@pytest.mark.parametrize("name", ["curl", "python"])
def test_the_clients_on_the_page_are_those_of_the_documentation(url, name):
    # which tests/docs/test_pages.py runs
    text = html.unescape(re.search(rf'<pre id="{name}">(.*?)</pre>', ask(url, "/")[2], re.DOTALL)[1])
    assert text in (ROOT / "docs" / "howto" / "client.md").read_text()
    assert len([line for line in text.splitlines() if line]) <= 20
