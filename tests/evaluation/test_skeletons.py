"""Skeletons: read from files, measured in a segmentation, and made of a truth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neurokube.blocks import Box
from neurokube.errors import DataError, UsageError
from neurokube.evaluation import RunLengths, Skeletons, evaluate_skeletons, read_skeletons, skeletonize
from neurokube.evaluation.run_length import labels_at, run_lengths
from neurokube.evaluation.skeletons import Skeleton
from neurokube.volumes import Volume, open_volume

MakeVolume = Callable[..., Volume]

NML = """\
<?xml version="1.0" encoding="utf-8"?>
<things>
  <parameters><experiment name="x"/><scale x="4" y="4" z="40"/><time ms="1"/></parameters>
  <thing id="5" color.r="1" name="axon &amp; co" groupId="1">
    <nodes>
      <node id="12" radius="120" x="10" y="20" z="1" inVp="0"/>
      <node id="13" radius="120" x="10" y="50" z="1"/>
      <node id="15" radius="120" x="10" y="50" z="3"/>
    </nodes>
    <edges><edge source="12" target="13"/><edge source="13" target="15"/></edges>
  </thing>
  <thing id="6"><nodes><node id="1" x="0" y="0" z="0"/></nodes><edges/></thing>
  <thing id="7" name="empty"><nodes/><edges/></thing>
