"""Inspection: what an image volume looks like, before anybody waits for its segmentation."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ..blocks import Box
from .volume import Volume, VolumeSpec

MODERATE = 512
"""Up to this many sections all are looked at, of more `RUNS` runs of `RUN` neighbours."""
RUNS, RUN = 8, 9
WINDOW, THUMBNAIL = 1024, 256
"""Sides in pixels of the central window that is looked at, and of its reduction."""

_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Finding:
    """Something a user should know: one line, and the sections it is about (none: the whole volume)."""

    severity: Literal["note", "warning"]
    code: str
    message: str
    sections: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Look:
    """What is kept of one section.

    `thumbnail` is (y, x), a pixel of it the mean of `binning` squared; `gray` holds the 0.5 and 99.5
    percentiles; the rest are shares of the pixels: of the median value, of the type's least and greatest.
    """

    z: int
    thumbnail: _Floats
    binning: int
    gray: tuple[float, float]
    commonest: float
    least: float
    greatest: float

    @property
    def contrast(self) -> float:
        return self.gray[1] - self.gray[0]


def inspect_volume(volume: Volume) -> list[Finding]:
    """Return what is remarkable in a volume: voxel size, contrast, blank, duplicate and shifted sections.

    Sections are judged by a central window of at most 1024 x 1024 pixels, all of them in volumes of at most
    512 sections, else 72 in eight places.  Volumes of labels or channels are judged by their voxel size only.

    Raises:
        DataError: where stored data is damaged.
    """
    findings = _implausible_size(volume.spec)
    if volume.spec.kind == "labels" or volume.spec.channels is not None:
        return findings
    looks = list(_looks(volume))
    blank = _blank(looks)
    findings += _found("blank-sections", "blank (nearly all one value): leave out or restore", blank)
    looks = _without(looks, blank)
    if not looks or min(looks[0].thumbnail.shape) < 32:
        return findings
    duplicates = _duplicates(looks)
    findings += _found("duplicate-sections", "the same as the section before: check the export", duplicates)
    looks = _without(looks, duplicates)
    findings += _gray_values(volume.spec, looks)
    findings += _inverted(volume, looks)
    findings += _shifted(looks)
    findings += _other_anisotropy(volume.spec, looks)
    return findings


def _without(looks: list[_Look], sections: list[int]) -> list[_Look]:
    return [look for look in looks if look.z not in set(sections)]


def _found(code: str, what: str, sections: list[int]) -> list[Finding]:
    if not sections:
        return []
    shown = ", ".join(str(z) for z in sections[:8]) + f" and {len(sections) - 8} more" * (len(sections) > 8)
    return [Finding("warning", code, f"section{'s' * (len(sections) > 1)} {shown}: {what}", sections)]


# Looking


def _looks(volume: Volume) -> Iterator[_Look]:
    depth = min(64, int(volume.arrays[0].chunk_layout.read_chunk.shape[-3]))
    sections, window = volume.spec.shape[0], _window(volume.spec, WINDOW)
    if sections <= MODERATE:
        runs = [(0, sections)]
    else:
        runs = [(z, z + RUN) for z in np.linspace(0, sections - RUN, RUNS).astype(int).tolist()]
    with ThreadPoolExecutor(2) as pool:
        for start, stop in runs:
            # a chunk is decoded whole: take its sections together
            cuts = [start, *range(start - start % depth + depth, stop, depth), stop]
            for a, b in pairwise(cuts):
                data = volume.read(Box((a, *window.start[1:]), (b, *window.stop[1:])))
                yield from pool.map(_look, range(a, b), data)


def _window(spec: VolumeSpec, side: int) -> Box:
    """Return a central box of at most `side` pixels along y and x, through all sections."""
    sections, *plane = spec.shape
    (y, h), (x, w) = (((n - min(n, side)) // 2, min(n, side)) for n in plane)
    return Box((0, y, x), (sections, y + h, x + w))


def _look(z: int, section: NDArray[Any]) -> _Look:
    step = max(1, min(section.shape) // 256)
    low, median, high = np.percentile(section[::step, ::step], (0.5, 50, 99.5), method="nearest").tolist()
    binning = min(-(-max(section.shape) // THUMBNAIL), *section.shape)
    least, greatest = _limits(section.dtype)
    return _Look(
        z,
        _binned(section, binning),
        binning,
        (low, high),
        *(np.count_nonzero(section == value) / section.size for value in (median, least, greatest)),
    )


def _binned(section: NDArray[Any], binning: int) -> _Floats:
    h, w = (n // binning for n in section.shape)
    total = np.zeros((h, w), np.float32)
    for y, x in product(range(binning), repeat=2):
        total += section[y : h * binning : binning, x : w * binning : binning]
    total /= binning**2
    return total


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the range of gray values of a type; that of floats is 0 to 1."""
    if dtype.kind == "f":
        return 0.0, 1.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


# Single sections


