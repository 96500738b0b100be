import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neurokube.errors import UsageError
from neurokube.volumes import VolumeSpec
from neurokube.volumes.files import WRITERS, writing
from neurokube.volumes.sources import open_source

NO_OFFSET = ("tiff", "tiff-stack", "vast")


def voxels(spec: VolumeSpec, seed: int = 0) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    rng = np.random.default_rng(seed)
    shape = spec.shape if spec.channels is None else (spec.channels, *spec.shape)
    if dtype.kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    limits = np.iinfo(dtype)
    low = 0 if spec.kind == "labels" else limits.min
    data = rng.integers(low, limits.max, shape, dtype, endpoint=True)
    if spec.kind == "labels":  # labels come in pieces
        data[..., rng.random(shape[-1]) < 0.7] = 0
    return data


def write(path: Path, spec: VolumeSpec, data: np.ndarray, name: str, **options: object):
    writer = WRITERS[name]
    writer.check(spec)
    return writer.write(path, spec, lambda a, b: data[..., a:b, :, :], **options)


def decoded(folder: Path) -> np.ndarray:
    rgb = np.stack([np.asarray(Image.open(f)) for f in sorted(folder.glob("*.png"))]).astype(np.uint32)
    return rgb[..., 0] * 65536 + rgb[..., 1] * 256 + rgb[..., 2]


sizes = st.floats(0.5, 900).map(lambda v: float(f"{v:.5g}"))
places = st.one_of(st.just(0.0), st.floats(-1e6, 1e6).map(lambda v: float(f"{v:.6g}")))


@st.composite
def specs(draw, name: str) -> VolumeSpec:
    writer = WRITERS[name]
    kind = draw(st.sampled_from(["image", "labels"]))
    dtype = draw(st.sampled_from(writer.label_dtypes if kind == "labels" else writer.dtypes))
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 40), st.integers(1, 40)))
    return VolumeSpec(shape, dtype, draw(st.tuples(*[sizes] * 3)), draw(st.tuples(*[places] * 3)), kind)


@pytest.mark.parametrize("name", sorted(WRITERS))
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_back_with_its_place(name, data):
    spec = data.draw(specs(name))
    expected = voxels(spec)
    patch = pytest.MonkeyPatch()
    # a few sections at a time, one of them often
    patch.setattr(writing, "BATCH_BYTES", data.draw(st.sampled_from([1, 5000, 1 << 20])))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{WRITERS[name].suffix}"
        write(path, spec, expected, name)
        patch.undo()
        assert [f.name for f in Path(folder).iterdir()] == [path.name]
        if name == "vast" and spec.kind == "labels":
            np.testing.assert_array_equal(decoded(path), expected)
            return
        with open_source(str(path)) as source:
            assert (source.shape, source.dtype) == (spec.shape, np.dtype(spec.dtype))
            np.testing.assert_array_equal(source.read(0, spec.shape[0]), expected)
            np.testing.assert_array_equal(source.read(spec.shape[0] - 1, spec.shape[0]), expected[-1:])
            if name != "vast":
                assert source.voxel_size == pytest.approx(spec.voxel_size, rel=2e-6)
            if name not in NO_OFFSET:
                scale = max(1.0, *np.abs(spec.offset))
                assert (source.offset or (0, 0, 0)) == pytest.approx(spec.offset, rel=2e-6, abs=1e-6 * scale)


def test_a_packed_nifti_file_is_written_by_its_name(tmp_path):
    spec = VolumeSpec((5, 9, 8), "uint32", (40, 8, 8), (80, 16, -8), "labels")
    data = voxels(spec)
    write(tmp_path / "a.nii.gz", spec, data, "nifti")
    assert (tmp_path / "a.nii.gz").read_bytes()[:2] == b"\x1f\x8b"
    with open_source(str(tmp_path / "a.nii.gz")) as source:
        for z in (4, 0, 2, 1, 3):
            np.testing.assert_array_equal(source.read(z, z + 1), data[z : z + 1])
        assert source.voxel_size == spec.voxel_size and source.offset == spec.offset


# What a format cannot hold


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("mrc", VolumeSpec((2, 3, 4), "uint64", (40, 8, 8), kind="labels"), ["uint64", "--relabel", "uint16"]),
        ("mrc", VolumeSpec((2, 3, 4), "uint32", (40, 8, 8), kind="labels"), ["uint32", "--relabel", "uint16"]),
        ("mrc", VolumeSpec((2, 3, 4), "float64", (40, 8, 8)), ["float64", "hdf5"]),
        ("vast", VolumeSpec((2, 3, 4), "uint16", (40, 8, 8)), ["uint16", "uint8"]),
        ("vast", VolumeSpec((2, 3, 4), "uint64", (40, 8, 8), kind="labels"), ["--relabel"]),
        ("amira", VolumeSpec((2, 3, 4), "uint64", (40, 8, 8), kind="labels"), ["--relabel"]),
        ("tiff", VolumeSpec((2, 3, 4), "uint64", (40, 8, 8), kind="labels"), ["--relabel", "uint32"]),
        ("imagej", VolumeSpec((2, 3, 4), "uint32", (40, 8, 8), kind="labels"), ["--relabel", "uint16"]),
        ("nrrd", VolumeSpec((2, 3, 4), "float16", (40, 8, 8)), ["float16"]),
        ("nifti", VolumeSpec((2, 3, 4), "uint8", (40, 8, 8), channels=3), ["3", "imagej"]),
    ],
)
def test_what_a_format_cannot_hold_is_refused_in_one_line(name, spec, words):
    with pytest.raises(UsageError) as caught:
        WRITERS[name].check(spec)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(name)
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", [n for n in WRITERS if WRITERS[n].channels])
def test_channels_are_kept(tmp_path, name):
    spec = VolumeSpec((4, 9, 8), "uint8", (40, 8, 8), channels=3)
    data = voxels(spec)
    path = tmp_path / f"a{WRITERS[name].suffix}"
    write(path, spec, data, name)
    if name == "hdf5":
        import h5py

        with h5py.File(path) as h5:
            np.testing.assert_array_equal(h5["raw"], data)
            assert h5["raw"].attrs["axes"] == "czyx"
    else:
        import tifffile

        with tifffile.TiffFile(path) as tif:
            assert tif.series[0].axes == "ZCYX"
            np.testing.assert_array_equal(tif.asarray(), data.swapaxes(0, 1))
