"""Scratch: what is read by way of it is the same, asked for once, whatever disk fills or process dies."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tensorstore as ts
from web_server import Ranged, web

from neurokube.blocks import Box
from neurokube.errors import ConfigurationError, TryAgainError
from neurokube.volumes import Store, VolumeSpec, create, open_volume
from neurokube.volumes import scratch as scratches
from neurokube.volumes import store as stores
from neurokube.volumes.exporting import export_volume
from neurokube.volumes.scratch import Scratch, staged, staging

SPEC = VolumeSpec((40, 70, 50), "uint8", (10, 10, 10), offset=(30, 40, 50))
WHERE = "s3://neurokube-test/folder"
BOXES = [Box((0, 0, 0), (40, 70, 50)), Box((3, 5, 7), (30, 64, 33)), Box((33, 65, 40), (40, 70, 50))]


def voxels(seed=0, shape=SPEC.shape):
    return np.random.default_rng(seed).integers(1, 200, shape).astype(np.uint8)


def made(url, data=None):
    volume = create(url, SPEC, shard=(32, 32, 32), chunk=(16, 16, 16))
    volume.write(SPEC.box, voxels() if data is None else data)
    return volume


@contextmanager
def counted(bucket, most):
    before = bucket.requests
    yield
    assert bucket.requests - before <= most


def test_each_object_is_asked_for_once_and_whole(s3, tmp_path):
    made(WHERE)
    with staged(tmp_path) as scratch:
        near = scratch.volume(open_volume(WHERE, still=True))
        for box in BOXES * 3:
            with counted(s3, 12 if scratch.copied == 0 else 0):
                assert (near.read(box) == voxels()[box.slices]).all()
        assert scratch.copied == 12
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("form", "copied"), [("ome-zarr", 1), ("ome-zarr-0.4", 1), ("n5", 1), ("paintera", 1), ("precomputed", 0)]
)
def test_every_format_reads_the_same(s3, tmp_path, form, copied):
    made(str(tmp_path / "a"))
    destination = tmp_path / ("b.n5/image" if form == "paintera" else "b")
    export_volume(str(tmp_path / "a"), str(destination), format=form, quiet=True)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            s3.objects[str(path.relative_to(tmp_path))] = path.read_bytes()
    plain = open_volume(str(destination))
    with staged(tmp_path / "scratch") as scratch:
        remote = open_volume(f"s3://neurokube-test/{destination.relative_to(tmp_path)}", still=True)
        for volume, reference in ((remote, plain), (remote.crop(BOXES[1]), plain.crop(BOXES[1]))):
            near = scratch.volume(volume)
            for box in (volume.spec.box, Box((1, 2, 3), (9, 40, 20))):
                assert (near.read(box) == reference.read(box)).all()
        assert (near.read(Box((0, 0, 0), (5, 5, 5)), 0) == reference.read(Box((0, 0, 0), (5, 5, 5)), 0)).all()
        if len(plain.arrays) > 1:
            coarse = Box.of(plain.level_shape(1))
            assert (scratch.volume(remote).read(coarse, 1) == plain.read(coarse, 1)).all()
        # shards of precomputed have names that come of hashes: they are read from the store
        assert bool(scratch.copied) == bool(copied)


def test_precomputed_without_shards_and_several_channels(s3, tmp_path):
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": stores.kvstore_spec(WHERE),
        "scale_metadata": {
            "resolution": [10, 10, 10],
            "encoding": "raw",
            "chunk_size": [16, 16, 16],
            "voxel_offset": [5, 6, 7],
            "size": [50, 70, 40],
        },
        "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 2},
    }
    data = voxels(shape=(50, 70, 40, 2))
    ts.open(spec, create=True, context=stores.context()).result().write(data).result()
    with staged(tmp_path) as scratch:
        near = scratch.volume(open_volume(WHERE, still=True))
        for box in BOXES:
            assert (near.read(box) == data.transpose(3, 2, 1, 0)[(..., *box.slices)]).all()
        assert scratch.copied == 4 * 5 * 3


def test_channels_of_zarr(s3, tmp_path):
    spec = replace(SPEC, channels=3)
    data = voxels(shape=(3, *SPEC.shape))
    create(WHERE, spec, shard=(32, 32, 32)).write(SPEC.box, data)
    with staged(tmp_path) as scratch:
        near = scratch.volume(open_volume(WHERE, still=True))
        assert (near.read(BOXES[1]) == data[(..., *BOXES[1].slices)]).all() and scratch.copied == 4


def test_a_web_server_is_staged_from(tmp_path):
    made(str(tmp_path / "a"))
    with web(tmp_path) as serve, staged(tmp_path / "scratch") as scratch:
        near = scratch.volume(open_volume(f"{serve(Ranged)}/a", still=True))
        for box in BOXES:
            assert (near.read(box) == voxels()[box.slices]).all()
        assert scratch.copied == 12


def test_what_lies_on_the_same_disk_is_not_copied(tmp_path):
    volume = made(str(tmp_path / "a"))
    with staged(tmp_path / "scratch") as scratch:
        assert scratch.volume(volume) is volume


def test_a_folder_on_another_disk_is_staged_as_well(tmp_path, small_disk):
    spec = VolumeSpec((32, 32, 40), "uint8", (10, 10, 10))
    volume = create(str(small_disk / "a"), spec, shard=(32, 32, 32))
    data = voxels(shape=spec.shape)
    with staged(tmp_path / "scratch") as scratch:
        scratch.volume(volume).write(spec.box, data)
        scratch.wait()
        assert (volume.read(spec.box) == data).all()
        near = scratch.volume(open_volume(volume.url, still=True))
        assert (near.read(spec.box) == data).all() and scratch.copied == 2


@pytest.mark.parametrize("limit", [400_000, 200_000, 30_000, 0])
def test_within_any_limit_the_same_is_read(s3, tmp_path, capsys, limit):
    made(WHERE)
    small = [Box((z, y, x), (z + 8, y + 8, x + 8)) for z in (0, 30) for y in (0, 30, 60) for x in (0, 30, 42)]
    with staged(tmp_path, limit) as scratch:
        near = scratch.volume(open_volume(WHERE, still=True))
        for box in [*small, *small, *BOXES]:
            assert (near.read(box) == voxels()[box.slices]).all()
            held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
            assert held <= limit
        assert [path.is_dir() for path in tmp_path.iterdir()] == [True]
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().err
    assert said.count("\n") == (limit < 400_000)
    assert not said or ("straight from the store" in said and str(tmp_path) in said)


def test_a_full_disk_costs_nothing_but_requests(s3, small_disk, capsys):
    made(WHERE)
    (small_disk / "others").write_bytes(b"0" * 40_000)
    with staged(small_disk) as scratch:
        near = scratch.volume(open_volume(WHERE, still=True))
        for box in [Box((0, 0, 0), (8, 8, 8)), Box((0, 40, 0), (8, 48, 8)), *BOXES, BOXES[1]]:
            assert (near.read(box) == voxels()[box.slices]).all()
        assert scratch.copied >= 1
    assert capsys.readouterr().err.count("\n") == 1
    scratches._TOLD.clear()
    (small_disk / "more").write_bytes(b"0" * 80_000)
    with staged(small_disk) as scratch:
        assert (scratch.volume(open_volume(WHERE, still=True)).read(BOXES[0]) == voxels()).all()
        assert scratch.copied == 0
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(path.name for path in small_disk.iterdir()) == ["more", "others"]


def test_a_disk_that_others_fill_meanwhile_costs_nothing(s3, small_disk, capsys, monkeypatch):
    made(WHERE)
    monkeypatch.setattr(Scratch, "_room", lambda self: 1 << 30)
    with staged(small_disk) as scratch:
        near = scratch.volume(open_volume(WHERE, still=True))
        for box in BOXES:
            assert (near.read(box) == voxels()[box.slices]).all()
    said = capsys.readouterr().err
    assert "No space left" in said and said.count("\n") == 1


def test_a_file_that_somebody_removed_is_copied_again(s3, tmp_path, monkeypatch):
    made(WHERE)
    monkeypatch.setenv("NEUROKUBE_CACHE", "0")
    with staged(tmp_path) as scratch:
        near = scratch.volume(open_volume(WHERE, still=True))
        near.read(BOXES[0])
        gone = [path for path in tmp_path.rglob("*") if path.is_file()][:4]
        gone[0].write_bytes(b"")
        for path in gone[1:]:
            path.unlink()
        with counted(s3, 4):
            assert (near.read(BOXES[0]) == voxels()).all()


def test_objects_that_memory_should_not_hold_whole_are_read_from_the_store(s3, tmp_path, monkeypatch):
    made(WHERE)
    monkeypatch.setattr(scratches, "_LARGEST", 32**3 - 1)
    with staged(tmp_path) as scratch:
        assert (scratch.volume(open_volume(WHERE, still=True)).read(BOXES[1]) == voxels()[BOXES[1].slices]).all()
        assert scratch.copied == 0


def test_what_is_absent_is_asked_for_once_and_a_store_that_is_gone_is_no_zeros(s3, tmp_path):
    data = voxels()
    data[:32, :32, :] = 0
    made(WHERE, data)
    with staged(tmp_path) as scratch:
        near = scratch.volume(open_volume(WHERE, still=True))
        assert (near.read(BOXES[0]) == data).all()
        # of each read with something absent the metadata is looked at
        with counted(s3, 1):
            assert (near.read(BOXES[0]) == data).all()
        other = scratch.volume(open_volume(WHERE, still=True))
    with staged(tmp_path) as scratch:
        near = scratch.volume(other)
        s3.gone = True
        with pytest.raises(TryAgainError, match="is gone"):
            near.read(BOXES[1])
        s3.gone = False
        # what is kept of it may be zeros that never were
        with pytest.raises(TryAgainError, match="is gone"):
            near.read(BOXES[1])
        near = scratch.volume(open_volume(WHERE, still=True))
        assert (near.read(BOXES[1]) == data[BOXES[1].slices]).all()


def test_what_is_written_behind_is_what_is_written(s3, tmp_path):
    data = voxels(3)
    data[:32, :32, :] = 0
    made(WHERE)
    made("s3://neurokube-test/straight", data)
    with staged(tmp_path) as scratch:
        near = scratch.volume(open_volume(WHERE))
        near.write(Box((0, 0, 0), (32, 70, 50)), data[:32])
        near.write(Box((32, 0, 0), (40, 70, 50)), data[32:])
        scratch.wait()
        assert (open_volume(WHERE).read(SPEC.box) == data).all()
        scratch.write(3, lambda: Store(WHERE).begin_write("table.npy", b"123"))
    assert s3.objects["folder/table.npy"] == b"123"
    written, straight = (
        {key.removeprefix(place): value for key, value in s3.objects.items() if key.startswith(f"{place}0/c/")}
        for place in ("folder/", "straight/")
    )
    assert written.keys() == straight.keys() and all(written[key] == straight[key] for key in written)


def test_what_could_not_be_written_is_never_taken_for_written(s3, tmp_path):
    made(WHERE)
    s3.unwritable = "0/c/0/1/"
    with pytest.raises(TryAgainError, match="access denied"), staged(tmp_path) as scratch:
        near = scratch.volume(open_volume(WHERE))
        near.write(SPEC.box, voxels(1))
        with pytest.raises(TryAgainError, match="access denied"):
            scratch.wait()
        scratch.wait()
    assert list(tmp_path.iterdir()) == []


def test_at_most_so_many_bytes_are_on_their_way(monkeypatch):
    monkeypatch.setattr(scratches, "_WRITING", 10)
    scratch, ended = Scratch(None), []
    for k in range(5):
        scratch.write(4, lambda k=k: lambda: ended.append(k))
        assert ended == list(range(max(0, k - 1)))
    scratch.wait()
    assert ended == list(range(5))


HOLD = """
import sys
from neurokube.blocks import Box
from neurokube.volumes import open_volume
from neurokube.volumes.scratch import staged
with staged(sys.argv[1]) as scratch:
    scratch.volume(open_volume(sys.argv[2], still=True)).read(Box((0, 0, 0), (40, 70, 50)))
    print("read", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_what_one_alive_has_is_not(s3, tmp_path):
    made(WHERE)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), WHERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == [b"read\n"] * 2
    (tmp_path / "others").write_bytes(b"0")
    folders = {path for path in tmp_path.iterdir() if path.is_dir()}
    assert len(folders) == 2
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].wait()
    with staged(tmp_path):
        left = folders & set(tmp_path.iterdir())
        assert len(left) == 1 and sum(path.is_file() for path in left.pop().rglob("*")) == 12
    processes[1].communicate(b"")
    assert processes[1].returncode == 0 and [path.name for path in tmp_path.iterdir()] == ["others"]


def test_the_environment_says_where_scratch_is(tmp_path, monkeypatch):
    with staging() as scratch:
        assert scratch is None
    monkeypatch.setenv("NEUROKUBE_SCRATCH", str(tmp_path / "new"))
    with staging() as scratch:
        assert scratch is not None and (tmp_path / "new").is_dir()
    monkeypatch.setenv("NEUROKUBE_SCRATCH_BYTES", "1Gi")
    with pytest.raises(ConfigurationError, match="NEUROKUBE_SCRATCH_BYTES: '1Gi' is no number"), staging():
        pass
    monkeypatch.delenv("NEUROKUBE_SCRATCH_BYTES")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NEUROKUBE_SCRATCH", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="cannot be used as scratch") as error, staging():
        pass
    assert "\n" not in str(error.value)