def _implausible_size(spec: VolumeSpec) -> list[Finding]:
    z, y, x = spec.voxel_size
    shown = f"voxel size {z:g} x {y:g} x {x:g} nm (z, y, x)"
    remedy = "check --voxel-size, its order and its unit"
    reasons = []
    if min(z, y, x) < 1 or max(y, x) > 100 or z > 200:
        reasons.append("is outside what electron microscopes record")
    if z < 0.8 * min(y, x):
        reasons.append("is finer between sections than within them")
    return [Finding("warning", "voxel-size", f"{shown} {' and '.join(reasons)}: {remedy}")] if reasons else []


def _blank(looks: list[_Look]) -> list[int]:
    usual = float(np.median([look.contrast for look in looks]))
    return [look.z for look in looks if look.commonest >= 0.98 or look.contrast <= 0.05 * usual]


def _gray_values(spec: VolumeSpec, looks: list[_Look]) -> list[Finding]:
    findings = []
    for end in ("least", "greatest"):
        share = float(np.mean([getattr(look, end) for look in looks]))
        if share >= 0.05:
            message = f"{share:.0%} of the voxels have the {end} possible value: saturated, or an empty margin"
            findings.append(Finding("warning", "saturated", message))
    least, greatest = _limits(np.dtype(spec.dtype))
    used = float(np.median([look.contrast for look in looks])) / (greatest - least)
    if used < 0.15:
        message = f"only {used:.0%} of the range of gray values is used: import the original with --to-8bit auto"
        findings.append(Finding("warning", "low-contrast", message))
    return findings


def _inverted(volume: Volume, looks: list[_Look]) -> list[Finding]:
    """Compare ridges of dark and of bright pixels: membranes are the strongest ones, and dark."""
    window = _window(volume.spec, 512)
    nanometres = min(volume.spec.voxel_size[1:])
    sigma = float(np.clip(12 / nanometres, 1.2, 3))
    dark, bright = 0.0, 0.0
    for look in _spread(looks, 8):
        data = volume.read(Box((look.z, *window.start[1:]), (look.z + 1, *window.stop[1:])))
        d, b = _ridges(data[0].astype(np.float32), sigma)
        dark, bright = dark + d, bright + b
    if bright <= 1.1 * dark:
        return []
    message = "membranes are bright: invert the images if they show tissue, as networks and filters expect them dark"
    return [Finding("warning", "inverted-contrast", message)]


def _ridges(section: _Floats, sigma: float) -> tuple[float, float]:
    """Return the strength of dark and of bright lines: curvature across a line less that along it."""
    orders = ((2, 0), (0, 2), (1, 1))
    yy, xx, xy = (gaussian_filter(section, sigma, order=order, mode="nearest") for order in orders)
    mean, spread = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
    greater, smaller = mean + spread, mean - spread
    dark, bright = greater - np.abs(smaller), -smaller - np.abs(greater)
    return float(np.square(np.maximum(dark, 0)).mean()), float(np.square(np.maximum(bright, 0)).mean())


def _spread(looks: Sequence[_Look], count: int) -> list[_Look]:
    """Return at most `count` looks, evenly spaced, the first and last among them."""
    picks = np.unique(np.linspace(0, len(looks) - 1, count).round().astype(int))
    return [looks[k] for k in picks]


# Neighbouring sections


def _neighbours(looks: list[_Look]) -> list[tuple[_Look, _Look]]:
    """Return pairs of sections between which at most two were left out."""
    return [(a, b) for a, b in pairwise(looks) if b.z - a.z <= 3]


def _duplicates(looks: list[_Look]) -> list[int]:
    pairs = _neighbours(looks)
    change = [1 - float((_standardized(a) * _standardized(b)).sum()) for a, b in pairs]
    limit = max(1e-6, 0.1 * float(np.median(change))) if change else 0.0
    return [b.z for (_, b), c in zip(pairs, change, strict=True) if c <= limit]


@lru_cache(maxsize=4)
def _standardized(look: _Look) -> NDArray[np.float64]:
    """Return a thumbnail with mean 0 and length 1: the sum of the product of two is their correlation."""
    values = look.thumbnail - look.thumbnail.mean(dtype=np.float64)
    return np.asarray(values / np.sqrt(np.square(values).sum()))


@lru_cache(maxsize=4)
def _band(shape: tuple[int, int]) -> _Floats:
    """Return the weights of frequencies, those of structures between pixel noise and shading."""
    y, x = scipy.fft.fftfreq(shape[0])[:, None], scipy.fft.rfftfreq(shape[1])[None]
    square = 2 * np.pi**2 * (y**2 + x**2)
    return np.asarray(np.exp(-square) * (1 - np.exp(-square * 16**2)), np.float32)


@lru_cache(maxsize=4)
def _spectrum(look: _Look) -> NDArray[np.complex64]:
    h, w = look.thumbnail.shape
    fade = np.outer(np.hanning(h), np.hanning(w)).astype(np.float32)
    spectrum = scipy.fft.rfft2((look.thumbnail - look.thumbnail.mean()) * fade)
    return np.asarray(spectrum * _band((h, w)))


