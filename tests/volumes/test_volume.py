import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel

from neurokube.blocks import Box
from neurokube.errors import DataError
from neurokube.volumes import VolumeSpec, create, exists, layout, open_volume, pyramid_factors

PROPERTY = settings(max_examples=50, deadline=None)

SPEC = VolumeSpec((24, 64, 64), "uint8", (40.0, 8.0, 8.0), offset=(400.0, 16.0, 8.0))
FACTORS = [(1, 1, 1), (1, 2, 2), (1, 4, 4)]


def content(spec):
    shape = spec.shape if spec.channels is None else (spec.channels, *spec.shape)
    return np.random.default_rng(0).integers(1, 255, shape).astype(spec.dtype)


@pytest.fixture
def volume(tmp_path):
    volume = create(str(tmp_path / "v.zarr"), SPEC, shard=(8, 32, 32), factors=FACTORS)
    volume.write(SPEC.box, content(SPEC))
    return volume


@pytest.fixture
def edit(volume):
    """Change the group's metadata through a function of its dictionary."""

    def change(by):
        file = Path(volume.url, "zarr.json")
        group = json.loads(file.read_text())
        by(group["attributes"])
        file.write_text(json.dumps(group))

    return change


def scales(attributes):
    return attributes["ome"]["multiscales"][0]


def refuse(action, words):
    with pytest.raises(DataError, match=words) as refusal:
        action()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint64", "float32"])
def test_a_volume_opens_as_it_was_created(tmp_path, dtype, channels, kind):
    spec = VolumeSpec((5, 20, 30), dtype, (40.0, 4.5, 4.5), (1.0, 2.5, 3.0), kind, channels)
    url = str(tmp_path / "v.zarr")
    created = create(url, spec, attributes={"fingerprint": "abc"})
    created.write(spec.box, content(spec))
    opened = open_volume(url)
    assert opened.spec == spec
    assert opened.fingerprint == "abc"
    np.testing.assert_array_equal(opened.read(spec.box), content(spec))


def test_creating_again_opens_what_is_there(volume):
    again = create(volume.url, SPEC, shard=(8, 32, 32), factors=FACTORS)
    np.testing.assert_array_equal(again.read(SPEC.box), content(SPEC))


def test_creating_over_another_volume_is_refused(volume):
    other = VolumeSpec((24, 64, 65), "uint8", SPEC.voxel_size)
    assert "[24,64,65]" in refuse(lambda: create(volume.url, other, shard=(8, 32, 32)), "cannot open the array")


def test_an_unannounced_volume_is_none_yet(tmp_path):
    url = str(tmp_path / "v.zarr")
    create(url, SPEC, announce=False)
    assert not exists(url)
    create(url, SPEC)
    assert exists(url)


def test_an_image_is_valid_ome_ngff_and_opens_with_zarr(volume):
    group = zarr.open_group(volume.url, mode="r")
    image = Image.from_zarr(group)
    assert [axis.name for axis in image.attributes.ome.multiscales[0].axes] == ["z", "y", "x"]
    np.testing.assert_array_equal(group["0"][...], content(SPEC))


def test_channels_are_valid_ome_ngff(tmp_path):
    spec = VolumeSpec((5, 20, 30), "uint8", (40.0, 4.0, 4.0), channels=2)
    volume = create(str(tmp_path / "v.zarr"), spec)
    volume.write(spec.box, content(spec))
    group = zarr.open_group(volume.url, mode="r")
    assert [axis.name for axis in Image.from_zarr(group).attributes.ome.multiscales[0].axes] == ["c", "z", "y", "x"]
    np.testing.assert_array_equal(group["0"][...], content(spec))


def test_labels_are_valid_ome_ngff_labels(tmp_path):
    spec = VolumeSpec((5, 20, 30), "uint64", (40.0, 4.0, 4.0), kind="labels")
    volume = create(str(tmp_path / "v.zarr"), spec)
    assert ImageLabel.from_zarr(zarr.open_group(volume.url, mode="r")).attributes.ome.image_label is not None


