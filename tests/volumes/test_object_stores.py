"""Stores: what they hold is probed, what is wrong with them is one line, and web servers are read from."""

import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from web_server import Plain, Ranged, web

from neurokube.blocks import Box
from neurokube.errors import ConfigurationError, TryAgainError, UsageError
from neurokube.volumes import Store, VolumeSpec, create, open_volume
from neurokube.volumes import store as stores
from neurokube.volumes.integrity import check_volume
from neurokube.volumes.summary import describe

SPEC = VolumeSpec((40, 70, 50), "uint8", (10, 10, 10))
WHERE = "s3://neurokube-test/folder"


def voxels(seed=0):
    return np.random.default_rng(seed).integers(1, 200, SPEC.shape).astype(np.uint8)


def made(url):
    volume = create(url, SPEC, shard=(32, 32, 32), chunk=(16, 16, 16))
    volume.write(SPEC.box, voxels())
    return volume


@pytest.mark.parametrize(
    ("holds", "found"), [("all", (True, True)), ("create", (True, False)), ("none", (False, False))]
)
def test_what_a_store_holds_is_found_out_and_leaves_nothing_behind(s3, holds, found):
    s3.holds = holds
    assert Store(WHERE).conditions() == found
    assert s3.objects == {}
    asked = s3.requests
    Store(WHERE).conditions()
    assert s3.requests == asked


@pytest.mark.parametrize("holds", ["all", "create", "none"])
def test_of_many_that_create_an_object_one_does(s3, holds):
    s3.holds = holds
    Store(WHERE).conditions()
    with ThreadPoolExecutor(6) as pool:
        for number in range(4):
            won = list(pool.map(lambda k, n=number: Store(WHERE).create(f"{n}", b"%d" % k), range(6)))
            assert sum(won) == 1 and Store(WHERE).read(f"{number}") == b"%d" % won.index(True)
    assert sorted(s3.objects) == [f"folder/{n}" for n in range(4)]


def test_a_claim_that_was_left_behind_ends(s3, monkeypatch):
    s3.holds = "none"
    monkeypatch.setattr(stores, "_CLAIM_ENDS", 0.5)
    Store(WHERE).write(".claims/a/of-a-killed-one", b"")
    assert Store(WHERE).create("a", b"1") and not Store(WHERE).create("a", b"2")


@pytest.mark.parametrize("holds", ["all", "create", "none"])
def test_whole_shards_are_written_again_whatever_the_store_holds_and_whatever_was_there(s3, holds):
    s3.holds = holds
    volume = made(WHERE)
    for key in [key for key in s3.objects if "/c/" in key][:5]:
        s3.objects[key] = b"damaged"
    data = voxels(1)
    data[:32, :32, :32] = 0
    volume.write(SPEC.box, data)
    assert (open_volume(WHERE).read(SPEC.box) == data).all()
    assert "folder/0/c/0/0/0" not in s3.objects
    part = Box((0, 0, 0), (5, 5, 5))
    if holds == "all":
        volume.write(part, data[part.slices] + 1)
    else:
        with pytest.raises(ConfigurationError, match="does not hold conditional writes"):
            volume.write(part, data[part.slices] + 1)


def test_what_is_encoded_in_memory_is_what_a_folder_gets(tmp_path, s3):
    made(WHERE)
    made(str(tmp_path / "a"))
    local = {str(p.relative_to(tmp_path / "a")): p.read_bytes() for p in (tmp_path / "a/0/c").rglob("*") if p.is_file()}
    assert {k.removeprefix("folder/"): v for k, v in s3.objects.items() if "/c/" in k} == local


def test_a_damaged_shard_of_a_folder_is_written_again(tmp_path):
    volume = made(str(tmp_path / "a"))
    for path in (tmp_path / "a/0/c").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    volume.write(SPEC.box, voxels(2))
    assert (volume.read(SPEC.box) == voxels(2)).all()


def test_info_and_check_on_s3(s3, command):
    made(WHERE)
    told = describe(open_volume(WHERE))
    assert told["levels"][0]["objects"] == 12 and told["levels"][0]["bytes"] > 0
    assert command("check", WHERE, "-q")[0] == 0
    key = "folder/0/c/1/1/1"
    s3.objects[key] = s3.objects[key][:-30]
    code, out, err = command("check", WHERE, "-q")
    assert code == 65 and "32:40,32:64,32:50" in out and err.count("\n") == 1


