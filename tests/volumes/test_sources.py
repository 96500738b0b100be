import shutil
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neurokube.errors import DataError, UsageError
from neurokube.volumes.sources import open_source

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_fib25 = pytest.mark.skipif(not (SHARED / "fib25").exists(), reason="the fib25 data set is not here")
needs_vnc = pytest.mark.skipif(not (SHARED / "vnc").exists(), reason="the vnc data set is not here")


def stack(dtype=np.uint8, shape=(5, 12, 17)):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def slices(folder: Path, data: np.ndarray, suffix: str = ".png", name: str = "s{:03d}", first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, section in enumerate(data, start=first):
        file = folder / (name.format(k) + suffix)
        if suffix in (".tif", ".tiff"):
            tifffile.imwrite(file, section)
        else:
            Image.fromarray(section).save(file)
    return folder


def refused(path: Path | str, *words: str, error=DataError, **options: object) -> str:
    with pytest.raises(error) as caught:
        open_source(str(path), **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path).split(":")[0], *words):
        assert word in message
    return message


def check(path: Path | str, data: np.ndarray, **options: object) -> None:
    with open_source(str(path), **options) as source:
        assert source.shape == data.shape
        assert source.dtype == data.dtype
        np.testing.assert_array_equal(source.read(0, len(data)), data)
        np.testing.assert_array_equal(source.read(2, 3), data[2:3])
        assert source.read(1, 3).dtype.isnative


# Slices


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_folder_of_slices_is_read(tmp_path, suffix, dtype):
    check(slices(tmp_path / "a", stack(dtype), suffix), stack(dtype))


def test_a_folder_of_gray_jpegs_is_read_and_known_to_be_lossy(tmp_path):
    folder = slices(tmp_path / "a", np.full((3, 16, 16), 77, np.uint8), ".jpg")
    with open_source(str(folder)) as source:
        assert source.lossy
        assert source.read(0, 3).tolist() == np.full((3, 16, 16), 77).tolist()


def test_slices_are_taken_in_the_order_of_their_numbers(tmp_path):
    data = stack(shape=(12, 8, 8))
    check(slices(tmp_path / "a", data, name="s{}"), data)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6, unique=True))
def test_numbers_order_slices_whatever_their_width(tmp_path_factory, numbers):
    folder = tmp_path_factory.mktemp("slices")
    for n in numbers:
        Image.fromarray(np.full((2, 2), numbers.index(n), np.uint8)).save(folder / f"b2_{n}_z.png")
    with open_source(str(folder), allow_gaps=True) as source:
        order = source.read(0, len(numbers))[:, 0, 0].tolist()
    assert [numbers[k] for k in order] == sorted(numbers)
    shutil.rmtree(folder)


def test_hidden_and_foreign_files_are_passed_over_and_named(tmp_path):
    folder = slices(tmp_path / "a", stack())
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    with open_source(str(folder)) as source:
        assert source.shape[0] == 5
        assert "notes.txt" in source.remarks[0]
        assert ".DS_Store" not in source.remarks[0]


def test_names_without_a_number_that_counts_are_remarked(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"{name}.png")
    with open_source(str(tmp_path)) as source:
        assert "could not be noticed" in source.remarks[0]


def test_a_missing_path_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "no such file")


def test_an_empty_folder_is_refused(tmp_path):
    refused(tmp_path, "holds no .tif")


def test_two_kinds_of_slices_are_refused(tmp_path):
    slices(tmp_path / "a", stack())
    refused(slices(tmp_path / "a", stack(), ".tif"), "5 PNG and 5 TIFF", "order")


@pytest.mark.parametrize("names", [("01", "1"), ("b1", "a2"), ("run1_2", "run2_1")])
def test_an_order_that_is_not_clear_is_refused(tmp_path, names):
    for name in names:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"{name}.png")
    if names == ("run1_2", "run2_1"):
        with open_source(str(tmp_path)) as source:  # the first number counts
            assert source.shape[0] == 2
    else:
        refused(tmp_path, "order", names[0])


