"""Debian's Chromium without a window, led by the DevTools protocol over a pipe (chromedevtools.github.io).

It lives in the network namespace of the caller's thread, with a profile of its own. It ends with the block, all its
processes by their group; if the test itself is killed the pipe closes, at which Chromium ends too.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # refuses to run as root otherwise
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--font-render-hinting=none",
)
ANSWER_S = 60.0

PHONE = (390, 844)
DESK = (1280, 900)

_UNTIL = """new Promise((done) => {
  const look = () => { if (%s) { watch.disconnect(); clearInterval(tick); done(true); } };
  const watch = new MutationObserver(look);
  const tick = setInterval(look, 200);
  watch.observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
  look();
})"""


class BrowserError(Exception):
    """Chromium refused something, or is gone."""


class Tab:
    """One page. `problems` are errors of its console, `requests` the URLs that it asked for, `statuses` the answers."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.statuses: dict[str, int] = {}
        self._loaded = 0
        self._credentials: tuple[str, str] | None = None

    def call(self, method: str, **params: object) -> Mapping[str, Any]:
        """One command of the protocol."""
        return self._browser.call(method, params, self._session)

    def open(self, url: str) -> None:
        """Go there, and return when it is loaded."""
        before = self._loaded
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        self._browser.read_until(lambda: self._loaded > before, f"{url} to be loaded")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, of its promise if it is one."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def until(self, expression: str, timeout_s: float = 60.0) -> float:
        """Return when an expression is true on the page, with the seconds that it took; told by the page's changes."""
        began = time.monotonic()
        with self._browser.patience(timeout_s):
            try:
                self.evaluate(_UNTIL % expression)
            except TimeoutError as error:
                raise AssertionError(f"not within {timeout_s:g} s: {expression}\n{self.text()}") from error
        return time.monotonic() - began

    def text(self, selector: str = "body") -> str:
        """What a person reads there."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def resize(self, size: tuple[int, int], *, dark: bool = False) -> None:
        """Another window, as a phone's if it is narrow."""
        width, height = size
        narrow = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=narrow)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def log_in(self, name: str, password: str) -> None:
        """What to answer when a page asks for a user; once, as a person would."""
        self._credentials = (name, password)
        self.call("Fetch.enable", handleAuthRequests=True)

    def screenshot(self, path: Path) -> None:
        """What is to be seen in the window, as a PNG."""
        answer = self.call("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        path.write_bytes(base64.b64decode(answer["data"]))

    def heard(self, method: str, params: Mapping[str, Any]) -> None:
        """An event of the protocol."""
        match method:
            case "Page.loadEventFired":
                self._loaded += 1
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Network.responseReceived":
                self.statuses[params["response"]["url"]] = params["response"]["status"]
            case "Runtime.exceptionThrown":
                self.problems.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.problems.append(f"console.{params['type']}: {params['args']}")
            case "Log.entryAdded":
                self.problems.append(f"{params['entry']['level']}: {params['entry']['text']} {params['entry']['url']}")
            case "Fetch.requestPaused":
                self._browser.send("Fetch.continueRequest", {"requestId": params["requestId"]}, self._session)
            case "Fetch.authRequired":
                self._answer_login(params["requestId"])

    def _answer_login(self, request: str) -> None:
        given, self._credentials = self._credentials, None
        answer: dict[str, object] = {"response": "CancelAuth"}
        if given is not None:
            answer = {"response": "ProvideCredentials", "username": given[0], "password": given[1]}
        params = {"requestId": request, "authChallengeResponse": answer}
        self._browser.send("Fetch.continueWithAuth", params, self._session)


class Browser:
    """A Chromium that runs, by its pipe: it reads its commands from `wire` and answers to `answers`."""

    def __init__(self, wire: int, answers: int) -> None:
        self._wire, self._answers = wire, answers
        self._text = b""
        self._last = 0
        self._replies: dict[int, Mapping[str, Any]] = {}
        self._tabs: dict[str, Tab] = {}
        self._patience_s = ANSWER_S

    def tab(self, size: tuple[int, int] = DESK, *, scripts: bool = True, trusting: bool = False) -> Tab:
        """An empty page with what is heard of it switched on. `trusting`: any certificate will do."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        if trusting:
            tab.call("Security.setIgnoreCertificateErrors", ignore=True)
        if not scripts:
            tab.call("Emulation.setScriptExecutionDisabled", value=True)
        tab.resize(size)
        return tab

    def call(self, method: str, params: Mapping[str, object], session: str = "") -> Mapping[str, Any]:
        """Send a command and return its answer; `BrowserError` if it is refused, TimeoutError if there is none."""
        number = self.send(method, params, session)
        self.read_until(lambda: number in self._replies, method)
        reply = self._replies.pop(number)
        if "error" in reply:
            raise BrowserError(f"{method}: {reply['error']}")
        result: Mapping[str, Any] = reply["result"]
        return result

    def send(self, method: str, params: Mapping[str, object], session: str = "") -> int:
        """Send a command; its number."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params, **({"sessionId": session} if session else {})}
        rest = json.dumps(message).encode() + b"\0"
        while rest:
            rest = rest[os.write(self._wire, rest) :]
        return self._last

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Wait for answers for so long."""
        before, self._patience_s = self._patience_s, seconds
        try:
            yield
        finally:
            self._patience_s = before

    def read_until(self, holds: Callable[[], bool], what: str) -> None:
        """Take what Chromium says until something is so."""
        deadline = time.monotonic() + self._patience_s
        while not holds():
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._answers], [], [], left_s)[0]:
                raise TimeoutError(f"waited {self._patience_s:g} s for {what}")
            read = os.read(self._answers, 1 << 16)
            if not read:
                raise BrowserError(f"Chromium is gone; waited for {what}")
            *messages, self._text = (self._text + read).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: Mapping[str, Any]) -> None:
        if "id" in message:
            self._replies[message["id"]] = message
        elif (tab := self._tabs.get(message.get("sessionId", ""))) is not None:
            tab.heard(message["method"], message["params"])


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium until the block ends, then none of its processes; the error has what it wrote if it does not start."""
    with tempfile.TemporaryDirectory(prefix="vmhost-chromium-", ignore_cleanup_errors=True) as profile:
        theirs_in, wire = _pipe()
        answers, theirs_out = _pipe()
        log = os.open(f"{profile}/log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
        pid = os.posix_spawn(
            CHROMIUM,
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            {**os.environ, "HOME": profile},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                (os.POSIX_SPAWN_DUP2, theirs_in, 3),
                (os.POSIX_SPAWN_DUP2, theirs_out, 4),
            ],
            setpgroup=0,
        )
        for descriptor in (theirs_in, theirs_out, log):
            os.close(descriptor)
        try:
            browser = Browser(wire, answers)
            try:
                browser.call("Browser.getVersion", {})
            except (TimeoutError, BrowserError, OSError) as error:
                raise BrowserError(Path(profile, "log").read_text(errors="replace")[-2000:]) from error
            yield browser
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(wire)
            os.close(answers)


def _pipe() -> tuple[int, int]:
    """A pipe whose ends lie above the descriptors that Chromium wants its own at."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]