</things>
"""


def line(name: str, *places: tuple[float, float, float]) -> Skeleton:
    """A skeleton without branches, of places (z, y, x) in nm."""
    return Skeleton(name, f"{name}.swc", range(len(places)), places, [(n, n + 1) for n in range(len(places) - 1)])


def along_x(name: str, y: float, *xs: float) -> Skeleton:
    return line(name, *((0.0, y, x) for x in xs))


def measure(make_volume: MakeVolume, labels: Any, *skeletons: Skeleton, **options: Any) -> RunLengths:
    """Measure in one section of voxels of 10 nm."""
    volume = make_volume(np.array(labels, np.uint32)[None])
    return evaluate_skeletons(volume, Skeletons.of(skeletons), quiet=True, **options)


def test_a_skeleton_in_one_segment_has_its_whole_length_as_run_length(make_volume: MakeVolume) -> None:
    found = measure(make_volume, [[3] * 11], along_x("a", 0, 0, 40, 100))
    assert (found.erl, found.max_erl, found.nerl, found.length) == (100, 100, 1, 100)
    assert (found.correct, found.edges, found.nodes, found.skeletons) == (2, 2, 3, 1)


def test_a_split_leaves_the_pieces_to_either_side_of_its_edge(make_volume: MakeVolume) -> None:
    found = measure(make_volume, [[3] * 5 + [4] * 6], along_x("a", 0, 0, 40, 50, 100))
    assert found.erl == pytest.approx((40**2 + 50**2) / 100)
    assert (found.split, found.correct) == (1, 2)


def test_skeletons_weigh_by_their_length(make_volume: MakeVolume) -> None:
    found = measure(make_volume, [[1] * 11, [2] * 11], along_x("a", 0, 0, 100), along_x("b", 10, 0, 50))
    assert found.erl == found.max_erl == pytest.approx((100**2 + 50**2) / 150)


def test_a_merger_takes_the_run_length_of_all_edges_in_it_and_of_no_other(make_volume: MakeVolume) -> None:
    labels = [[1] * 6 + [9] * 5, [9] * 11]
    found = measure(make_volume, labels, along_x("a", 0, 0, 50, 60, 100), along_x("b", 10, 0, 100))
    assert found.erl == pytest.approx(50**2 / 200)
    assert (found.correct, found.split, found.merged, found.mergers) == (1, 1, 2, 1)


def test_nodes_just_across_a_border_make_no_merger_if_more_are_asked_for(make_volume: MakeVolume) -> None:
    labels = [[1] * 10 + [2], [2] * 11]
    skeletons = along_x("a", 0, 0, 90, 100), along_x("b", 10, 0, 50, 100)
    strict = measure(make_volume, labels, *skeletons)
    assert (strict.erl, strict.merged, strict.split) == (pytest.approx(90**2 / 200), 2, 1)
    tolerant = measure(make_volume, labels, *skeletons, merge_nodes=2)
    assert tolerant.erl == pytest.approx((90**2 + 100**2) / 200)
    assert (tolerant.merged, tolerant.split, tolerant.mergers) == (0, 1, 0)


def test_label_0_is_no_segment_and_merges_nothing(make_volume: MakeVolume) -> None:
    labels = [[1] * 5 + [0] * 6, [0] * 6 + [2] * 5]
    found = measure(make_volume, labels, along_x("a", 0, 0, 40, 100), along_x("b", 10, 0, 60, 100))
    assert found.erl == pytest.approx((40**2 + 40**2) / 200)
    assert (found.omitted, found.merged, found.mergers) == (2, 0, 0)


def test_a_skeleton_without_an_edge_can_show_a_merger(make_volume: MakeVolume) -> None:
    found = measure(make_volume, [[1] * 11], along_x("a", 0, 0, 50), along_x("dot", 0, 100))
    assert (found.erl, found.mergers, found.skeletons) == (0, 1, 2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_run_lengths_agree_with_a_naive_computation(seed: int, merge_nodes: int) -> None:
    random = np.random.default_rng(seed)
    skeletons = []
    for k in range(4):
        places = random.integers(0, 50, (8, 3)).astype(float)
        edges = [(n, int(random.integers(0, n))) for n in range(1, 8)]
        skeletons.append(Skeleton(str(k), "", range(8), places, edges))
    labels = random.integers(0, 9, 32).astype(np.uint64)
    together = Skeletons.of(skeletons)
    found = run_lengths(together, labels, together.skeleton, merge_nodes=merge_nodes)

    label = {(k, n): int(labels[8 * k + n]) for k in range(4) for n in range(8)}
    holds = {s: [k for k in range(4) if sum(label[k, n] == s for n in range(8)) >= merge_nodes] for s in range(1, 9)}
    total = sum(np.linalg.norm(s.places[a] - s.places[b]) for s in skeletons for a, b in s.edges)  # type: ignore[call-overload]
    runs: dict[tuple[int, int], float] = {}
    counts = {"correct": 0, "split": 0, "merged": 0, "omitted": 0}
    for k, skeleton in enumerate(skeletons):
        for a, b in skeleton.edges:
            one, other = label[k, a], label[k, b]
            length = float(np.linalg.norm(skeleton.places[a] - skeleton.places[b]))  # type: ignore[operator]
            if 0 in (one, other):
                counts["omitted"] += 1
            elif one != other:
                counts["split"] += 1
            elif len(holds[one]) > 1:
                counts["merged"] += 1
            else:
                counts["correct"] += 1
                runs[k, one] = runs.get((k, one), 0) + length
    assert found.erl == pytest.approx(sum(r * r for r in runs.values()) / total)
    assert {name: getattr(found, name) for name in counts} == counts


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_labels_looked_up_chunk_by_chunk_are_those_of_the_whole(make_volume: MakeVolume, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2**60, (70, 90, 130), np.uint64)
    volume, box = make_volume(labels), Box((3, 5, 70), (70, 80, 130))
    voxels = random.integers(0, box.shape, (50, 3))
    expected = labels[box.slices][tuple(voxels.T)]
    np.testing.assert_array_equal(labels_at(volume.crop(box), voxels, quiet=True), expected)


def test_nodes_outside_are_left_out_of_a_region_and_what_is_cut_apart_counts_as_pieces(make_volume: MakeVolume) -> None:
    volume = make_volume(np.full((1, 2, 20), 4, np.uint32), offset=(0.0, 0.0, 100.0))
    # from inside out and back in
    skeletons = Skeletons.of([line("a", (0, 0, 100), (0, 0, 150), (0, 500, 150), (0, 10, 160), (0, 10, 260))])
    with pytest.raises(DataError, match=r"a.swc: 'a': node 2 at 0, 500, 150 nm .* --region 0:1,0:2,0:20"):
        evaluate_skeletons(volume, skeletons, quiet=True)
    found = evaluate_skeletons(volume, skeletons, clip=True, quiet=True)
    assert (found.left_out, found.edges, found.length) == (1, 2, 150)
    assert found.erl == found.max_erl == pytest.approx((50**2 + 100**2) / 150)
    assert found.mergers == 0


def test_skeletons_that_are_nowhere_in_the_volume_are_refused(make_volume: MakeVolume) -> None:
    with pytest.raises(DataError, match=r"no edge of this or any other skeleton lies in .*check --skeleton-unit"):
        measure(make_volume, [[1, 1]], along_x("a", 0, 5000, 6000), clip=True)


def test_skeletons_in_micrometres_that_are_taken_for_nanometres_are_refused(make_volume: MakeVolume) -> None:
    with pytest.raises(DataError, match=r"a.swc: edges have a median length of 0.1 nm.*--skeleton-unit"):
        measure(make_volume, [[1] * 11], along_x("a", 0, 0, 0.1))


def test_a_number_of_nodes_below_1_and_a_volume_of_no_labels_are_refused(make_volume: MakeVolume) -> None:
    with pytest.raises(UsageError, match="merge nodes 0"):
        measure(make_volume, [[1, 1]], along_x("a", 0, 0, 10), merge_nodes=0)
    image = make_volume(np.ones((1, 1, 2), np.float32))
    with pytest.raises(DataError, match="float32, not labels"):
        evaluate_skeletons(image, Skeletons.of([along_x("a", 0, 0, 10)]), quiet=True)
    with pytest.raises(DataError, match="negative labels"):
        evaluate_skeletons(
            make_volume(-np.ones((1, 1, 2), np.int32)), Skeletons.of([along_x("a", 0, 0, 10)]), quiet=True
        )


@pytest.mark.parametrize(("unit", "scale"), [("nm", (1, 1, 1)), ("um", (1000, 1000, 1000)), ("voxels", (40, 4, 8))])
def test_an_swc_file_is_a_skeleton_in_the_unit_that_is_said(tmp_path: Path, unit: str, scale: Any) -> None:
    text = "# made by hand\n\n 1 1 10 20 30 5.5 -1\n2 0 10.5 20 30 1 1 \n7 0 10 2e1 35 1 1\n8.0 2 1 2 3 0 0\n"
    (tmp_path / "axon 4.swc").write_text(text)
    found = read_skeletons(str(tmp_path / "axon 4.swc"), unit=unit, voxel_size=(40, 4, 8))
    assert found.names == ("axon 4",)
    np.testing.assert_array_equal(found.numbers, [1, 2, 7, 8])
    np.testing.assert_array_equal(found.edges, [[1, 0], [2, 0]])
    np.testing.assert_allclose(found.places / scale, [[30, 20, 10], [30, 20, 10.5], [35, 20, 10], [3, 2, 1]])


def test_each_tree_of_an_nml_file_is_a_skeleton_with_the_scale_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "traced.nml").write_text(NML)
    found = read_skeletons(str(tmp_path / "traced.nml"))
    assert found.names == ("axon & co", "traced 6")
    np.testing.assert_array_equal(found.numbers, [12, 13, 15, 1])
    np.testing.assert_array_equal(found.places[:3], [[40, 80, 40], [40, 200, 40], [120, 200, 40]])
    np.testing.assert_array_equal(found.lengths, [120, 80])
    (tmp_path / "traced.nml").write_text(
        NML.replace('z="40"/>', 'z="0.04" unit="micrometer"/>', 1).replace('x="4" y="4"', 'x="0.004" y="0.004"')
    )
    np.testing.assert_allclose(read_skeletons(str(tmp_path)).lengths, [120, 80])


def test_a_folder_holds_skeletons_of_both_kinds(tmp_path: Path) -> None:
    (tmp_path / "traced.nml").write_text(NML)
    (tmp_path / "b.SWC").write_text("1 0 0 0 0 1 -1\n2 0 9 0 0 1 1\n")
    (tmp_path / "readme.txt").write_text("not a skeleton")
    found = read_skeletons(str(tmp_path))
    assert found.names == ("b", "axon & co", "traced 6")
    np.testing.assert_array_equal(found.skeleton, [0, 0, 1, 1, 1, 2])
    np.testing.assert_array_equal(found.edges, [[1, 0], [2, 3], [3, 4]])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.swc", "", "a.swc: holds no node"),
        ("a.swc", "1 0 0 0 0 1\n", "a.swc: line 1: '1 0 0 0 0 1' is not 'number type x y z radius parent'"),
        ("a.swc", "1 0 0 zero 0 1 -1\n", "a.swc: line 1: .* is not 'number"),
        ("a.swc", "1.5 0 0 0 0 1 -1\n", "a.swc: line 1: .* is not 'number"),
        ("a.swc", "1 0 nan 0 0 1 -1\n", "a.swc: node 1: its position is not a number"),
        ("a.swc", "1 0 0 0 0 1 -1\n1 0 0 0 0 1 -1\n", "a.swc: line 2: node 1 is there twice"),
        ("a.swc", "1 0 0 0 0 1 -1\n2 0 0 0 9 1 5\n", "a.swc: node 2: its parent, node 5, is missing"),
        ("a.swc", "1 0 0 0 0 1 -1\n2 0 0 0 0 1 3\n3 0 0 0 9 1 2\n", "a.swc: node 2 is its own ancestor"),
        ("a.swc", "1 0 0 0 0 1 1\n", "a.swc: node 1 is its own ancestor"),
        ("a.swc", "1 0 0 0 0 1 -1\n", "no skeleton has an edge"),
        ("a.nml", "<things><thing", "a.nml: damaged XML"),
        ("a.nml", "<things></things>", "a.nml: parameters/scale, the size of a voxel, is missing"),
        ("a.nml", NML.replace("<scale x", "<scale w"), "a.nml: <scale>: x is missing"),
        ("a.nml", NML.replace('x="4"', 'x="0"'), "a.nml: parameters/scale: is 0, 4, 40 nm"),
        ("a.nml", NML.replace('z="40"', 'z="40" unit="inch"'), "a.nml: parameters/scale: unknown unit 'inch'"),
        ("a.nml", NML.replace('y="20"', 'y="2O"'), "a.nml: tree 'axon & co': <node>: y is '2O', not a number"),
        ("a.nml", NML.replace('target="15"', 'target="16"'), "a.nml: tree 'axon & co': an edge ends at node 16"),
        ("a.nml", NML.replace('id="13"', 'id="12"'), "a.nml: tree 'axon & co': node 12 is there twice"),
        ("a.nml", NML.replace("<node ", "<knot "), "a.nml: holds no tree with a node"),
        ("a.txt", "", "a.txt: not a skeleton file"),
        ("a.swc", "1 0 \x00", "a.swc: line 1"),
    ],
)
def test_a_broken_file_is_refused_in_one_line_that_names_it(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as refusal:
        read_skeletons(str(tmp_path / name))
    assert "\n" not in str(refusal.value)


def test_places_without_skeletons_and_unknown_units_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such file or folder"):
        read_skeletons(str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"holds no \.swc or \.nml file"):
        read_skeletons(str(tmp_path))
    (tmp_path / "a.swc").write_bytes(b"\xff\xfe\x00\x00")
    with pytest.raises(DataError, match=r"a.swc: not a text file"):
        read_skeletons(str(tmp_path))
    with pytest.raises(UsageError, match="skeleton unit 'mm': choose one of nm, um, voxels"):
        read_skeletons(str(tmp_path), unit="mm")


def tubes() -> NDArray[np.uint64]:
    """Three tubes along x, one of which is in two pieces, and a speck."""
    labels = np.zeros((30, 30, 100), np.uint64)
    labels[4:11, 4:11], labels[15:22, 4:11], labels[4:11, 18:25] = 2**40, 2, 3
    labels[4:11, 18:25, 40:60] = 0
    labels[28, 28, 5] = 4
    return labels


@pytest.mark.parametrize("tile", [(128, 128, 128), (32, 32, 32), (7, 40, 33)])
def test_skeletons_of_a_truth_have_its_shape_in_whatever_tiles(make_volume: MakeVolume, tile: Any) -> None:
    volume = make_volume(tubes(), offset=(100.0, 0.0, 50.0))
    made = skeletonize(volume, tile=tile, quiet=True)
    assert made.names == ("2", "3", "4", str(2**40))
    scores = evaluate_skeletons(volume, made, clip=True, quiet=True)
    assert scores.nerl == 1 and scores.correct == scores.edges
    lengths = np.bincount(made.skeleton[made.edges[:, 0]], made.lengths, 4)
    # 1 um long, less what ends before the tube does; in narrow tiles with a few branches to their faces
    assert 900 < lengths[0] < 1600 and 900 < lengths[3] < 1600
    assert lengths[2] == 0
    # the pieces of the tube that leaves and comes back are runs of their own
    assert scores.max_erl < lengths.max() and scores.skeletons == 4


def test_bodies_too_small_for_a_skeleton_are_left_out(make_volume: MakeVolume) -> None:
    assert skeletonize(make_volume(tubes()), min_size=2, quiet=True).names == ("2", "3", str(2**40))
    speck = np.zeros((3, 3, 3), np.uint32)
    speck[1, 1, 1] = 1
    with pytest.raises(DataError, match="no body is long enough"):
        skeletonize(open_volume(make_volume(speck).url), quiet=True)