def test_a_gap_in_the_numbers_is_refused_and_closed_up_on_request(tmp_path):
    folder = slices(tmp_path / "a", stack())
    (folder / "s003.png").unlink()
    refused(folder, "slice 3 missing", "s002.png", "--allow-gaps")
    with open_source(str(folder), allow_gaps=True) as source:
        np.testing.assert_array_equal(source.read(0, 4), np.delete(stack(), 3, 0))
        assert "slice 3 missing" in source.remarks[0]


def test_a_wide_gap_is_named_by_its_ends(tmp_path):
    folder = slices(tmp_path / "a", stack(shape=(9, 4, 4)))
    for k in (3, 4, 5):
        (folder / f"s{k:03d}.png").unlink()
    refused(folder, "slices 3 to 5 missing")


def test_numbers_in_larger_steps_are_no_gap(tmp_path):
    for n in (10, 20, 30):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / f"{n}.png")
    with open_source(str(tmp_path)) as source:
        assert source.shape == (3, 4, 4)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_truncated_slice_is_named(tmp_path, suffix):
    folder = slices(tmp_path / "a", stack(shape=(4, 64, 64)), suffix)
    odd = folder / f"s002{suffix}"
    odd.write_bytes(odd.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"s002\{suffix}.*truncated") as caught, open_source(str(folder)) as source:
        source.read(0, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_slice_that_is_no_image_is_named_before_work_starts(tmp_path, suffix):
    folder = slices(tmp_path / "a", stack(), suffix)
    (folder / f"s004{suffix}").write_bytes(b"")
    refused(folder, f"s004{suffix}", "cannot be read")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_slices_of_different_sizes_are_refused_with_both_sizes(tmp_path, suffix):
    folder = slices(tmp_path / "a", stack(), suffix)
    slices(folder, stack(shape=(1, 12, 16)), suffix, first=2)
    refused(folder, f"s002{suffix}", "12 x 16", "12 x 17")


def test_slices_of_different_types_are_refused(tmp_path):
    folder = slices(tmp_path / "a", stack())
    slices(folder, stack(np.uint16, (1, 12, 17)), first=3)
    refused(folder, "s003.png", "uint16", "uint8")


@pytest.mark.parametrize(("suffix", "channels"), [(".png", 3), (".png", 4), (".tif", 3), (".tif", 4), (".jpg", 3)])
def test_colour_slices_are_refused(tmp_path, suffix, channels):
    colour = np.random.default_rng(0).integers(0, 255, (2, 9, 8, channels), np.uint8)
    refused(slices(tmp_path / "a", colour, suffix), "s000", "gray")


def test_a_palette_is_taken_only_if_it_is_gray(tmp_path):
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8)
    indexed = Image.fromarray(ramp)
    indexed.putpalette([v for k in range(256) for v in (255 - k,) * 3])
    assert indexed.mode == "P"
    indexed.save(tmp_path / "1.png")
    with open_source(str(tmp_path)) as source:
        np.testing.assert_array_equal(source.read(0, 1)[0], 255 - ramp)
    indexed.putpalette([v for k in range(256) for v in (k, 0, 0)])
    indexed.save(tmp_path / "1.png")
    refused(tmp_path, "1.png", "palette of colours")


def test_a_slice_of_many_pages_is_refused(tmp_path):
    slices(tmp_path, stack(), ".tif")
    tifffile.imwrite(tmp_path / "s001.tif", stack(), photometric="minisblack")
    refused(tmp_path, "s001.tif", "5 pages")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiffs_of_other_tools_are_read(tmp_path, compression):
    pages = [Image.fromarray(section) for section in stack()]
    (tmp_path / "a").mkdir()
    for k, page in enumerate(pages):
        page.save(tmp_path / "a" / f"{k}.tif", compression=compression)
    pages[0].save(tmp_path / "b.tif", compression=compression, save_all=True, append_images=pages[1:])
    check(tmp_path / "a", stack())
    check(tmp_path / "b.tif", stack())