def test_every_resolution_lies_where_its_voxels_average(volume):
    datasets = Image.from_zarr(zarr.open_group(volume.url, mode="r")).attributes.ome.multiscales[0].datasets
    for level, (factor, dataset) in enumerate(zip(FACTORS, datasets, strict=True)):
        scale, translation = dataset.coordinateTransformations
        assert scale.scale == [v * f for v, f in zip(SPEC.voxel_size, factor, strict=True)]
        # the centre of the first voxel is the mean of the centres of the fine voxels below it
        centres = [np.mean(o + v * np.arange(f)) for o, v, f in zip(SPEC.offset, SPEC.voxel_size, factor, strict=True)]
        assert translation.translation == centres
        assert volume.level_shape(level) == tuple(-(-n // f) for n, f in zip(SPEC.shape, factor, strict=True))


@PROPERTY
@given(
    st.tuples(*[st.integers(1, 5000)] * 3),
    st.tuples(st.sampled_from([4.0, 8.0, 30.0, 50.0]), *[st.sampled_from([4.0, 8.0])] * 2),
)
def test_pyramids_halve_until_small_and_never_make_voxels_less_equal(shape, voxel_size):
    factors = pyramid_factors(VolumeSpec(shape, "uint8", voxel_size))
    assert factors[0] == (1, 1, 1)
    assert max(-(-n // f) for n, f in zip(shape, factors[-1], strict=True)) <= 64
    sizes = [[v * f for v, f in zip(voxel_size, factor, strict=True)] for factor in factors]
    ratios = [max(size) / min(size) for size in sizes]
    assert all(after <= max(before, 2) for before, after in pairwise(ratios))


@pytest.mark.parametrize("voxel_size", [(40.0, 4.0, 4.0), (8.0, 8.0, 8.0)])
def test_shards_hold_whole_chunks(voxel_size):
    shard, chunk = layout(VolumeSpec((1, 1, 1), "uint8", voxel_size))
    assert all(s % c == 0 for s, c in zip(shard, chunk, strict=True))


def test_zeros_are_not_stored(tmp_path):
    volume = create(str(tmp_path / "v.zarr"), SPEC, shard=(8, 32, 32))
    data = np.zeros(SPEC.shape, np.uint8)
    data[10, 40, 5] = 1
    volume.write(SPEC.box, data)
    stored = [str(p.relative_to(volume.url)) for p in Path(volume.url, "0", "c").rglob("*") if p.is_file()]
    assert stored == ["0/c/1/1/0"]
    np.testing.assert_array_equal(volume.read(SPEC.box), data)


@PROPERTY
@given(st.data())
def test_a_cut_out_of_a_cut_out_counts_from_zero_at_its_own_place(data):
    volume = create("memory://cut-outs", SPEC, shard=(8, 32, 32))
    volume.write(SPEC.box, content(SPEC))
    place = Box((0, 0, 0), (0, 0, 0))
    for _ in range(2):
        edges = [sorted(data.draw(st.sets(st.integers(0, n), min_size=2, max_size=2))) for n in volume.spec.shape]
        start, stop = zip(*edges, strict=True)
        place = Box(start, stop).shift(place.start)
        volume = volume.crop(Box(start, stop))
    np.testing.assert_array_equal(volume.read(volume.spec.box), content(SPEC)[place.slices])
    assert volume.spec.offset == tuple(
        o + a * v for o, a, v in zip(SPEC.offset, place.start, SPEC.voxel_size, strict=True)
    )


def test_a_cut_out_beyond_the_volume_is_refused(volume):
    message = refuse(lambda: volume.crop(Box((0, 0, 0), (25, 1, 1))), "is not inside the volume 0:24,0:64,0:64")
    assert message.startswith(f"{volume.url}: region 0:25,0:1,0:1")


@pytest.mark.parametrize(("unit", "nanometres"), [("micrometer", 1000), ("angstrom", 0.1), ("nanometer", 1)])
def test_units_become_nanometres(volume, edit, unit, nanometres):
    edit(lambda attributes: [axis.update(unit=unit) for axis in scales(attributes)["axes"]])
    spec = open_volume(volume.url).spec
    assert spec.voxel_size == tuple(v * nanometres for v in SPEC.voxel_size)
    assert spec.offset == tuple(o * nanometres for o in SPEC.offset)


def test_a_transformation_of_all_resolutions_comes_after_that_of_the_finest(volume, edit):
    common = [{"type": "scale", "scale": [2, 2, 2]}, {"type": "translation", "translation": [1, 2, 3]}]
    edit(lambda attributes: scales(attributes).update(coordinateTransformations=common))
    spec = open_volume(volume.url).spec
    assert spec.voxel_size == (80.0, 16.0, 16.0)
    assert spec.offset == (801.0, 34.0, 19.0)


def test_a_missing_volume_says_how_to_make_one(tmp_path):
    url = str(tmp_path / "none.zarr")
    assert refuse(lambda: open_volume(url), "make one with 'neurokube import").startswith(f"{url}: no volume there")


@pytest.mark.parametrize("names", ["xyz", "yx", "ctzyx", "cxyz"])
def test_foreign_axes_are_refused(volume, edit, names):
    edit(lambda attributes: scales(attributes).update(axes=[{"name": name} for name in names]))
    refuse(lambda: open_volume(volume.url), f"axes are {', '.join(names)}; they must be z, y, x or c, z, y, x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("ome"), "'ome' is missing"),
        (lambda a: a["ome"].pop("multiscales"), "'multiscales' is missing"),
        (lambda a: scales(a).update(datasets=[]), "malformed"),
        (lambda a: a.update(ome=None), "malformed"),
        (lambda a: [axis.update(unit="parsec") for axis in scales(a)["axes"]], "unknown unit 'parsec'; correct it"),
        (lambda a: scales(a)["datasets"][0]["coordinateTransformations"][0].update(scale=[1, 1]), "malformed"),
        (lambda a: scales(a)["datasets"][0]["coordinateTransformations"][0].update(scale=[0, 8, 8]), "above 0"),
        (lambda a: scales(a)["datasets"][0]["coordinateTransformations"][0].update(type="affine"), "'affine' is"),
        (lambda a: a["neurokube"].update(kind="sound"), "kind is 'sound'; correct it to image or labels"),
        (lambda a: scales(a).update(axes=[{"name": "c"}, *scales(a)["axes"]]), "malformed"),
    ],
)
def test_metadata_that_cannot_be_understood_names_the_file(volume, edit, change, words):
    edit(change)
    assert refuse(lambda: open_volume(volume.url), words).startswith(f"{volume.url}/zarr.json: ")


@pytest.mark.parametrize("damage", ["", "{", "[]", '"text"', "{}"])
@pytest.mark.parametrize("file", ["zarr.json", "0/zarr.json"])
def test_damaged_metadata_names_the_file(volume, file, damage):
    Path(volume.url, file).write_text(damage)
    assert f"{volume.url}/{file}" in refuse(lambda: open_volume(volume.url), ": ")


def test_a_missing_resolution_is_named(volume):
    Path(volume.url, "1", "zarr.json").unlink()
    assert f"{volume.url}/1/zarr.json" in refuse(lambda: open_volume(volume.url), "does not exist")


def test_an_array_of_other_axes_than_announced_is_refused(volume, tmp_path):
    flat = zarr.create_array(tmp_path / "flat", shape=(4, 4), dtype="uint8")
    Path(volume.url, "0", "zarr.json").write_bytes((Path(str(flat.store_path.store.root)) / "zarr.json").read_bytes())
    refuse(lambda: open_volume(volume.url), "has 2 axes, not the 3 that .*; correct one of them")


@pytest.mark.parametrize("place", [0, 100, 5000, -1])
def test_a_changed_byte_in_a_shard_is_noticed_and_the_file_named(volume, place):
    file = Path(volume.url, "0", "c", "1", "0", "1")
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(data)
    box = Box((8, 0, 32), (16, 32, 64))
    assert str(file) in refuse(lambda: open_volume(volume.url).read(box), "restore the file, or make the volume anew")
    other = Box((0, 0, 0), (8, 32, 32))
    np.testing.assert_array_equal(open_volume(volume.url).read(other), content(SPEC)[other.slices])


@pytest.mark.parametrize("kept", [0, 10, 100, -1])
def test_a_truncated_shard_is_noticed_and_the_file_named(volume, kept):
    file = Path(volume.url, "0", "c", "0", "0", "0")
    file.write_bytes(file.read_bytes()[:kept])
    box = Box((0, 0, 0), (8, 32, 32))
    assert str(file) in refuse(lambda: open_volume(volume.url).read(box), "restore the file, or make the volume anew")


def test_a_file_and_what_has_not_ended_are_told_from_nothing(tmp_path):
    (tmp_path / "raw.tif").write_bytes(b"")
    with pytest.raises(DataError, match=r"a file, no volume; make .* 'neurokube import \S+raw.tif raw.zarr'"):
        open_volume(str(tmp_path / "raw.tif"))
    (tmp_path / "a.zarr.partial").mkdir()
    for name in ("a.zarr", "a.zarr.partial"):
        with pytest.raises(DataError, match="an import or export has not ended; give the same command again"):
            open_volume(str(tmp_path / name))
