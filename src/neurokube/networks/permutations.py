"""Flips and quarter turns of a window that its voxels allow."""

from itertools import product

import numpy as np

from ..blocks import Vector
from ..blocks.blending import Array

Permutation = tuple[tuple[int, int, int], tuple[int, ...]]
"""An order of the axes, then the axes that are flipped, both of (z, y, x)."""

_SAME = 0.03


def permutations(voxel_size: tuple[float, float, float], window: Vector) -> tuple[Permutation, ...]:
    """Return the up to 16 permutations under which a window of these voxels looks like tissue again.

    y and x change places where pixels are square and the window is; z never does, since few volumes are
    as sharp along z as across.  The first is the identity; of the first n, the whole set of flips comes
    before turns, so that few permutations already see both sides of each axis.
    """
    _, y, x = voxel_size
    orders = [(0, 1, 2)]
    if abs(y / x - 1) <= _SAME and window[1] == window[2]:
        orders.append((0, 2, 1))
    flips = [tuple(axis for axis, on in zip((2, 1, 0), bits, strict=True) if on) for bits in product((0, 1), repeat=3)]
    flips.sort(key=lambda f: (0 in f, len(f) == 1, f))
    return tuple((order, flip) for flip in flips for order in orders)


def permute(array: Array, permutation: Permutation) -> Array:
    """Return ([c,] z, y, x) with its last three axes permuted; of a NumPy array a view."""
    order, flips = permutation
    lead = array.ndim - 3
    return _flipped(_transposed(array, (*range(lead), *(lead + axis for axis in order))), flips)


def restore(array: Array, permutation: Permutation, factor: int = 1) -> Array:
    """Undo `permute`; of a NumPy array a view where there are as many sections as before.

    Where each section has become `factor`, the new ones follow the old one in the permuted array, so that after a
    flip along z they come before it: all move until the old ones are in their places.  The last `factor` - 1, which
    have no section after them, are then another's, and of no use.
    """
    order, flips = permutation
    lead = array.ndim - 3
    turned = _flipped(array, flips)
    if factor > 1 and 0 in flips:
        turned = np.roll(turned, 1 - factor, lead) if isinstance(turned, np.ndarray) else turned.roll(1 - factor, lead)
    inverse = np.argsort(order)
    return _transposed(turned, (*range(lead), *(lead + int(axis) for axis in inverse)))


def _transposed(array: Array, order: tuple[int, ...]) -> Array:
    return array.transpose(order) if isinstance(array, np.ndarray) else array.permute(order)


def _flipped(array: Array, flips: tuple[int, ...]) -> Array:
    axes = tuple(array.ndim - 3 + axis for axis in flips)
    if not axes:
        return array
    return np.flip(array, axes) if isinstance(array, np.ndarray) else array.flip(axes)