@needs_vnc
def test_real_tiff_slices_are_read_in_order():
    with open_source(str(SHARED / "vnc" / "raw")) as source:
        assert source.shape == (15, 1024, 1024)
        expected = np.asarray(Image.open(SHARED / "vnc" / "raw" / "11.tif"))
        np.testing.assert_array_equal(source.read(11, 12)[0], expected)


# Multi-page TIFF


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"tile": (16, 16)}])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_of_many_pages_is_read(tmp_path, dtype, options):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, stack(dtype), photometric="minisblack", **options)
    check(file, stack(dtype))


def test_imagej_resolution_is_understood(tmp_path):
    file = tmp_path / "a.tif"
    metadata = {"spacing": 0.05, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(file, stack(), imagej=True, resolution=(1 / 0.0046, 1 / 0.004), metadata=metadata)
    with open_source(str(file)) as source:
        assert source.voxel_size == pytest.approx((50, 4, 4.6), rel=1e-4)
    check(file, stack())


def test_ome_resolution_is_understood(tmp_path):
    file = tmp_path / "a.ome.tif"
    metadata = {"axes": "ZYX", "PhysicalSizeZ": 0.05, "PhysicalSizeY": 4, "PhysicalSizeX": 4.6}
    units = {"PhysicalSizeYUnit": "nm", "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(file, stack(), metadata=metadata | units)
    with open_source(str(file)) as source:
        assert source.voxel_size == (50, 4, 4.6)


def test_the_resolution_of_a_printer_is_no_voxel_size(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", stack(), resolution=(300, 300), resolutionunit="INCH")
    with open_source(str(tmp_path / "a.tif")) as source:
        assert source.voxel_size is None


def test_pages_of_different_sizes_are_refused(tmp_path):
    file = tmp_path / "a.tif"
    with tifffile.TiffWriter(file) as tif:
        for section in (stack()[0], stack()[1], stack()[2, :, :9]):
            tif.write(section, contiguous=False)
    refused(file, "page 2 is 12 x 9", "12 x 17")


def test_pages_written_one_by_one_are_one_stack(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for section in stack():
            tif.write(section, contiguous=False)
    check(tmp_path / "a.tif", stack())


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_truncated_tiff_is_refused(tmp_path, compression):
    file = tmp_path / "a.tif"
    data = np.random.default_rng(0).integers(0, 255, (5, 64, 64), np.uint8)
    tifffile.imwrite(file, data, photometric="minisblack", compression=compression)
    file.write_bytes(file.read_bytes()[:-3000])
    refused(file, "truncated")


def test_colour_and_channels_in_a_tiff_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "rgb.tif", np.zeros((4, 8, 8, 3), np.uint8), photometric="rgb")
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((2, 8, 8), np.uint8), imagej=True, metadata={"axes": "CYX"})
    refused(tmp_path / "rgb.tif", "channels", "gray")
    refused(tmp_path / "c.tif", "2 channels", "gray")


# HDF5


def hdf5(file: Path, **datasets: np.ndarray) -> Path:
    with h5py.File(file, "w") as h5:
        for name, data in datasets.items():
            h5.create_dataset(name.replace("__", "/"), data=data, chunks=None)
    return file


def test_the_only_stack_of_an_hdf5_file_is_found(tmp_path):
    check(hdf5(tmp_path / "a.h5", volumes__raw=stack(np.uint16), table=np.zeros(3)), stack(np.uint16))


def test_an_hdf5_dataset_is_named_in_the_path_or_beside_it(tmp_path):
    file = hdf5(tmp_path / "a.h5", volumes__raw=stack(), volumes__labels=stack(np.uint64))
    check(f"{file}:volumes/raw", stack())
    check(file, stack(np.uint64), dataset="volumes/labels")
    refused(f"{file}:volumes/raw", "give one of them", error=UsageError, dataset="volumes/raw")


def test_what_an_hdf5_file_holds_is_listed_where_a_choice_is_needed(tmp_path):
    file = hdf5(tmp_path / "a.h5", volumes__raw=stack(), volumes__labels=stack(np.uint64))
    refused(file, "--dataset", "volumes/raw (5 x 12 x 17 uint8)", "volumes/labels")
    refused(file, "no dataset 'raw'", "volumes/raw", dataset="raw")
    refused(hdf5(tmp_path / "b.h5"), "no datasets")


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"resolution": (40, 4, 8)}, (40, 4, 8)),
        ({"element_size_um": (0.04, 0.004, 0.008)}, (40, 4, 8)),
        ({"voxel_size_nm": (8, 4, 40), "axes": "xyz"}, (40, 4, 8)),
        ({"resolution": (4, 4)}, None),
        ({"resolution": (40, 4, 8), "axes": "tyx"}, None),
        ({}, None),
    ],
)
def test_hdf5_attributes_give_the_voxel_size(tmp_path, attributes, expected):
    file = hdf5(tmp_path / "a.h5", raw=stack())
    with h5py.File(file, "a") as h5:
        h5["raw"].attrs.update(attributes)
    with open_source(str(file)) as source:
        assert source.voxel_size == expected


