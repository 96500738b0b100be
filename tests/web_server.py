"""Static web servers of a folder, for tests: with and without ranges."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Plain(SimpleHTTPRequestHandler):
    """Python's own: whole files only."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Ranged(Plain):
    """With ranges, as nginx and Apache have them."""

    def do_GET(self) -> None:
        """Answer."""
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(len(content), int(last) + 1) if first and last else len(content)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(content[start:stop])


@contextmanager
def web(folder: Path) -> Iterator[Callable[[type], str]]:
    """Yield what serves a folder by a handler, and returns the URL."""
    with ExitStack() as servers:

        def serve(handler: type) -> str:
            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
            servers.callback(server.server_close)
            servers.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            return f"http://127.0.0.1:{server.server_address[1]}"

        yield serve
