"""Whole shards, written as one object each: what is there already is neither read nor compared.

tensorstore takes a shard at the far faces of a volume, or one of several chunks, for written in part: it reads what
is there, which may be damaged, and writes under a condition, which not every store holds.  A box of whole shards
needs neither: its objects are encoded in memory, then written as they are.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import tensorstore as ts
from numpy.typing import NDArray

from ..blocks import Box
from .store import Store, context

_MEMORY = {"driver": "memory"}


def write_box(url: str, array: Any, box: Box, data: NDArray[Any]) -> None:
    """Write a box (z, y, x) of an array below a URL, by what its store holds; durable when it returns.

    Raises:
        ConfigurationError: for a part of a shard, on a store where that could lose what others write.
    """
    remote = "://" in url
    if (remote or is_ragged(array, box)) and is_whole(array, box):
        write_whole(array, box, data)
        return
    if remote:
        Store(url).check_replaces()
    array[(..., *box.slices)].write(data).result()


def is_whole(array: Any, box: Box) -> bool:
    """Whether a box (z, y, x) is made of whole shards, those at the far faces cut off by the volume."""
    shards = array.chunk_layout.write_chunk.shape[-3:]
    origin = array.chunk_layout.grid_origin[-3:]
    low, high = array.domain.inclusive_min[-3:], array.domain.exclusive_max[-3:]
    return all(
        s and (a == lo or (a - o) % s == 0) and (b == hi or (b - o) % s == 0) and lo == o
        for a, b, s, o, lo, hi in zip(box.start, box.stop, shards, origin, low, high, strict=True)
    )


def is_ragged(array: Any, box: Box) -> bool:
    """Whether a box reaches a far face that cuts shards off."""
    shards = array.chunk_layout.write_chunk.shape[-3:]
    ends = array.domain.exclusive_max[-3:]
    return any(b == hi and hi % s for b, s, hi in zip(box.stop, shards, ends, strict=True))


def is_there(array: Any) -> bool:
    """Whether the metadata of an array is still stored."""
    spec = {key: value for key, value in array.spec().to_json().items() if key != "transform"}
    try:
        ts.open(spec, open=True, context=context()).result()
    except ValueError as error:
        if "NOT_FOUND" in str(error):
            return False
        raise
    return True


def write_whole(array: Any, box: Box, data: NDArray[Any]) -> None:
    """Write a box of whole shards, each an object that replaces what is there; durable when it returns."""
    writes = [array.kvstore.write(key, value) for key, value in whole_objects(array, box, data)]
    for write in writes:
        write.result()


def whole_objects(array: Any, box: Box, data: NDArray[Any]) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield the objects that hold a box of whole shards, (key, content); None for one that is to be removed.

    A shard without anything but zeros is removed, as everywhere.
    """
    spec = {key: value for key, value in array.spec().to_json().items() if key != "kvstore"}
    for part in _shards(array, box):
        voxels = data[(..., *part.relative_to(box.start).slices)]
        kept = bool(voxels.any())
        for key, value in _encoded(spec, part, voxels, kept).items():
            yield key, value if kept else None


def _shards(array: Any, box: Box) -> Iterator[Box]:
    """Yield the shards of a box of whole ones."""
    steps = array.chunk_layout.write_chunk.shape[-3:]
    starts = (range(a, b, s) for a, b, s in zip(box.start, box.stop, steps, strict=True))
    for z, y, x in product(*starts):
        yield Box((z, y, x), (z + steps[0], y + steps[1], x + steps[2])).clip(box)


def _encoded(spec: dict[str, Any], box: Box, data: NDArray[Any], kept: bool) -> dict[bytes, bytes]:
    """Return the objects that hold a box, by key; where it is not `kept` only the keys are right."""
    options = {} if kept else {"store_data_equal_to_fill_value": True}
    # a context of its own is a memory of its own
    memory: Any = ts.open({**spec, "kvstore": _MEMORY, **options}, create=True, context=ts.Context()).result()
    metadata = set(memory.kvstore.list().result())
    memory[(..., *box.slices)].write(data).result()
    keys = set(memory.kvstore.list().result()) - metadata
    return {key: memory.kvstore.read(key).result().value for key in keys}
