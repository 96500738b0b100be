"""What is written whole or not at all, resumed where it was, and in bounded memory; labels renumbered to fit."""

import csv
import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neurokube.errors import TryAgainError, UsageError
from neurokube.volumes import VolumeSpec, open_volume
from neurokube.volumes.files import WRITERS, relabelled, writing
from neurokube.volumes.importing import import_volume
from neurokube.volumes.sources import open_source

SPEC = VolumeSpec((60, 70, 80), "uint8", (40.0, 8.0, 8.0))
LABELS = replace(SPEC, kind="labels")
FOLDERS = sorted(name for name in WRITERS if not WRITERS[name].suffix)
FILES = sorted(name for name in WRITERS if WRITERS[name].suffix)


def voxels(start: int, stop: int, spec: VolumeSpec = SPEC) -> np.ndarray:
    z, y, x = np.ogrid[start:stop, : spec.shape[1], : spec.shape[2]]
    return ((z * 7 + y * 3 + x // 9) % 256).astype(spec.dtype)


# Whole or not at all

KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_bounds import SPEC, voxels
from neurokube.volumes.files import WRITERS, writing
writing.BATCH_BYTES = 3 * 70 * 80

left = int(sys.argv[4])

def few(start, stop):
    global left
    left -= 1
    if left < 0:  # the rest waits for the end
        print("now", flush=True)
        time.sleep(600)
    return voxels(start, stop)

WRITERS[sys.argv[2]].write(Path(sys.argv[3]), SPEC, few, token="a")
"""


def killed(path: Path, name: str, after: int) -> None:
    """Write some batches, and kill the process while it writes the next."""
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), name, str(path), str(after)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "now\n"
        process.kill()
    assert process.returncode == -9


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_what_is_killed_leaves_nothing_that_looks_whole(tmp_path, name, monkeypatch):
    monkeypatch.setattr(writing, "BATCH_BYTES", 3 * 70 * 80)
    path = tmp_path / f"a{WRITERS[name].suffix}"
    killed(path, name, 2)
    assert not path.exists() and [f.name for f in tmp_path.iterdir()] == [path.name + ".partial"]
    WRITERS[name].write(path, SPEC, voxels, token="a")
    assert [f.name for f in tmp_path.iterdir()] == [path.name]
    with open_source(str(path)) as source:
        np.testing.assert_array_equal(source.read(0, 60), voxels(0, 60))
        assert source.remarks == ()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_goes_on_where_it_was(tmp_path, name, monkeypatch):
    monkeypatch.setattr(writing, "BATCH_BYTES", 3 * 70 * 80)
    killed(tmp_path / "a", name, 2)
    killed(tmp_path / "a", name, 4)
    partial = tmp_path / "a.partial"
    left = {f.name: f.stat().st_mtime_ns for f in partial.iterdir() if f.name.startswith("s")}
    assert len(left) == 18
    asked = []

    def sections(start: int, stop: int) -> np.ndarray:
        asked.append(start)
        return voxels(start, stop)

    WRITERS[name].write(tmp_path / "a", SPEC, sections, token="a")
    assert min(asked) == 18
    assert all((tmp_path / "a" / f).stat().st_mtime_ns == when for f, when in left.items())
    assert len(list((tmp_path / "a").iterdir())) == 60


@pytest.mark.parametrize("token", ["", "b"])
def test_what_was_begun_from_other_content_is_not_taken_up(tmp_path, token, monkeypatch):
    monkeypatch.setattr(writing, "BATCH_BYTES", 3 * 70 * 80)
    killed(tmp_path / "a", "tiff-stack", 5)
    WRITERS["tiff-stack"].write(tmp_path / "a", SPEC, lambda a, b: 255 - voxels(a, b), token=token)
    with open_source(str(tmp_path / "a")) as source:
        np.testing.assert_array_equal(source.read(0, 60), 255 - voxels(0, 60))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_an_error_midway_leaves_no_file(tmp_path, name, monkeypatch):
    monkeypatch.setattr(writing, "BATCH_BYTES", 3 * 70 * 80)
    path = tmp_path / f"a{WRITERS[name].suffix}"

    def broken(start: int, stop: int) -> np.ndarray:
        if start > 20:
            raise TryAgainError("the store does not answer")
        return voxels(start, stop)

    with pytest.raises(TryAgainError, match="does not answer"):
        WRITERS[name].write(path, SPEC, broken)
    assert not path.exists()
    if WRITERS[name].suffix:
        assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_at_the_end_only_and_a_folder_of_other_things_never(tmp_path):
    (tmp_path / "a.mrc").write_text("old")
    seen = []

    def sections(start: int, stop: int) -> np.ndarray:
        seen.append((tmp_path / "a.mrc").read_text())
        return voxels(start, stop)

    WRITERS["mrc"].write(tmp_path / "a.mrc", SPEC, sections)
    assert set(seen) == {"old"}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="exists"):
        WRITERS["vast"].write(tmp_path / "a", SPEC, voxels)
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="in the way"):
        WRITERS["vast"].write(tmp_path / "b", SPEC, voxels)
    assert (tmp_path / "b.partial" / "thesis.txt").exists()


@pytest.mark.parametrize("name", ["mrc", "vast"])
def test_two_exports_to_one_place_do_not_meet(tmp_path, name):
    work = tmp_path / "a.partial"
    work.mkdir() if name == "vast" else work.touch()
    handle = os.open(work, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(TryAgainError, match="another export"):
        WRITERS[name].write(tmp_path / "a", SPEC, voxels)
    os.close(handle)
    WRITERS[name].write(tmp_path / "a", SPEC, voxels)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_destination_below_a_file_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "a").write_text("x")
    with pytest.raises(
        (TryAgainError, UsageError), match=r"a file is where a folder is needed|cannot be written"
    ) as caught:
        WRITERS[name].write(tmp_path / "a" / f"b{WRITERS[name].suffix}", SPEC, voxels)
    assert "\n" not in str(caught.value)


FULL = """
import resource, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import numpy as np
from test_bounds import SPEC
from neurokube.errors import NeuroKubeError
from neurokube.volumes.files import WRITERS, writing
writing.BATCH_BYTES = 1 << 14
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
noise = np.random.default_rng(0).integers(0, 255, (1, 300, 300)).astype(np.uint8)
for name, writer in WRITERS.items():
    try:
        writer.write(Path(sys.argv[2], "a" + writer.suffix), replace(SPEC, shape=(40, 300, 300)), lambda a, b: noise)
    except NeuroKubeError as error:
        print(name, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_write_that_fails_is_told_in_one_line_and_leaves_no_file(tmp_path):
    command = [sys.executable, "-c", FULL, Path(__file__).parent, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert sorted(told) == sorted(WRITERS)
    assert all("cannot be written (File too large)" in line or "disk is full" in line for line in told.values())
    assert [f.name for f in tmp_path.iterdir()] == ["a.partial"]  # of the folders


# Memory

PEAK = """
import re, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from neurokube.volumes import VolumeSpec
from neurokube.volumes.files import WRITERS, writing
from neurokube.volumes.sources import open_source
writing.BATCH_BYTES = 1 << 21
name, path, depth, kind = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
spec = VolumeSpec((depth, 512, 512), "uint8", (40.0, 8.0, 8.0), kind=kind)
section = (np.arange(512 * 512) // 700 % 200).astype(np.uint8).reshape(1, 512, 512)

def sections(a, b):
    return np.repeat(section, b - a, 0) + (np.arange(a, b) % 9).astype(np.uint8)[:, None, None]

WRITERS[name].write(path, spec, sections)
written = int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
if name != "vast":
    with open_source(str(path)) as source:
        for z in range(0, depth, 8):
            source.read(z, min(z + 8, depth))
mapped = int(re.search(r"RssAnon:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
print(written, mapped)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "image") for name in FILES), *((name, "labels") for name in ("hdf5", "nrrd", "tiff", "amira"))],
)
def test_memory_does_not_grow_with_the_volume(tmp_path, name, kind):
    peaks = []
    for depth in (32, 256):  # 8 and 64 MiB
        command = [sys.executable, "-c", PEAK, name, tmp_path / f"a{WRITERS[name].suffix}", str(depth), kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(tuple(map(int, done.stdout.split())))
    (small, small_read), (large, large_read) = peaks
    assert large - small < 16 << 10 and large_read - small_read < 24 << 10, peaks


# Labels that are too long


def test_labels_are_renumbered_to_fit_and_the_table_says_how(tmp_path):
    ids = np.array([0, 2**63 + 1, 5, 70_000, 2**40], np.uint64)
    data = np.random.default_rng(0).choice(ids, (6, 9, 8))
    spec = VolumeSpec(data.shape, "uint64", (40.0, 8.0, 8.0), kind="labels")
    new = relabelled(WRITERS["mrc"], spec, lambda a, b: data[a:b])
    assert new.spec == replace(spec, dtype="uint8") and new.ids.tolist() == [5, 70_000, 2**40, 2**63 + 1]
    WRITERS["mrc"].check(new.spec)
    WRITERS["mrc"].write(tmp_path / "a.mrc", new.spec, new.sections)
    new.write_table(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        table = {int(row["label"]): int(row["id"]) for row in csv.DictReader(file)} | {0: 0}
    with open_source(str(tmp_path / "a.mrc")) as source:
        back = np.vectorize(table.get, otypes=[np.uint64])(source.read(0, 6))
    np.testing.assert_array_equal(back, data)
    image = relabelled(WRITERS["mrc"], replace(spec, dtype="uint16"), lambda a, b: data[a:b].astype(np.uint16))
    assert image.spec.dtype == "uint8"


def test_more_labels_than_fit_are_refused(tmp_path):
    data = np.arange(70_000, dtype=np.uint64).reshape(7, 100, 100)
    spec = VolumeSpec(data.shape, "uint64", (40.0, 8.0, 8.0), kind="labels")
    assert relabelled(WRITERS["tiff"], spec, lambda a, b: data[a:b]).spec.dtype == "uint32"
    with pytest.raises(UsageError, match="69999 labels"):
        relabelled(WRITERS["mrc"], spec, lambda a, b: data[a:b])
    with pytest.raises(UsageError, match="leave it out"):
        relabelled(WRITERS["mrc"], replace(spec, kind="image"), lambda a, b: data[a:b])


# Import


def test_an_import_takes_size_and_place_from_the_file_and_says_so(tmp_path):
    spec = replace(SPEC, offset=(80.0, -16.0, 4.0))
    WRITERS["nrrd"].write(tmp_path / "a.nrrd", spec, voxels)
    report = import_volume(str(tmp_path / "a.nrrd"), str(tmp_path / "a.zarr"), voxel_size=None, quiet=True)
    assert report.voxel_size == spec.voxel_size and "80,-16,4 nm" in report.remarks[-1]
    assert open_volume(str(tmp_path / "a.zarr")).spec == spec
    report = import_volume(
        str(tmp_path / "a.nrrd"), str(tmp_path / "b.zarr"), voxel_size=None, offset=(0.0, 0.0, 0.0), quiet=True
    )
    assert report.remarks == () and open_volume(str(tmp_path / "b.zarr")).spec.offset == (0, 0, 0)


def test_what_a_file_leaves_unclear_stands_where_the_voxel_size_is_asked_for(tmp_path):
    WRITERS["amira"].write(tmp_path / "a.am", SPEC, voxels)
    block = (tmp_path / "a.am").read_bytes()
    (tmp_path / "a.am").write_bytes(block.replace(b'Coordinates "nm"', b'Coordinates "yd"'))
    with pytest.raises(UsageError, match=r"unknown unit \(yd\).*--voxel-size"):
        import_volume(str(tmp_path / "a.am"), str(tmp_path / "a.zarr"), voxel_size=None, quiet=True)
