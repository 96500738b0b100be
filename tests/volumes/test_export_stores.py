"""Volumes on S3: exported, imported, killed in the midst, refused, and in the end those of a folder.

NEUROKUBE_TEST_S3=s3://BUCKET/FOLDER names a real store to do it on too, NEUROKUBE_TEST_KILLS how often it is killed.
"""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from s3_server import Bucket, serving

from neurokube.blocks import Box
from neurokube.errors import DataError, TryAgainError, UsageError
from neurokube.volumes import Store, VolumeSpec, create, open_volume
from neurokube.volumes import exporting as module
from neurokube.volumes import store as stores
from neurokube.volumes.exporting import export_volume
from neurokube.volumes.importing import import_volume
from neurokube.volumes.integrity import check_volume

FORMATS = ("ome-zarr", "n5", "precomputed")
SPECS = {
    "image": VolumeSpec((40, 300, 260), "uint8", (40.0, 8.0, 8.0), (80.0, 16.0, -24.0)),
    "labels": VolumeSpec((40, 150, 131), "uint64", (40.0, 8.0, 8.0), (80.0, 16.0, -24.0), "labels"),
}
KILLS = int(os.environ.get("NEUROKUBE_TEST_KILLS", "1"))
SKIPPED = "NEUROKUBE_TEST_S3=s3://BUCKET/FOLDER names no S3 store; give AWS_ENDPOINT_URL and keys as well"


