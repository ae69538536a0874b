"""A browser without a window and without a network but this machine, driven over the DevTools protocol by a pipe.

with open_browser(folder) as browser:
    browser.go("http://127.0.0.1:7860")
    browser.wait_for("document.title")
    browser.click(100, 200)
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page of a browser. Numbers are CSS pixels and seconds."""

    def __init__(self, to_browser: int, from_browser: int):
        self._to, self._from = to_browser, os.fdopen(from_browser, "rb")
        self._count, self._buffer, self._session = 0, b"", None
        self.requested: list[str] = []  # addresses that the page asked for
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and gives its result; RuntimeError where the browser refuses it."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = self._from.read1(2**20)
            if not part:
                raise RuntimeError("the browser ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def go(self, address: str) -> None:
        """Opens an address."""
        self.send("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(str(result["exceptionDetails"]))
        return result["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 30.0) -> Any:
        """The value of an expression as soon as it is true; TimeoutError where it is not in time."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()")):
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{expression[:200]}; the page says: {self.evaluate('document.body.innerText')[-1500:]}"
                )
            time.sleep(0.02)
        return value

    def click(self, x: float, y: float) -> None:
        """Clicks at a place in the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def choose_files(self, selector: str, *files: Path) -> None:
        """Puts files into a file input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screenshot(self, path: Path, width: int = 1400, height: int = 1000) -> None:
        """Saves what the page shows as PNG."""
        self.resize(width, height)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the window."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with its profile in a folder, which ends with the block."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-first-run"]
    command += [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe"]
    read_by_browser, to_browser = os.pipe()
    from_browser, written_by_browser = os.pipe()
    ends = f'exec "$@" 3<&{read_by_browser} 4>&{written_by_browser}'  # the numbers that a browser expects
    process = subprocess.Popen(
        ["bash", "-c", ends, "bash", *command],
        pass_fds=(read_by_browser, written_by_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_by_browser)
    os.close(written_by_browser)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        os.close(to_browser)
        process.terminate()
        process.wait(120)
