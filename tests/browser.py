"""A headless browser for the tests of pages: opens them, clicks, types, asks the page's own script, takes pictures.

Chromium is driven through its debugging pipe, so nothing but the browser is needed and nothing listens anywhere:
messages are JSON, each ended by a zero byte (https://chromedevtools.github.io/devtools-protocol/). It cannot reach
anything but this machine. `conftest.py` has the fixture `browser`, which skips where none is installed:

    def test_a_page(browser):
        with browser.page(url) as page:
            page.wait("document.querySelectorAll('svg').length > 2")
            page.click("#ask button")
            assert page.text("#answer") == "0.53"
            page.screenshot("page.png")
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--disable-dev-shm-usage", "--disable-breakpad", "--no-pings", "--mute-audio",
    "--password-store=basic", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 30.0  # that an answer may take
FIND = """((selector) => {
  const find = (root) => root.querySelector(selector)
    || [...root.querySelectorAll("*")].map((e) => e.shadowRoot && find(e.shadowRoot)).find(Boolean) || null;
  return find(document);
})(%s)"""


def installed() -> str | None:
    """The path of a browser, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A running browser; `page` opens a page in it."""

    def __init__(self, program: str, profile: Path) -> None:
        ends = os.pipe(), os.pipe()
        self._out, self._in, self._unread = ends[0][1], ends[1][0], bytearray()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (ends[0][0], ends[1][1])]
        for end in (ends[0][0], ends[1][1]):
            os.close(end)
        # The browser reads from 3 and writes to 4, which may be taken in this process: a shell puts them there.
        shell = 'exec "$@" 3<&{0} 4>&{1} {0}<&- {1}>&-'.format(*theirs)
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            env={**os.environ, "HOME": str(profile)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=theirs,
            start_new_session=True,
        )
        for end in theirs:
            os.close(end)
        self._sent = 0
        self._pages: dict[str, Page] = {}
        self.version: str = self.call("Browser.getVersion")["product"]

    @contextlib.contextmanager
    def page(self, url: str, width: int = 1200, height: int = 900, *, dark: bool = False) -> Iterator[Page]:
        """A page that knows nothing of the others, once it is loaded."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session)
        try:
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.look(width, height, dark=dark)
            page.open(url)
            yield page
        finally:
            del self._pages[session]
            self.call("Target.disposeBrowserContext", browserContextId=context)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a method of its protocol."""
        self._send(method, session, parameters)
        deadline = time.monotonic() + SECONDS
        while (answer := self.receive(deadline, method)).get("id") != self._sent:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _send(self, method: str, session: str | None, parameters: dict[str, Any]) -> None:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters}
        left = memoryview(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while left:
            left = left[os.write(self._out, left) :]

    def receive(self, deadline: float, awaited: str) -> dict[str, Any]:
        """The next message; a page hears of its events."""
        while (end := self._unread.find(0)) < 0:
            left = deadline - time.monotonic()
            part = b""
            if left > 0 and select.select([self._in], [], [], left)[0]:
                part = os.read(self._in, 2**20)
            if not part:
                raise AssertionError(f"{awaited} has no answer; the browser's exit code is {self.process.poll()}")
            self._unread += part
        message = json.loads(self._unread[:end])
        del self._unread[: end + 1]
        if (page := self._pages.get(message.get("sessionId"))) is not None and "method" in message:
            page.hear(message["method"], message["params"])
        return message

    def close(self) -> None:
        """End it, and what it has started."""
        with contextlib.suppress(OSError):
            self._send("Browser.close", None, {})  # it may end before it answers
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._out)
        os.close(self._in)


class Page:
    """A page in a tab of its own.

    `problems` are errors that its scripts raised, and what the browser complained of: what a policy forbids, what could
    not be loaded. `requests` are the addresses that it asked for.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._browser, self._session, self._loaded = browser, session, 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers to a method of its protocol, for this page."""
        return self._browser.call(method, self._session, **parameters)

    def hear(self, method: str, event: dict[str, Any]) -> None:
        """Take note of an event."""
        if method == "Page.loadEventFired":
            self._loaded += 1
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "assert"):
            self.problems.append(" ".join(str(part.get("value", part)) for part in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.problems.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """How large the window is, and whether its owner prefers dark pages."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Go to an address, and wait until it is loaded."""
        before = self._loaded
        if error := self.call("Page.navigate", url=url).get("errorText"):
            raise AssertionError(f"{url}: {error}")
        deadline = time.monotonic() + SECONDS
        while self._loaded == before:
            self._browser.receive(deadline, f"loading {url}")

    def js(self, expression: str) -> Any:
        """The value of an expression of JavaScript; of a promise, what it comes to."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if details := answer.get("exceptionDetails"):
            raise AssertionError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> Any:
        """The value of an expression, once it is true, as JavaScript sees it."""
        deadline, is_true, value = time.monotonic() + seconds, False, None
        while True:
            with contextlib.suppress(RuntimeError):  # it is between two documents
                is_true, value = self.js(f"Promise.resolve({expression}).then((value) => [Boolean(value), value])")
            if is_true:
                return value
            assert time.monotonic() < deadline, f"{expression} is {value} after {seconds:g} s; {self.problems}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """The visible text of an element."""
        return self.wait(f"{self._find(selector)} && {{text: {self._find(selector)}.innerText}}")["text"]

    def click(self, selector: str) -> None:
        """Click on the middle of an element, also of one in a shadow tree, once it is to be seen.

        If the page moves it away meanwhile, or something lies over it, again.
        """
        deadline = time.monotonic() + SECONDS
        heard: bool | None = False
        while heard is False:  # afterwards there may be another document, which knows nothing of it
            assert time.monotonic() < deadline, f"{selector} does not get the click; {self.problems}"
            x, y = self.wait(
                f"(e => {{ if (!e || !e.checkVisibility()) return null;"
                f" e.scrollIntoView({{block: 'center', behavior: 'instant'}}); window.clickHeard = false;"
                f" e.addEventListener('click', () => {{ window.clickHeard = true; }}, {{capture: true, once: true}});"
                f" const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})"
                f"({self._find(selector)})"
            )
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            try:
                heard = self.js("window.clickHeard")
            except RuntimeError:  # it is between two documents
                heard = None

    def type(self, selector: str, text: str) -> None:
        """Type a text into a field, once it is to be seen, instead of what was in it."""
        self.wait(f"(e => e && e.checkVisibility() && (e.focus(), e.select(), true))({self._find(selector)})")
        self.call("Input.insertText", text=text)

    def screenshot(self, path: str | Path, *, whole: bool = False) -> Path:
        """A picture (PNG) of what the window shows, or of the whole page."""
        clip = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **clip)
        Path(path).write_bytes(base64.b64decode(picture["data"]))
        return Path(path)

    @staticmethod
    def _find(selector: str) -> str:
        return FIND % json.dumps(selector)
