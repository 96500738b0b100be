"""What is damaged is found; whatever is done to files of a volume, they say so in a line."""

import json
import os
import random
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from neurokube.blocks import Box
from neurokube.errors import NeuroKubeError
from neurokube.volumes import VolumeSpec, create, open_volume
from neurokube.volumes.exporting import export_volume
from neurokube.volumes.importing import import_volume
from neurokube.volumes.integrity import check_volume
from neurokube.volumes.pyramids import fill_level
from neurokube.volumes.summary import describe

SHAPE = (40, 70, 50)
MUTATIONS = int(os.environ.get("NEUROKUBE_TEST_MUTATIONS", "250"))


def voxels(dtype="uint8"):
    data = np.random.default_rng(1).integers(1, 200, SHAPE).astype(dtype)
    # a shard of zeros is rightly absent
    data[:32, :32, :32] = 0
    return data


def make(folder: Path, *, kind="image", dtype="uint8") -> Path:
    path = folder / "a.zarr"
    spec = VolumeSpec(SHAPE, dtype, (10, 10, 10), kind=kind)
    volume = create(str(path), spec, shard=(32, 32, 32), chunk=(16, 16, 16), factors=[(1, 1, 1), (2, 2, 2)])
    volume.write(spec.box, voxels(dtype))
    fill_level(volume, 1, Box.of(volume.level_shape(1)))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copied(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "a.zarr"))


def found(path):
    return check_volume(open_volume(str(path)), quiet=True).damage


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


def test_a_whole_volume_is_whole_and_its_empty_shards_are_not_missing(whole):
    checked = check_volume(open_volume(str(whole)), quiet=True)
    assert checked.damage == () and checked.remarks == ()
    assert not (whole / "0/c/0/0/0").exists()
    assert checked.bytes == voxels().nbytes + 20 * 35 * 25


def test_every_flipped_bit_of_a_shard_is_found(copied):
    shard = copied / "0/c/1/2/1"
    before = shard.read_bytes()
    choice = random.Random(5)
    for bit in choice.sample(range(8 * len(before)), 150):
        flip(shard, bit)
        damage = found(copied)
        assert [each.box for each in damage] == [Box((32, 64, 32), SHAPE)], f"bit {bit} of {8 * len(before)}"
        shard.write_bytes(before)
    assert found(copied) == ()


@pytest.mark.parametrize("length", [0, 1, 60, 400, -1])
def test_cut_off_shards_are_found(copied, length):
    shard = copied / "0/c/0/1/0"
    shard.write_bytes(shard.read_bytes()[:length])
    assert [(each.level, each.box) for each in found(copied)] == [(0, Box((0, 32, 0), (32, 64, 32)))]


def test_an_index_that_points_beyond_the_file_is_found(copied):
    import google_crc32c

    shard = copied / "0/c/0/1/0"
    content = shard.read_bytes()
    index = np.frombuffer(content[-(8 * 16 + 4) : -4], "<u8").copy()
    index[2] += 1 << 30
    packed = index.tobytes()
    shard.write_bytes(content[: -(8 * 16 + 4)] + packed + google_crc32c.value(packed).to_bytes(4, "little"))
    (damage,) = found(copied)
    assert damage.box == Box((0, 32, 0), (32, 64, 32)) and damage.what.startswith("1 of its chunks")


@pytest.mark.parametrize(("level", "shard"), [(0, "0/c/0/1/0"), (0, "0/c/1/2/1"), (1, "1/c/0/1/0")])
@pytest.mark.parametrize("kind", ["image", "labels"])
def test_a_missing_shard_is_found_by_the_other_resolution(tmp_path, level, shard, kind):
    path = make(tmp_path, kind=kind, dtype="uint64" if kind == "labels" else "uint8")
    assert found(path) == ()
    (path / shard).unlink()
    (damage,) = found(path)
    assert damage.level == level and "missing: level" in damage.what


def test_what_is_missing_of_an_import_without_another_resolution_is_found_by_its_digest(tmp_path):
    data = np.random.default_rng(0).integers(0, 99, (20, 40, 40)).astype(np.uint8)
    np.save(tmp_path / "a.npy", data)
    path = tmp_path / "a.zarr"
    import_volume(str(tmp_path / "a.npy"), str(path), voxel_size=(10, 10, 10), quiet=True)
    assert found(path) == ()
    (path / "0/c/0/0/0").unlink()
    (damage,) = found(path)
    assert "not what was imported" in damage.what


def test_a_shape_of_more_than_is_stored_is_said_and_not_gone_through(copied):
    metadata = copied / "0/zarr.json"
    metadata.write_text(metadata.read_text().replace("40", "4000000000"))
    damage, *_ = found(copied)
    assert "correct the shape" in damage.what


def test_info_tells_what_lies_there(whole):
    told = describe(open_volume(str(whole)))
    assert json.loads(json.dumps(told)) == told
    assert [level["voxel_size"] for level in told["levels"]] == [[10, 10, 10], [20, 20, 20]]
    sizes = [sum(p.stat().st_size for p in (whole / f"{k}/c").rglob("*") if p.is_file()) for k in (0, 1)]
    assert [level["bytes"] for level in told["levels"]] == sizes
    assert [level["objects"] for level in told["levels"]] == [11, 2]
    assert told["levels"][0]["codecs"] == "zstd 1, crc32c"


