"""One way to reach bytes: a folder, S3 or what speaks it, GCS or, to read, HTTP; named by a path or URL."""

import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import tensorstore as ts

from ..errors import ConfigurationError, DataError, UsageError, surroundings

_CACHE = 4 << 20
_SCHEMES = ("file", "s3", "gs", "http", "https", "memory")
_PATIENCE = {
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "10",
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "30",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
}
"""How long a store may take to be reached, and to say nothing, before it is asked again: tensorstore waits for ever."""
_RETRIES = {"max_retries": 5, "initial_delay": "100ms", "max_delay": "2s"}


def join(url: str, *names: str) -> str:
    """Return the URL of something below `url`."""
    return "/".join([url.rstrip("/"), *(n.strip("/") for n in names)])


def folder_of(url: str) -> Path | None:
    """Return the folder that a path or URL names, None where it is none on this machine."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Path(url).expanduser().absolute()
    return Path(rest) if scheme == "file" else None


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
    for name, value in _PATIENCE.items():
        # what a user has set stays
        os.environ.setdefault(name, value)
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": _CACHE},
            "data_copy_concurrency": {"limit": 2},
            "file_io_concurrency": {"limit": 4},
            "file_io_locking": {"mode": "none"},
            # the usual 32 tries of a store that is gone look like a process that hangs
            "s3_request_retries": _RETRIES,
            "gcs_request_retries": _RETRIES,
            "http_request_retries": _RETRIES,
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
        spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": _prefix(path)}
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")):
            region = os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1"))
            spec |= {"endpoint": endpoint, "aws_region": region}
        if os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "yes", "true"):
            # public buckets, for those who have no keys
            spec["aws_credentials"] = {"type": "anonymous"}
        elif "AWS_ACCESS_KEY_ID" in os.environ:
            # the keys stay out of the spec; asking nobody else for any saves dozens of lines of complaints
            spec["aws_credentials"] = {"type": "environment"}
        elif (profile := _profile()) is not None:
            spec["aws_credentials"] = {"type": "profile", **profile}
        return spec
    if scheme == "gs":
        bucket, _, path = rest.partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": _prefix(path)}
    if scheme == "memory":
        return {"driver": "memory", "path": _prefix(rest)}
    return {"driver": "http", "base_url": url.rstrip("/") + "/"}


def _profile() -> dict[str, str] | None:
    """Return where the keys of the chosen profile are, None where no file has any: then all else is asked."""
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    name = os.environ.get("AWS_PROFILE", "default")
    found = ConfigParser(interpolation=None)
    try:
        found.read(file)
    except (OSError, ConfigParserError, UnicodeDecodeError):
        return None
    # a profile that takes on a role, or signs on elsewhere, is described in the other file
    if not found.has_option(name, "aws_access_key_id"):
        return None
    other = Path(os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")).expanduser()
    # tensorstore wants both to be there
    config = str(other) if other.is_file() else os.devnull
    return {"profile": name, "credentials_file": str(file), "config_file": config}


def _prefix(path: str) -> str:
    # at the root of a bucket keys begin with no '/'
    return f"{path.rstrip('/')}/" if path.strip("/") else ""


def _file(path: Path) -> str:
    # tensorstore takes no '..'; where links are on the way only the file system knows what it means
    return f"{path.resolve() if '..' in path.parts else path}".rstrip("/") + "/"


def _said(error: ValueError) -> str:
    """Return what tensorstore says of a place that it cannot open, on one line."""
    return " ".join(str(error).partition(" [")[0].split())[:300]


class Conditions(NamedTuple):
    """Whether a store creates an object only where there is none, and replaces it only where it is as it was read."""

    create: bool
    replace: bool


_HELD: dict[str, Conditions] = {}
"""What stores were found to hold, by bucket."""

_CLAIM_ENDS = 60.0
"""Seconds after which a claim that others see counts as left behind."""


class Store:
    """Small objects under one URL; a write is atomic and durable when it returns.

    Raises from every method:
        TryAgainError: where the disk is full, read-only or not permitted, or a store does not answer.
        UsageError: where a web server is to be written or listed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._kv = ts.KvStore.open(kvstore_spec(url), context=context()).result()
        except ValueError as error:
            raise UsageError(f"{url}: {_said(error)}; correct it") from None

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
        self.begin_write(key, value)()

    def begin_write(self, key: str, value: bytes) -> Callable[[], None]:
        """Begin to write an object whole, and return what waits until it is durable."""
        with self._faults(key):
            future = self._kv.write(key, value)

        def end() -> None:
            with self._faults(key):
                future.result()

        return end

    def create(self, key: str, value: bytes) -> bool:
        """Write an object whole unless there is one already; return whether there was none.

        In a folder two processes that do so at one moment may both be told that there was none: hold a lock there.
        Where a store does not hold conditions, see `conditions`, writers claim the object first.
        """
        if "://" in self.url and not self.conditions().create:
            return self._create_claimed(key, value)
        return self._create(key, value)

    def _create(self, key: str, value: bytes) -> bool:
        with self._faults(key):
            missing = self._kv.read(key).result()
            if missing.state == "value":
                return False
            return bool(self._kv.write(key, value, if_equal=missing.stamp.generation).result().generation)

    def conditions(self) -> "Conditions":
        """Return which conditions of a write the store holds; each store is asked once, by writing a probe.

        Raises:
            TryAgainError, UsageError: where nothing can be written there.
        """
        scheme, _, rest = self.url.partition("://")
        place = f"{scheme}://{rest.partition('/')[0]}"
        if place not in _HELD:
            key = f".probe-{uuid.uuid4().hex}"
            with self._faults(key):
                absent = self._kv.read(key).result().stamp.generation
                try:
                    _HELD[place] = self._probed(key, absent)
                finally:
                    self._kv.write(key, None).result()
        return _HELD[place]

    def _probed(self, key: str, absent: bytes) -> "Conditions":
        def write(value: bytes, generation: bytes) -> bytes:
            # b"" stands for a condition that was not met
            return bytes(self._kv.write(key, value, if_equal=generation).result().generation)

        first = write(b"1", absent)
        again = write(b"2", absent)
        if not first or again:
            return Conditions(create=False, replace=False)
        replaced = write(b"3", first)
        return Conditions(create=True, replace=bool(replaced) and not write(b"4", first))

    def check_replaces(self) -> None:
        """Check that an object can be read, changed and written back without losing what others write meanwhile.

        Raises:
            ConfigurationError: where the store does not hold that condition.
        """
        if not self.conditions().replace:
            raise ConfigurationError(
                f"{self.url}: this store does not hold conditional writes (If-Match), without which a part of a shard "
                "cannot be written safely; write whole shards, or use another store"
            )

    def _create_claimed(self, key: str, value: bytes) -> bool:
        """Do what `create` does without conditions: who alone claims an object may write it.

        Of two that claim one object at a time, at least the later one sees the other's claim and steps back; needs a
        store whose reads and lists show what was written before.
        """
        claims = f".claims/{key}/"
        own = f"{claims}{uuid.uuid4().hex}"
        seen: dict[str, float] = {}
        while True:
            began = time.monotonic()
            self.write(own, b"")
            try:
                others = [claim for claim in self.keys(claims) if claim != own]
                for claim in others:
                    # one that stands for so long was left by a process that is gone
                    if began - seen.setdefault(claim, began) > _CLAIM_ENDS:
                        self.delete(claim)
                if not others:
                    if self.read(key) is not None:
                        return False
                    if time.monotonic() - began < _CLAIM_ENDS / 3:
                        self.write(key, value)
                        return True
            finally:
                self.delete(own)
            time.sleep(random.uniform(0.02, 0.3))

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that start with `prefix`, sorted."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
        with self._faults(prefix):
            return sorted(k.decode() for k in self._kv.list(ts.KvStore.KeyRange(prefix, end)).result())

    def delete(self, key: str) -> None:
        """Remove an object; it need not exist."""
        with self._faults(key):
            self._kv.write(key, None).result()

    def delete_all(self, prefix: str = "", but: str = "") -> None:
        """Remove every object whose key starts with `prefix`, or is not `but`."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
        ranges = [(prefix, but), (but + "\0", end)] if but else [(prefix, end)]
        with self._faults(prefix):
            for first, last in ranges:
                self._kv.delete_range(ts.KvStore.KeyRange(first, last)).result()

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
        with faults(join(self.url, key)):
            yield


@contextmanager
def faults(where: str) -> Iterator[None]:
    """Turn what is the storage's fault into the error to show.

    Raises:
        TryAgainError: where the disk is full, read-only or not permitted, or a store does not answer.
        UsageError: where a web server is to be written or listed.
    """
    try:
        yield
    except NotImplementedError:
        raise UsageError(
            f"{where}: a web server is only read from: it takes no files and lists none; "
            "choose a folder, s3://BUCKET/PATH or gs://BUCKET/PATH instead"
        ) from None
    except (ValueError, OSError) as error:
        raise surroundings(error, where) or error from None
