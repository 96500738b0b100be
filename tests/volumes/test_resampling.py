"""Resampling onto another voxel size does not depend on how a volume is cut."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neurokube.blocks import Box
from neurokube.networks.permutations import permutations, permute, restore
from neurokube.volumes.resampling import Resampling

sides = st.integers(1, 12)
shapes = st.tuples(sides, sides, sides)
scales = st.tuples(*3 * [st.sampled_from([1.0, 0.4, 0.61, 0.8, 1.25, 1.7, 2.0, 3.0])])


def resampled(values, resampling, box):
    return resampling.linear(values[(..., *resampling.needed(box).slices)], box)


def noise(shape):
    return np.random.default_rng(0).normal(100, 40, shape).astype(np.float32)


@given(shapes, scales, st.data())
def test_a_box_has_the_bits_of_the_whole(shape, scale, data):
    resampling = Resampling(shape, scale)
    values = noise((2, *shape))
    whole = Box.of(resampling.new_shape)
    start = [data.draw(st.integers(0, n - 1)) for n in whole.stop]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, whole.stop, strict=True)]
    box = Box(tuple(start), tuple(stop))
    assert np.array_equal(resampled(values, resampling, box), resampled(values, resampling, whole)[(..., *box.slices)])
    needed = resampling.needed(box)
    nearest = resampling.nearest(values[(..., *needed.slices)], box)
    assert np.array_equal(nearest, resampling.nearest(values, whole)[(..., *box.slices)])


@given(shapes, scales, st.floats(0, 255, width=32, allow_subnormal=False))
def test_a_constant_stays_what_it_is(shape, scale, value):
    resampling = Resampling(shape, scale)
    found = resampled(np.full(shape, value, np.float32), resampling, Box.of(resampling.new_shape))
    assert found.shape == resampling.new_shape
    assert np.allclose(found, value, rtol=1e-6, atol=0)


@given(shapes)
def test_the_same_voxel_size_changes_nothing(shape):
    resampling = Resampling.between(shape, (40.0, 8.0, 8.0), (40.5, 8.1, 7.9))
    assert resampling.is_identity
    assert resampling.new_shape == shape
    values = noise(shape)
    assert np.array_equal(resampled(values, resampling, Box.of(shape)), values)


@given(st.sampled_from([0.4, 0.61, 0.8, 1.25, 1.7, 2.0]), st.integers(0, 2))
def test_a_ramp_stays_one_where_voxels_become_smaller_and_nearly_so_where_larger(scale, axis):
    shape = [24 if a == axis else 2 for a in range(3)]
    resampling = Resampling(tuple(shape), tuple(scale if a == axis else 1.0 for a in range(3)))
    ramp = np.arange(24, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    values = np.broadcast_to(ramp, shape)
    found = np.moveaxis(resampled(values, resampling, Box.of(resampling.new_shape)), axis, 0)[:, 0, 0]
    middle = (np.arange(len(found)) + 0.5) * scale - 0.5
    reach = max(1, scale)
    inner = (middle > reach) & (middle < 23 - reach)
    assert inner.sum() > 5
    # a triangle that is wider than a voxel and cut at whole ones leans a little to a side
    assert np.abs(found - middle)[inner].max() < (1e-4 if scale <= 1 or scale == 2 else 0.2)


@given(shapes, scales)
def test_there_and_back_covers_the_volume(shape, scale):
    assume(all(s <= n for s, n in zip(scale, shape, strict=True)))
    resampling = Resampling(shape, scale)
    needed = resampling.inverse.needed(Box.of(shape))
    assert resampling.new_shape == resampling.inverse.shape
    assert Box.of(resampling.new_shape).contains(needed)


@given(arrays(np.uint8, (2, 3, 4, 4)), st.integers(0, 15))
def test_restoring_undoes_permuting(values, number):
    permutation = permutations((40.0, 8.0, 8.0), (3, 4, 4))[number]
    assert np.array_equal(restore(permute(values, permutation), permutation), values)


def test_no_two_permutations_are_the_same():
    values = np.arange(3 * 4 * 4).reshape(3, 4, 4)
    seen = {permute(values, p).tobytes() for p in permutations((40.0, 8.0, 8.0), (3, 4, 4))}
    assert len(seen) == 16
