import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from PIL import Image

from neurokube.blocks import Box
from neurokube.errors import DataError, TryAgainError, UsageError
from neurokube.volumes import VolumeSpec, exists, layout, open_volume, pyramid_factors
from neurokube.volumes import importing as module
from neurokube.volumes.importing import import_volume, slab_layout
from neurokube.volumes.pyramids import downsample

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SIZE = (40.0, 8.0, 8.0)


def gray(shape=(37, 70, 90), dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(1, 250, shape).astype(dtype)


def saved(tmp_path: Path, data: np.ndarray, name: str = "source.npy") -> str:
    np.save(tmp_path / name, data)
    return str(tmp_path / name)


def run(source: object, destination: object, **options: object):
    return import_volume(str(source), str(destination), **{"voxel_size": SIZE, "quiet": True} | options)


def whole(url: object, level: int = 0) -> np.ndarray:
    volume = open_volume(str(url))
    return volume.read(Box.of(volume.level_shape(level)), level)


def refused(error: type[Exception], source: object, destination: object, **options: object) -> str:
    with pytest.raises(error) as caught:
        run(source, destination, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is written


@pytest.mark.parametrize("destination", ["a.zarr", "memory://import-test/a.zarr"])
def test_an_imported_image_is_the_source_with_its_pyramid(tmp_path, destination, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = gray((37, 150, 90))
    report = run(saved(tmp_path, data), destination, offset=(80, 0, 16))
    volume = open_volume(destination)
    assert volume.spec == VolumeSpec(data.shape, "uint8", SIZE, (80.0, 0.0, 16.0))
    np.testing.assert_array_equal(whole(destination), data)
    factors = pyramid_factors(volume.spec)
    assert len(volume.arrays) == len(factors) > 1
    for level in range(1, len(factors)):
        step = tuple(b // a for a, b in zip(factors[level - 1], factors[level], strict=True))
        np.testing.assert_array_equal(
            whole(destination, level), downsample(whole(destination, level - 1), step, "image")
        )
    assert (report.shape, report.voxel_size, report.dtype) == (data.shape, SIZE, "uint8")
    assert report.fingerprint == volume.fingerprint
    assert volume.attributes["source"]["path"].endswith("source.npy")


def test_metadata_names_the_destination(tmp_path):
    run(saved(tmp_path, gray()), tmp_path / "brain.zarr")
    metadata = json.loads((tmp_path / "brain.zarr" / "zarr.json").read_text())
    assert metadata["attributes"]["ome"]["multiscales"][0]["name"] == "brain"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["brain.zarr", "source.npy"]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("sections", [1, 5, 1000])
def test_the_result_does_not_depend_on_slabs_and_workers(tmp_path, monkeypatch, workers, sections):
    data = gray((37, 70, 150))
    monkeypatch.setattr(module, "SLAB_BYTES", 2 * sections * 70 * 150)
    report = run(saved(tmp_path, data), tmp_path / "a.zarr", workers=workers)
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), data)
    np.testing.assert_array_equal(
        whole(tmp_path / "a.zarr", 2), downsample(downsample(data, (1, 2, 2), "image"), (1, 2, 2), "image")
    )
    content = b"uint8 (37, 70, 150)" + data.tobytes()
    assert report.fingerprint == hashlib.sha256(content).hexdigest()


def test_the_fingerprint_tells_content_shape_and_type_apart(tmp_path):
    variants = [gray(), gray(seed=1), gray().reshape(37, 90, 70)]
    prints = {run(saved(tmp_path, v), tmp_path / f"{k}.zarr").fingerprint for k, v in enumerate(variants)}
    prints.add(run(saved(tmp_path, gray().astype(np.uint64)), tmp_path / "l.zarr", kind="labels").fingerprint)
    assert len(prints) == 4


def test_large_sections_get_flat_and_wide_shards():
    cubes = VolumeSpec((10**4, 20_000, 20_000), "uint8", (8, 8, 8))
    for spec in (cubes, VolumeSpec(cubes.shape, "uint8", (40, 4, 4))):
        shard, chunk = slab_layout(spec, 20_000 * 20_000)
        assert 2 * shard[0] * 20_000**2 <= module.SLAB_BYTES
        assert [np.prod(s) for s in (shard, chunk)] == [np.prod(s) for s in layout(spec)]
        assert all(s % c == 0 for s, c in zip(shard, chunk, strict=True))
    assert slab_layout(cubes, 512 * 512) == layout(cubes)
    assert slab_layout(cubes, 10**12)[0][0] == 1


MEASURE = """
import re, sys
from pathlib import Path
from neurokube.volumes import importing
importing.SLAB_BYTES = 1 << 22
importing.import_volume(sys.argv[1], sys.argv[2], voxel_size=(40.0, 8.0, 8.0), quiet=True)
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
def test_memory_does_not_grow_with_the_volume(tmp_path):
    peaks = []
    for depth in (1024, 4096):  # the first fills the cache of the storage layer already
        with h5py.File(tmp_path / f"{depth}.h5", "w") as h5:
            section = np.arange(256 * 256, dtype=np.uint64).astype(np.uint8).reshape(1, 256, 256)
            h5.create_dataset("raw", data=section.repeat(depth, 0), chunks=(8, 256, 256), compression="lzf")
        command = [sys.executable, "-c", MEASURE, tmp_path / f"{depth}.h5", tmp_path / f"{depth}.zarr"]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    # of 201 MB more; what threads have at hand is a matter of chance
    assert peaks[1] <= 1.1 * peaks[0] + 16_000


@pytest.mark.skipif(not (SHARED / "fib25").exists(), reason="the fib25 data set is not here")
def test_real_slices_and_labels_are_imported(tmp_path):
    report = run(SHARED / "fib25" / "raw", tmp_path / "raw.zarr", voxel_size=(10, 10, 10))
    assert report.findings == [] and report.shape == (125, 250, 250)
    expected = np.asarray(Image.open(SHARED / "fib25" / "raw" / "100.png"))
    np.testing.assert_array_equal(whole(tmp_path / "raw.zarr")[100], expected)
    report = run(SHARED / "fib25" / "bodies.h5", tmp_path / "l.zarr", kind="labels", voxel_size=None)
    with h5py.File(SHARED / "fib25" / "bodies.h5") as h5:
        np.testing.assert_array_equal(whole(tmp_path / "l.zarr"), h5["bodies"])
    assert (report.voxel_size, report.dtype, report.findings) == ((10, 10, 10), "uint64", [])


# Values


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int8, np.uint32, np.float32])
def test_only_8_bit_images_are_imported_without_a_request(tmp_path, dtype):
    message = refused(DataError, saved(tmp_path, gray(dtype=np.uint8).astype(dtype)), tmp_path / "a.zarr")
    assert np.dtype(dtype).name in message and "--to-8bit" in message
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32])
def test_a_range_becomes_0_to_255(tmp_path, dtype):
    data = np.linspace(-120, 120, 41 * 60).reshape(1, 41, 60).astype(dtype)
    run(saved(tmp_path, data), tmp_path / "a.zarr", to_8bit=(10, 60))
    expected = np.rint((np.clip(data.astype(float), 10, 60) - 10) * (255 / 50))
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_auto_takes_percentiles_and_says_so(tmp_path, dtype):
    data = np.random.default_rng(0).normal(1000, 100, (30, 64, 64)).astype(dtype)
    data[3, 0, 0] = 30_000
    report = run(saved(tmp_path, data), tmp_path / "a.zarr", to_8bit="auto")
    low, high = report.gray_range
    assert (low, high) == pytest.approx(np.percentile(data, (0.1, 99.9)), abs=30)
    assert 0 < np.mean(whole(tmp_path / "a.zarr") == 255) < 0.01
    assert run(saved(tmp_path, data), tmp_path / "b.zarr", to_8bit="auto").fingerprint == report.fingerprint
    assert open_volume(str(tmp_path / "a.zarr")).attributes["source"]["gray_range"] == [low, high]


def test_auto_leaves_8_bit_images_alone(tmp_path):
    assert run(saved(tmp_path, gray()), tmp_path / "a.zarr", to_8bit="auto").gray_range is None
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), gray())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("to_8bit", ["auto", (0, 250)])
def test_values_that_are_no_numbers_are_refused_with_their_section(tmp_path, value, to_8bit):
    data = gray(dtype=np.float32)
    data[36, 5, 5] = value
    message = refused(DataError, saved(tmp_path, data), tmp_path / "a.zarr", to_8bit=to_8bit)
    assert "section 36 holds NaN" in message
    assert [f.name for f in tmp_path.iterdir()] == ["source.npy"]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("u1", "uint8"), ("?", "uint8"), ("u2", "uint64"), (">u4", "uint64"), ("u8", "uint64"), ("i4", "uint64")],
)
def test_labels_become_64_bits_and_masks_stay_bytes(tmp_path, dtype, stored):
    data = gray().astype(dtype)
    report = run(saved(tmp_path, data), tmp_path / "a.zarr", kind="labels")
    assert report.dtype == stored
    assert open_volume(str(tmp_path / "a.zarr")).spec.kind == "labels"
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), data)
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr", 1), downsample(data.astype(stored), (1, 2, 2), "labels"))


def test_float_negative_and_lossy_labels_are_refused(tmp_path):
    assert "integers" in refused(DataError, saved(tmp_path, gray(dtype=float)), tmp_path / "a", kind="labels")
    negative = gray(dtype=np.int32)
    negative[20, 3, 3] = -1
    assert "section 20" in refused(DataError, saved(tmp_path, negative), tmp_path / "a", kind="labels")
    (tmp_path / "jpeg").mkdir()
    Image.fromarray(gray()[0]).save(tmp_path / "jpeg" / "1.jpg")
    assert "JPEG" in refused(DataError, tmp_path / "jpeg", tmp_path / "a", kind="labels")
    assert "--to-8bit" in refused(UsageError, saved(tmp_path, gray()), tmp_path / "a", kind="labels", to_8bit="auto")


@pytest.mark.parametrize("bad", [(5, 5), (9, 3), (0, float("nan"))])
def test_a_range_must_rise(tmp_path, bad):
    assert "LOW" in refused(UsageError, saved(tmp_path, gray()), tmp_path / "a", to_8bit=bad)


# Voxel size


def test_the_voxel_size_of_the_source_is_taken_where_none_is_given(tmp_path):
    metadata = {"spacing": 0.05, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.tif", gray(), imagej=True, resolution=(250, 250), metadata=metadata)
    assert run(tmp_path / "a.tif", tmp_path / "a.zarr", voxel_size=None).voxel_size == (50, 4, 4)
    assert run(tmp_path / "a.tif", tmp_path / "b.zarr", voxel_size=(30, 5, 5)).voxel_size == (30, 5, 5)


@pytest.mark.parametrize("size", [None, (0, 4, 4), (40, -4, 4), (40, float("nan"), 4), (float("inf"), 4, 4), (4, 4)])
def test_a_bad_voxel_size_is_refused(tmp_path, size):
    message = refused(UsageError, saved(tmp_path, gray()), tmp_path / "a.zarr", voxel_size=size)
    assert "voxel size" in message and "--voxel-size" in message


# Destinations


def test_what_exists_is_kept_unless_told_otherwise(tmp_path):
    first = run(saved(tmp_path, gray()), tmp_path / "a.zarr")
    assert "--overwrite" in refused(UsageError, saved(tmp_path, gray(seed=1)), tmp_path / "a.zarr")
    assert open_volume(str(tmp_path / "a.zarr")).fingerprint == first.fingerprint
    run(saved(tmp_path, gray((5, 6, 7))), tmp_path / "a.zarr", overwrite=True)
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), gray((5, 6, 7)))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.zarr", "source.npy"]


def test_an_object_store_is_not_overwritten_either(tmp_path):
    url = "memory://import-test/exists.zarr"
    run(saved(tmp_path, gray()), url)
    assert "--overwrite" in refused(UsageError, saved(tmp_path, gray()), url)
    run(saved(tmp_path, gray((5, 6, 7))), url, overwrite=True)
    np.testing.assert_array_equal(whole(url), gray((5, 6, 7)))
    assert "other objects" in refused(UsageError, saved(tmp_path, gray()), "memory://import-test", overwrite=True)


def test_a_folder_that_is_no_volume_is_never_overwritten(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    assert "not a volume" in refused(UsageError, saved(tmp_path, gray()), tmp_path / "home", overwrite=True)
    assert "holds the source" in refused(UsageError, saved(tmp_path, gray()), tmp_path, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_what_is_replaced_stays_until_the_new_volume_is_complete(tmp_path):
    first = run(saved(tmp_path, gray()), tmp_path / "a.zarr")
    broken = gray(dtype=np.float32)
    broken[30] = np.nan
    refused(DataError, saved(tmp_path, broken), tmp_path / "a.zarr", to_8bit=(0, 255), overwrite=True)
    assert open_volume(str(tmp_path / "a.zarr")).fingerprint == first.fingerprint
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), gray())


INTERRUPTED = """
import os, sys
from neurokube.volumes import importing
def die(self): os.kill(os.getpid(), 9)
importing._Writing.check = die
importing.import_volume(sys.argv[1], sys.argv[2], voxel_size=(40.0, 8.0, 8.0), quiet=True)
"""


def test_a_killed_import_leaves_no_volume_and_the_next_one_is_not_in_its_way(tmp_path):
    source, destination = saved(tmp_path, gray()), tmp_path / "a.zarr"
    killed = subprocess.run([sys.executable, "-c", INTERRUPTED, source, destination], capture_output=True)
    assert killed.returncode == -9
    assert not destination.exists() and not exists(str(tmp_path / "a.zarr.partial"))
    assert (tmp_path / "a.zarr.partial" / "0").exists()
    run(saved(tmp_path, gray((9, 8, 7))), destination)
    np.testing.assert_array_equal(whole(destination), gray((9, 8, 7)))
    assert not (tmp_path / "a.zarr.partial").exists()


STOPPED = """
import os, sys
from neurokube.volumes import importing
write = importing._Writing._write
def die(self, pool, slab, data):
    if slab[0] >= 32:
        os.kill(os.getpid(), 9)
    write(self, pool, slab, data)
importing._Writing._write = die
importing.import_volume(sys.argv[1], sys.argv[2], voxel_size=(40.0, 8.0, 8.0), quiet=True)
"""


@pytest.fixture
def stopped(tmp_path):
    """An import of 70 sections that was killed when 32 were written; its source and destination."""
    source, destination = saved(tmp_path, gray((70, 150, 90))), tmp_path / "a.zarr"
    killed = subprocess.run([sys.executable, "-c", STOPPED, source, destination], capture_output=True)
    assert killed.returncode == -9
    return source, destination


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_killed_import_goes_on_and_ends_alike(stopped, tmp_path, monkeypatch):
    source, destination = stopped
    decoded = []
    decode = module._Writing._decode
    monkeypatch.setattr(
        module._Writing, "_decode", lambda self, pool, a, b: decoded.append(a) or decode(self, pool, a, b)
    )
    report = run(source, destination)
    assert report.resumed and decoded == [32, 48, 64]
    whole = run(source, tmp_path / "whole" / "a.zarr")
    assert not whole.resumed and whole.fingerprint == report.fingerprint
    assert contents(destination) == contents(tmp_path / "whole" / "a.zarr")


def test_what_was_written_of_another_source_or_is_damaged_is_not_taken_up(stopped, tmp_path):
    source, destination = stopped
    shutil.copytree(tmp_path / "a.zarr.partial", tmp_path / "kept")
    assert not run(source, destination, voxel_size=(30.0, 8.0, 8.0)).resumed
    np.save(source, gray((70, 150, 90), seed=3))
    shutil.copytree(tmp_path / "kept", tmp_path / "a.zarr.partial")
    assert not run(source, destination, overwrite=True).resumed
    np.testing.assert_array_equal(whole(destination), gray((70, 150, 90), seed=3))


def test_damaged_shards_of_a_killed_import_are_written_anew(stopped, tmp_path):
    source, destination = stopped
    shard = tmp_path / "a.zarr.partial/0/c/1/0/0"
    shard.write_bytes(shard.read_bytes()[:-40])
    assert not run(source, destination).resumed
    np.testing.assert_array_equal(whole(destination), gray((70, 150, 90)))


def test_ctrl_c_keeps_what_is_written_and_a_mistake_does_not(tmp_path, monkeypatch):
    source = saved(tmp_path, gray((70, 150, 90)))
    write = module._Writing._write
    for error, kept in ((KeyboardInterrupt, True), (DataError, False)):

        def stop(self, pool, slab, data, error=error):
            if slab[0]:
                raise error
            write(self, pool, slab, data)

        with monkeypatch.context() as patch:
            patch.setattr(module._Writing, "_write", stop)
            with pytest.raises(error):
                run(source, tmp_path / "a.zarr")
        assert (tmp_path / "a.zarr.partial").exists() == kept
    np.testing.assert_array_equal(whole(run(source, tmp_path / "a.zarr") and tmp_path / "a.zarr"), gray((70, 150, 90)))


def test_a_folder_in_the_way_is_not_cleared(tmp_path):
    (tmp_path / "a.zarr.partial").mkdir()
    (tmp_path / "a.zarr.partial" / "thesis.txt").write_text("x")
    assert "in the way" in refused(UsageError, saved(tmp_path, gray()), tmp_path / "a.zarr")
    assert (tmp_path / "a.zarr.partial" / "thesis.txt").exists()


def test_two_imports_to_one_place_do_not_meet(tmp_path):
    work = tmp_path / "a.zarr.partial"
    work.mkdir()
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "another import" in refused(TryAgainError, saved(tmp_path, gray()), tmp_path / "a.zarr")
    os.close(handle)
    run(saved(tmp_path, gray()), tmp_path / "a.zarr")


def test_a_volume_that_cannot_fit_is_refused_before_work_starts(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with (tmp_path / "huge.npy").open("wb") as file:  # a file of holes: it takes no space itself
        shape = (free // 10**6 * 2, 1000, 1000)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        try:
            file.truncate(file.tell() + int(np.prod(shape)))
        except OSError:
            pytest.skip("the file system holds no file of that size")
    assert "GB are free" in refused(TryAgainError, tmp_path / "huge.npy", tmp_path / "a.zarr")
    assert [f.name for f in tmp_path.iterdir()] == ["huge.npy"]


def test_a_folder_that_may_not_be_written_is_named_in_one_line():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = saved(folder, gray())
        folder.chmod(0o555)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)  # nothing is forbidden to root
            message = refused(TryAgainError, source, folder / "a.zarr")
        finally:
            os.seteuid(user)
            folder.chmod(0o755)
        assert "permission denied" in message


def test_a_destination_below_a_file_is_refused(tmp_path):
    source = saved(tmp_path, gray())
    assert "a file is where a folder is needed" in refused(TryAgainError, source, Path(source) / "a.zarr")


def test_a_source_that_changes_is_noticed_at_the_end(tmp_path, monkeypatch):
    source = saved(tmp_path, gray())
    fill = module._Writing.run

    def run_and_change(self, quiet):
        fingerprint = fill(self, quiet)
        np.save(source, gray(seed=2))
        return fingerprint

    monkeypatch.setattr(module._Writing, "run", run_and_change)
    assert "section 0" in refused(TryAgainError, source, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
