"""A headless Chromium that tests drive through its debugging pipe: no port, no driver, no library.

Messages are JSON ended by a zero byte, on file descriptors 3 and 4 of the browser
(https://chromedevtools.github.io/devtools-protocol/).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_QUIET = (
    "--headless", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions",
)  # fmt: skip
_PATIENCE_S = 60.0
_LOADED = "Page.loadEventFired"


def installed() -> str:
    """The browser's program; the test is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("chromium is not installed")
    return found


class Tab:
    """One page in the browser; `events` holds all that the browser told of it, oldest first."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._kept = to_browser, from_browser, b""
        self._asked, self._session = 0, ""
        self.events: list[dict[str, Any]] = []

    def open(self, address: str, width: int, height: int, downloads: Path) -> None:
        """Load a page in a window of so many pixels, and wait until it is there."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        told = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = told["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self.resize(width, height)
        self.go(address)

    def go(self, address: str) -> None:
        """Load another page in the same tab."""
        self.events = [told for told in self.events if told.get("method") != _LOADED]
        self.ask("Page.navigate", url=address)
        self.wait_for(_LOADED)

    def resize(self, width: int, height: int) -> None:
        """As a telephone of so many pixels would show the page."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height,
                 deviceScaleFactor=1, mobile=width < 600)  # fmt: skip

    def evaluate(self, script: str) -> Any:
        """What an expression is in the page."""
        told = self.ask("Runtime.evaluate", expression=script, returnByValue=True,
                        awaitPromise=True, userGesture=True)  # fmt: skip
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release one key, which may write a character."""
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                     windowsVirtualKeyCode=code)  # fmt: skip

    def photograph(self, file: Path) -> None:
        """The whole page as PNG."""
        told = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(told["data"]))

    def ask(self, method: str, **what: Any) -> dict[str, Any]:
        """One command, and its answer."""
        self._asked += 1
        message: dict[str, Any] = {"id": self._asked, "method": method, "params": what}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._asked:
                assert "error" not in told, told["error"]
                answer: dict[str, Any] = told["result"]
                return answer
            self.events.append(told)

    def wait_for(self, event: str) -> None:
        """Until the browser told of it, or has already."""
        while all(told.get("method") != event for told in self.events):
            self.events.append(self._next())

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._kept:
            ready, _, _ = select.select([self._from], [], [], max(until - time.monotonic(), 0))
            assert ready, "the browser has fallen silent"
            read = os.read(self._from, 1 << 20)
            assert read, "the browser has gone"
            self._kept += read
        one, _, self._kept = self._kept.partition(b"\0")
        told: dict[str, Any] = json.loads(one)
        return told


@contextmanager
def browsing(folder: Path) -> Iterator[Tab]:
    """A browser with a profile of its own below `folder`, ended with the block."""
    theirs, to_browser = os.pipe()
    from_browser, ours = os.pipe()
    words = [installed(), *_QUIET, f"--user-data-dir={folder / 'profile'}",
             "--remote-debugging-pipe", "about:blank"]  # fmt: skip
    # bash gives the two ends, of whatever numbers, the numbers that the browser looks for
    shell = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash", *words]
    process = subprocess.Popen(shell, pass_fds=(theirs, ours), stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(ours)
    try:
        yield Tab(to_browser, from_browser)
    finally:
        process.terminate()
        process.wait(timeout=_PATIENCE_S)
        os.close(to_browser)
        os.close(from_browser)
