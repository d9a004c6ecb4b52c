"""The service's page in a headless browser: what it shows, its forms, its token; strangers' text stays text."""

import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from valueapprox import SGD, Network
from valueapprox.service import Client, Service, ServiceSettings, Transitions, recent
from valueapprox.service.server import Running

LINEAR = Network((2, 1), bias=False, dtype="float64")  # v(s) = w . s
TWO = {"net": Network((2, 2), bias=False, dtype="float64"), "discounts": (0.0, 0.9), "lams": (0.0, 0.5)}
EVIL = "<img src=x onerror=hit=1><script>hit=1</script>"
TOKEN = "0123456789abcdef"


@contextmanager
def running(options=None, **changes):
    """A linear value function, alpha 0.5, gamma 0.9, no trace, and its address."""
    plain = {"net": LINEAR, "optimizer": SGD(0.5), "discounts": (0.9,), "lams": (0.0,), "init": "zeros"}
    with Service(ServiceSettings(**{**plain, **changes})) as service, Running(service, **(options or {})) as url:
        yield service, url


@pytest.fixture(autouse=True)
def _every_point(monkeypatch):
    for name in ("INTERVAL", "LOOK", "SHARE"):
        monkeypatch.setattr(recent, name, 0)


def teach(service, stream, n, k=1, start=0):
    for i in range(start, start + n):
        service.learn(Transitions.of(stream, i, [1.0, 0.0], np.ones((1, k)), [0.0, 1.0]))


def fine(page, url):
    """Nothing went wrong, and nothing was asked for elsewhere."""
    assert page.problems == []
    assert {address[: len(url) + 1] for address in page.requests if not address.startswith("data:")} == {f"{url}/"}


def test_what_is_served_and_what_it_learns(browser):
    with running(**TWO, names=("now", "later"), optimizer=SGD(0.25)) as (service, url):
        teach(service, "plant 7", 3, 2)
        with browser.page(url) as page:
            page.wait("document.querySelectorAll('figure path').length === 4")  # two predictions, twice
            assert page.text("#state") == "learning"
            assert page.text("#predictions") == "now\t0\t0\nlater\t0.9\t0.5"
            served = page.text("#served")
            assert "2-2, no bias, float64" in served
            assert "SGD (alpha 0.25" in served
            assert "Learned\n3 transitions" in page.text("#health")
            assert "Diverged\n0" in page.text("#health")
            # w_0 = 0.25, 0.4375, 0.578125: each step a quarter of what is left
            assert page.text("figcaption") == "plant 7"
            later = service.values([[1.0, 0.0]]).values[0, 1]
            legend = [part.split() for part in page.text(".legend").splitlines()]
            assert legend == [["now", "0.5781"], ["later", f"{later:.4g}"]]
            # it goes on
            teach(service, "plant 7", 1, 2, 3)
            page.wait("document.querySelector('.legend').innerText.includes('0.6836')")
            assert "Learned\n4 transitions" in page.text("#health")
            teach(service, "another", 1, 2)
            page.wait("document.querySelectorAll('figure').length === 2")
            assert page.js("[...document.querySelectorAll('figcaption')].map((c) => c.textContent)") == [
                "another",
                "plant 7",
            ]
            # 0.6836 times 1 - 0 stays, the other is divided by ten
            page.click("#means")
            later = [point["values"][1] for point in service.recent() if point["stream"] == "plant 7"][-1]
            page.wait(f"document.querySelector('figure:last-child .legend').innerText.includes('{later / 10:.4g}')")
            assert "0.6836" in page.text("figure:last-child .legend")
            # a line can be left out
            page.click(".legend button")
            page.wait("document.querySelectorAll('figure path').length === 4")
            fine(page, url)


