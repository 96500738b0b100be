"""Files of our making opened by other people's readers, and the other way round."""

import gzip
import struct
from pathlib import Path

import h5py
import mrcfile
import nibabel
import nrrd
import numpy as np
import pytest
import tifffile
from micrographs import OFFSET, SIZE, dm
from PIL import Image

from neurokube.volumes import VolumeSpec
from neurokube.volumes.files import WRITERS
from neurokube.volumes.sources import open_source


def stack(dtype: str = "uint8", shape: tuple[int, ...] = (5, 12, 17)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def written(path: Path, name: str, data: np.ndarray, kind: str = "image") -> Path:
    spec = VolumeSpec(data.shape, data.dtype.name, SIZE, OFFSET, kind)
    WRITERS[name].check(spec)
    WRITERS[name].write(path, spec, lambda a, b: data[a:b])
    return path


def read(path: Path | str, data: np.ndarray, size=SIZE, offset=OFFSET, words: tuple[str, ...] = ()) -> None:
    with open_source(str(path)) as source:
        np.testing.assert_array_equal(source.read(0, len(data)), data)
        assert source.dtype == data.dtype.newbyteorder("=")
        assert source.voxel_size == (None if size is None else pytest.approx(size, rel=1e-6))
        assert source.offset == (None if offset is None else pytest.approx(offset, rel=1e-6, abs=1e-4))
        for word in words:
            assert any(word in remark for remark in source.remarks)
        if not words:
            assert source.remarks == ()


# Written here, read there


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64"])
def test_h5py_reads_our_hdf5(tmp_path, dtype, kind):
    with h5py.File(written(tmp_path / "a.h5", "hdf5", stack(dtype), kind)) as h5:
        dataset = h5["raw" if kind == "image" else "labels"]
        np.testing.assert_array_equal(dataset, stack(dtype))
        assert tuple(dataset.attrs["resolution"]) == SIZE and tuple(dataset.attrs["offset"]) == OFFSET
        assert tuple(dataset.attrs["element_size_um"]) == pytest.approx([s / 1e3 for s in SIZE])


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint64"])
def test_pynrrd_reads_our_nrrd(tmp_path, dtype, kind):
    data, header = nrrd.read(str(written(tmp_path / "a.nrrd", "nrrd", stack(dtype), kind)))
    np.testing.assert_array_equal(data.T, stack(dtype))
    np.testing.assert_array_equal(np.diag(header["space directions"]), SIZE[::-1])
    np.testing.assert_array_equal(header["space origin"], OFFSET[::-1])
    assert header["space units"] == ["nm"] * 3


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "uint64"])
def test_nibabel_reads_our_nifti(tmp_path, dtype, suffix):
    image = nibabel.load(written(tmp_path / f"a{suffix}", "nifti", stack(dtype)))
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, stack(dtype))
    assert image.header.get_xyzt_units()[0] == "micron"
    np.testing.assert_allclose(image.header.get_zooms(), [s / 1e3 for s in SIZE[::-1]], rtol=1e-6)
    np.testing.assert_allclose(
        image.affine,
        nibabel.affines.from_matvec(np.diag(SIZE[::-1]), OFFSET[::-1]) / 1e3 + np.diag([0, 0, 0, 1 - 1e-3]),
        rtol=1e-5,
        atol=1e-7,
    )
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), rtol=1e-6, atol=1e-9)


def test_a_nifti_file_with_a_long_side_is_of_the_second_version(tmp_path):
    data = stack(shape=(2, 2, 40_000))
    image = nibabel.load(written(tmp_path / "a.nii", "nifti", data))
    assert isinstance(image, nibabel.Nifti2Image)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, data)
    read(tmp_path / "a.nii", data)


@pytest.mark.parametrize(("dtype", "mode"), [("uint8", 0), ("int8", 0), ("int16", 1), ("uint16", 6), ("float32", 2)])
def test_mrcfile_finds_our_mrc_valid(tmp_path, dtype, mode, capsys):
    file = written(tmp_path / "a.mrc", "mrc", stack(dtype))
    # it takes all bytes for signed, and the statistics for wrong then
    assert mrcfile.validate(file) or (dtype == "uint8" and "statistics" in capsys.readouterr().out)
    with mrcfile.open(file) as mrc:
        assert mrc.header.mode == mode
        np.testing.assert_array_equal(mrc.data.view(dtype), stack(dtype))
        assert [float(mrc.voxel_size[a]) for a in "zyx"] == pytest.approx([10 * s for s in SIZE])
        assert [float(mrc.header.origin[a]) for a in "zyx"] == pytest.approx([10 * o for o in OFFSET])
        np.testing.assert_allclose(mrc.header.dmean, stack(dtype).mean(), rtol=1e-6)
        np.testing.assert_allclose(mrc.header.rms, stack(dtype).std(), rtol=1e-4)
        stamp, flags = np.frombuffer(mrc.header.extra2.tobytes(), "<i4", 2, offset=40)
        assert stamp == 1146047817 and flags == (5 if dtype == "int8" else 4)


