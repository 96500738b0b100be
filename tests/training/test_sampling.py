import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.errors import DataError
from neurokube.networks.normalization import Normalization
from neurokube.training.config import Augmentation
from neurokube.training.sampling import Ahead, Windows
from neurokube.training.truth import Annotated

SHAPE, WINDOW = (6, 20, 24), (2, 8, 8)
IDENTITY = Normalization(mean=0, deviation=1)


def annotated(positive, known=None, *, image=None, weight=1.0):
    known = np.full(positive.shape, 2**24 - 1, np.uint32) if known is None else known
    image = np.zeros(positive.shape, np.uint8) if image is None else image
    return Annotated("image", image, positive & known, known, IDENTITY, (10.0, 10.0, 10.0), weight)


def windows(*volumes, labels=1, window=WINDOW, seed=0, balance=0.5, augmentation=None):
    made = Windows(volumes, labels, window, seed=seed, balance=balance, augmentation=augmentation)
    made.count = 1000
    return made


def blob(shape=SHAPE, voxel=(4, 3, 20), bit=0):
    positive = np.zeros(shape, np.uint32)
    positive[voxel] = 1 << bit
    return positive


@settings(max_examples=20)
@given(st.tuples(*(st.integers(w, w + 9) for w in WINDOW)), st.integers(0, 99))
def test_every_window_is_a_part_of_the_volume(shape, seed):
    # the truth of 24 labels holds each voxel's number, from 1 on
    numbers = np.arange(1, np.prod(shape) + 1, dtype=np.uint32).reshape(shape)
    made = windows(annotated(numbers), labels=24, seed=seed)
    for index in range(5):
        _, truth, known = made[index]
        bits = truth.numpy().astype(np.uint32) << np.arange(24, dtype=np.uint32)[:, None, None, None]
        found = bits.sum(0)
        corner = np.unravel_index(int(found[0, 0, 0]) - 1, shape)
        expected = numbers[tuple(slice(c, c + w) for c, w in zip(corner, WINDOW, strict=True))]
        assert np.array_equal(found, expected) and known.all()


def test_balance_is_the_share_of_windows_that_are_placed_on_a_label():
    shape = (12, 80, 80)
    volume = annotated(blob(shape))
    shares = []
    for balance in (0.0, 0.5, 1.0):
        made = windows(volume, balance=balance)
        shares.append(np.mean([bool(made[n][1].any()) for n in range(200)]))
    assert shares[0] < 0.05 and 0.4 < shares[1] < 0.6 and shares[2] == 1


def test_rare_labels_come_as_often_as_common_ones():
    shape = (12, 80, 80)
    positive = blob(shape, (1, 10, 10))
    positive[:, 40:] |= 2
    made = windows(annotated(positive), labels=2, balance=1.0)
    rare = np.mean([bool(made[n][1][0].any()) for n in range(200)])
    assert 0.4 < rare < 0.6


def test_other_windows_lie_where_something_is_annotated():
    known = np.zeros((12, 80, 80), np.uint32)
    known[5, 30:40, 30:40] = 1
    made = windows(annotated(np.zeros_like(known), known), balance=0.0)
    assert all(made[n][2].any() for n in range(50))


def test_volumes_are_drawn_by_their_weights():
    bright = np.full(SHAPE, 200, np.uint8)
    made = windows(annotated(blob(), weight=1.0), annotated(blob(), image=bright, weight=3.0))
    share = np.mean([float(made[n][0].max()) > 0 for n in range(400)])
    assert 0.7 < share < 0.8


def test_a_window_is_the_same_whoever_asks_for_it():
    image = np.random.default_rng(0).integers(1, 255, SHAPE).astype(np.uint8)
    volume = annotated(blob(), image=image)
    one, other = (windows(volume, augmentation=Augmentation(), seed=7) for _ in range(2))
    other[3], other[900]
    other.first = 30
    for mine, theirs in zip(one[42], other[12], strict=True):
        assert np.array_equal(mine, theirs)
    assert not np.array_equal(one[42][0], one[43][0])
    another = windows(volume, augmentation=Augmentation(), seed=8)
    assert not np.array_equal(one[42][0], another[42][0])


@pytest.mark.parametrize(("first", "step"), [(0, 1), (1, 2), (2, 3)])
def test_windows_that_threads_prepare_are_the_same_in_the_same_order(first, step):
    image = np.random.default_rng(0).integers(1, 255, SHAPE).astype(np.uint8)
    made = windows(annotated(blob(), image=image), augmentation=Augmentation())
    made.first, made.count = 7, 11
    ahead = Ahead(made, step, 3)
    assert len(ahead) == 11
    threads = torch.get_num_threads()
    for index in range(first, 11, step):
        assert all(torch.equal(a, b) for a, b in zip(ahead[index], made[index], strict=True))
    assert torch.get_num_threads() == threads


def test_what_lies_outside_the_volume_is_unknown():
    volume = annotated(np.ones(WINDOW, np.uint32), image=np.full(WINDOW, 100, np.uint8))
    made = windows(volume, augmentation=Augmentation(rotation=45, elastic=0, scale=0))
    shares = []
    for n in range(10):
        image, truth, known = made[n]
        assert np.isfinite(image.numpy()).all()
        assert np.array_equal(truth, known)
        shares.append(float(known.mean()))
    assert 0.5 < np.mean(shares) < 0.99


def test_volume_smaller_than_a_window_is_refused():
    with pytest.raises(DataError, match=r"too few for a window of \(8, 8, 8\)"):
        windows(annotated(blob()), window=(8, 8, 8))