def test_a_strangers_text_is_text(browser):
    with running(**TWO, names=(EVIL, "q")) as (service, url):
        teach(service, EVIL, 2, 2)
        with browser.page(url) as page:
            page.wait("document.querySelectorAll('figure path').length === 4")
            assert page.text("figcaption") == EVIL
            assert EVIL in page.text("#predictions")
            page.click("#ask button")
            page.wait("document.querySelector('#answer table')")
            assert EVIL in page.text("#answer")
            page.type("#stream", EVIL)
            page.type("#sequence", "2")
            page.click("#teach button")
            page.wait("document.querySelector('#learned').innerText.includes('Learned')")
            page.type("#askstate", f'[["{EVIL}", 1]]')
            page.click("#ask button")
            page.wait("document.querySelector('#answer').className.includes('bad')")
            assert page.js("document.querySelectorAll('img, figure script, main script').length") == 0
            assert page.js("typeof hit") == "undefined"
            assert ["status of 422" in problem for problem in page.problems] == [True]
            # the browser itself would not let text become elements, nor run what is not the page's own
            assert page.js("try { document.body.innerHTML = '<b>x</b>' } catch (error) { error.name }") == "TypeError"
            link = (
                "Object.assign(document.createElement('a'), {href: 'javascript:hit=1', id: 'js', textContent: 'link'})"
            )
            page.js(f"document.body.append({link})")
            page.click("#js")
            assert page.js("typeof hit") == "undefined"
            assert page.js("fetch('http://127.0.0.1:9/').catch((error) => error.name)") == "TypeError"
            for policy in ("script-src", "connect-src"):  # of the link, and of the other address
                assert any(policy in problem for problem in page.problems), page.problems


def test_asking(browser):
    with running() as (service, url):
        service.load_weights([1.0, 2.0])
        with browser.page(url) as page:
            page.type("#askstate", "3, 4")  # 3 + 2 * 4
            page.click("#ask button")
            page.wait("document.querySelector('#answer table')")
            assert page.text("#answer").splitlines() == ["0\t11", "by the weights of version 1"]
            page.type("#askstate", "[[3, 4], [0, -1]]")
            page.click("#ask button")
            page.wait("document.querySelectorAll('#answer tr').length === 3")
            assert page.text("#answer").splitlines()[1:3] == ["[0]\t11", "[1]\t−2"]
            page.type("#askstate", "3 4 x")
            page.click("#ask button")
            page.wait("document.querySelector('#answer').innerText.includes('expected numbers')")
            page.type("#askstate", "1 2 3")
            page.click("#ask button")
            page.wait("document.querySelector('#answer').innerText.includes('states')")
            assert page.text("#answer") == "states[0] has 3 entries; expected 2"
            assert service.version == 1


def test_teaching(browser):
    with running() as (service, url):
        service.learn(Transitions.of("mine", 0, [0.0, 1.0], 0.0, [0.0, 1.0]))
        with browser.page(url) as page:
            page.type("#from", "1, 0")
            page.type("#to", "0, 1")
            page.type("#signal", "4")
            page.click("#teach button")
            page.wait("document.querySelector('#learned').innerText")
            assert page.text("#learned") == "Learned; TD error 4. The weights are of version 2 now."
            assert service.weights().w.tolist() == [[2.0, 0.0]]
            page.click("#terminated")
            page.type("#stream", "mine")
            page.type("#sequence", "7")
            page.click("#teach button")
            page.wait("document.querySelector('#learned').innerText.includes('expected 1')")
            page.click("#teach button")  # the number that is due is in the field
            page.wait("document.querySelector('#learned').innerText.includes('Learned; TD error 2')")
            assert service.weights().w.tolist() == [[3.0, 0.0]]
            page.type("#sequence", "1")
            page.click("#teach button")
            page.wait("document.querySelector('#learned').innerText.includes('learned before')")
            assert service.version == 3
            assert ["status of 409" in problem for problem in page.problems] == [True]


def test_a_read_only_service_has_no_form_to_teach_it(browser):
    with running(read_only=True) as (_, url), browser.page(url) as page:
        page.wait("document.querySelector('#state').innerText === 'read-only'")
        assert page.js("document.querySelector('#teaching').hidden")
        assert "nothing to draw" in page.text("#nothing")
        assert "Queue" not in page.text("#health")
        fine(page, url)


