import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.errors import DataError, TryAgainError, UsageError
from neurokube.volumes import Store, VolumeSpec, create, join, open_volume

PROPERTY = settings(max_examples=50, deadline=None)

SPEC = VolumeSpec((8, 64, 64), "uint8", (40.0, 8.0, 8.0))
NOISE = np.random.default_rng(0).integers(0, 255, SPEC.shape, dtype=np.uint8)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def make_read_only(folder):
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


def refuse(action, words, *, naming):
    with pytest.raises(TryAgainError, match=words) as refusal:
        action()
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(str(naming))


@PROPERTY
@given(st.binary(max_size=100))
def test_what_was_written_is_read_back(value):
    store = Store("memory://round-trip")
    store.write("a/b", value)
    assert store.read("a/b") == value


def test_objects_are_files_below_the_folder(store):
    store.write("a/b", b"value")
    assert Path(store.url, "a", "b").read_bytes() == b"value"
    assert [path.name for path in Path(store.url, "a").iterdir()] == ["b"]


def test_writing_again_replaces_the_whole_object(store):
    store.write("a", b"a long value")
    store.write("a", b"short")
    assert store.read("a") == b"short"


WRITER = """
import os, sys
from neurokube.volumes import Store, VolumeSpec, create
import numpy as np
store = Store(sys.argv[1])
volume = create(sys.argv[1] + "/v.zarr", VolumeSpec((32, 64, 64), "uint8", (8.0, 8.0, 8.0)), shard=(32, 64, 64))
print(flush=True)
while True:
    store.write("a", os.urandom(1 << 20))
    volume.write(volume.spec.box, np.frombuffer(os.urandom(1 << 17), np.uint8).reshape(volume.spec.shape))
"""


def test_a_write_that_was_killed_leaves_nothing_in_the_next(tmp_path):
    store, left, rounds = Store(str(tmp_path)), 0, 0
    while left < 2:
        rounds += 1
        assert rounds < 50
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.02 * (rounds % 5))
        process.kill()
        process.wait()
        left = len(list(tmp_path.rglob("*.__lock")))
        store.write("a", b"short")
        assert store.read("a") == b"short"
        volume = open_volume(str(tmp_path / "v.zarr"))
        volume.write(volume.spec.box, np.ones(volume.spec.shape, np.uint8))
        assert (open_volume(volume.url).read(volume.spec.box) == 1).all()


def test_an_absent_object_reads_as_none_and_can_be_deleted(store):
    assert store.read("a") is None
    assert store.read_json("a") is None
    store.delete("a")
    assert store.keys() == []


def test_keys_are_sorted_and_chosen_by_prefix(store):
    for key in ("b", "a/2", "a/1", "ab", "a0"):
        store.write(key, b"")
    assert store.keys() == ["a/1", "a/2", "a0", "ab", "b"]
    assert store.keys("a/") == ["a/1", "a/2"]
    assert store.keys("a") == ["a/1", "a/2", "a0", "ab"]
    assert store.keys("c") == []


def test_deleting_takes_what_was_named_and_nothing_else(store):
    for key in ("a/1", "a/2", "ab", "b"):
        store.write(key, b"")
    store.delete("b")
    store.delete_all("a/")
    assert store.keys() == ["ab"]
    store.delete_all()
    assert store.keys() == []


def test_json_comes_back_as_it_was(store):
    value = {"text": "µm", "numbers": [1, 2.5, None]}
    store.write_json("a.json", value)
    assert store.read_json("a.json") == value


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe"])
def test_damaged_json_is_named(store, damage):
    store.write("a.json", damage)
    with pytest.raises(DataError, match="damaged JSON") as error:
        store.read_json("a.json")
    assert str(error.value).startswith(f"{store.url}/a.json: ")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(UsageError, match="unknown scheme 'ftp'; use a path or one of file, s3"):
        Store("ftp://host/folder")


def test_joining_leaves_one_slash_between_names():
    assert join("s3://bucket/", "/a/", "b") == "s3://bucket/a/b"


def test_a_full_disk_asks_to_free_space_and_loses_nothing(small_disk):
    store = Store(str(small_disk))
    store.write("kept", b"value")
    volume = create(str(small_disk / "v.zarr"), SPEC, shard=(8, 64, 64))
    refuse(lambda: store.write("large", os.urandom(200_000)), "disk is full: free some space", naming=small_disk)
    store.write("filler", os.urandom(100_000))
    refuse(lambda: volume.write(SPEC.box, NOISE), "disk is full: free some space", naming=small_disk)
    assert store.read("kept") == b"value"
    assert store.read("large") is None


def test_a_read_only_folder_asks_for_another(small_disk):
    store = Store(str(small_disk))
    store.write("kept", b"value")
    volume = create(str(small_disk / "v.zarr"), SPEC, shard=(8, 64, 64))
    make_read_only(small_disk)
    for action in (
        lambda: store.write("new", b""),
        lambda: store.delete("kept"),
        lambda: store.delete_all(),
        lambda: volume.write(SPEC.box, NOISE),
        lambda: create(str(small_disk / "w.zarr"), SPEC),
    ):
        refuse(action, "the folder is read-only", naming=small_disk)
    assert store.read("kept") == b"value"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission_asks_for_another(store):
    store.write("kept", b"value")
    Path(store.url).chmod(0o500)
    refuse(lambda: store.write("new", b""), "permission denied", naming=store.url)
    Path(store.url, "kept").chmod(0)
    refuse(lambda: store.read("kept"), "permission denied", naming=store.url)


def test_only_the_first_to_create_an_object_writes_it(store):
    assert store.create("a", b"first")
    assert not store.create("a", b"second")
    assert store.read("a") == b"first"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_path_may_lead_upwards_through_links_too(tmp_path, monkeypatch, scheme):
    Store(str(tmp_path / "far" / "store")).write("a", b"value")
    (tmp_path / "far" / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "here")
    monkeypatch.chdir(tmp_path / "far" / "here")
    paths = [f"{tmp_path}/link/../store"] + ([] if scheme else ["../store", "./../here/../store"])
    assert all(Store(scheme + path).read("a") == b"value" for path in paths)
