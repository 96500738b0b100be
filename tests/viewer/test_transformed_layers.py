"""A volume that lies by an affine: shown from its own file, where it lies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurokube.engines import InProcess
from neurokube.viewer import Layer, viewer_state
from neurokube.viewer.runs import layers_of
from neurokube.volumes import VolumeSpec, create
from neurokube.workflow import Run, execute, parse_workflow

ROWS = ((1.0, 0.0, 0.0, 30.0), (0.25, 1.0, 0.0, 20.0), (0.0, 0.0, 1.5, 1000.0))
EM = VolumeSpec((8, 32, 32), "uint8", (40.0, 8.0, 8.0), offset=(0.0, 0.0, 900.0))
LIGHT = VolumeSpec((4, 6, 6), "uint16", (100.0, 50.0, 50.0), offset=(10.0, 0.0, 0.0))


def layer_of(folder: Path, spec: VolumeSpec) -> dict[str, Any]:
    create(str(folder / "em"), EM)
    create(str(folder / "light"), spec)
    layers = [
        Layer("em", str(folder / "em"), "image"),
        Layer("light", str(folder / "light"), "fluorescence", affine=ROWS),
    ]
    state = viewer_state(layers, "http://here:1")
    # what lies by an affine is not what the view is centred on
    assert state == {**viewer_state(layers[:1], "http://here:1"), "layers": state["layers"]}
    return state["layers"][1]


def test_the_source_is_transformed_in_nanometres_and_in_the_order_of_its_axes(tmp_path):
    layer = layer_of(tmp_path, LIGHT)
    assert layer["source"]["url"] == "http://here:1/data/light/|zarr3:"
    transform = layer["source"]["transform"]
    assert list(transform["outputDimensions"].items()) == [(axis, [1e-9, "m"]) for axis in "zyx"]
    assert np.array_equal(transform["matrix"], ROWS)
    assert layer["blend"] == "additive"


def test_the_axis_of_channels_stays_as_it_is(tmp_path):
    layer = layer_of(tmp_path, VolumeSpec(LIGHT.shape, "uint16", LIGHT.voxel_size, channels=2))
    transform = layer["source"]["transform"]
    assert list(transform["outputDimensions"]) == ["c'", "z", "y", "x"]
    matrix = np.array(transform["matrix"])
    assert matrix.shape == (4, 5) and matrix[0].tolist() == [1, 0, 0, 0, 0]
    assert np.array_equal(matrix[1:, 1:], ROWS) and not matrix[1:, 0].any()
    assert layer["localPosition"] == [0]


def test_neuroglancer_takes_the_state(tmp_path):
    neuroglancer = pytest.importorskip("neuroglancer")
    layer = layer_of(tmp_path, LIGHT)
    source = neuroglancer.ImageLayer(layer).source[0]
    assert np.array_equal(source.transform.matrix, ROWS)
    assert source.transform.output_dimensions.names == ("z", "y", "x")


def test_a_run_shows_the_light_from_its_own_file_and_above_the_image(tmp_path):
    random = np.random.default_rng(0)
    paths = {}
    for name, spec in (("image", EM), ("light", LIGHT)):
        paths[name] = {"path": str(tmp_path / name)}
        values = random.integers(1, 250, spec.shape).astype(spec.dtype)
        create(paths[name]["path"], spec, attributes={"fingerprint": name}).write(spec.box, values)
    paths["light"]["affine"] = {"matrix": [list(row) for row in ROWS], "axes": "zyx"}
    document = {
        "name": "run",
        "workspace": str(tmp_path / "runs"),
        "inputs": {"light": paths["light"], "image": paths["image"]},
        "stages": {"marker": {"stage": "resampling", "volume": "light"}},
    }
    run = Run.planned(parse_workflow(document))
    execute(run, InProcess(), quiet=True)
    layers = layers_of(run.url)
    assert [(layer.name, layer.kind, layer.visible) for layer in layers] == [
        ("image", "image", True),
        ("light", "fluorescence", True),
        ("marker", "fluorescence", False),
    ]
    assert [layer.affine for layer in layers] == [None, ROWS, None]
    assert layers[1].url == str(tmp_path / "light")
