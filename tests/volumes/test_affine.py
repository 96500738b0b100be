"""Affine transformations: what is understood, in which order and direction, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from neurokube.errors import ConfigurationError, DataError
from neurokube.volumes import VolumeSpec, create, open_volume
from neurokube.volumes.affine import Affine, between, covered, extent

# x is moved by 1000 nm and lengthened, y mixes in z
ZYX = np.array([[1, 0, 0, 30.0], [0.25, 1, 0, 20], [0, 0, 1.5, 1000]])
XYZ = [[1.5, 0, 0, 1000.0], [0, 1, 0.25, 20], [0, 0, 1, 30]]


def loaded(folder: Path, value: Any) -> np.ndarray:
    return Affine.model_validate(value).loaded(folder).array


def written(folder: Path, content: Any, name: str = "affine.json") -> str:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return name


def test_xyz_is_zyx_in_the_other_order(tmp_path):
    assert np.array_equal(loaded(tmp_path, {"matrix": ZYX.tolist(), "axes": "zyx"}), ZYX)
    assert np.array_equal(loaded(tmp_path, {"matrix": XYZ, "axes": "xyz"}), ZYX)
    assert np.array_equal(loaded(tmp_path, {"matrix": [*XYZ, [0, 0, 0, 1]], "axes": "xyz"}), ZYX)


def test_only_the_translation_has_a_unit(tmp_path):
    micrometers = [[*row[:3], row[3] / 1000] for row in ZYX.tolist()]
    assert np.allclose(loaded(tmp_path, {"matrix": micrometers, "axes": "zyx", "unit": "micrometer"}), ZYX)
    assert np.allclose(loaded(tmp_path, {"matrix": micrometers, "axes": "zyx", "unit": "µm"}), ZYX)


def test_an_inverse_is_turned_round(tmp_path):
    there = loaded(tmp_path, {"matrix": ZYX.tolist(), "axes": "zyx"})
    back = loaded(tmp_path, {"matrix": ZYX.tolist(), "axes": "zyx", "inverse": True})
    point = np.array([5.0, 7, 11, 1])
    assert np.allclose(back @ [*(there @ point), 1], point[:3])


def test_what_was_loaded_loads_again_as_it_is(tmp_path):
    once = Affine.model_validate({"matrix": XYZ, "axes": "xyz", "inverse": True}).loaded(tmp_path)
    assert once.loaded(Path("/elsewhere")) == once == Affine.model_validate(once.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bigwarp.txt", "\n".join("\t".join(map(str, row)) for row in XYZ)),
        ("rows.csv", "\n".join(",".join(map(str, row)) for row in [*XYZ, [0, 0, 0, 1]])),
        ("bdv.txt", f"3d-affine: ({', '.join(str(v) for row in XYZ for v in row)})"),
        ("remarked.txt", "# from the landmarks of Tuesday\n" + "\n".join(" ".join(map(str, row)) for row in XYZ)),
        ("list.json", json.dumps(XYZ)),
        ("ngff.json", json.dumps({"type": "affine", "affine": XYZ})),
    ],
)
def test_a_file_without_axes_is_read_with_those_that_are_given(tmp_path, name, text):
    file = written(tmp_path, text, name)
    assert np.allclose(loaded(tmp_path, {"file": file, "axes": "xyz"}), ZYX)
    with pytest.raises(ConfigurationError, match=rf"{name}: does not say the order of its axes; write .*axes: xyz"):
        loaded(tmp_path, file)


def test_a_file_may_say_all_itself(tmp_path):
    content = {"matrix": ZYX.tolist(), "axes": "zyx", "unit": "nanometer", "inverse": False}
    assert np.array_equal(loaded(tmp_path, written(tmp_path, content)), ZYX)


def test_neuroglancer_says_order_and_unit(tmp_path):
    rows = [[*row[:3], row[3] / 4] for row in XYZ]
    dimensions = {axis: [4e-9, "m"] for axis in "xyz"}
    file = written(tmp_path, {"url": "zarr://", "transform": {"matrix": rows, "outputDimensions": dimensions}})
    assert np.allclose(loaded(tmp_path, file), ZYX)


ELASTIX = """(Transform "AffineTransform")
(NumberOfParameters 12)
(TransformParameters {parameters})
(InitialTransformParametersFileName "{initial}")
(CenterOfRotationPoint 100.0 200.0 300.0)
"""


def elastix(initial: str = "NoInitialTransform") -> str:
    """Return what elastix writes of XYZ: the same places, about a centre."""
    rows, centre = np.array(XYZ), np.array([100.0, 200, 300])
    shift = rows[:, 3] - centre + rows[:, :3] @ centre
    return ELASTIX.format(parameters=" ".join(map(str, [*rows[:, :3].ravel(), *shift])), initial=initial)


def test_elastix_leads_from_the_fixed_to_the_moving_image(tmp_path):
    file = written(tmp_path, elastix(), "TransformParameters.0.txt")
    assert np.allclose(loaded(tmp_path, {"file": file, "inverse": False}), ZYX)
    assert np.allclose(loaded(tmp_path, file), loaded(tmp_path, {"matrix": XYZ, "axes": "xyz", "inverse": True}))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.txt", None, "No such file"),
        ("short.txt", "1 0 0 0 1 0", "holds 6 numbers; a matrix needs 3 rows of 4"),
        ("words.txt", "m00 m01", "'m00' is no number"),
        ("damaged.json", "{", "no JSON"),
        ("empty.json", "{}", "holds no matrix"),
        ("odd.json", '{"matrix": [[1]], "axes": "zyx"}', "matrix: needs 3 rows of 4 numbers"),
        ("flat.json", json.dumps({"matrix": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]], "axes": "zyx"}), "inverted"),
        ("field.json", json.dumps({"matrix": XYZ, "axis": "xyz"}), "axis: unknown field"),
        ("elastix.txt", elastix("first.txt"), 'follows "first.txt"; combine both'),
        ("bspline.txt", '(Transform "BSplineTransform")', "is a BSplineTransform, not an AffineTransform"),
        ("ng.json", json.dumps({"matrix": XYZ, "outputDimensions": {"a": [1, "m"]}}), "Neuroglancer"),
    ],
)
def test_what_a_file_cannot_hold_is_said_in_a_line_that_names_it(tmp_path, name, text, said):
    if text is not None:
        written(tmp_path, text, name)
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, name)
    assert said in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_and_the_workflow_must_agree(tmp_path):
    file = written(tmp_path, {"matrix": XYZ, "axes": "xyz"})
    with pytest.raises(ConfigurationError, match="says axes: xyz, the workflow zyx; leave it out in one"):
        loaded(tmp_path, {"file": file, "axes": "zyx"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"matrix": XYZ}, "needs 'axes: zyx' or 'axes: xyz'"),
        (XYZ, "needs 'axes: zyx' or 'axes: xyz'"),
        ({"axes": "zyx"}, "either 'file' or 'matrix'"),
        ({"matrix": XYZ, "axes": "zyx", "unit": "furlong"}, "unknown; known are"),
        ({"matrix": [[1, 0, 0, "a"]] * 3, "axes": "zyx"}, "3 rows of 4 numbers"),
        ({"matrix": [*XYZ, [0, 0, 1, 1]], "axes": "zyx"}, "3 rows of 4 numbers"),
        ({"matrix": [[float("nan"), 0, 0, 0], *XYZ[1:]], "axes": "zyx"}, "no number"),
    ],
)
def test_what_a_workflow_cannot_say_is_refused(value, said):
    with pytest.raises(ValidationError, match=said):
        Affine.model_validate(value)


def test_a_voxel_is_found_in_the_other_volume():
    source = VolumeSpec((10, 20, 30), "uint8", (200.0, 100.0, 100.0), (1000.0, 0.0, 50.0))
    target = VolumeSpec((10, 20, 30), "uint8", (40.0, 8.0, 8.0), (500.0, 3.0, 7.0))
    matrix = between(ZYX, source, target)
    voxel = np.array([3.0, 5, 8])
    place = np.array(target.offset) + voxel * target.voxel_size
    there = matrix[:, :3] @ voxel + matrix[:, 3]
    moved = ZYX[:, :3] @ (np.array(source.offset) + there * source.voxel_size) + ZYX[:, 3]
    assert np.allclose(moved, place)


def test_how_much_is_covered_counts_voxels_with_their_extent():
    here = np.eye(3, 4)
    target = VolumeSpec((8, 8, 8), "uint8", (10.0, 10.0, 10.0), (5.0, 5.0, 5.0))
    same = VolumeSpec((4, 4, 4), "uint8", (20.0, 20.0, 20.0), (10.0, 10.0, 10.0))
    assert covered(between(here, same, target), same, target) == 1
    half = VolumeSpec((2, 4, 4), "uint8", (20.0, 20.0, 20.0), (10.0, 10.0, 10.0))
    assert covered(between(here, half, target), half, target) == 0.5
    assert extent(here, half) == ((0, 0, 0), (40, 80, 80))


def test_metadata_may_scale_by_an_affine_and_not_turn(tmp_path):
    volume = create(str(tmp_path / "v.zarr"), VolumeSpec((4, 6, 6), "uint8", (100.0, 50.0, 50.0), (10.0, 0.0, 0.0)))
    file = tmp_path / "v.zarr" / "zarr.json"
    group = json.loads(file.read_text())
    rows = [[2, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 7]]
    scales = group["attributes"]["ome"]["multiscales"][0]
    scales["coordinateTransformations"] = [{"type": "affine", "affine": rows}]
    file.write_text(json.dumps(group))
    spec = open_volume(volume.url).spec
    assert spec.voxel_size == (200, 50, 50) and spec.offset == (25, 0, 7)
    rows[0][1] = 0.5
    file.write_text(json.dumps(group))
    with pytest.raises(DataError, match="turns or shears the volume; take it out there, and write it as 'affine'"):
        open_volume(volume.url)