def test_our_tiff_is_ome_and_big(tmp_path):
    file = written(tmp_path / "a.ome.tif", "tiff", stack("uint16"))
    with tifffile.TiffFile(file) as tif:
        assert tif.is_ome and tif.is_bigtiff and tif.series[0].axes == "ZYX"
        np.testing.assert_array_equal(tif.asarray(), stack("uint16"))
        assert 'PhysicalSizeZ="40.0" PhysicalSizeZUnit="nm"' in tif.ome_metadata
    with Image.open(file) as image:  # a reader that knows nothing of OME
        assert image.n_frames == 5


@pytest.mark.parametrize("large", [False, True])
def test_our_hyperstack_is_imagejs(tmp_path, monkeypatch, large):
    if large:  # as if it were beyond 4 GB: one directory, and the sections behind it
        monkeypatch.setattr("neurokube.volumes.files.tiff._MOST_PAGED", 100)
    file = written(tmp_path / "a.tif", "imagej", stack("uint16"))
    with tifffile.TiffFile(file) as tif:
        assert tif.is_imagej and len(tif.pages) == (1 if large else 5)
        metadata = tif.imagej_metadata
        assert (metadata["slices"], metadata["images"], metadata["unit"], metadata["spacing"]) == (5, 5, "nm", 40.0)
        assert (metadata["xorigin"], metadata["yorigin"], metadata["zorigin"]) == (-7.0, -2.0, 3.0)
        assert tif.pages[0].tags["XResolution"].value[0] / tif.pages[0].tags["XResolution"].value[1] == pytest.approx(
            1 / 4.5
        )
        np.testing.assert_array_equal(tif.asarray(), stack("uint16"))
    read(file, stack("uint16"))


def test_slices_for_vast_are_named_in_order_and_its_segments_are_listed(tmp_path):
    image = written(tmp_path / "image", "vast", stack())
    assert sorted(f.name for f in image.iterdir()) == [f"s{z:04d}.png" for z in range(5)]
    assert Image.open(image / "s0003.png").mode == "L"
    labels = np.zeros((3, 6, 7), np.uint16)
    labels[1:, 2:5, 3:6], labels[2, 0, :2] = 300, 7
    folder = written(tmp_path / "labels", "vast", labels, "labels")
    with Image.open(folder / "s0001.png") as png:
        assert png.mode == "RGB" and png.getpixel((4, 3)) == (0, 1, 44)
    # columns as VastTools reads them
    rows = [line for line in (folder / "segments.txt").read_text().splitlines() if line and line[0] != "%"]
    table = {int(r.split()[0]): (list(map(int, r[: r.index('"')].split())), r[r.index('"') :]) for r in rows}
    assert sorted(table) == [0, 7, 300] and all(len(numbers) == 24 for numbers, _ in table.values())
    numbers, name = table[300]
    assert numbers[-6:] == [3, 2, 1, 5, 4, 2] and numbers[10:13] == [3, 2, 1] and name == '"segment 300"'
    assert numbers[13:18] == [0, 0, 7, 0, 300] and table[7][0][13:18] == [0, 0, 0, 300, 7] and table[0][0][16] == 7


def test_run_lengths_of_amira_are_at_most_127(tmp_path):
    labels = np.zeros((3, 20, 30), np.uint8)
    labels[1, 3:9] = 2
    packed = written(tmp_path / "a.am", "amira", labels, "labels").read_bytes()
    text, _, data = packed.partition(b"# Data section follows\n@1\n")
    length = int(text.split(b"HxByteRLE,")[1].split(b")")[0])
    pairs = np.frombuffer(data[:length], np.uint8).reshape(-1, 2)
    assert pairs[:, 0].min() >= 1 and pairs[:, 0].max() <= 127 and data[length:] == b"\n"
    np.testing.assert_array_equal(np.repeat(pairs[:, 1], pairs[:, 0]), labels.ravel())
    assert b"BoundingBox 31.5 162.0 16.0 168.0 -120.0 -40.0," in text and b"Label2 { Id 2 }" in text


# Written there, read here


