"""A small web server for the viewer: Neuroglancer's client and the volumes it shows."""

import errno
import importlib.util
import io
import json
import mimetypes
import os
import re
import socket
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from threading import Thread
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self
from urllib.parse import quote, unquote, urlsplit

import tensorstore as ts

from ..errors import UsageError
from ..progress import log
from ..volumes.store import context, kvstore_spec
from .state import Layer, View, look_at, viewer_state

_PIECE = 1 << 20
"""Bytes of a file that are in memory at once."""


def serve(layers: Sequence[Layer], views: Sequence[View] = (), *, port: int = 0, host: str = "127.0.0.1") -> "Server":
    """Serve the viewer and the layers' volumes over HTTP in the background until the server is closed.

    `port` 0 takes a free port.  Volumes are only read; anybody who reaches `host` can read them.

    Raises:
        UsageError: where the viewer is not installed, the port cannot be had, or there is no layer.
        DataError: where a layer's volume cannot be opened.
    """
    client = find_client()
    sources = {layer.name: open_source(layer.url) for layer in layers}
    try:
        http = _HTTPServer((host, port), client, sources)
    except (OSError, OverflowError) as error:
        in_use = getattr(error, "errno", None) == errno.EADDRINUSE
        reason = "is in use" if in_use else f"cannot be had ({error})"
        remedy = "choose another with --port, or 0 for a free one"
        raise UsageError(f"port {port} of {host} {reason}: {remedy}") from None
    try:
        return Server(http, layers)
    except BaseException:
        http.server_close()
        raise


class Server:
    """A running viewer; a context manager that closes it at the end."""

    def __init__(self, http: "_HTTPServer", layers: Sequence[Layer]) -> None:
        self.address = f"http://{http.authority}"
        """Where the server is, short enough to print; it leads a browser on to `url`."""
        self._state = viewer_state(layers, self.address)
        http.states = [_json(self._state)]
        self.url = http.viewer_at(http.authority)
        """The viewer with its state, what a browser is to open."""
        self._http = http
        self._thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.1}, name="viewer", daemon=True)
        self._thread.start()

    def show(self, views: Sequence[View]) -> list[str]:
        """Return an address for each of some views of the layers, short enough to print; earlier ones are void."""
        self._http.states = [self._http.states[0], *(_json(look_at(self._state, view)) for view in views)]
        return [f"{self.address}/{number}" for number in range(1, len(views) + 1)]

    def serve_forever(self) -> None:
        """Wait until the server is closed or the wait is interrupted."""
        self._thread.join()

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _json(state: dict[str, Any]) -> str:
    return json.dumps(state, separators=(",", ":"))


