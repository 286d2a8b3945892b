"""A headless Chromium, told what to do through a pair of pipes (the DevTools protocol needs no other package)."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium_path():
    """Return Chromium's path: `CHROMIUM`, or what the PATH has; ``None`` without one."""
    given = os.environ.get("CHROMIUM")
    return shutil.which(given) if given else next(filter(None, map(shutil.which, NAMES)), None)


needs_chromium = pytest.mark.skipif(
    chromium_path() is None,
    reason="no Chromium: set CHROMIUM to its path, or put one into the PATH (Debian: apt-get install chromium)",
)


class Browser:
    """One Chromium with one page; a context manager."""

    def __enter__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        down, up = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "--disable-background-networking"]
        # Chromium reads 3 and writes 4: the shell moves them there, whatever numbers they have here
        shell = f'exec "$0" "$@" 3<&{down[0]} 4>&{up[1]}'
        command = ["/bin/bash", "-c", shell, chromium_path(), *flags, "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(down[0], up[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(down[0])
        os.close(up[1])
        self._to, self._from, self._rest = down[1], up[0], b""
        self._ids, self.events, self._session = itertools.count(1), [], None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        os.close(self._to)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)
        self._profile.cleanup()

    def open(self, path, width, *, dark=False, height=900):
        """Load a file in a window of ``width`` pixels; return what was logged or asked of a network meanwhile."""
        self.events.clear()
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self._call("Page.navigate", url=Path(path).resolve().as_uri())
        self._until(lambda event: event["method"] == "Page.loadEventFired")
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return [text for text in map(_trouble, self.events) if text]

    def evaluate(self, expression):
        """Return the value of a JavaScript expression, awaited."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def screenshot(self, path, *, top=0, height=1600):
        """Save a stretch of the page as PNG."""
        width = self.evaluate("document.documentElement.scrollWidth")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        Path(path).write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method, **params):
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda one: one.get("id") == number)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def _until(self, wanted):
        for event in self.events if not self._session else ():
            if wanted(event):
                return event
        end = time.monotonic() + 120
        while True:
            message = self._read(end)
            if "method" in message:
                self.events.append(message)
            if ("id" in message or "method" in message) and wanted({"method": "", **message}):
                return message

    def _read(self, end):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer.")
            if not (more := os.read(self._from, 1 << 20)):
                raise EOFError(f"Chromium ended with {self._process.wait(20)}.")
            self._rest += more
        line, self._rest = self._rest.split(b"\0", 1)
        return json.loads(line)


def _trouble(event):
    """Return what a console would show in red, or an address that was asked for."""
    method, params = event["method"], event.get("params", {})
    if method == "Runtime.exceptionThrown":
        return f"exception: {params['exceptionDetails']}"
    if method == "Runtime.consoleAPICalled":
        return f"console: {params['args']}"
    if method == "Log.entryAdded":
        return f"log: {params['entry']['text']}"
    if method == "Page.javascriptDialogOpening":
        return f"dialog: {params['message']}"
    if method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("data:", "file:", "about:")):
        return f"request: {params['request']['url']}"
    return None
