"""What the viewer shows first."""

from pathlib import Path

import numpy as np
import pytest

from neurokube.blocks import Box
from neurokube.viewer import Layer, View, look_at, viewer_state
from neurokube.viewer.state import contrast
from neurokube.volumes import Volume, VolumeSpec, create
from neurokube.volumes.exporting import export_volume

SPEC = VolumeSpec((20, 60, 80), "uint8", (40.0, 8.0, 4.0), offset=(80.0, 160.0, 400.0))


@pytest.fixture
def image(tmp_path: Path) -> Volume:
    return create(str(tmp_path / "image"), SPEC)


def test_dimensions_are_metres_a_voxel_and_x_comes_first(image: Volume) -> None:
    state = viewer_state([Layer("image", image.url, "image")], "http://here:1")
    assert list(state["dimensions"].items()) == [("x", [4e-9, "m"]), ("y", [8e-9, "m"]), ("z", [4e-8, "m"])]
    assert state["position"] == [100 + 39.5, 20 + 29.5, 2 + 9.5]
    assert state["layers"][0]["source"] == "http://here:1/data/image/|zarr3:"


@pytest.mark.parametrize(("format", "shifts"), [("n5", [398, 156, 60]), ("precomputed", [-2, -4, -20])])
def test_n5_and_precomputed_are_moved_to_where_they_lie(
    image: Volume, tmp_path: Path, format: str, shifts: list[float]
) -> None:
    image.write(SPEC.box, np.ones(SPEC.shape, np.uint8))
    export_volume(image.url, str(tmp_path / "o"), format=format, quiet=True)
    state = viewer_state([Layer("image", str(tmp_path / "o"), "image")], "http://here:1")
    source = state["layers"][0]["source"]
    assert source["url"].endswith("|n5:" if format == "n5" else "|neuroglancer-precomputed:")
    assert [row[3] for row in source["transform"]["matrix"]] == shifts
    assert source["transform"]["outputDimensions"] == {axis: [1e-9, "m"] for axis in "xyz"}


def test_the_view_is_centred_on_the_result_of_a_region(image: Volume, tmp_path: Path) -> None:
    region = SPEC.crop(Box((0, 10, 20), (10, 30, 50)))
    labels = create(str(tmp_path / "labels"), region)
    layers = [Layer("image", image.url, "image"), Layer("labels", labels.url, "segmentation")]
    assert viewer_state(layers, "")["position"] == [100 + 34.5, 20 + 19.5, 2 + 4.5]
    hidden = [layers[0], Layer("labels", labels.url, "segmentation", visible=False)]
    assert viewer_state(hidden, "")["position"] == [100 + 39.5, 20 + 29.5, 2 + 9.5]


def test_a_large_volume_without_coarse_resolutions_is_not_shown_whole(tmp_path: Path) -> None:
    large = VolumeSpec((4, 4096, 4096), "uint8", (40.0, 8.0, 8.0))
    flat = create(str(tmp_path / "flat"), large)
    deep = create(str(tmp_path / "deep"), large, factors=[(1, 1, 1), (1, 8, 8), (1, 64, 64)])
    assert viewer_state([Layer("flat", flat.url, "image")], "")["crossSectionScale"] == 1
    assert viewer_state([Layer("deep", deep.url, "image")], "")["crossSectionScale"] == pytest.approx(4096 / 360)


def test_the_contrast_passes_over_voxels_that_were_never_written(image: Volume) -> None:
    assert contrast(image) is None
    box = Box((0, 0, 0), (4, 60, 80))
    image.write(box, np.random.default_rng(0).integers(90, 111, box.shape, dtype=np.uint8))
    assert contrast(image) == (90, 110)


def test_an_image_of_one_value_keeps_the_full_range(image: Volume) -> None:
    image.write(SPEC.box, np.full(SPEC.shape, 7, np.uint8))
    assert contrast(image) is None
    (layer,) = viewer_state([Layer("image", image.url, "image")], "")["layers"]
    assert "shaderControls" not in layer


def test_a_view_is_a_place_in_nanometres_with_a_pixel_for_a_voxel(image: Volume) -> None:
    state = viewer_state([Layer("image", image.url, "image")], "")
    turned = look_at(state, View((120.0, 176.0, 402.0)))
    assert turned["position"] == pytest.approx([100.5, 22, 3])
    assert turned["crossSectionScale"] == 1
    assert turned["layout"] == state["layout"] and turned["layers"] == state["layers"]


def test_layers_with_chosen_segments_stand_side_by_side_over_the_others(image: Volume, tmp_path: Path) -> None:
    labels = create(str(tmp_path / "labels"), SPEC)
    names = ("image", "one", "other", "hidden")
    layers = [Layer(n, labels.url, "segmentation", visible=n != "hidden") for n in names[1:]]
    state = viewer_state([Layer("image", image.url, "image"), *layers], "")
    turned = look_at(state, View((0.0, 0.0, 0.0), {"one": [2**64 - 1], "other": [3, 4]}))
    # a number of 64 bits would be rounded by the browser
    assert [layer.get("segments") for layer in turned["layers"]] == [None, [str(2**64 - 1)], ["3", "4"], []]
    assert turned["layout"] == {
        "type": "row",
        "children": [
            {"type": "viewer", "layers": ["image", "one"], "layout": "4panel-alt"},
            {"type": "viewer", "layers": ["image", "other"], "layout": "4panel-alt"},
        ],
    }
    assert state["layers"][1]["segments"] == []