def test_nrrd_files_of_pynrrd_are_read(tmp_path):
    directions, origin = np.diag(SIZE[::-1]), np.array(OFFSET[::-1])
    header = {"space dimension": 3, "space directions": directions, "space origin": origin, "space units": ["nm"] * 3}
    for encoding in ("raw", "gzip"):
        nrrd.write(str(tmp_path / "a.nrrd"), stack("uint16").T, {**header, "encoding": encoding})
        read(tmp_path / "a.nrrd", stack("uint16"))
        nrrd.write(str(tmp_path / "a.nhdr"), stack("uint16").T, {**header, "encoding": encoding}, detached_header=True)
        read(tmp_path / "a.nhdr", stack("uint16"))
    slicer = {
        "space": "left-posterior-superior",
        "space directions": directions / 1e6,
        "space origin": origin / 1e6,
        "kinds": ["domain"] * 3,
    }
    nrrd.write(str(tmp_path / "b.nrrd"), stack().T, slicer)
    read(tmp_path / "b.nrrd", stack(), words=("mm",))
    nrrd.write(str(tmp_path / "c.nrrd"), stack().T, {"spacings": SIZE[::-1], "units": ["nm"] * 3})
    read(tmp_path / "c.nrrd", stack(), offset=None)
    nrrd.write(str(tmp_path / "d.nrrd"), stack().T, {"spacings": SIZE[::-1]})
    read(tmp_path / "d.nrrd", stack(), None, None, ("no unit",))
    nrrd.write(str(tmp_path / "e.nrrd"), stack().T, {**header, "space directions": directions[::-1]})
    read(tmp_path / "e.nrrd", stack(), SIZE[::-1], None, words=("turned",))


def nifti(path: Path, data: np.ndarray, affine: np.ndarray | None = None, units: str | None = "micron") -> Path:
    if affine is None:
        affine = np.diag([*(s / 1e3 for s in SIZE[::-1]), 1.0])
        affine[:3, 3] = [o / 1e3 for o in OFFSET[::-1]]
    image = nibabel.Nifti1Image(data.T, affine)
    if units:
        image.header.set_xyzt_units(units)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", ">i2", "float32"])
def test_nifti_files_of_nibabel_are_read(tmp_path, dtype, suffix):
    read(nifti(tmp_path / f"a{suffix}", stack(dtype)), stack(dtype))


def test_oddities_of_nifti_headers_are_reported(tmp_path):
    def edited(name: str, edit, **options: object) -> Path:
        file = nifti(tmp_path / name, stack(), **options)
        block = bytearray(file.read_bytes())
        edit(block)
        file.write_bytes(block)
        return file

    def put(at: int, kind: str, *values: float):
        return lambda block: struct.pack_into("<" + kind, block, at, *values)

    read(edited("unit.nii", put(123, "b", 0)), stack(), None, None, ("no unit of length",))
    read(edited("unit2.nii", put(123, "b", 5)), stack(), None, None, ("unknown unit",))
    read(edited("codes.nii", put(252, "hh", 0, 0)), stack(), offset=None, words=("no place in space",))
    codes_and_zero = edited("zero.nii", lambda b: (put(252, "hh", 0, 0)(b), put(80, "f", 0.0)(b)))
    read(codes_and_zero, stack(), None, None, ("is not one",))
    read(edited("pixdim.nii", put(80, "f", 0.0)), stack(), words=("sform is taken",))
    both = edited("both.nii", lambda b: (put(252, "h", 1)(b), put(268, "f", 9.0)(b)))
    read(both, stack(), words=("disagree",))
    flipped = np.diag([-0.0045, -0.008, 0.04, 1])
    read(nifti(tmp_path / "flip.nii", stack(), flipped), stack(), offset=None, words=("mirrored",))
    scaled = edited("scaled.nii", put(112, "ff", 0.5, -3))
    with open_source(str(scaled)) as source:
        assert source.dtype == np.float32 and "scaled" in source.remarks[0]
        np.testing.assert_array_equal(source.read(0, 5), stack().astype(np.float32) * 0.5 - 3)
    nan = edited("nan.nii", lambda b: (put(252, "hh", 0, 1)(b), put(280, "f", float("nan"))(b)))
    read(nan, stack(), offset=None, words=("NaN", "no place"))