def voxels(spec, seed=0):
    coarse = np.random.default_rng(seed).integers(1, 250, [-(-n // 3) for n in spec.shape])
    return np.kron(coarse, np.ones((3, 3, 3), np.int64))[spec.box.slices].astype(spec.dtype)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return the URL of a volume of each kind."""
    folder = tmp_path_factory.mktemp("sources")
    for kind, spec in SPECS.items():
        create(str(folder / kind), spec).write(spec.box, voxels(spec))
    return {kind: str(folder / kind) for kind in SPECS}


@pytest.fixture
def bucket(monkeypatch):
    """A bucket whose conditions are those of Ceph 16; change it to make it another."""
    bucket = Bucket(holds="create")
    with serving(bucket) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setattr(stores, "_HELD", {})
        yield bucket


@pytest.fixture(params=["small", "real"])
def place(request, monkeypatch, tmp_path):
    """A folder in a bucket."""
    if request.param == "small":
        request.getfixturevalue("bucket")
        yield "s3://neurokube-test/exports"
        return
    where = os.environ.get("NEUROKUBE_TEST_S3")
    if not where:
        pytest.skip(SKIPPED)
    monkeypatch.setattr(stores, "_HELD", {})
    url = f"{where}/{tmp_path.name}-{os.getpid()}"
    yield url
    Store(url).delete_all()


def objects(url):
    store = Store(url)
    return {key: store.read(key) for key in store.keys("")}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_exported_to_a_store_is_read_back_and_whole(format, kind, sources, place):
    report = export_volume(sources[kind], f"{place}/v", format=format, quiet=True)
    back = open_volume(report.url)
    assert back.spec == SPECS[kind]
    assert np.array_equal(back.read(back.spec.box), voxels(SPECS[kind]))
    checked = check_volume(back, quiet=True)
    assert checked.damage == ()
    assert len(back.arrays) > 1 and all(
        back.read(Box.of(back.level_shape(k)), k).any() for k in range(len(back.arrays))
    )


FEW_AT_A_TIME = """
import sys
from neurokube.__main__ import main
import neurokube.volumes.exporting as exporting
exporting.TASK_BYTES, exporting.MOST_BYTES, exporting.EVERY = 1 << 16, 1 << 16, 0.02
sys.argv = ["neurokube", *sys.argv[1:]]
main()
"""


def killed(arguments, url, seed):
    """Kill a command when a random number of objects has come to `url`, so many times; return how often."""
    chance, kills = random.Random(seed), 0
    store = Store(url)
    while kills < KILLS:
        goal = len(store.keys()) + chance.randrange(1, 5)
        command = [sys.executable, "-c", FEW_AT_A_TIME, *arguments, "--quiet"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and len(store.keys()) < goal:
            time.sleep(0.005)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    print(f"{url}: {kills} kills, {len(store.keys())} objects then")
    return kills


@pytest.mark.parametrize("format", FORMATS)
def test_a_killed_export_to_a_store_goes_on_and_ends_alike(format, sources, place, monkeypatch):
    export_volume(sources["image"], f"{place}/whole", format=format, quiet=True)
    expected, url = objects(f"{place}/whole"), f"{place}/killed"
    assert killed(["export", sources["image"], url, "--format", format], url, FORMATS.index(format))
    for key, content in objects(url).items():
        assert key == ".neurokube-export" or key.endswith(("json", "info")) or content == expected[key], key
    monkeypatch.setattr(module, "TASK_BYTES", 1 << 16)
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 16)
    begun = Store(url).read_json(".neurokube-export")["done"]
    assert export_volume(sources["image"], url, format=format, quiet=True).resumed == bool(begun)
    found = objects(url)
    assert found.keys() == expected.keys()
    assert not [k for k in found if found[k] != expected[k] and not k.endswith(("json", "info"))]
    back = open_volume(url)
    assert np.array_equal(back.read(back.spec.box), voxels(SPECS["image"]))


def test_a_killed_import_to_a_store_goes_on_and_ends_alike(tmp_path, place):
    np.save(tmp_path / "a.npy", voxels(SPECS["image"]))
    source, url = str(tmp_path / "a.npy"), f"{place}/killed"
    import_volume(source, f"{place}/whole", voxel_size=(40, 8, 8), quiet=True)
    arguments = ["import", source, url, "--voxel-size", "40,8,8"]
    assert killed(arguments, url, 3)
    with pytest.raises(DataError, match="no volume there"):
        open_volume(url)
    report = import_volume(source, url, voxel_size=(40, 8, 8), quiet=True)
    expected, found = objects(f"{place}/whole"), objects(url)
    assert found.keys() == expected.keys()
    assert not [key for key in found if found[key] != expected[key] and key != "zarr.json"]
    assert report.fingerprint == open_volume(f"{place}/whole").fingerprint


def one_line(error, words):
    assert "\n" not in str(error.value) and words in str(error.value)


@pytest.mark.parametrize("format", FORMATS)
def test_a_bucket_that_is_gone_midway_costs_nothing(format, sources, bucket, monkeypatch):
    monkeypatch.setattr(module, "TASK_BYTES", 1 << 16)
    monkeypatch.setattr(module, "MOST_BYTES", 1 << 16)
    url, said = "s3://neurokube-test/v", 0
    for more in (6, 20, 45):
        bucket.gone_after = bucket.requests + more
        try:
            export_volume(sources["image"], url, format=format, quiet=True, overwrite=True)
        except (TryAgainError, DataError) as error:
            said += 1
            known = (
                "no such bucket: create it, or correct the name",
                "is gone, or can no longer be read",
                "does not exist",
            )
            assert "\n" not in str(error) and any(words in str(error) for words in known)
        finally:
            bucket.gone_after = None
    assert said >= 2
    export_volume(sources["image"], url, format=format, quiet=True, overwrite=True)
    back = open_volume(url)
    assert np.array_equal(back.read(back.spec.box), voxels(SPECS["image"]))


def test_an_import_into_a_bucket_that_is_gone_midway_says_so(tmp_path, bucket):
    np.save(tmp_path / "a.npy", voxels(SPECS["image"]))
    bucket.gone_after = bucket.requests + 25
    with pytest.raises(TryAgainError) as error:
        import_volume(str(tmp_path / "a.npy"), "s3://neurokube-test/v", voxel_size=(40, 8, 8), quiet=True)
    one_line(error, "no such bucket: create it, or correct the name")


@pytest.mark.parametrize("format", FORMATS)
def test_a_store_without_rights_is_one_line(format, sources, bucket):
    bucket.denied = True
    with pytest.raises(TryAgainError) as error:
        export_volume(sources["image"], "s3://neurokube-test/v", format=format, quiet=True)
    one_line(error, "access denied (AccessDenied): check the keys, or the rights of the account, for this store")
    bucket.denied = False
    export_volume(sources["labels"], "s3://neurokube-test/v", format=format, quiet=True)
    bucket.denied = True
    with pytest.raises(TryAgainError) as error:
        open_volume("s3://neurokube-test/v")
    one_line(error, "check the keys")


def test_a_real_store_without_rights_and_a_bucket_that_is_not_there_are_one_line(sources, tmp_path):
    where = os.environ.get("NEUROKUBE_TEST_S3")
    if not where:
        pytest.skip(SKIPPED)
    for format in FORMATS:
        with pytest.raises((TryAgainError, UsageError)) as error:
            export_volume(sources["image"], "s3://not-a-bucket-of-ours/v", format=format, quiet=True)
        one_line(error, "no such bucket")
    for format in FORMATS:
        # keys are read once a process
        command = [sys.executable, "-m", "neurokube", "export", sources["image"], f"{where}/{tmp_path.name}", "-q"]
        wrong = os.environ | {"AWS_SECRET_ACCESS_KEY": "wrong"}
        ended = subprocess.run([*command, "--format", format], env=wrong, capture_output=True, text=True)
        assert ended.returncode == 75 and "check the keys" in ended.stderr and ended.stderr.count("\n") == 1
