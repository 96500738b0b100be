"""Paintera's N5 groups: an image, or labels ready for painting: multisets, unique labels, label-to-block lookup.

Axes (x, y, z), nanometres; `offset` is the centre of the first voxel.  The layout of a label source:

    data/s0 ...                     label multisets, a dataset a resolution
    unique-labels/s0 ...            the labels of each chunk of the data
    label-to-block-mapping/s0 ...   for each label, the chunks that hold it, as boxes in voxels
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...blocks import Box, Grid, Vector
from ...errors import DataError, UsageError
from ..store import Store, join
from ..volume import VolumeSpec, coarser, layout
from .multisets import decoded, deserialized, encoded, joined, serialized
from .n5 import CODECS, N5Target, datasets, root
from .target import Options, Target, no_channels, xyz

LOOKUP_STEP = 1000
"""Labels that share a chunk of the lookup."""

LOOKUP_PAIRS = 1 << 23
"""Pairs of label and chunk that are held at a time when the lookup is made."""


def make(url: str, spec: VolumeSpec, factors: Sequence[Vector], options: Options) -> Target:
    """Begin a Paintera source.

    Raises:
        UsageError: for several channels, or where labels could not be read by Paintera.
    """
    no_channels(spec, "paintera")
    return _labels(url, spec, factors, options) if spec.kind == "labels" else _image(url, spec, factors, options)


def _image(url: str, spec: VolumeSpec, factors: Sequence[Vector], options: Options) -> Target:
    levels = datasets(join(url, "data"), spec, factors, options)
    documents = {f"data/s{k}/attributes.json": level.attributes for k, level in enumerate(levels)}
    documents["data/attributes.json"] = _data(spec)
    documents["attributes.json"] = {**root(url), "painteraData": {"type": "raw"}, **_ours(spec, options)}
    return N5Target(url, spec, factors, [level.array for level in levels], documents)


def _data(spec: VolumeSpec) -> dict[str, Any]:
    return {"multiScale": True, "resolution": xyz(spec.voxel_size), "offset": xyz(spec.offset), "unit": "nm"}


def _ours(spec: VolumeSpec, options: Options) -> dict[str, Any]:
    return {"neurokube": {"kind": spec.kind, **options.attributes}}


def _labels(url: str, spec: VolumeSpec, factors: Sequence[Vector], options: Options) -> Target:
    name, level = options.codec({name: CODECS[name] for name in ("gzip", "raw")})
    codec = {"type": "gzip", "useZlib": False, "level": level} if name == "gzip" else {"type": "raw"}
    block = xyz(layout(spec)[1])
    documents: dict[str, Any] = {}
    for k, factor in enumerate(factors):
        stored = {"dimensions": xyz(coarser(spec, factor).shape), "blockSize": block, "compression": codec}
        documents[f"data/s{k}/attributes.json"] = {
            **stored,
            "dataType": "uint8",
            "isLabelMultiset": True,
            "maxNumEntries": -1,
            "downsamplingFactors": [float(f) for f in xyz(factor)],
        }
        documents[f"unique-labels/s{k}/attributes.json"] = {
            **stored,
            "dataType": "uint64",
            "downsamplingFactors": [float(f) for f in xyz(factor)],
        }
    documents["data/attributes.json"] = {**_data(spec), "isLabelMultiset": True}
    documents["unique-labels/attributes.json"] = {"multiScale": True}
    pattern = {"type": "n5-filesystem-relative", "scaleDatasetPattern": "label-to-block-mapping/s%d"}
    documents["label-to-block-mapping/attributes.json"] = {"multiScale": True, "labelBlockLookup": pattern}
    documents["attributes.json"] = {
        **root(url),
        "painteraData": {"type": "label"},
        "labelBlockLookup": pattern,
        **_ours(spec, options),
    }
    return LabelTarget(url, spec, factors, [], documents, chunk=layout(spec)[1], codec=codec)


@dataclass
class LabelTarget(N5Target):
    """A label source; every resolution is made from the one before it, counting what each voxel holds."""

    chunk: Vector = (64, 64, 64)
    codec: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self.store = Store(self.url)

    def shape(self, level: int) -> Vector:
        """Return the shape (z, y, x) of a resolution."""
        return coarser(self.spec, self.factors[level]).shape

    def cell(self, level: int) -> Vector:
        """Return the shape (z, y, x) of a chunk."""
        return self.chunk

    def copies(self, level: int) -> bool:
        """Whether a resolution can be copied: the finest, since others count what is below them."""
        return level == 0

    def write(self, level: int, box: Box, data: NDArray[Any]) -> None:
        """Write a box of labels, chunk by chunk.

        Raises:
            DataError: for labels from 2**63 up, which Java does not have.
        """
        from bioimage_cpp.label_multiset import multiset_from_labels

        if data.dtype.kind == "i" and data.size and data.min() < 0:
            raise DataError(f"{self.url}: the volume holds negative labels; renumber them from 0 up")
        labels = data.astype(np.uint64, copy=False)
        if labels.size and labels.max() >= 1 << 63:
            raise DataError(f"{self.url}: Paintera has labels up to 2**63 - 1, one is {labels.max()}; renumber them")
        for number in self._grid(level).within(self._cells(box)):
            part = self._grid(level).box(number)
            self._put(level, number, multiset_from_labels(labels[part.relative_to(box.start).slices], (1, 1, 1)))

    def fill(self, level: int, box: Box) -> None:
        """Make a box of a resolution (at least 1) of the next finer one, which is complete."""
        from bioimage_cpp.label_multiset import Blocking, downsample_multiset

        for number in self._grid(level).within(self._cells(box)):
            step, _, fine = self._beneath(level, self._grid(level).box(number))
            grid = self._grid(level - 1)
            parts = []
            for below in grid.within(self._cells(fine)):
                place = grid.box(below).relative_to(fine.start)
                parts.append((place.slices, self._get(level - 1, below)))
            whole = joined(parts, fine.shape)
            self._put(level, number, downsample_multiset(whole, Blocking([0, 0, 0], list(fine.shape), list(step))))

    def _grid(self, level: int) -> Grid:
        return Grid(self.shape(level), self.chunk)

    def _cells(self, box: Box) -> Box:
        z, y, x = (a // c for a, c in zip(box.start, self.chunk, strict=True))
        oz, oy, ox = (-(-b // c) for b, c in zip(box.stop, self.chunk, strict=True))
        return Box((z, y, x), (oz, oy, ox))

    def _key(self, what: str, level: int, number: int) -> str:
        return f"{what}/s{level}/" + "/".join(str(k) for k in xyz(self._grid(level).coordinate(number)))

    def _put(self, level: int, number: int, multiset: Any) -> None:
        assert self.codec is not None
        shape = tuple(xyz(self._grid(level).box(number).shape))
        ids = np.unique(multiset.ids).astype(">u8").tobytes()
        # the labels first: what a chunk of data says is known of it then
        unique = encoded(ids, shape, self.codec, elements=len(ids) // 8)
        self.store.write(self._key("unique-labels", level, number), unique)
        self.store.write(self._key("data", level, number), encoded(serialized(multiset), shape, self.codec))

    def _get(self, level: int, number: int) -> Any:
        return deserialized(self._content("data", level, number))

    def _content(self, what: str, level: int, number: int) -> bytes:
        assert self.codec is not None
        key = self._key(what, level, number)
        chunk = self.store.read(key)
        if chunk is None:
            raise DataError(f"{join(self.url, key)}: is gone while it is written; leave the folder alone, export again")
        return decoded(chunk, self.codec)[1]

    def finish(self) -> None:
        """Write the lookup, which chunks hold a label, and the metadata."""
        assert self.codec is not None
        greatest = 0
        for level in range(len(self.factors)):
            counts: Counter[int] = Counter()
            for _, ids in self._unique(level):
                steps, many = np.unique(ids // LOOKUP_STEP, return_counts=True)
                counts.update(dict(zip(steps.tolist(), many.tolist(), strict=True)))
                greatest = max(greatest, int(ids.max(initial=0)))
            for first, last in _passes(counts):
                self._write_lookup(level, first, last)
            self.documents = {
                f"label-to-block-mapping/s{level}/attributes.json": {
                    "dimensions": [greatest + 1],
                    "blockSize": [LOOKUP_STEP],
                    "dataType": "int8",
                    "compression": self.codec,
                },
                **self.documents,
            }
        self.documents = {**self.documents, "attributes.json": {**self.documents["attributes.json"], "maxId": greatest}}
        super().finish()

    def _unique(self, level: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield the number of each chunk and its labels, without the background."""

        def read(number: int) -> tuple[int, NDArray[np.uint64]]:
            ids = np.frombuffer(self._content("unique-labels", level, number), ">u8").astype(np.uint64)
            return number, ids[ids != 0]

        numbers = iter(range(len(self._grid(level))))
        with ThreadPoolExecutor(4) as pool:
            while some := list(islice(numbers, 256)):
                yield from pool.map(read, some)

    def _write_lookup(self, level: int, first: int, last: int) -> None:
        """Write the chunks `first` to `last` of the lookup."""
        assert self.codec is not None
        found: list[NDArray[np.uint64]] = []
        for number, ids in self._unique(level):
            here = ids[(ids >= first * LOOKUP_STEP) & (ids < (last + 1) * LOOKUP_STEP)]
            found.append(np.stack([here, np.full_like(here, number)]))
        labels, chunks = np.concatenate(found, axis=1)
        order = np.argsort(labels, kind="stable")
        labels, chunks = labels[order], chunks[order]
        starts = np.flatnonzero(np.diff(labels, prepend=labels[0] - np.uint64(1)))
        boxes = self._boxes(level, chunks)
        content: dict[int, list[bytes]] = {}
        for a, b in zip(starts, [*starts[1:], len(labels)], strict=True):
            label = int(labels[a])
            record = label.to_bytes(8, "big") + int(b - a).to_bytes(4, "big") + boxes[a:b].tobytes()
            content.setdefault(label // LOOKUP_STEP, []).append(record)
        for step, records in content.items():
            key = f"label-to-block-mapping/s{level}/{step}"
            self.store.write(key, encoded(b"".join(records), (LOOKUP_STEP,), self.codec))

    def _boxes(self, level: int, numbers: NDArray[np.uint64]) -> NDArray[Any]:
        """Return the first and the last voxel, (x, y, z) each, of chunks."""
        grid = self._grid(level)
        coordinates = np.stack(np.unravel_index(numbers.astype(np.int64), grid.counts), axis=1)
        low = coordinates * np.array(self.chunk)
        high = np.minimum(low + self.chunk, grid.shape) - 1
        return np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1).astype(">i8")


def _passes(counts: Counter[int]) -> Iterator[tuple[int, int]]:
    """Yield ranges of chunks of the lookup that come to at most `LOOKUP_PAIRS` pairs, or are single ones."""
    first, held, last = None, 0, 0
    for step in sorted(counts):
        if first is not None and held + counts[step] > LOOKUP_PAIRS:
            yield first, last
            first, held = None, 0
        first, held, last = step if first is None else first, held + counts[step], step
    if first is not None:
        yield first, last


def group_of(url: str, spec: VolumeSpec) -> str:
    """Return the group that a source goes to: in a container it has a name of its own.

    Raises:
        UsageError: where the path names no container, which Paintera opens first.
    """
    name = "labels" if spec.kind == "labels" else "raw"
    if url.rstrip("/").endswith(".n5"):
        return join(url, name)
    if ".n5/" not in url:
        raise UsageError(f"{url}: name a container or a group in one, as {url.rstrip('/')}.n5 or data.n5/{name}")
    return url