@pytest.mark.parametrize(
    ("stamp", "flags", "version", "sign"), [(0, 0, 0, 1), (1, 0, 0, -1), (1, 4, 0, 1), (1, 0, 1, 1)]
)
def test_the_sign_of_the_origin_is_what_imod_takes_it_for(tmp_path, stamp, flags, version, sign):
    file = tmp_path / "a.mrc"
    with mrcfile.new(file) as mrc:
        mrc.set_data(stack("int16"))
        mrc.voxel_size = tuple(10 * s for s in SIZE[::-1])
        mrc.header.origin = tuple(sign * 10 * o for o in OFFSET[::-1])
        mrc.header.nversion = 20140 * version
        mrc.header.extra2 = bytes(40) + np.array([1146047817 * stamp, flags], "<i4").tobytes()
    read(file, stack("int16"))


def test_a_hyperstack_of_tifffile_is_read_with_its_place(tmp_path):
    metadata = {"spacing": 0.04, "unit": "um", "axes": "ZYX", "xorigin": -7, "yorigin": -2, "zorigin": 3}
    tifffile.imwrite(tmp_path / "a.tif", stack(), imagej=True, resolution=(1 / 0.0045, 1 / 0.008), metadata=metadata)
    with open_source(str(tmp_path / "a.tif")) as source:
        assert source.voxel_size == pytest.approx(SIZE, rel=1e-5) and source.offset == pytest.approx(OFFSET, rel=1e-5)


def test_the_offset_of_cremi_is_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["volumes/raw"] = stack()
        h5["volumes/raw"].attrs.update({"resolution": SIZE, "offset": OFFSET})
    read(f"{tmp_path / 'a.h5'}:volumes/raw", stack())


# Formats without a reader or writer in Python: laid out by hand, after their descriptions


def amira(
    path: Path, data: np.ndarray, packed: bytes, coding: str = "", first: str = "BINARY-LITTLE-ENDIAN 2.1"
) -> Path:
    z, y, x = data.shape
    kind = {"uint8": "byte", "int16": "short", "uint16": "ushort", "float32": "float"}[data.dtype.name]
    text = (
        f"# AmiraMesh {first}\n\n\ndefine Lattice {x} {y} {z}\n\nParameters {{\n    Units {{\n"
        f'        Coordinates "nm"\n    }}\n    Content "{x}x{y}x{z} {kind}, uniform coordinates",\n'
        f'    BoundingBox 31.5 103.5 16 104 -120 40,\n    CoordType "uniform"\n}}\n\n'
        f"Lattice {{ {kind} Data }} @1{coding}\n\n# Data section follows\n@1\n"
    )
    path.write_bytes(text.encode() + packed + b"\n")
    return path


def test_amira_files_of_every_coding_are_read(tmp_path):
    import zlib

    for dtype in ("uint8", "<i2", ">u2", "<f4"):
        data = stack(dtype)
        first = "3D BINARY 2.0" if dtype[0] == ">" else "BINARY-LITTLE-ENDIAN 2.1"
        read(amira(tmp_path / "a.am", data, data.tobytes(), first=first), data)
        packed = zlib.compress(data.tobytes())
        read(amira(tmp_path / "a.am", data, packed, f"(HxZip,{len(packed)})", first), data)
    data = np.repeat(stack(shape=(5, 12, 1)), 17, 2)
    data[2, 3] = np.arange(17)
    pairs = [
        bytes([len(p), p[0]]) if len(set(p)) == 1 else bytes([128 + len(p), *p])
        for p in (data.ravel()[k : k + 11].tolist() for k in range(0, data.size, 11))
    ]
    packed = b"".join(pairs)
    read(amira(tmp_path / "a.am", data, packed, f"(HxByteRLE,{len(packed)})"), data)
    with open_source(str(tmp_path / "a.am")) as source:
        for z in (4, 1, 3, 0, 2):
            np.testing.assert_array_equal(source.read(z, z + 1), data[z : z + 1])


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
def test_dm_files_are_read(tmp_path, version, order, dtype):
    read(dm(tmp_path / f"a.dm{version}", stack(dtype), version, order), stack(dtype))


def test_a_folder_of_dm_sections_is_read(tmp_path):
    for z, section in enumerate(stack("int16")):
        dm(tmp_path / f"s_{z:03d}.dm4", section[None])
    read(tmp_path, stack("int16"), offset=None)
    (tmp_path / "thick").mkdir()
    dm(tmp_path / "thick" / "a.dm3", stack("int16"), 3, units=("nm", "nm", ""))
    read(tmp_path / "thick" / "a.dm3", stack("int16"), None, None, ("no thickness",))


def test_packed_data_of_several_members_is_read(tmp_path):
    data = stack(shape=(5, 300, 300))
    file = written(tmp_path / "a.nii", "nifti", data)
    whole = file.read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(whole[:200_000]) + gzip.compress(whole[200_000:]))
    read(tmp_path / "b.nii.gz", data)
