"""One way to reach bytes: a folder, S3, GCS or HTTP, named by a path or URL."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import tensorstore as ts

from ..errors import DataError, UsageError, surroundings

_CACHE = 4 << 20
_SCHEMES = ("file", "s3", "gs", "http", "https", "memory")


def join(url: str, *names: str) -> str:
    """Return the URL of something below `url`."""
    return "/".join([url.rstrip("/"), *(n.strip("/") for n in names)])


def placed(path: str, folder: Path) -> str:
    """Return a path that a file in `folder` names, as it is from anywhere; a URL stays as it is."""
    # pathlib takes './~name' for a home folder, and refuses a '~name' that is none
    home = os.path.expanduser(path)  # noqa: PTH111
    # stores take no '..' in a path
    return path if "://" in path else os.path.normpath((folder / home).absolute())


@lru_cache(maxsize=1)
def context() -> ts.Context:
    """Return the process's tensorstore context: a bounded cache, bounded copies, and a file of its own for each write.

    With tensorstore's usual locks a write takes over the temporary file that a killed one left, but not its length
    (version 0.1.86 does not truncate it): what is shorter ends in the rest of what was longer.
    """
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": _CACHE},
            "data_copy_concurrency": {"limit": 2},
            "file_io_concurrency": {"limit": 4},
            "file_io_locking": {"mode": "none"},
            "s3_request_retries": {"max_retries": 5, "initial_delay": "100ms", "max_delay": "2s"},
        }
    )


@lru_cache(maxsize=1)
def keeping() -> ts.Context:
    """Return the context for volumes that nobody writes meanwhile: as `context`, with a cache of a size of its own.

    It holds decoded chunks, NEUROKUBE_CACHE bytes of them, since neighbouring blocks read the same ones again.
    """
    kept = int(os.environ.get("NEUROKUBE_CACHE", _CACHE))
    return ts.Context({"cache_pool": {"total_bytes_limit": kept}}, parent=context())


def kvstore_spec(url: str) -> dict[str, Any]:
    """Return tensorstore's description of the key-value store at a path or URL.

    Raises:
        UsageError: for a URL scheme that is not known.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return {"driver": "file", "path": _file(Path(url).expanduser().absolute())}
    if scheme not in _SCHEMES:
        raise UsageError(f"{url}: unknown scheme '{scheme}'; use a path or one of {', '.join(_SCHEMES)}")
    if scheme == "file":
        return {"driver": "file", "path": _file(Path(rest))}
    if scheme == "s3":
        bucket, _, path = rest.partition("/")
        spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": path.rstrip("/") + "/"}
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")):
            spec |= {"endpoint": endpoint, "aws_region": os.environ.get("AWS_REGION", "us-east-1")}
        if "AWS_ACCESS_KEY_ID" in os.environ:
            # the keys stay out of the spec; asking nobody else for any saves dozens of lines of complaints
            spec["aws_credentials"] = {"type": "environment"}
        return spec
    if scheme == "gs":
        bucket, _, path = rest.partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": path.rstrip("/") + "/"}
    if scheme == "memory":
        return {"driver": "memory", "path": rest.rstrip("/") + "/"}
    return {"driver": "http", "base_url": url.rstrip("/") + "/"}


def _file(path: Path) -> str:
    # tensorstore takes no '..'; where links are on the way only the file system knows what it means
    return f"{path.resolve() if '..' in path.parts else path}".rstrip("/") + "/"


class Store:
    """Small objects under one URL; a write is atomic and durable when it returns.

    Raises from every method:
        TryAgainError: where the disk is full, read-only or not permitted.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._kv = ts.KvStore.open(kvstore_spec(url), context=context()).result()

    def read(self, key: str) -> bytes | None:
        """Return an object, or None where there is none."""
        return self.begin(key)()

    def begin(self, key: str) -> Callable[[], bytes | None]:
        """Begin to read an object, and return what waits for it: many that were begun arrive together."""
        with self._faults(key):
            future = self._kv.read(key)

        def end() -> bytes | None:
            with self._faults(key):
                result = future.result()
            return bytes(result.value) if result.state == "value" else None

        return end

    def write(self, key: str, value: bytes) -> None:
        """Write an object whole."""
        with self._faults(key):
            self._kv.write(key, value).result()

    def create(self, key: str, value: bytes) -> bool:
        """Write an object whole unless there is one already; return whether there was none.

        In a folder two processes that do so at one moment may both be told that there was none: hold a lock there.
        """
        with self._faults(key):
            missing = self._kv.read(key).result()
            if missing.state == "value":
                return False
            return bool(self._kv.write(key, value, if_equal=missing.stamp.generation).result().generation)

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
        with self._faults(prefix):
            return sorted(k.decode() for k in self._kv.list(ts.KvStore.KeyRange(prefix, end)).result())

    def delete(self, key: str) -> None:
        """Remove an object; it need not exist."""
        with self._faults(key):
            self._kv.write(key, None).result()

    def delete_all(self, prefix: str = "") -> None:
        """Remove every object whose key starts with `prefix`."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
        with self._faults(prefix):
            self._kv.delete_range(ts.KvStore.KeyRange(prefix, end)).result()

    def read_json(self, key: str) -> Any:
        """Return a JSON object, or None where there is none.

        Raises:
            DataError: where it is damaged.
        """
        data = self.read(key)
        if data is None:
            return None
        try:
            return json.loads(data)
        except ValueError as error:
            raise DataError(f"{join(self.url, key)}: damaged JSON ({error}); restore the file or remove it") from None

    def write_json(self, key: str, value: Any, *, indent: int | None = None) -> None:
        """Write a value as JSON."""
        self.write(key, json.dumps(value, indent=indent, separators=None if indent else (",", ":")).encode())

    @contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            raise surroundings(error, join(self.url, key)) or error from None
