"""Annotated volumes in memory (or mapped from a fast disk), on the voxel grid that the network sees."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Vector
from ..errors import ConfigurationError, DataError, surroundings
from ..networks.normalization import Normalization
from ..volumes import Volume, open_volume
from ..volumes.resampling import ALIKE, Resampling
from ..volumes.volume import COARSE, Nanometres, nanometres
from .config import AnnotatedVolume, LabelSource
from .stacks import open_image, told

MOST_LABELS = 24
_SLAB = 16


@dataclass(frozen=True)
class Annotated:
    """An image and its truth, arrays (z, y, x) of one shape; `channels` are further images (channel, z, y, x).

    Bit k of `positive` says that a voxel has label k, bit k of `known` that somebody looked whether it has.
    """

    name: str
    image: NDArray[np.uint8]
    positive: NDArray[np.uint32]
    known: NDArray[np.uint32]
    normalization: Normalization
    voxel_size: Nanometres
    weight: float
    fingerprint: str | None = None
    channels: NDArray[np.uint8] | None = None
    normalizations: tuple[Normalization, ...] = ()
    """Those of the further channels."""

    def seen(self, box: Box, pad: Sequence[tuple[int, int]] = ((0, 0),) * 3) -> NDArray[np.float32]:
        """Return what a network sees of a box, mirrored by `pad`: normalized grey values (channel, z, y, x)."""
        found = [(self.normalization, self.image)]
        found += zip(self.normalizations, () if self.channels is None else self.channels, strict=True)
        return np.stack([n.apply(np.pad(values[box.slices], pad, mode="reflect")) for n, values in found])

    @property
    def shape(self) -> Vector:
        """Extent in voxels (z, y, x)."""
        z, y, x = self.image.shape
        return z, y, x

    @property
    def middle(self) -> int:
        """The middle one of the sections in which something is annotated."""
        annotated = np.flatnonzero(self.known.any((1, 2)))
        return int(annotated[len(annotated) // 2])

    def counts(self, labels: int) -> NDArray[np.int64]:
        """Return, shape (labels, 2), how many voxels are known not to have each label, and to have it."""
        found = np.zeros((labels, 2), np.int64)
        for z in range(len(self.image)):
            for k in range(labels):
                known, positive = (self.known[z] >> k) & 1, (self.positive[z] >> k) & 1
                has = int((known & positive).sum())
                found[k] += (int(known.sum()) - has, has)
        return found


def load(
    entry: AnnotatedVolume,
    labels: Sequence[str],
    voxel_size: Nanometres,
    *,
    scratch: str | None = None,
    context: Vector = (0, 0, 0),
    at_least: Vector = (1, 1, 1),
) -> Annotated:
    """Read an annotated volume, resampled to `voxel_size`; into files below `scratch` where one is named.

    `context` is how many voxels of the image (z, y, x) to read around the part that is annotated, unannotated; a
    part smaller than `at_least` (in voxels of the network) is widened likewise, as far as the image goes.

    Raises:
        ConfigurationError: where there are more labels than fit.
        DataError: where image and truth do not fit, a truth is empty, or a volume cannot be read.
        TryAgainError: where `scratch` is full or cannot be written.
    """
    if len(labels) > MOST_LABELS:
        raise ConfigurationError(f"labels: at most {MOST_LABELS}, not {len(labels)}; train two networks")
    image, region = open_image(entry)
    wider = region.grow(context).clip(image.spec.box)
    scale = Resampling.between(wider.shape, image.spec.voxel_size, voxel_size).scale
    wider = _widened(wider, tuple(ceil(n * s) for n, s in zip(at_least, scale, strict=True)), image.spec.box)
    resampling = Resampling.between(wider.shape, image.spec.voxel_size, voxel_size)
    places = {
        name: _Placed(source, image, region, wider.start) for name, source in entry.truth.items() if name in labels
    }
    channels = [_channel(name, path, image) for name, path in sorted(entry.channels.items())]
    place = scratch and Path(scratch) / f"neurokube-{_cache_key(entry, labels, voxel_size, image, wider)}"
    try:
        arrays = _Arrays(resampling.new_shape, len(channels), place or None)
        if not arrays.ready:
            images = [volume.crop(wider) for volume in (image, *channels)]
            for z in range(0, resampling.new_shape[0], _SLAB):
                _fill(arrays, z, resampling, images, labels, places)
            arrays.finish()
    except OSError as error:
        raise surroundings(error, str(scratch)) or error from None
    grey, positive, known, further = arrays.opened()
    loaded = Annotated(
        entry.image,
        grey,
        positive,
        known,
        Normalization.of(image),
        cast(Nanometres, tuple(v * s for v, s in zip(image.spec.voxel_size, resampling.scale, strict=True))),
        entry.weight,
        image.fingerprint,
        further,
        tuple(Normalization.of(channel) for channel in channels),
    )
    _check_truth(loaded, labels, entry)
    return loaded


def _channel(name: str, path: str, image: Volume) -> Volume:
    """Open a further image of the same voxels."""
    volume = open_volume(path)
    spec, ours = volume.spec, image.spec
    if not spec.is_grey:
        raise DataError(
            f"{path}: channel '{name}' must be an 8-bit image of one channel; import it with --to-8bit auto"
        )
    alike = spec.shape == ours.shape and np.allclose(spec.voxel_size, ours.voxel_size)
    if not alike or (2 * np.abs(np.subtract(spec.offset, ours.offset)) >= ours.voxel_size).any():
        raise DataError(
            f"{path}: channel '{name}' has other voxels than {image.url}; bring it onto these by a resampling stage"
        )
    return volume


def _widened(box: Box, sides: Sequence[int], inside: Box) -> Box:
    """Return a box of at least these sides around another, as far as that fits inside."""
    spans = []
    for a, b, side, n in zip(box.start, box.stop, sides, inside.stop, strict=True):
        start = max(0, min(a - max(0, side - (b - a)) // 2, n - side))
        spans.append((min(a, start), min(n, max(b, start + side))))
    (z0, z1), (y0, y1), (x0, x1) = spans
    return Box((z0, y0, x0), (z1, y1, x1))


def _fill(
    arrays: "_Arrays",
    z: int,
    resampling: Resampling,
    images: Sequence[Volume],
    labels: Sequence[str],
    places: "dict[str, _Placed]",
) -> None:
    shape = resampling.new_shape
    box = Box((z, 0, 0), (min(z + _SLAB, shape[0]), shape[1], shape[2]))
    source = resampling.needed(box)
    further = () if arrays.channels is None else arrays.channels
    for array, volume in zip((arrays.image, *further), images, strict=True):
        grey = resampling.linear(volume.read(source).astype(np.float32), box)
        array[box.slices] = np.clip(np.rint(grey), 0, 255)
    for k, label in enumerate(labels):
        if label not in places:
            continue
        positive, known = places[label].read(source)
        bit = np.uint32(1 << k)
        arrays.positive[box.slices] |= np.where(resampling.nearest(positive, box), bit, np.uint32(0))
        arrays.known[box.slices] |= np.where(resampling.nearest(known, box), bit, np.uint32(0))


class _Placed:
    """The truth of one label, read in voxels of the image's region."""

    def __init__(self, source: LabelSource, image: Volume, region: Box, origin: Vector) -> None:
        self._source = source
        self._volume = open_volume(source.path)
        spec, ours = self._volume.spec, image.spec
        if np.dtype(spec.dtype).kind not in "bu" or spec.channels is not None:
            raise DataError(f"{source.path}: holds {spec.dtype}, not labels; import it with --labels")
        if any(abs(a / b - 1) > ALIKE for a, b in zip(spec.voxel_size, ours.voxel_size, strict=True)):
            raise DataError(
                f"{source.path}: its voxels are {nanometres(spec.voxel_size)}, "
                f"those of {image.url} {nanometres(ours.voxel_size)}; "
                "import the annotation with the voxel size of its image"
            )
        moved = [(a - b) / v for a, b, v in zip(spec.offset, ours.offset, ours.voxel_size, strict=True)]
        z, y, x = (round(m) for m in moved)
        self._box = Box.of(spec.shape).shift((z, y, x))  # in voxels of the image
        self._region = region
        self._origin = origin
        if self._box.clip(region).size == 0:
            raise DataError(
                f"{source.path}: lies at {self._box} of {image.url}, outside the part that is used ({region}); "
                "check its offset and the region"
            )
        unlabelled = source.unlabelled
        if unlabelled is None:
            unlabelled = (0,) if self._volume.attributes.get("annotation") else ()
        self._unlabelled = unlabelled
        self._values = None if source.values is None else tuple(self._id(value) for value in source.values)
        self._border: NDArray[np.bool_] | None = None

    def read(self, box: Box) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return where the label is, and where that is known, in a box of voxels counted from the origin."""
        wanted = box.shift(self._origin)
        inside = wanted.clip(self._box).clip(self._region)
        positive, known = np.zeros(box.shape, bool), np.zeros(box.shape, bool)
        if inside.size:
            values = self._volume.read(inside.relative_to(self._box.start))
            here = inside.relative_to(wanted.start).slices
            known[here] = ~np.isin(values, self._unlabelled) if self._unlabelled else True
            positive[here] = self._positive(values, inside) & known[here]
        return positive, known

    def _positive(self, values: NDArray[Any], box: Box) -> NDArray[np.bool_]:
        if self._source.boundaries_of is not None:
            if self._border is None:
                spec = self._volume.spec
                everything = without_specks(self._volume.read(Box.of(spec.shape)), self._source.smallest)
                self._border = borders(everything, spec.voxel_size, self._source.thickness)
            return self._border[box.relative_to(self._box.start).slices]
        if self._values is None:
            return np.asarray(values != 0)
        return np.isin(values, self._values)

    def _id(self, value: int | str) -> int:
        if isinstance(value, int):
            return value
        names = {str(name): int(number) for number, name in (self._volume.attributes.get("names") or {}).items()}
        if value not in names:
            known = ", ".join(names) or "no names"
            raise DataError(f"{self._source.path}: nothing in it is named '{value}'; it has {known}")
        return names[value]


def without_specks(labels: NDArray[Any], smallest: int) -> NDArray[Any]:
    """Return labels (z, y, x) in which every instance of fewer than `smallest` voxels went to the nearest other."""
    if smallest == 0:
        return labels
    from scipy.ndimage import distance_transform_edt

    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    speck = (counts < smallest)[inverse].reshape(labels.shape)
    if speck.all():
        return labels
    nearest = distance_transform_edt(speck, return_distances=False, return_indices=True)
    return np.asarray(labels[tuple(nearest)])


def borders(labels: NDArray[Any], voxel_size: Nanometres, thickness: float) -> NDArray[np.bool_]:
    """Return the voxels within half of `thickness` nm of another label, shape (z, y, x).

    The voxels on either side of a border always count.  Where sections are thick only borders within a section
    do: cells that follow one another in z show no membrane between them.
    """
    from scipy.ndimage import distance_transform_edt

    flat = voxel_size[0] / min(voxel_size[1:]) >= COARSE
    edge = np.zeros(labels.shape, bool)
    for axis in (1, 2) if flat else (0, 1, 2):
        a, b = (tuple(slice(k, n) if d == axis else slice(None) for d in range(3)) for k, n in ((0, -1), (1, None)))
        differs = labels[a] != labels[b]
        edge[a] |= differs
        edge[b] |= differs
    half = thickness / 2 - min(voxel_size[1:]) / 2
    parts = edge if flat else edge[None]
    # where there is no edge, scipy measures from a corner
    near = [part.any() & (distance_transform_edt(~part, voxel_size[-part.ndim :]) <= half) for part in parts]
    # the voxels at a border belong to it, however thin it is
    return np.asarray(edge | np.stack(near).reshape(edge.shape))


def _check_truth(loaded: Annotated, labels: Sequence[str], entry: AnnotatedVolume) -> None:
    counts = loaded.counts(len(labels))
    for label, (negative, positive) in zip(labels, counts, strict=True):
        if label in entry.truth and negative + positive == 0:
            raise DataError(
                f"{entry.truth[label].path}: nothing is annotated for '{label}' in the part that is used; "
                "check 'unlabelled' and 'region'"
            )
    if not counts[:, 1].any():
        raise DataError(f"{entry.image}: its truth has no voxel of any label; check 'values'")


def _cache_key(entry: AnnotatedVolume, labels: Sequence[str], voxel_size: Nanometres, image: Volume, box: Box) -> str:
    paths = [*(source.path for source in entry.truth.values()), *entry.channels.values()]
    prints = {path: _digest(open_volume(path)) for path in paths}
    digest = image.fingerprint or _digest(image.crop(box))
    content = [entry.model_dump(mode="json"), list(labels), list(voxel_size), digest, prints, str(box)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _digest(volume: Volume) -> str:
    """Return the fingerprint of a volume, or one of its voxels where its writer left none."""
    if volume.fingerprint is not None:
        return volume.fingerprint
    digest = hashlib.sha256()
    depth, height, width = volume.spec.shape
    for z in range(0, depth, _SLAB):
        digest.update(volume.read(Box((z, 0, 0), (min(z + _SLAB, depth), height, width))).tobytes())
    return digest.hexdigest()


class _Arrays:
    """Image and truth, in memory or as files that a later start finds ready."""

    def __init__(self, shape: Vector, channels: int, place: Path | None) -> None:
        self._place = place
        self.ready = place is not None and place.exists()
        if self.ready:
            return
        self._part: Path | None = None
        if place is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            # a folder of our own: another training may be reading the same volumes
            self._part = Path(mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        self.image = self._make("image", shape, "uint8")
        self.channels = self._make("channels", (channels, *shape), "uint8") if channels else None
        self.positive = self._make("positive", shape, "uint32")
        self.known = self._make("known", shape, "uint32")

    def _make(self, name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        if self._part is None:
            return np.zeros(shape, dtype)
        path = self._part / f"{name}.npy"
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            # a disk that is full must say so now: where a mapped file cannot grow, the process is killed
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array

    def finish(self) -> None:
        if self._part is None or self._place is None:
            return
        for array in (self.image, self.positive, self.known, self.channels):
            if array is not None:
                cast(np.memmap, array).flush()
        try:
            self._part.rename(self._place)
        except OSError:
            if not self._place.exists():
                raise
            # another training was faster; what it wrote is the same
            rmtree(self._part)

    def opened(self) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint8] | None]:
        if self._place is None:
            return self.image, self.positive, self.known, self.channels
        paths = [self._place / f"{name}.npy" for name in ("image", "positive", "known", "channels")]
        image, positive, known, *channels = (np.load(path, mmap_mode="r") for path in paths if path.exists())
        return image, positive, known, channels[0] if channels else None


def described(volumes: Sequence[Annotated], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return what was loaded, as plain values: shape, voxel size and the share of each label."""
    rows = []
    for volume in volumes:
        counts = volume.counts(len(labels))
        shares = {label: round(float(c[1] / c.sum()), 5) for label, c in zip(labels, counts, strict=True) if c.sum()}
        about = told(volume.name, volume.fingerprint, volume.shape, volume.voxel_size, volume.normalization)
        rows.append({**about, "shares": shares})
    return rows
