"""A look at a page in headless Chromium, over its DevTools protocol."""

import asyncio
import base64
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tornado.websocket
from numpy.typing import NDArray
from PIL import Image

PATIENCE = 60.0
"""Seconds after which a page that does not get ready has failed."""

_STEADY = 5
"""A page is ready when it says so this many times in a row: chunks arrive after their layers."""

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # the sandbox needs rights that a container has not
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--remote-debugging-port=0",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
)


def executable() -> str | None:
    """Return the Chromium to use: the variable CHROMIUM, or what is on the path."""
    if chosen := os.environ.get("CHROMIUM"):
        return shutil.which(chosen)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if (found := shutil.which(name))), None)


def look(
    url: str, ready: str, report: str, *, profile: Path, width: int = 1000, height: int = 800
) -> tuple[Any, NDArray[np.uint8]]:
    """Open a page, wait until the expression `ready` holds, and return what it reports and its picture.

    `ready` and `report` are JavaScript expressions; the picture has shape (y, x, 3).  `profile` is an
    empty folder for what the browser writes.

    Raises:
        TimeoutError: where the page does not get ready; it tells what `report` says then.
    """
    return looks([url], ready, report, profile=profile, width=width, height=height)[0]


def looks(
    urls: Sequence[str], ready: str, report: str, *, profile: Path, width: int = 1000, height: int = 800
) -> list[tuple[Any, NDArray[np.uint8]]]:
    """Open pages one after another in one browser, and return of each what `look` does."""
    chromium = executable()
    assert chromium is not None
    with (profile / "log").open("wb") as log:
        command = [chromium, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        return asyncio.run(_looks(urls, ready, report, process, profile, width, height))
    finally:
        process.kill()
        process.wait()


async def _looks(
    urls: Sequence[str],
    ready: str,
    report: str,
    process: subprocess.Popen[bytes],
    profile: Path,
    width: int,
    height: int,
) -> list[tuple[Any, NDArray[np.uint8]]]:
    async with _session(await _endpoint(process, profile)) as call:
        target = (await call("Target.createTarget", url="about:blank"))["targetId"]
        page = (await call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await call("Emulation.setDeviceMetricsOverride", page, **size)
        return [await _look(call, page, url, ready, report) for url in urls]


async def _look(
    call: Callable[..., Awaitable[Any]], page: str, url: str, ready: str, report: str
) -> tuple[Any, NDArray[np.uint8]]:
    async def evaluate(expression: str) -> Any:
        answer = await call("Runtime.evaluate", page, expression=expression, returnByValue=True)
        return answer["result"].get("value", answer["result"].get("description"))

    # a page that differs behind the # alone would not be loaded anew
    await call("Page.navigate", page, url="about:blank")
    await call("Page.navigate", page, url=url)
    end, steady = time.monotonic() + PATIENCE, 0
    while steady < _STEADY:
        steady = steady + 1 if await evaluate(ready) is True else 0
        if time.monotonic() > end:
            raise TimeoutError(f"not ready after {PATIENCE} s: {await evaluate(report)}")
        await asyncio.sleep(0.1)
    picture = (await call("Page.captureScreenshot", page, format="png"))["data"]
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return await evaluate(report), np.asarray(image.convert("RGB"))


async def _endpoint(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Return where Chromium listens; it writes that into its profile."""
    written = profile / "DevToolsActivePort"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if written.exists() and len(lines := written.read_text().split()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        await asyncio.sleep(0.1)
    raise TimeoutError(f"Chromium does not listen: {(profile / 'log').read_text(errors='replace')[-2000:]}")


@asynccontextmanager
async def _session(endpoint: str) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Connect, and yield a function that calls a method and returns its result."""
    socket = await tornado.websocket.websocket_connect(endpoint, max_message_size=1 << 28)
    count = 0

    async def call(method: str, page: str | None = None, **params: Any) -> Any:
        nonlocal count
        count += 1
        message = {"id": count, "method": method, "params": params} | ({"sessionId": page} if page else {})
        await socket.write_message(json.dumps(message))
        while True:  # events come in between
            received = await asyncio.wait_for(socket.read_message(), PATIENCE)
            assert received is not None, f"Chromium ended during {method}"
            answer = json.loads(received)
            if answer.get("id") == count:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]

    try:
        yield call
    finally:
        socket.close()
