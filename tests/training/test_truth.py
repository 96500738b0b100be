import numpy as np
import pytest
import tifffile
from blobs import blobs, write
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.errors import ConfigurationError, DataError
from neurokube.training.config import AnnotatedVolume
from neurokube.training.truth import MOST_LABELS, borders, load
from neurokube.volumes.annotations.annotation import import_annotation

CUBIC, FLAT = (10.0, 10.0, 10.0), (40.0, 8.0, 8.0)
SHAPE = (8, 48, 48)


def loaded(image, truth, labels=("blob",), voxel_size=CUBIC, *, scratch=None, context=(0, 0, 0), **fields):
    entry = AnnotatedVolume.model_validate({"image": image, "truth": truth, **fields})
    return load(entry, labels, voxel_size, scratch=scratch and str(scratch), context=context)


@pytest.fixture
def image(tissue):
    return tissue["image"]


@pytest.fixture
def mask():
    return blobs(0)[1].astype(bool)


def slow_borders(labels, voxel_size, thickness):
    """Return borders by comparing each voxel with each voxel at a border."""
    flat = voxel_size[0] / min(voxel_size[1:]) >= 3
    size = np.array(voxel_size)
    voxels = list(np.ndindex(labels.shape))
    beside = [(0, 1, 0), (0, 0, 1)] if flat else [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    edge = set()
    for voxel in voxels:
        for step in beside:
            other = tuple(a + b for a, b in zip(voxel, step, strict=True))
            if all(o < n for o, n in zip(other, labels.shape, strict=True)) and labels[voxel] != labels[other]:
                edge |= {voxel, other}
    found = np.zeros(labels.shape, bool)
    for voxel in voxels:
        distances = [
            np.linalg.norm((np.array(voxel) - e) * size) for e in edge if voxel in edge or not flat or e[0] == voxel[0]
        ]
        limit = thickness / 2 - min(voxel_size[1:]) / 2
        found[voxel] = voxel in edge or any(d <= limit + 1e-9 for d in distances)
    return found


@settings(max_examples=8)
@given(st.integers(0, 999), st.sampled_from([CUBIC, FLAT, (20.0, 10.0, 15.0)]), st.sampled_from([4.0, 30.0, 45.0]))
def test_borders_are_within_half_the_thickness_of_another_instance(seed, voxel_size, thickness):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.repeat(random.integers(0, 3, (3, 2, 2)), 4, 1), 4, 2)
    labels[random.integers(3)] = 1
    expected = slow_borders(labels, voxel_size, thickness)
    assert np.array_equal(borders(labels, voxel_size, thickness), expected)


@pytest.mark.parametrize("voxel_size", [CUBIC, FLAT])
def test_where_there_is_one_instance_there_is_no_border(voxel_size):
    assert not borders(np.ones((3, 8, 8), int), voxel_size, 100.0).any()


def test_borders_of_instances_are_truth(tissue, tmp_path):
    instances = np.ones(SHAPE, np.uint32)
    instances[:, :, 24:] = 7
    path = write(tmp_path / "cells.zarr", instances)
    found = loaded(tissue["image"], {"membrane": {"boundaries_of": path, "thickness": 40}}, ["membrane"])
    assert np.flatnonzero(found.positive[0, 0]).tolist() == [22, 23, 24, 25] and found.known.all()


def test_a_label_is_all_but_zero_or_the_values_that_are_named(image, tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, :10], labels[:, 10:20] = 3, 9
    path = write(tmp_path / "labels.zarr", labels)
    truth = {"any": path, "nine": {"volume": path, "values": [9]}, "some": {"volume": path, "unlabelled": [3]}}
    found = loaded(image, truth, ["any", "nine", "some"])
    assert np.array_equal(found.positive & 1, labels != 0)
    assert np.array_equal(found.positive >> 1 & 1, labels == 9)
    assert np.array_equal(found.positive >> 2, labels == 9)
    assert np.array_equal(found.known >> 2, labels != 3)
    assert (found.known & 3 == 3).all()