def _shift(a: _Look, b: _Look) -> NDArray[np.float64] | None:
    """Return by how many pixels (y, x) of the volume `b` lies off `a`; None where they do not resemble.

    Phase correlation: Kuglin and Hines, Proc. Int. Conf. Cybernetics and Society 163 (1975).
    """
    shape = a.thumbnail.shape
    cross = _spectrum(b) * _spectrum(a).conj()
    cross /= np.abs(cross) + np.finfo(np.float32).tiny
    peaks = scipy.fft.irfft2(cross * _band((shape[0], shape[1])), s=shape)
    top = np.unravel_index(int(peaks.argmax()), shape)
    if peaks[top] < 8 * peaks.std():
        return None
    shift = []
    for axis, (k, n) in enumerate(zip(top, shape, strict=True)):
        line = np.take(peaks, top[1 - axis], 1 - axis)
        before, here, after = float(line[k - 1]), float(line[k]), float(line[(k + 1) % n])
        # the vertex of the parabola through the peak and its neighbours
        finer = (before - after) / (2 * (before - 2 * here + after)) if before + after < 2 * here else 0.0
        shift.append((float(k) - n * (k > n // 2) + finer) * a.binning)
    return np.array(shift)


def _shifted(looks: list[_Look]) -> list[Finding]:
    pairs = [(a, b, s) for a, b in _neighbours(looks) if (s := _shift(a, b)) is not None]
    if not pairs:
        return []
    lengths = [float(np.hypot(*s)) for *_, s in pairs]
    usual = float(np.median(lengths))
    jumps = {
        _displaced(pairs, k)
        for k, ((a, b, _), length) in enumerate(zip(pairs, lengths, strict=True))
        if length > max(5.0, 3 * usual) * (b.z - a.z)
    }
    findings = _found("shifted-sections", f"shifted by up to {max(lengths):.0f} pixels, align the stack", sorted(jumps))
    if usual >= 1.5:
        message = f"neighbouring sections are shifted by {usual:.1f} pixels in the median: aligning them would help"
        findings.append(Finding("note", "alignment", message))
    return findings


def _displaced(pairs: list[tuple[_Look, _Look, NDArray[np.float64]]], k: int) -> int:
    """Return which section of a pair that jumps is displaced: the one that the next jump brings back."""
    first, second, jump = pairs[k]

    def returns(other: int) -> bool:
        inside = 0 <= other < len(pairs)
        return inside and float(np.hypot(*(pairs[other][2] + jump))) < float(np.hypot(*jump)) / 2

    return first.z if (k == 0 or returns(k - 1)) and not returns(k + 1) else second.z


def _other_anisotropy(spec: VolumeSpec, looks: list[_Look]) -> list[Finding]:
    z, y, x = spec.voxel_size
    declared, seen = z / (y * x) ** 0.5, _anisotropy(looks)
    if seen is None or 1 / 2.5 < seen / declared < 2.5:
        return []
    message = (
        f"voxel size {z:g} x {y:g} x {x:g} nm says that sections are {declared:.1f} pixels apart, "
        f"they look {seen:.1f} pixels apart: check --voxel-size and its order Z,Y,X"
    )
    return [Finding("warning", "voxel-size", message)]


def _anisotropy(looks: list[_Look]) -> float | None:
    """Return how many pixels apart sections look; None where that cannot be told.

    Tissue has no preferred direction, so sections are as far apart as the pixels within a section that
    resemble each other as little.  Sections further apart are taken where neighbours are nearly alike.
    """
    shape = looks[0].thumbnail.shape
    by_section = {look.z: look for look in looks}
    within = np.zeros(shape, np.float32)
    likeness, distance = 1.0, 0
    for lag in (1, 2, 4, 8):
        pairs = [(by_section[z], by_section[z + lag]) for z in by_section if z + lag in by_section]
        if len(pairs) < 4:
            break
        pairs = [pairs[k] for k in np.unique(np.linspace(0, len(pairs) - 1, 32).round().astype(int))]
        spectra = [(_spectrum(a), _spectrum(b)) for a, b in pairs]
        likeness, distance = float(np.median([_likeness(a, b, shape) for a, b in spectra])), lag
        if lag == 1:
            within = scipy.fft.irfft2(sum(np.abs(a) ** 2 for a, _ in spectra), s=shape)
        if likeness <= 0.8:
            break
    if distance == 0 or likeness < 0.15:
        return None
    side = min(shape) // 2
    profile = (within[:side, 0] + within[0, :side]) / (2 * within[0, 0])
    k = int(np.argmax(profile < likeness))
    if k == 0:
        return None
    pixels = k - (likeness - profile[k]) / (profile[k - 1] - profile[k])
    return float(pixels) * looks[0].binning / distance


def _likeness(a: NDArray[np.complex64], b: NDArray[np.complex64], shape: tuple[int, ...]) -> float:
    """Return the correlation of two sections, laid over each other as well as a shift can."""
    cross, *own = (scipy.fft.irfft2(p * q.conj(), s=shape) for p, q in ((b, a), (a, a), (b, b)))
    return float(cross.max() / np.sqrt(own[0][0, 0] * own[1][0, 0]))