def test_a_token_is_asked_for_and_kept_nowhere(browser):
    with running({"token": TOKEN}, **TWO, names=("secret", "q")) as (service, url):
        teach(service, "a", 1, 2)
        with browser.page(url) as page:
            page.wait("!document.querySelector('#locked').hidden")
            assert "secret" not in page.js("document.documentElement.outerHTML")
            assert page.js("document.querySelector('#open').hidden")
            page.type("#key", "0123456789abcdeX")
            page.click("#unlock button")
            page.wait("document.querySelector('#keysaid').innerText === 'This is not its token.'")
            before = len(page.requests)
            time.sleep(1.2)  # it waits for a token, and does not ask once a second
            assert len(page.requests) == before
            page.type("#key", TOKEN)
            page.click("#unlock button")
            page.wait("document.querySelectorAll('figure path').length === 4")
            assert "secret" in page.text("#predictions")
            page.click("#ask button")
            page.wait("document.querySelector('#answer table')")
            assert TOKEN not in page.js("location.href + document.documentElement.outerHTML + document.cookie")
            assert page.js("[localStorage.length, sessionStorage.length, document.querySelector('#key').value]") == [
                0,
                0,
                "",
            ]
            assert not any(TOKEN in address for address in page.requests)
            page.open(url)
            page.wait("!document.querySelector('#locked').hidden")


def test_a_service_that_ends_and_comes_again_as_another(browser):
    with running() as (service, url):
        teach(service, "a", 3)
        page_of = browser.page(url)
        page = page_of.__enter__()
        page.wait("document.querySelectorAll('figure path').length === 2")
        page.wait("uptime > 1")
    try:
        page.wait("document.querySelector('#state').innerText === 'no answer'")
        with running({"port": int(url.rpartition(":")[2])}, **TWO, names=("now", "later")) as (service, _):
            page.wait("document.querySelector('#predictions').innerText.includes('later')")
            assert page.js("document.querySelectorAll('figure').length") == 0
            teach(service, "b", 1, 2)
            page.wait("document.querySelectorAll('figure path').length === 4")
            assert page.text("#state") == "learning"
    finally:
        page_of.__exit__(None, None, None)


def test_the_clients_that_it_offers_run_as_they_stand(browser, tmp_path):
    with running(net=Network((3, 3)), discounts=(0.0, 0.5, 0.9), lams=(0.9,)) as (service, url):
        with browser.page(url) as page:
            page.wait("document.querySelector('#state').innerText === 'learning'")
            curl, python = (page.js(f"document.querySelector('#{name}').textContent") for name in ("curl", "python"))
        for program, text, learned in (("bash", curl, 1), (sys.executable, python, 101)):
            file = tmp_path / "client"
            file.write_text(text)
            run = subprocess.run(
                [program, *["-e"] * (program == "bash"), str(file)],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert run.returncode == 0, run.stdout + run.stderr
            assert service.version == learned
        assert set(eval(run.stdout)) == {"0", "1", "2"}
        with Client(url) as client:
            assert client.health()["duplicates"] == 1


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, False)])
def test_it_is_readable_on_a_phone_and_in_the_dark(browser, width, dark):
    with running(**TWO, names=("a long name of a prediction " * 3, "q")) as (service, url):
        teach(service, "a-long-name-without-blanks-" * 7, 3, 2)
        with browser.page(url, width, 800, dark=dark) as page:
            page.wait("document.querySelectorAll('figure path').length === 4")
            assert page.js("document.documentElement.scrollWidth") <= width
            # contrast of the body's text as WCAG has it, at least 7 of 21
            contrast = """(() => {
              const linear = (x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
              const light = (colour) => {
                const [r, g, b] = colour.match(/\\d+/g).map((x) => linear(x / 255));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              };
              const style = getComputedStyle(document.body);
              const a = light(style.color), b = light(style.backgroundColor);
              return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), b];
            })()"""
            ratio, background = page.js(contrast)
            assert ratio > 7
            assert (background < 0.1) == dark


def test_the_page_of_every_request_works_under_its_policy(browser):
    with running() as (service, url):
        service.load_weights([1.0, 2.0])
        with browser.page(f"{url}/docs") as page:
            page.wait("[...document.querySelectorAll('summary code')].map((c) => c.textContent).includes('/v1/values')")
            details = "[...document.querySelectorAll('details')].find((d) => d.innerText.includes('/v1/values'))"
            page.js(f"{details}.id = 'values'")
            page.click("#values summary")
            page.type("#values textarea", '{"states": [[3, 4]]}')
            page.js("document.querySelector('#values > div > button').id = 'send'")
            page.click("#send")
            page.wait("document.querySelector('#values > div').innerText.includes('\"values\":[[11.0]]')")
            fine(page, url)