def test_imported_annotation_is_placed_and_its_names_are_values(image, tmp_path):
    painted = np.zeros((3, 10, 12), np.uint8)
    painted[:, 2:8, 2:10] = 1
    painted[1, 4:6, 4:6] = 2
    tifffile.imwrite(tmp_path / "painted.tif", painted, photometric="minisblack")
    path = str(tmp_path / "painted.zarr")
    names = {1: "background", 2: "blob"}
    import_annotation(str(tmp_path / "painted.tif"), path, image=image, offset=(2, 20, 30), names=names, quiet=True)
    whole = np.zeros(SHAPE, np.uint8)
    whole[2:5, 20:30, 30:42] = painted
    for value in (2, "blob"):
        found = loaded(image, {"blob": {"volume": path, "values": [value]}})
        assert np.array_equal(found.positive, whole == 2)
        assert np.array_equal(found.known, whole != 0)
    with pytest.raises(DataError, match="nothing in it is named 'nucleus'; it has background, blob"):
        loaded(image, {"blob": {"volume": path, "values": ["nucleus"]}})


def test_truth_of_a_region_with_context_is_known_in_the_region_only(image, tissue, mask):
    found = loaded(image, {"blob": tissue["blob"]}, region="2:5,10:30,10:40", context=(1, 4, 20))
    assert found.shape == (5, 28, 48)
    known = np.zeros(SHAPE, bool)
    known[2:5, 10:30, 10:40] = True
    around = (slice(1, 6), slice(6, 34), slice(None))
    assert np.array_equal(found.known, known[around])
    assert np.array_equal(found.positive, (known & mask)[around])
    assert found.image.shape == found.shape and found.middle == 2


def test_truth_is_resampled_with_its_image(tissue, mask):
    found = loaded(tissue["image"], {"blob": tissue["blob"]}, voxel_size=(10.0, 20.0, 20.0))
    assert found.shape == (8, 24, 24) and found.voxel_size == (10.0, 20.0, 20.0)
    bright, marked = found.image > 130, found.positive == 1
    assert (bright & marked).sum() / (bright | marked).sum() > 0.8
    assert abs(found.positive.mean() - mask.mean()) < 0.02


def test_scratch_gives_the_same_as_memory_and_is_used_again(tissue, tmp_path):
    image, mask = blobs(3)
    paths = write(tmp_path / "image.zarr", image, "image"), write(tmp_path / "blob.zarr", mask)
    scratch = tmp_path / "scratch"
    plain = loaded(paths[0], {"blob": paths[1]})
    for _ in range(2):
        cached = loaded(paths[0], {"blob": paths[1]}, scratch=scratch)
        for name in ("image", "positive", "known"):
            assert np.array_equal(getattr(plain, name), getattr(cached, name))
            assert isinstance(getattr(cached, name), np.memmap)
        (folder,) = scratch.iterdir()
        times = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(times) == 3
    loaded(paths[0], {"blob": paths[1]}, scratch=scratch)
    assert times == {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_scratch_notices_that_the_truth_was_changed(image, tmp_path):
    first = np.zeros(SHAPE, np.uint8)
    first[2] = 1
    truth = write(tmp_path / "blob.zarr", first)
    assert loaded(image, {"blob": truth}, scratch=tmp_path / "scratch").positive[2].all()
    write(tmp_path / "blob.zarr", 1 - first)
    assert not loaded(image, {"blob": truth}, scratch=tmp_path / "scratch").positive[2].any()


def test_too_many_labels_are_refused(image, tissue):
    labels = [f"label{n}" for n in range(MOST_LABELS + 10)]
    with pytest.raises(ConfigurationError, match=f"at most {MOST_LABELS}"):
        loaded(image, dict.fromkeys(labels, tissue["blob"]), labels)


def test_counts_are_those_of_known_voxels(image, tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[0], labels[1] = 1, 2
    path = write(tmp_path / "labels.zarr", labels)
    found = loaded(image, {"blob": {"volume": path, "values": [1], "unlabelled": [0]}}, ["blob", "other"])
    assert found.counts(2).tolist() == [[48 * 48, 48 * 48], [0, 0]]