def test_info_and_check_on_the_command_line(copied, command):
    code, out, _ = command("info", copied)
    assert code == 0 and "32 x 32 x 32" in out and "complete" in out
    code, out, _ = command("info", copied, "--json")
    assert json.loads(out)["shape"] == list(SHAPE)
    assert command("check", copied, "-q")[0] == 0
    (copied / "0/c/1/2/1").write_bytes(b"nothing")
    code, out, err = command("check", copied, "-q")
    assert code == 65 and "level 0, voxels 32:40,64:70,32:50" in out and err.count("\n") == 1
    code, out, _ = command("check", copied, "-q", "--json")
    assert code == 65 and [row["level"] for row in json.loads(out)["damage"]] == [0]
    assert command("check", copied, "--repair")[0] == 64


def mutate(path: Path, choice: random.Random) -> str:
    """Do something to one file of a volume, and return what."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    texts = [p for p in files if p.name == "zarr.json"]
    kind = choice.choice(("cut", "flip", "remove", "edit", "edit", "garbage", "longer"))
    target = choice.choice(texts if kind == "edit" else files)
    content = target.read_bytes()
    if kind == "cut":
        target.write_bytes(content[: choice.randrange(len(content))])
    elif kind == "flip":
        flip(target, choice.randrange(8 * len(content)))
    elif kind == "remove":
        target.unlink()
    elif kind == "garbage":
        target.write_bytes(choice.randbytes(choice.randrange(2000)))
    elif kind == "longer":
        target.write_bytes(content + choice.randbytes(choice.randrange(1, 500)))
    else:
        document = json.loads(content)
        edit(document, choice)
        target.write_text(json.dumps(document))
    return f"{kind} {target.relative_to(path)}"


STRANGE = (
    None,
    -1,
    0,
    1,
    3,
    2**31,
    2**40,
    2**63,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "zstd",
    [],
    {},
    True,
    "c",
    1e-9,
)


def edit(document, choice):
    """Change one value, wherever it is, to a strange one, or remove it."""
    places = list(values(document))
    holder, key = choice.choice(places)
    if choice.random() < 0.25:
        del holder[key]
    else:
        holder[key] = choice.choice(STRANGE)


def values(node):
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, dict | list):
            yield from values(value)


def test_whatever_is_done_to_its_files_a_volume_answers_in_one_line(whole, tmp_path):
    """Each in `info`, `check` and `read`: an answer or an error of ours, soon, in little memory."""
    kinds = set()
    for seed in range(MUTATIONS):
        path = Path(shutil.copytree(whole, tmp_path / f"{seed}"))
        what = mutate(path, random.Random(seed))
        try:
            volume = open_volume(str(path))
            describe(volume)
            damage = check_volume(volume, quiet=True).damage
            assert all("\n" not in each.what for each in damage), what
            if what.startswith(("cut", "flip", "garbage", "remove")) and "/c/" in what:
                assert damage, f"{what} (seed {seed}) was not found"
            kinds.add("damaged" if damage else "whole")
            volume.read(Box.of(min(n, 64) for n in volume.spec.shape))
        except NeuroKubeError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000, what
            kinds.add(type(error).__name__)
        except Exception as error:
            raise AssertionError(f"{what} (seed {seed}): {type(error).__name__}: {error}") from error
        shutil.rmtree(path)
    assert {"damaged", "whole", "DataError"} <= kinds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20


@pytest.mark.parametrize("format", ["ome-zarr-0.4", "n5", "bdv-n5", "precomputed"])
def test_other_formats_are_told_and_checked_as_well(whole, tmp_path, format):
    report = export_volume(str(whole), str(tmp_path / "b"), format=format, quiet=True)
    told = describe(open_volume(report.url))
    assert told["levels"][0]["objects"] > 0 and told["levels"][0]["bytes"] > 0
    assert told["levels"][1]["voxel_size"] == [20, 20, 20]
    assert check_volume(open_volume(report.url), quiet=True).damage == ()
    # below its parent, as BigDataViewer keeps the voxels beside its XML
    chunks = [p for p in tmp_path.rglob("*") if p.is_file() and p.name not in ("info", "attributes.json")]
    chunk = max(chunks, key=lambda p: p.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-40])
    (damage,) = check_volume(open_volume(report.url), quiet=True).damage
    assert damage.level == 0


@pytest.mark.parametrize("format", ["ome-zarr", "n5", "precomputed", "paintera"])
def test_every_format_is_described_and_checked(tmp_path, format):
    source = make(tmp_path, kind="labels", dtype="uint64")
    path = tmp_path / "out.n5"
    export_volume(str(source), str(path), format=format, quiet=True)
    opened = open_volume(str(path / "labels" if format == "paintera" else path))
    checked = check_volume(opened, quiet=True)
    assert checked.damage == () and bool(checked.remarks) == (format == "paintera")
    told = describe(opened)["levels"][0]
    assert (told["objects"] is None) == (format == "paintera") and told["codecs"] != "raw"


@pytest.mark.parametrize("what", ["shape", "scale"])
def test_resolutions_that_do_not_fit_each_other_are_found(copied, what):
    place = copied / ("0/zarr.json" if what == "shape" else "zarr.json")
    document = json.loads(place.read_text())
    if what == "shape":
        document["shape"][0] //= 2
    else:
        (multiscale,) = document["attributes"]["ome"]["multiscales"]
        multiscale["datasets"][1]["coordinateTransformations"][0]["scale"] = [10, 10, 10]
    place.write_text(json.dumps(document))
    assert any(d.level == 1 and "correct the metadata" in d.what for d in found(copied))