def test_a_store_that_is_silent_is_given_up():
    """In a process of its own, as patience is settled once in each."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        patience = {"TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "1"}
        command = [sys.executable, "-m", "neurokube", "info", place]
        ended = subprocess.run(command, env=os.environ | patience, capture_output=True, text=True, check=False)
    assert ended.returncode == 75 and "does not answer" in ended.stderr and ended.stderr.count("\n") == 1


def test_what_is_wrong_with_a_bucket_is_one_line(s3, command):
    volume = made(WHERE)
    s3.denied = True
    for task in (lambda: Store(WHERE).read("a"), lambda: open_volume(WHERE), lambda: volume.write(SPEC.box, voxels())):
        with pytest.raises(TryAgainError, match=r"access denied .*: check the keys"):
            task()
    s3.denied, s3.gone = False, True
    with pytest.raises(TryAgainError, match="no such bucket"):
        volume.write(SPEC.box, voxels())
    # what is not there must not pass for zeros
    with pytest.raises(TryAgainError, match="is gone"):
        volume.read(SPEC.box)
    s3.gone = False
    with pytest.raises(TryAgainError, match="is gone"):
        volume.read(SPEC.box)
    assert (open_volume(WHERE).read(SPEC.box) == voxels()).all()
    code, _, err = command("info", "s3://x/y")
    assert code == 64 and "Invalid S3 bucket name" in err and err.count("\n") == 1


def test_a_store_that_does_not_answer_is_said_soon(monkeypatch, command):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for place in (WHERE, "http://127.0.0.1:9/a"):
        code, _, err = command("info", place)
        assert code == 75 and "does not answer" in err and err.count("\n") == 1


@pytest.fixture(name="web")
def served(tmp_path):
    with web(tmp_path) as serve:
        yield serve


def test_a_volume_on_a_web_server_is_read_told_and_checked(tmp_path, web, command):
    made(str(tmp_path / "a"))
    url = f"{web(Ranged)}/a"
    assert (open_volume(url).read(SPEC.box) == voxels()).all()
    code, out, _ = command("info", url)
    assert code == 0 and "40 x 70 x 50" in out
    assert check_volume(open_volume(url), quiet=True).damage == ()
    (tmp_path / "a/0/c/0/0/1").write_bytes(b"damaged")
    assert len(check_volume(open_volume(url), quiet=True).damage) == 1
    volume = open_volume(url)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(TryAgainError, match="is gone"):
        volume.read(SPEC.box)


def test_a_web_server_is_not_written_to_nor_listed_and_must_give_ranges(tmp_path, web, command):
    made(str(tmp_path / "a"))
    url = web(Plain)
    with pytest.raises(TryAgainError, match=r"gives whole files only.*use another web server"):
        open_volume(f"{url}/a").read(SPEC.box)
    for task in (Store(url).keys, partial(Store(url).write, "a", b""), partial(Store(url).delete, "a")):
        with pytest.raises(UsageError, match="a web server is only read from"):
            task()
    with pytest.raises(UsageError, match="a web server is only read from"):
        create(f"{url}/b", SPEC)
    np.save(tmp_path / "a.npy", voxels())
    code, _, err = command("import", tmp_path / "a.npy", f"{url}/c", "--voxel-size", "10,10,10")
    assert code == 64 and err.count("\n") == 1


def test_google_s_store_is_named_by_gs(monkeypatch):
    assert stores.kvstore_spec("gs://bucket/a/b/") == {"driver": "gcs", "bucket": "bucket", "path": "a/b/"}
    assert stores.kvstore_spec("gs://bucket") == {"driver": "gcs", "bucket": "bucket", "path": ""}


def test_keys_come_from_the_usual_files(s3, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    file.write_text(
        "[default]\naws_access_key_id = one\naws_secret_access_key = x\n[lab]\naws_access_key_id = two\n"
        "aws_secret_access_key = y\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    Store(WHERE).write("a", b"")
    assert s3.signed_by == "one"
    monkeypatch.setenv("AWS_PROFILE", "lab")
    Store(WHERE).write("a", b"")
    assert s3.signed_by == "two"


def test_public_buckets_are_read_without_keys(monkeypatch):
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert stores.kvstore_spec("s3://bucket/a")["aws_credentials"] == {"type": "anonymous"}


def test_moto_serves_as_well(tmp_path, monkeypatch):
    program = shutil.which("moto_server")
    if program is None:
        pytest.skip("no moto_server on PATH; pipx install 'moto[s3,server]'")
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([program, "-p", str(port)], stdout=sys.stderr, stderr=subprocess.DEVNULL)
    try:
        endpoint, ends = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/neurokube-test", method="PUT")).close()
                break
            except OSError:
                assert time.monotonic() < ends
                time.sleep(0.1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setattr(stores, "_HELD", {})
        assert Store(WHERE).conditions().create
        volume = made(WHERE)
        volume.write(SPEC.box, voxels(1))
        assert (open_volume(WHERE).read(SPEC.box) == voxels(1)).all()
        assert check_volume(open_volume(WHERE), quiet=True).damage == ()
    finally:
        process.terminate()
        process.wait()
