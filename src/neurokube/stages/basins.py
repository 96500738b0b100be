"""Basins: a watershed by steepest descent, whose shallow and small basins are merged over their lowest saddles.

Every voxel points to the lowest of itself and its face neighbours; following the pointers leads to a minimum, and
all that leads to one is its basin (drops of water: Cousty et al., IEEE PAMI 32:925, 2010; for neurons Zlateski &
Seung, arXiv:1505.00249, 2015).  Voxels are ordered by (height, position), so no two are equal and no tie is open.
The saddle of two basins is the lowest height at which one can be left for the other.  A basin shallower than
`depth`, measured from its minimum to its lowest saddle, or smaller than `smallest`, joins the neighbour behind that
saddle, again and again: minima get the dynamics of mathematical morphology (Grimaud, SPIE 1769, 1992).

    height  ╲     ╱╲   ╱╲        ╱        the middle basin is shallower than `depth`:
             ╲   ╱  ╲_╱  ╲      ╱         it joins over the lower of its two saddles,
              ╲_╱         ╲____╱          which here is that to the right

There is no queue: all of it is a few passes over arrays and sorting, on whole numbers only.
"""

import numpy as np
from numpy.typing import NDArray

LEVELS = 1 << 13
"""Heights are below this; three more bits of 16 name the neighbour that is the lowest."""

_SELF = 3
_STAY = np.uint16(_SELF)


def basins(
    height: NDArray[np.uint16], mask: NDArray[np.bool_] | None, *, flat: bool, depth: int, smallest: int
) -> NDArray[np.uint32]:
    """Return the basins of a height (z, y, x), numbered 1, 2, ... in the order of their first minima; 0 outside `mask`.

    Each basin is connected across faces, `flat` ones within their section.  Heights are below `LEVELS`.
    """
    if mask is not None:
        height = np.where(mask, np.minimum(height, LEVELS - 2), LEVELS - 1).astype(np.uint16)
    labels, minima = _descend(height, mask, flat)
    outside = 0 if mask is None else 1
    first, second, saddle = _saddles(labels, height, flat)
    if outside:
        real = first > 0
        first, second, saddle = first[real] - 1, second[real] - 1, saddle[real]
    sizes = np.bincount(labels.ravel(), minlength=len(minima) + outside)[outside:]
    merged = _merge(first, second, saddle, minima, sizes, depth, smallest).astype(np.uint32) + np.uint32(1)
    if outside:
        merged = np.concatenate([np.zeros(1, np.uint32), merged])
    return merged.take(labels)


