# SPDX-License-Identifier: Apache-2.0
"""A real browser without a window, driven by the DevTools protocol: for tests and measurements of the page."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers give none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
)
START_S = 60.0
WAIT_S = 20.0
KEYS = {" ": "Space", "Enter": "Enter", "Escape": "Escape", "Tab": "Tab", "ArrowLeft": "ArrowLeft"}


class PageError(AssertionError):
    """JavaScript of the page raised, or what was waited for did not come."""


def find_browser() -> str | None:
    """Path of an installed Chromium or Chrome; None without any."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of a browser. Coordinates are CSS pixels."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        """Uncaught exceptions and refused resources, as the page's console has them."""
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result. Raises PageError for one that fails."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=START_S))
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            entry = message["params"]["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}".strip())

    def open(self, url: str) -> None:
        """Go to an address; an open page with the same one is loaded anew."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)

    def resize(self, width: int, height: int, touch: bool = False) -> None:
        """Set the size of the page, with or without a finger for a pointer."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, awaited if it is a promise. Raises PageError for one that throws."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait_for(self, expression: str, timeout_s: float = WAIT_S) -> Any:
        """Return the value of an expression as soon as it is true. Raises PageError after `timeout_s`.

        One that throws is tried again: the page may be on its way to another address.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                value = self.evaluate(expression)
            except PageError as error:
                value, problem = None, str(error)
            else:
                problem = f"still {value!r}"
            if value:
                return value
            if time.monotonic() > end:
                raise PageError(f"{expression}: {problem} after {timeout_s:g} s; errors: {self.errors}")
            time.sleep(0.05)

    def centre(self, selector: str) -> tuple[float, float]:
        """Middle of an element, scrolled into view. Raises PageError for none."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{element}.scrollIntoView({{block: 'nearest'}})")
        x, y, width, height = self.evaluate(
            f"(box => [box.x, box.y, box.width, box.height])({element}.getBoundingClientRect())"
        )
        return x + width / 2, y + height / 2

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Send "mousePressed", "mouseMoved" or "mouseReleased", with the left button."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        x, y = self.centre(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def press(self, key: str, hold: bool = False) -> None:
        """Press a key, such as "a" or "Escape", and let it go unless it is held."""
        text = {"text": {"Enter": "\r"}.get(key, key)} if len(key) == 1 or key == "Enter" else {}
        code = {"Enter": 13, "Tab": 9, "Escape": 27}.get(key, ord(key.upper()) if len(key) == 1 else 0)
        event = {"key": key, "code": KEYS.get(key, key), "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        if not hold:
            self.release(key)

    def release(self, key: str) -> None:
        """Let go of a key that is held."""
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=KEYS.get(key, key))

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """Send "touchStart", "touchMove" or "touchEnd" with the fingers at `points`."""
        fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    def accessible(self) -> list[dict[str, str]]:
        """Role and name of everything that a screen reader finds."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in nodes
            if not node["ignored"]
        ]

    def screenshot(self, path: Path) -> None:
        """Write what is visible as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser(executable: str, downloads: Path | None = None, flags: tuple[str, ...] = ()) -> Iterator[Page]:
    """Open a page in a browser of its own, which ends with the block; files that it saves go to `downloads`."""
    with tempfile.TemporaryDirectory(prefix="aapt-fast-browser-", ignore_cleanup_errors=True) as profile:
        command = [executable, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
        environment = {**os.environ, "HOME": profile}
        silent = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=silent, stderr=silent, env=environment, start_new_session=True)
        try:
            with connect(_page_address(Path(profile), process), max_size=None) as socket:
                page = Page(socket)
                if downloads is not None:
                    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
                yield page
                with contextlib.suppress(Exception):
                    page.call("Browser.close")
        finally:
            _end(process)


def _page_address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Address of the socket of the first page, once the browser has written its port."""
    port_file, end = profile / "DevToolsActivePort", time.monotonic() + START_S
    while not (port_file.exists() and port_file.read_text().count("\n") >= 1):
        if process.poll() is not None or time.monotonic() > end:
            raise PageError(f"the browser did not start: {process.args!r}")
        time.sleep(0.05)
    port, path = port_file.read_text().split("\n")[:2]
    with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as socket:
        socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
        targets = json.loads(socket.recv(timeout=START_S))["result"]["targetInfos"]
    page = next(each["targetId"] for each in targets if each["type"] == "page")
    return f"ws://127.0.0.1:{port}/devtools/page/{page}"


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
