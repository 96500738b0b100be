"""What really lies in a store: objects, and their bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..volumes import Store

_SAMPLE = 16
"""Objects whose size is looked up where a store does not list sizes."""


class Stored(NamedTuple):
    """Objects, their bytes, and whether these are reckoned up from a sample."""

    objects: int
    bytes: int
    sampled: bool = False


def stored(store: Store, prefixes: Iterable[str]) -> Stored:
    """Return what is stored under prefixes; elsewhere than in a folder bytes are those of a sample, reckoned up."""
    keys = [key for prefix in prefixes for key in store.keys(prefix)]
    if "://" not in store.url:
        return Stored(len(keys), sum((Path(store.url).expanduser() / key).stat().st_size for key in keys))
    sample = keys[:: max(1, len(keys) // _SAMPLE)]
    size = sum(len(store.read(key) or b"") for key in sample)
    return Stored(len(keys), round(size * len(keys) / max(1, len(sample))), len(sample) < len(keys))
