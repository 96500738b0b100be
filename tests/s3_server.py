"""A small S3 in memory, for tests: objects, ranges, lists, conditions, and what goes wrong with real ones."""

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Bucket:
    """What is in the only bucket; `holds` says which conditions of a write are looked at: all, create or none.

    With `create` a right If-Match is refused, as Ceph 16 does.  `gone` and `denied` are what becomes of a bucket.
    """

    holds: str = "all"
    gone: bool = False
    gone_after: int | None = None
    denied: bool = False
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: int = 0
    given: int = 0
    """Bytes of objects."""
    delay: float = 0.0
    """Seconds before each answer."""
    unwritable: str = "\0"
    """What is in the keys that are not to be written."""
    signed_by: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_gone(self) -> bool:
        """Whether it is gone by now: `gone_after` counts requests."""
        return self.gone or (self.gone_after is not None and self.requests > self.gone_after)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # an answer in one piece: in two, the second waits for the first to be acknowledged
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Any

    def handle_any(self) -> None:
        """Answer one request."""
        bucket: Bucket = self.server.bucket
        parts = urlsplit(self.path)
        name, _, key = unquote(parts.path).lstrip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(bucket.delay)
        with bucket.lock:
            bucket.requests += 1
            bucket.signed_by = self.headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
            if bucket.denied:
                self.answer(403, _error("AccessDenied"))
            elif bucket.is_gone or name != "neurokube-test":
                self.answer(404, _error("NoSuchBucket"))
            elif self.command == "PUT" and bucket.unwritable in key:
                self.answer(403, _error("AccessDenied"))
            elif self.command == "PUT":
                self.put(bucket, key, body)
            elif self.command == "DELETE":
                bucket.objects.pop(key, None)
                self.answer(204)
            elif not key:
                self.list(bucket, parse_qs(parts.query))
            else:
                self.get(bucket, key)

    def handle_expect_100(self) -> bool:
        """Say at once that a large object may come: who waits for that waits for a second."""
        told = super().handle_expect_100()
        self.wfile.flush()
        return told

    do_GET = do_PUT = do_HEAD = do_DELETE = handle_any

    def put(self, bucket: Bucket, key: str, body: bytes) -> None:
        """Write an object, if its conditions hold."""
        there = bucket.objects.get(key)
        if bucket.holds != "none":
            wanted = self.headers.get("If-Match")
            refused = self.headers.get("If-None-Match") == "*" and there is not None
            refused |= wanted is not None and (bucket.holds == "create" or there is None or wanted != _etag(there))
            if refused:
                self.answer(412, _error("PreconditionFailed"))
                return
        if self.headers.get("X-Amz-Content-Sha256", "").startswith("STREAMING"):
            raise NotImplementedError("chunked uploads")
        bucket.objects[key] = body
        self.answer(200, headers={"ETag": _etag(body)})

    def get(self, bucket: Bucket, key: str) -> None:
        """Return an object, or a range of it."""
        content = bucket.objects.get(key)
        if content is None:
            self.answer(404, _error("NoSuchKey"))
            return
        headers = {"ETag": _etag(content)}
        asked = self.headers.get("Range")
        if asked is None:
            bucket.given += len(content)
            self.answer(200, content, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(len(content), int(last) + 1) if first and last else len(content)
        if start >= len(content):
            self.answer(416, _error("InvalidRange"))
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        bucket.given += stop - start
        self.answer(206, content[start:stop], headers)

    def list(self, bucket: Bucket, query: dict[str, list[str]]) -> None:
        """Return keys below a prefix, a page at a time."""
        prefix = query.get("prefix", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        keys = sorted(key for key in bucket.objects if key.startswith(prefix) and key > after)
        page = keys[:100]
        items = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{len(bucket.objects[k])}</Size></Contents>" for k in page
        )
        more = len(keys) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        self.answer(
            200,
            f"<ListBucketResult><KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{items}</ListBucketResult>".encode(),
        )

    def answer(self, code: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send an answer."""
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are gone."""


@contextmanager
def serving(bucket: Bucket) -> Iterator[str]:
    """Serve a bucket, `s3://neurokube-test`, and yield the endpoint."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.bucket = bucket  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
