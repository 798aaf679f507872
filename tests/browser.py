"""A headless Chromium for tests, spoken to in its DevTools protocol: JSON, ended by a zero byte, over two pipes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The browser's program; skipped where there is none, failed where oracles are required."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        text = f"no Chromium found ({', '.join(NAMES)}); `make browser` or `apt-get install chromium` installs it"
        if os.environ.get("NIRDEPLOY_REQUIRE_ORACLES") == "1":
            pytest.fail(text)
        pytest.skip(text)
    return found


class Browser:
    """One tab. Every exception, console message and refusal of the page is in `complaints`."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._to = _pipe()
        self._from, to_write = _pipe()
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe",
            f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        # the browser reads commands from 3 and writes answers to 4
        self._process = os.posix_spawn(
            program,
            [program, *options],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_DUP2, to_read, 3),
                (os.POSIX_SPAWN_DUP2, to_write, 4),
            ],
            setsid=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._rest = b""
        self._last = 0
        self._session: str | None = None
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """End the browser and all of its processes."""
        for end in (self._to, self._from):
            os.close(end)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._last:
                assert "error" not in found, f"{method}: {found['error']}"
                result: dict[str, Any] = found["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._from, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        head, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(head)
        if "method" in found:
            self._events.append(found)
            self._complain(found["method"], found.get("params", {}))
        return found

    def _complain(self, method: str, values: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded":
            self.complaints.append(values["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str([argument.get("value") for argument in values["args"]]))
        elif method == "Network.requestWillBeSent" and not values["request"]["url"].startswith(("file:", "about:")):
            self.complaints.append(f"requested {values['request']['url']}")

    def wait(self, method: str, seconds: float = 30) -> None:
        """Until an event that has not been waited for yet."""
        end = time.monotonic() + seconds
        while not any(event["method"] == method for event in self._events):
            assert time.monotonic() < end, f"no {method} within {seconds} s"
            self._next()
        self._events.clear()

    def open(
        self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> None:
        """Load a page and wait until it is there."""
        self.complaints.clear()
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", media="", features=[scheme])
        self._events.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def place(self, selector: str) -> tuple[float, float]:
        """Middle of an element in the window, after scrolling to it."""
        box = self.value(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center", behavior: "instant"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; }})()""")
        return box[0], box[1]

    def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
        """One event of the mouse: 'mouseMoved', 'mousePressed', 'mouseReleased', 'mouseWheel'."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def click(self, selector: str) -> None:
        """A real click into the middle of an element."""
        x, y = self.place(selector)
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", buttons=1, clickCount=1)

    def key(self, name: str, code: int) -> None:
        """A key pressed and let go, e.g. ('Enter', 13)."""
        text = {"Enter": "\r", "Space": " "}.get(name, "")
        key = " " if name == "Space" else name
        values = {"key": key, "code": name, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **values)
        self.send("Input.dispatchKeyEvent", type="keyUp", **values)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The page as PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        options: dict[str, Any] = {"captureBeyondViewport": True, "clip": clip} if whole else {}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **options)["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it would be printed, A4."""
        found = self.send("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)
        path.write_bytes(base64.b64decode(found["data"]))


def _pipe() -> tuple[int, int]:
    """Both ends of a pipe, with numbers that are not those the browser uses."""
    low = os.pipe()
    found = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low]
    for end in low:
        os.close(end)
    return found[0], found[1]


@contextlib.contextmanager
def browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser that is ended in any case."""
    found = Browser(program, profile)
    try:
        yield found
    finally:
        found.close()
