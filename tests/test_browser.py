"""The helper that drives a browser does what it says: on a page that answers clicks, and complains."""

import functools
import http.server
import re
import threading

import pytest

PAGE = """<!doctype html><meta name="viewport" content="width=device-width"><title>One</title>
<input id="in" value="before"><button>Go</button><p id="out"></p><x-deep></x-deep>
<p id="under">under</p><p id="over" style="position: fixed; inset: 0; margin: 0" hidden>over</p>
<script>
const out = document.getElementById("out"), root = document.querySelector("x-deep").attachShadow({mode: "open"});
root.innerHTML = "<i class=deep>deep</i>";
root.querySelector("i").addEventListener("click", (event) => { out.textContent = `deep ${event.isTrusted}`; });
document.getElementById("under").addEventListener("click", () => { out.textContent = "under"; });
document.getElementById("over").addEventListener("click", (event) => event.target.remove());
document.querySelector("button").addEventListener("click", () =>
  setTimeout(() => {
    out.textContent = document.getElementById("in").value + matchMedia("(prefers-color-scheme: dark)").matches;
  }, 50));
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "page.html").write_text(PAGE)
    (folder / "broken.html").write_text("<script>console.error('said'); missing();</script><img src=nowhere.png>")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_it_types_clicks_waits_and_looks(browser, site, tmp_path):
    assert re.match(r"\w+/\d+", browser.version)
    with browser.page(f"{site}/page.html", 700, 500, dark=True) as page:
        assert page.js("document.title + innerWidth") == "One700"
        page.type("#in", "after ")
        page.click("button")
        page.wait("out.textContent")
        assert page.text("#out") == "after true"
        page.click(".deep")
        assert page.text("#out") == "deep true"
        page.js("document.getElementById('over').hidden = false")
        page.click("#under")  # the first click removes what lies over it
        assert page.text("#out") == "under"
        page.look(400, 300)
        assert page.js("[innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]") == [400, False]
        assert page.screenshot(tmp_path / "page.png", whole=True).read_bytes().startswith(b"\x89PNG")
        assert page.js("new Promise((done) => setTimeout(() => done(7), 20))") == 7
        assert page.requests[0] == f"{site}/page.html"
        with pytest.raises(AssertionError, match="missing is not defined"):
            page.js("missing()")
        with pytest.raises(AssertionError, match="1 > 2 is False"):
            page.wait("1 > 2", 0.1)
        assert page.wait("document.body") == {}


def test_problems_are_heard_of_and_nothing_else_can_be_reached(browser, site):
    with browser.page(f"{site}/broken.html") as page:
        page.wait("document.images[0].complete")
        problems = "\n".join(page.problems)
        for part in ("said", "missing is not defined", "404"):
            assert part in problems
        with pytest.raises(AssertionError, match="ERR_NAME_NOT_RESOLVED"):
            page.open("http://elsewhere.example/")
