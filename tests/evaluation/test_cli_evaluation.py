"""`neurokube evaluate`: what is printed, written and served, and what is refused."""

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from neurokube.blocks import Box
from neurokube.cli import main
from neurokube.volumes import VolumeSpec, create, open_volume

SHAPE = (12, 48, 64)
SIZE = (40.0, 8.0, 8.0)
BIG = 2**63 + 5
PART = Box((5, 8, 10), (12, 40, 60))
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A truth of three slabs, a prediction that splits one and merges the others, their image, and skeletons."""
    folder = tmp_path_factory.mktemp("evaluation")
    y, x = np.arange(SHAPE[1])[:, None], np.arange(SHAPE[2])
    truth = np.broadcast_to(np.where(y < 16, BIG, np.where(y < 32, 20, 30)), SHAPE).astype(np.uint64)
    prediction = np.where(truth == BIG, np.where(x < 40, 1, 2), 9).astype(np.uint64)
    image = np.random.default_rng(0).integers(90, 200, SHAPE, np.uint8)
    for name, array in (("truth", truth), ("prediction", prediction), ("image", image)):
        kind: Any = "image" if name == "image" else "labels"
        volume = create(str(folder / f"{name}.zarr"), VolumeSpec(SHAPE, array.dtype.name, SIZE, kind=kind))
        volume.write(volume.spec.box, array)
    negative = create(str(folder / "negative.zarr"), VolumeSpec(SHAPE, "int32", SIZE, kind="labels"))
    negative.write(negative.spec.box, -np.ones(SHAPE, np.int32))
    small = create(str(folder / "small.zarr"), VolumeSpec((12, 48, 60), "uint64", SIZE, kind="labels"))
    small.write(small.spec.box, truth[:, :, :60])
    floats = create(str(folder / "floats.zarr"), VolumeSpec(SHAPE, "float32", SIZE, kind="labels"))
    floats.write(floats.spec.box, np.full(SHAPE, np.nan, np.float32))
    part = VolumeSpec(SHAPE, "uint64", SIZE, kind="labels").crop(PART)
    create(str(folder / "part.zarr"), part).write(part.box, prediction[PART.slices])
    part = replace(part, offset=(200.0, 64.0, 84.0))
    create(str(folder / "between.zarr"), part).write(part.box, prediction[PART.slices])
    (folder / "traced").mkdir()
    for number, row in enumerate((8, 24, 40)):
        nodes = [f"{n + 1} 0 {80 * n} {8 * row} 240 1 {n or -1}\n" for n in range(7)]
        (folder / "traced" / f"cell {number}.swc").write_text("".join(nodes))
    (folder / "far.swc").write_text("1 0 0 0 0 1 -1\n2 0 0 0 90000 1 1\n")
    (folder / "cyclic.swc").write_text("1 0 0 0 0 1 2\n2 0 0 0 9 1 1\n")
    return folder


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `neurokube evaluate` in this process; return exit code, standard output and standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("NEUROKUBE_DEBUG", raising=False)
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["neurokube", "evaluate", *arguments, "--quiet"])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_scores_and_the_worst_mistakes_are_printed_with_whole_ids(call: Call) -> None:
    code, output, errors = call("prediction.zarr", "truth.zarr")
    assert (code, errors) == (0, "")
    assert "CREMI score" in output
    assert f"1 split of {BIG}, 12,288 voxels, 0.3181 bits\n    in 1 (7,680), 2 (4,608)\n" in output
    assert "2 merge of 9, 24,576 voxels, 0.6667 bits\n    in 20 (12,288), 30 (12,288)\n" in output
    assert "look at 5, 7, 39 (z, y, x), 200, 56, 312 nm: 1 and 2 touch\n" in output
    assert "look at 5, 31, 31 (z, y, x), 200, 248, 248 nm: 20 and 30 touch\n" in output
    assert "split of" not in call("prediction.zarr", "truth.zarr", "--worst", "0")[1]


def test_json_holds_scores_mistakes_and_skeletons(call: Call) -> None:
    code, output, _ = call("prediction.zarr", "truth.zarr", "--json", "--skeletons", "traced", "--worst", "1")
    values = json.loads(output)
    assert code == 0
    assert values["cremi"] == pytest.approx((values["voi"] * values["adapted_rand_error"]) ** 0.5)
    split, merge = values["mistakes"]
    assert (split["label"], split["voxel"], split["parts"][1]) == (BIG, [5, 7, 39], {"label": 2, "voxels": 4608})
    assert (merge["kind"], merge["label"], merge["meeting"]) == ("merge", 9, "touch")
    skeletons = values["skeletons"]
    # of three skeletons of 480 nm one is split into 240 and 160 nm by an edge of 80 nm; the others are merged
    assert skeletons["erl_nm"] == pytest.approx((240**2 + 160**2) / 1440)
    assert (skeletons["skeletons"], skeletons["split"], skeletons["merged"], skeletons["omitted"]) == (3, 1, 12, 0)
    assert skeletons["nerl"] == skeletons["erl_nm"] / 480


def test_a_run_of_a_region_is_scored_where_it_lies_in_the_truth(call: Call) -> None:
    whole = json.loads(call("prediction.zarr", "truth.zarr", "--json", "--region", str(PART))[1])
    part = json.loads(call("part.zarr", "truth.zarr", "--json")[1])
    assert len(whole["mistakes"]) == 2
    for one, other in zip(whole.pop("mistakes"), part.pop("mistakes"), strict=True):
        assert [a - b for a, b in zip(one.pop("voxel"), other.pop("voxel"), strict=True)] == list(PART.start)
        assert one == other
    assert whole == part


def test_a_segmentation_can_be_scored_on_skeletons_alone(call: Call) -> None:
    code, output, errors = call("prediction.zarr", "--skeletons", "traced")
    assert (code, errors) == (0, "")
    assert re.search(r"NERL, their quotient +│ +0\.\d\d\d", output)
    assert re.search(r"edges split, merged, omitted +│ +1, 12, 0", output)
    assert "VOI" not in output
    code, output, _ = call("prediction.zarr", "--skeletons", "far.swc", "--region", "0:12,0:48,0:64")
    assert code == 65
    code, output, _ = call("prediction.zarr", "--skeletons", "traced", "--region", "0:12,0:20,0:64")
    assert re.search(r"nodes left out, outside +│ +14 ", output)


def test_skeletons_can_be_made_of_the_truth(call: Call) -> None:
    values = json.loads(call("truth.zarr", "truth.zarr", "--skeletonize", "--json")[1])
    assert (values["skeletons"]["nerl"], values["skeletons"]["skeletons"]) == (1, 3)
    assert values["mistakes"] == []


def test_a_node_of_a_made_skeleton_across_a_border_merges_nothing(call: Call, folder: Path) -> None:
    truth = open_volume(str(folder / "truth.zarr"))
    # an end of the first body's skeleton, and no more, goes to its neighbour
    labels = np.where(truth.read(truth.spec.box) == 30, 30, 20).astype(np.uint64)
    labels[:, :16, :62] = BIG
    create(str(folder / "wobbly.zarr"), truth.spec).write(truth.spec.box, labels)
    arguments = ("wobbly.zarr", "truth.zarr", "--skeletonize")
    usual, strict = (
        json.loads(call(*arguments, "--json", *more)[1])["skeletons"] for more in ([], ["--merge-nodes", "1"])
    )
    assert (usual["merge_nodes"], usual["mergers"], strict["merge_nodes"], strict["mergers"]) == (10, 0, 1, 1)
    assert usual["nerl"] > strict["nerl"]
    assert "segments that merge skeletons, by 10 nodes of each" in call(*arguments)[1]
    assert "segments that merge skeletons, by 1 node of each" in call("prediction.zarr", "--skeletons", "traced")[1]


def test_the_report_is_one_page_with_two_pictures_of_each_mistake(call: Call, folder: Path) -> None:
    page = folder / "report.html"
    code, output, _ = call("prediction.zarr", "truth.zarr", "--report", str(page), "--image", "image.zarr")
    assert code == 0 and output.endswith(f"{page}: scores, and pictures of the worst mistakes\n")
    text = page.read_text()
    assert text.count("<img") == text.count("data:image/png;base64,") == 4
    assert f"1. Split of {BIG}" in text and "2. Merge of 9" in text and "http" not in text
    assert call("prediction.zarr", "truth.zarr", "--report", str(page), "--skeletons", "traced")[0] == 0
    told = json.loads(call("prediction.zarr", "truth.zarr", "--report", str(page), "--json")[1])
    assert told["report"] == str(page)
    assert call("prediction.zarr", "truth.zarr", "--report", str(page), "--skeletons", "traced")[0] == 0
    assert "Run lengths on skeletons" in page.read_text()


def location(link: str) -> str:
    """Where an address leads on to."""
    authority, _, path = link.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(authority, timeout=20)
    connection.request("GET", f"/{path}")
    answer = connection.getresponse()
    connection.close()
    return answer.headers.get("Location", "")


@pytest.mark.skipif(find_spec("neuroglancer") is None, reason="needs the extra 'view'")
def test_each_mistake_has_a_link_to_its_place_in_the_viewer(folder: Path) -> None:
    arguments = ["prediction.zarr", "truth.zarr", "--view", "--image", "image.zarr", "--report", "linked.html", "-q"]
    command = [sys.executable, "-m", "neurokube", "evaluate", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None and process.stdout is not None
            assert process.stderr.readline() == "Ctrl-C ends the viewer\n"
            printed = iter(process.stdout.readline, "")
            links = [next(line.strip() for line in printed if "http://" in line) for _ in range(2)]
            root = links[0].removesuffix("/1")
            assert links[1] == f"{root}/2"
            states = [json.loads(unquote(location(link).split("#!")[1])) for link in links]
            assert location(f"{root}/3") == ""
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    split, merge = states
    assert (split["position"], merge["position"]) == ([39, 7, 5], [31, 31, 5])
    assert [layer["name"] for layer in split["layers"]] == ["image", "prediction", "truth"]
    assert [layer.get("segments") for layer in split["layers"]] == [None, ["1", "2"], [str(BIG)]]
    assert [layer.get("segments") for layer in merge["layers"]] == [None, ["9"], ["20", "30"]]
    assert [side["layers"] for side in split["layout"]["children"]] == [["image", "prediction"], ["image", "truth"]]
    assert f'<a href="{root}/2" target="_blank">' in (folder / "linked.html").read_text()


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (64, "name a prediction and its ground truth", ["prediction.zarr"]),
        (64, "name a prediction and its ground truth", ["prediction.zarr", "--skeletons", "traced", "--view"]),
        (64, "name a prediction and its ground truth", ["prediction.zarr", "--mask"]),
        (
            64,
            "choose either --skeletons or --skeletonize",
            ["prediction.zarr", "truth.zarr", "--skeletons", "traced", "--skeletonize"],
        ),
        (64, "--mask: a mask has neither splits nor merges", ["prediction.zarr", "truth.zarr", "--mask", "--view"]),
        (
            64,
            "skeleton unit 'mm': choose one of nm",
            ["prediction.zarr", "--skeletons", "traced", "--skeleton-unit", "mm"],
        ),
        (
            64,
            "--report none/r.html: name a file in a folder",
            ["prediction.zarr", "truth.zarr", "--report", "none/r.html"],
        ),
        (64, "'--worst': ", ["prediction.zarr", "truth.zarr", "--worst", "-1"]),
        (65, "48 x 60; choose what both cover", ["prediction.zarr", "small.zarr"]),
        (65, "choose what both cover", ["between.zarr", "truth.zarr"]),
        (65, "negative.zarr: holds negative labels", ["prediction.zarr", "negative.zarr"]),
        (65, "floats.zarr: holds float32, not labels", ["floats.zarr", "truth.zarr"]),
        (
            65,
            "truth.zarr: holds uint64 and not 8-bit gray",
            ["prediction.zarr", "truth.zarr", "--report", "r.html", "--image", "truth.zarr"],
        ),
        (65, "none.zarr: no volume there", ["prediction.zarr", "truth.zarr", "--view", "--image", "none.zarr"]),
        (65, "none: no such file or folder", ["prediction.zarr", "--skeletons", "none"]),
        (65, "cyclic.swc: node 1 is its own ancestor", ["prediction.zarr", "--skeletons", "cyclic.swc"]),
        (65, "far.swc: 'far': node 2 at 90000, 0, 0 nm", ["prediction.zarr", "--skeletons", "far.swc"]),
        (
            65,
            "is not inside the volume",
            ["prediction.zarr", "truth.zarr", "--region", "0:99,0:9,0:9", "--report", "r.html"],
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    call: Call, folder: Path, code: int, words: str, arguments: list[str]
) -> None:
    status, output, errors = call(*arguments)
    assert (status, output) == (code, "")
    assert errors.startswith("neurokube: ") and errors.count("\n") == 1
    assert words in errors
    assert not (folder / "r.html").exists()
