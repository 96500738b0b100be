from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurokube.blocks import Box
from neurokube.volumes import Volume, VolumeSpec, create, pyramid_factors
from neurokube.volumes.pyramids import downsample, fill_level

FACTORS = st.sampled_from([(1, 2, 2), (2, 2, 2), (1, 1, 1), (2, 1, 1), (3, 2, 1)])
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=7)


def naive(block, factor, kind):
    out = np.empty([-(-n // f) for n, f in zip(block.shape, factor, strict=True)], block.dtype)
    for index in np.ndindex(out.shape):
        cell = block[tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factor, strict=True))].ravel().tolist()
        if kind == "image":
            out[index] = (2 * sum(cell) + len(cell)) // (2 * len(cell))
        else:
            counts = Counter(cell)
            out[index] = min(label for label, n in counts.items() if n == max(counts.values()))
    return out


@given(hnp.arrays(st.sampled_from([np.uint8, np.uint32, np.uint64]), SHAPES, elements=st.integers(0, 3)), FACTORS)
def test_labels_take_the_most_frequent_and_then_the_smallest_value(block, factor):
    np.testing.assert_array_equal(downsample(block, factor, "labels"), naive(block, factor, "labels"))


@given(
    st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32]).flatmap(
        lambda dtype: hnp.arrays(dtype, SHAPES)
    ),
    FACTORS,
)
def test_images_take_the_exact_mean_rounded_half_up(block, factor):
    np.testing.assert_array_equal(downsample(block, factor, "image"), naive(block, factor, "image"))


def test_float_images_take_the_mean():
    block = np.random.default_rng(0).random((4, 6, 8), np.float32)
    expected = block.reshape(2, 2, 3, 2, 4, 2).mean((1, 3, 5))
    np.testing.assert_allclose(downsample(block, (2, 2, 2), "image"), expected, rtol=1e-6)


def test_labels_of_64_bits_keep_every_bit():
    label = 2**64 - 3
    block = np.array([[[label, label], [label, 1]]], np.uint64)
    assert downsample(block, (1, 2, 2), "labels").item() == label


def test_an_image_whose_sum_could_overflow_is_refused():
    with pytest.raises(ValueError, match="overflow"):
        downsample(np.zeros((2, 2, 2), np.int64), (2, 2, 2), "image")


def test_channels_are_reduced_one_by_one():
    block = np.random.default_rng(0).integers(0, 255, (2, 3, 5, 4), np.uint8)
    expected = np.stack([downsample(channel, (2, 2, 2), "image") for channel in block])
    np.testing.assert_array_equal(downsample(block, (2, 2, 2), "image"), expected)


@settings(max_examples=40)
@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=9), elements=st.integers(0, 3)),
    st.sampled_from(["image", "labels"]),
    st.tuples(*[st.integers(0, 8)] * 3),
)
def test_result_does_not_depend_on_the_cut(block, kind, cut):
    whole = downsample(block, (2, 2, 2), kind)
    pieces = np.empty_like(whole)
    ranges = [((0, min(2 * c, n)), (min(2 * c, n), n)) for c, n in zip(cut, block.shape, strict=True)]
    for sides in product(*ranges):
        if all(b > a for a, b in sides):
            target = tuple(slice(a // 2, -(-b // 2)) for a, b in sides)
            pieces[target] = downsample(block[tuple(slice(a, b) for a, b in sides)], (2, 2, 2), kind)
    np.testing.assert_array_equal(pieces, whole)


def filled(folder: Path, data: np.ndarray, kind: str, side: int) -> Volume:
    spec = VolumeSpec(data.shape, data.dtype.name, (40.0, 10.0, 10.0), kind=kind)
    volume = create(str(folder), spec, shard=(8, 8, 8), chunk=(4, 4, 4), factors=pyramid_factors(spec, smallest=4))
    volume.write(spec.box, data)
    for level in range(1, len(volume.arrays)):
        shape = volume.level_shape(level)
        for start in product(*(range(0, n, side) for n in shape)):
            box = Box(start, tuple(s + side for s in start)).clip(Box.of(shape))
            fill_level(volume, level, box)
    return volume


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_levels_do_not_depend_on_the_boxes_they_are_filled_by(tmp_path, kind):
    data = np.random.default_rng(1).integers(0, 4, (9, 21, 30), np.uint8)
    one, other = (filled(tmp_path / str(side), data, kind, side) for side in (8, 24))
    factors = pyramid_factors(one.spec, smallest=4)
    assert factors[1] == (1, 2, 2)
    for level in range(1, len(one.arrays)):
        box = Box.of(one.level_shape(level))
        np.testing.assert_array_equal(one.read(box, level), other.read(box, level))
        step = tuple(b // a for a, b in zip(factors[level - 1], factors[level], strict=True))
        finer = one.read(Box.of(one.level_shape(level - 1)), level - 1)
        np.testing.assert_array_equal(one.read(box, level), downsample(finer, step, kind))