def open_in_browser(url: str) -> bool:
    """Open a web browser and return True, or return False where there is none with a screen."""
    if sys.platform == "linux" and not any(os.environ.get(v) for v in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        return False  # what is left there is a text browser, which would take the terminal and show nothing
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False


def find_client() -> Path:
    """Return the folder of the web client that the neuroglancer package carries.

    Raises:
        UsageError: where the package is not installed.
    """
    # found without importing the package, which would load its compiled parts
    package = importlib.util.find_spec("neuroglancer")
    for folder in (package and package.submodule_search_locations) or ():
        client = Path(folder) / "static" / "client"
        if (client / "index.html").is_file():
            return client
    raise UsageError("the viewer needs the extra 'view': pip install 'neurokube[view]'")


class Source(Protocol):
    """Files to serve."""

    def open(self, key: str) -> BinaryIO:
        """Return an object to read and seek in; FileNotFoundError where there is none."""


def open_source(url: str) -> Source:
    """Return the objects below a path or URL."""
    spec = kvstore_spec(url)
    return Folder(Path(spec["path"])) if spec["driver"] == "file" else Remote(spec)


class Folder:
    """The files of a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, key: str) -> BinaryIO:
        """Open a file."""
        try:
            return (self._path / key).open("rb")
        except (IsADirectoryError, NotADirectoryError):
            raise FileNotFoundError(key) from None


class Remote:
    """The objects of a store that is not a folder.

    The client asks for an object's size before it reads a part, and tensorstore cannot tell the size.
    So objects are fetched whole, and the latest are kept: as shards are small and written once, most
    views need each of them once.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self._kv = ts.KvStore.open(spec, context=context()).result()
        # an absent object is an exception, which is not kept: it may appear while a run goes on
        self._read = lru_cache(maxsize=8)(self._fetch)

    def open(self, key: str) -> BinaryIO:
        """Return a fetched object."""
        return io.BytesIO(self._read(key))

    def _fetch(self, key: str) -> bytes:
        result = self._kv.read(key).result()
        if result.state != "value":
            raise FileNotFoundError(key)
        return bytes(result.value)


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], client: Path, sources: dict[str, Source]) -> None:
        self.client = Folder(client)
        self.sources = sources
        self.states = [""]
        self._connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    @property
    def authority(self) -> str:
        """Host and port."""
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"

    def viewer_at(self, authority: str, number: int = 0) -> str:
        """Return the viewer's URL, with one of the states, for a browser that reached this server as `authority`.

        It differs from ours where the port was forwarded, as by ssh.
        """
        if not re.fullmatch(r"[\w.:\[\]-]+", authority):
            authority = self.authority
        # our own address stands in the state as the place of the layers
        state = self.states[number].replace(f"http://{self.authority}/", f"http://{authority}/")
        return f"http://{authority}/v/1/#!{quote(state, safe='')}"

    def server_bind(self) -> None:
        # HTTPServer would look up the host's name, which takes seconds where no name server answers
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in tuple(self._connections):
            with suppress(OSError):  # the other side was faster
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # a browser drops connections as it likes
        log.debug("connection from %s ended", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers for the client below /v/TOKEN/, its events, views at /NUMBER, and the volumes below /data/NAME/."""

    server: _HTTPServer
    protocol_version = "HTTP/1.1"
    # header and body go out in two writes; without this, the second waits for the first's receipt
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        match [unquote(name) for name in urlsplit(self.path).path.split("/")]:
            case ["", ""]:
                self._lead_on(0)
            case ["", number] if re.fullmatch(r"[1-9]\d{0,5}", number) and int(number) < len(self.server.states):
                self._lead_on(int(number))
            case ["", "events", *_]:
                self._keep_silent()
            case ["", "v", _, ""]:
                self._send(self.server.client, "index.html")
            case ["", "v", _, *names] if _stay_below(names):
                self._send(self.server.client, "/".join(names))
            case ["", "data", layer, *names] if layer in self.server.sources and _stay_below(names):
                self._send(self.server.sources[layer], "/".join(names))
            case _:
                self._reply(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def do_OPTIONS(self) -> None:
        self._reply(
            HTTPStatus.NO_CONTENT,
            Access_Control_Allow_Methods="GET, HEAD, OPTIONS",
            Access_Control_Allow_Headers="Range",
        )

    def _lead_on(self, number: int) -> None:
        """Send a browser to the viewer with one of the states."""
        self._reply(HTTPStatus.FOUND, Location=self.server.viewer_at(self.headers.get("Host", ""), number))

    def _keep_silent(self) -> None:
        """Hold a connection open: the packaged client complains where no Python program sends it events."""
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command == "GET":
            self.rfile.read(1)  # returns when either side closes

    def _send(self, source: Source, key: str) -> None:
        try:
            stream = source.open(key)
        except FileNotFoundError:
            return self._reply(HTTPStatus.NOT_FOUND)
        except (OSError, ValueError) as error:
            log.warning("the viewer cannot read %s: %s", self.path, " ".join(str(error).split())[:300])
            return self._reply(HTTPStatus.BAD_GATEWAY)
        with stream:
            size = stream.seek(0, io.SEEK_END)
            # a range has a meaning for GET only (RFC 9110, section 14.2)
            part = byte_range(self.headers.get("Range", ""), size) if self.command == "GET" else None
            headers = {"Content_Type": mimetypes.guess_type(key)[0] or "application/octet-stream"}
            if part is None:
                part = range(size)
                self._reply(HTTPStatus.OK, size, **headers)
            elif not part:
                return self._reply(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, Content_Range=f"bytes */{size}")
            else:
                headers["Content_Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
                self._reply(HTTPStatus.PARTIAL_CONTENT, len(part), **headers)
            if self.command == "GET":
                stream.seek(part.start)
                for start in range(0, len(part), _PIECE):
                    self.wfile.write(stream.read(min(_PIECE, len(part) - start)))

    def _reply(self, status: HTTPStatus, size: int = 0, **headers: str) -> None:
        """Send the head of an answer; an underscore in a header's name stands for a hyphen."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(size))
        self.send_header("Accept-Ranges", "bytes")
        # a run goes on while it is looked at
        self.send_header("Cache-Control", "no-cache")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Expose-Headers", "Accept-Ranges, Content-Length, Content-Range")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _stay_below(names: list[str]) -> bool:
    """Whether a path leads down: no part is empty, climbs, or holds a separator that was encoded."""
    return not any(n in ("", ".", "..") or "/" in n or "\0" in n for n in names)


def byte_range(header: str, size: int) -> range | None:
    """Return the bytes that a Range header asks for, empty where an object of `size` bytes has none of them.

    None stands for the whole object: there is no header, or one that RFC 9110 lets a server pass over
    (several ranges, another unit, a last byte before the first).
    """
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,18})-(\d{0,18})\s*", header)
    if not match or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)