def test_a_damaged_hdf5_file_is_refused(tmp_path):
    file = hdf5(tmp_path / "a.h5", raw=stack())
    file.write_bytes(file.read_bytes()[:1000])
    refused(file, "truncated")


def test_four_axes_no_voxels_and_no_numbers_are_refused(tmp_path):
    file = hdf5(tmp_path / "a.h5", four=np.zeros((2, 3, 4, 5)), zero=np.zeros((0, 4, 5)), text=np.full((2, 2, 2), b"x"))
    refused(file, "four", "4 axes", dataset="four")
    refused(file, "no voxels", "0 x 4 x 5", dataset="zero")
    refused(file, "numbers", dataset="text")


@needs_fib25
def test_real_hdf5_labels_are_read():
    with open_source(str(SHARED / "fib25" / "bodies.h5")) as source:
        assert (source.shape, source.dtype, source.voxel_size) == ((125, 250, 250), np.uint32, (10, 10, 10))


# MRC and NumPy


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float32])
def test_an_mrc_file_is_read_with_its_voxel_size(tmp_path, dtype):
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(stack(dtype))
        mrc.voxel_size = (46, 40, 500)
    with open_source(str(tmp_path / "a.mrc")) as source:
        assert source.voxel_size == pytest.approx((50, 4, 4.6))
    check(tmp_path / "a.mrc", stack(dtype))


def test_bytes_that_imod_wrote_are_unsigned(tmp_path):
    file = tmp_path / "a.mrc"
    with mrcfile.new(file) as mrc:
        mrc.set_data(stack().view(np.int8))
    header = bytearray(file.read_bytes())
    header[152:160] = np.array([1146047817, 0], "<i4").tobytes()
    file.write_bytes(header)
    check(file, stack())


def test_an_mrc_file_that_does_not_know_its_voxel_size_gives_none(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(stack(np.int16))
        mrc.voxel_size = 1
    with open_source(str(tmp_path / "a.mrc")) as source:
        assert source.voxel_size is None


def test_a_truncated_mrc_file_is_refused(tmp_path):
    file = tmp_path / "a.mrc"
    with mrcfile.new(file) as mrc:
        mrc.set_data(stack(np.int16))
    file.write_bytes(file.read_bytes()[:-100])
    refused(file, "truncated")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", ">u2", "<f4", "?"])
def test_a_npy_file_is_read(tmp_path, dtype, order):
    data = np.asarray(stack(dtype), order=order)
    np.save(tmp_path / "a.npy", data)
    check(tmp_path / "a.npy", data.astype(data.dtype.newbyteorder("=")))


def test_bad_npy_files_are_refused(tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, stack())
    file.write_bytes(file.read_bytes()[:-10])
    refused(file, "truncated")
    np.save(file, np.zeros((4, 4)))
    refused(file, "2 axes")
    np.save(file, np.array([None, 1]), allow_pickle=True)
    refused(file, "cannot be read")


def test_other_kinds_of_files_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", "not a kind of file")


def test_a_dataset_is_refused_for_anything_but_hdf5(tmp_path):
    refused(slices(tmp_path / "a", stack()), "HDF5", error=UsageError, dataset="raw")