def _along(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the voxels that have a neighbour after them along an axis, and those neighbours."""
    lower = tuple(slice(0, -1) if a == axis else slice(None) for a in range(3))
    upper = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    return lower, upper


def _descend(
    height: NDArray[np.uint16], mask: NDArray[np.bool_] | None, flat: bool
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the number of the basin of each voxel and the height of each minimum.

    Without a mask basins count from 0; with one from 1, and 0 is outside.
    """
    # key = height and direction, in the order of positions: of equal heights that of the lowest position is least
    key = height << np.uint16(3)
    least = key | _STAY
    for axis in range(1 if flat else 0, 3):
        lower, upper = _along(axis)
        np.minimum(least[upper], key[lower] | np.uint16(axis), out=least[upper])
        np.minimum(least[lower], key[upper] | np.uint16(2 * _SELF - axis), out=least[lower])
    least &= np.uint16(7)
    direction = least.ravel()
    _, ny, nx = height.shape
    offsets = np.array([-ny * nx, -nx, -1, 0, 1, nx, ny * nx], np.int32)
    target = offsets.take(direction)
    target += np.arange(height.size, dtype=np.int32)
    while True:
        further = target.take(target)
        if np.array_equal(further, target):
            break
        target = further
    bottom = direction == _SELF
    if mask is not None:
        bottom &= mask.ravel()
    places = np.flatnonzero(bottom)
    outside = 0 if mask is None else 1
    numbers = np.zeros(height.size, np.uint32)
    numbers[places] = np.arange(outside, len(places) + outside, dtype=np.uint32)
    labels = numbers.take(target).reshape(height.shape)
    if mask is not None:
        labels[~mask] = 0
    return labels, height.ravel()[places].astype(np.int64)


def _saddles(
    labels: NDArray[np.uint32], height: NDArray[np.uint16], flat: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs of basins that touch, first < second, sorted, and the height of the saddle of each."""
    pairs, lows = [], []
    for axis in range(1 if flat else 0, 3):
        # voxel by voxel along an axis within the face between two basins, so that the same pair comes again and again
        turned = [np.ascontiguousarray(a.swapaxes(1, 2)) if axis == 2 else a for a in (labels, height)]
        lower, upper = _along(1 if axis == 2 else axis)
        every, heights = (a.ravel() for a in turned)
        differ = np.zeros(turned[0].shape, bool)
        np.not_equal(turned[0][lower], turned[0][upper], out=differ[lower])
        here = np.flatnonzero(differ)
        there = here + turned[0].strides[0 if axis == 0 else 1] // turned[0].itemsize
        one, other = every.take(here), every.take(there)
        pair = np.minimum(one, other).astype(np.uint64) << np.uint64(25)
        pair |= np.maximum(one, other)
        run = np.flatnonzero(np.concatenate([np.ones(min(1, len(pair)), bool), pair[1:] != pair[:-1]]))
        pairs.append(pair[run])
        lows.append(np.minimum.reduceat(np.maximum(heights.take(here), heights.take(there)), run) if len(run) else run)
    key = (np.concatenate(pairs) << np.uint64(13)) | np.concatenate(lows).astype(np.uint64)
    key.sort()
    pair = key >> np.uint64(13)
    lowest = np.ones(len(key), bool)
    np.not_equal(pair[1:], pair[:-1], out=lowest[1:])
    pair, saddle = pair[lowest], (key[lowest] & np.uint64(LEVELS - 1)).astype(np.int64)
    return (pair >> np.uint64(25)).astype(np.int64), (pair & np.uint64((1 << 25) - 1)).astype(np.int64), saddle


def _merge(
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    saddle: NDArray[np.int64],
    minima: NDArray[np.int64],
    sizes: NDArray[np.int64],
    depth: int,
    smallest: int,
) -> NDArray[np.int64]:
    """Return the merged basin of each basin, numbered from 0 in the order of their first."""
    from bioimage_cpp.utils import UnionFind

    merged = np.arange(len(minima))
    order = np.lexsort((second, first, saddle))
    first, second, saddle = first[order], second[order], saddle[order]
    while len(first):
        # of the pairs in ascending order the first one that names a basin is over its lowest saddle
        lowest = np.full(len(minima), -1)
        lowest[np.stack([first, second], axis=1)[::-1].ravel()] = np.repeat(np.arange(len(first))[::-1], 2)
        basin = np.flatnonzero(lowest >= 0)
        over = lowest[basin]
        shallow = (saddle[over] - minima[basin] <= depth) | (sizes[basin] < smallest)
        if not shallow.any():
            break
        over = np.unique(over[shallow])
        sets = UnionFind(len(minima))
        sets.merge(np.stack([first[over], second[over]], axis=1).astype(np.uint64))
        _, number = np.unique(sets.element_labeling(), return_inverse=True)
        count = int(number.max()) + 1
        low = np.full(count, LEVELS)
        np.minimum.at(low, number, minima)
        minima, sizes = low, np.bincount(number, sizes, count).astype(np.int64)
        merged, first, second = number[merged], number[first], number[second]
        apart = first != second
        first, second, saddle = first[apart], second[apart], saddle[apart]
    _, start, number = np.unique(merged, return_index=True, return_inverse=True)
    rank = np.empty(len(start), np.int64)
    rank[np.argsort(start)] = np.arange(len(start))
    return rank[number]
