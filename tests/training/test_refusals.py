"""What a user can get wrong: one line that names it, and the exit code of its kind."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from blobs import document, write, write_file

from neurokube import training
from neurokube.training import load_training, parse_training
from neurokube.volumes.annotations.annotation import import_annotation

SHAPE = (8, 48, 48)


@pytest.fixture
def refused(tissue, tmp_path, neurokube):
    """Return what trains with changed settings, and returns the exit code and the one line."""

    def run(**fields):
        code, said = neurokube("train", write_file(tmp_path / "t.yaml", document(tissue, tmp_path, **fields)), "-q")
        assert said.startswith("neurokube: ") and said.count("\n") == 1 and "a bug" not in said
        assert not list(tmp_path.rglob("training.json"))
        return code, said

    return run


@pytest.fixture
def with_truth(tissue, refused):
    """Return what trains with another truth."""

    def run(truth, **fields):
        return refused(volumes=[{"image": tissue["image"], "truth": {"blob": truth}, **fields}])

    return run


def test_annotation_outside_the_image(with_truth, tmp_path):
    truth = write(tmp_path / "far.zarr", np.ones((2, 8, 8), np.uint8), offset=(0.0, 5000.0, 0.0))
    code, said = with_truth(truth)
    assert code == 65 and f"{truth}: lies at" in said and "check its offset" in said


def test_empty_annotation(with_truth, tmp_path):
    truth = write(tmp_path / "empty.zarr", np.zeros(SHAPE, np.uint8))
    code, said = with_truth(truth)
    assert code == 65 and "has no voxel of any label" in said


def test_annotation_of_nothing_but_unlabelled_voxels(with_truth, tissue, tmp_path):
    painted = np.zeros((8, 8, 8), np.uint8)
    painted[:, 2, 2] = 1
    tifffile.imwrite(tmp_path / "painted.tif", painted, photometric="minisblack")
    truth = str(tmp_path / "painted.zarr")
    import_annotation(str(tmp_path / "painted.tif"), truth, image=tissue["image"], offset=(0, 0, 0), quiet=True)
    code, said = with_truth({"volume": truth, "unlabelled": [0, 1]})
    assert code == 65 and "nothing is annotated for 'blob'" in said


def test_truth_of_another_voxel_size(with_truth, tmp_path):
    truth = write(tmp_path / "coarse.zarr", np.ones(SHAPE, np.uint8), voxel_size=(10.0, 20.0, 20.0))
    code, said = with_truth(truth)
    assert code == 65 and "10 x 20 x 20 nm" in said and "with the voxel size of its image" in said


def test_truth_that_is_no_labels(with_truth, tmp_path):
    code, said = with_truth(write(tmp_path / "float.zarr", np.ones(SHAPE, np.float32), "image"))
    assert code == 65 and "holds float32, not labels" in said


def test_truth_that_is_missing(with_truth, tmp_path):
    code, said = with_truth(str(tmp_path / "nowhere.zarr"))
    assert code == 65 and "no volume there" in said


def test_image_of_16_bit(refused, tissue, tmp_path):
    image = write(tmp_path / "deep.zarr", np.ones(SHAPE, np.uint16), "image")
    code, said = refused(volumes=[{"image": image, "truth": {"blob": tissue["blob"]}}])
    assert code == 65 and "not an 8-bit image" in said and "--to-8bit auto" in said


def test_region_outside_the_image(with_truth, tissue):
    code, said = with_truth(tissue["blob"], region="0:8,0:48,0:99")
    assert code == 65 and "is not inside the image" in said


def test_volume_smaller_than_a_window(refused):
    code, said = refused(window=[16, 16, 16])
    assert code == 65 and "too few for a window of (16, 16, 16)" in said


def test_window_that_pooling_does_not_divide(refused):
    code, said = refused(window=[4, 15, 16])
    assert code == 78 and "must be multiples of (2, 2, 2)" in said


def test_unknown_field_and_what_may_be_meant(refused, tissue):
    code, said = refused(stpes=10)
    assert code == 78 and "stpes: unknown field; did you mean 'steps'?" in said
    volume = {"image": tissue["image"], "truth": {"blob": {"volum": tissue["blob"]}}}
    code, said = refused(volumes=[volume])
    assert code == 78 and "volumes.0.truth.blob.volum: unknown field; did you mean 'volume'?" in said


def test_label_that_no_volume_has(refused):
    code, said = refused(labels=["blob", "vesicle"])
    assert code == 78 and "no volume has truth for vesicle; there is blob" in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cache": "scratch"}, "scratch: name a folder"),
        ({"steps": 0}, "steps: "),
        ({"volumes": []}, "volumes: "),
        ({"name": "../out"}, "name: "),
        ({"name": "my net"}, "name: 'my net' is no name; use letters, digits"),
        ({"devices": "all"}, "devices"),
        ({"network": "resnet"}, "network: must be 'unet' or 'inception'"),
        ({"network": "inception", "size": [4]}, "size: an inception network has two levels"),
        ({"network": "inception", "size": [4, 6]}, "the second of a multiple of 4"),
        ({"network": "inception", "size": [4, 8, 16]}, "size: an inception network has two levels"),
    ],
)
def test_setting_that_cannot_be(refused, fields, words):
    code, said = refused(**fields)
    assert code == 78 and words in said


def test_region_that_yaml_cut_at_its_commas(neurokube, tmp_path):
    (tmp_path / "t.yaml").write_text("{name: x, volumes: [{image: a, region: 0:4,0:8,0:8, truth: {b: c}}]}")
    code, said = neurokube("train", tmp_path / "t.yaml")
    assert code == 78 and "volumes.0.region: region '0:4'" in said and "in quotes" in said and said.count("\n") == 1


def test_field_that_is_missing(neurokube, tmp_path):
    content = {"name": "x", "task": "superresolution", "volumes": [{"image": "a"}]}
    code, said = neurokube("train", write_file(tmp_path / "t.yaml", content))
    assert code == 78 and "factor: this field is missing; add it" in said


def test_neither_volume_nor_boundaries(with_truth, tissue):
    code, said = with_truth({"volume": tissue["blob"], "boundaries_of": tissue["blob"]})
    assert code == 78 and "give either 'volume' or 'boundaries_of'" in said


def test_model_that_is_not_there(tissue, tmp_path, neurokube):
    file = write_file(tmp_path / "t.yaml", document(tissue, tmp_path))
    code, said = neurokube("train", file, "-q", "--from", "nothing-of-that-name")
    assert code == 64 and "no bundle of that name" in said and said.count("\n") == 1


def test_training_file_that_is_none(neurokube, tmp_path):
    assert neurokube("train", tmp_path / "none.yaml")[0] == 64
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("name: [")
    for name in ("list.yaml", "broken.yaml"):
        code, said = neurokube("train", tmp_path / name)
        assert code == 78 and name in said and said.count("\n") == 1


def test_paths_count_from_the_folder_of_the_training_file(tmp_path):
    truth = {"blob": "labels.zarr", "membrane": {"boundaries_of": "s3://there/cells.zarr"}}
    volumes = [{"image": "images/one.zarr", "truth": truth}]
    content = {"name": "x", "volumes": volumes, "validation": volumes, "cache": "scratch", "scratch": "fast"}
    settings = load_training(str(write_file(tmp_path / "t.yaml", content)))
    for (volume,) in (settings.volumes, settings.validation):
        assert volume.image == f"{tmp_path}/images/one.zarr"
        assert volume.truth["blob"].path == f"{tmp_path}/labels.zarr"
        assert volume.truth["membrane"].path == "s3://there/cells.zarr"
    assert settings.workspace == f"{tmp_path}/models" and settings.scratch == f"{tmp_path}/fast"


def test_labels_are_what_volumes_name_in_their_order():
    volumes = [{"image": "a", "truth": {"m": "b", "n": "c"}}, {"image": "a", "truth": {"l": "b", "m": "c"}}]
    assert parse_training({"name": "x", "volumes": volumes}, where="test").all_labels == ("m", "n", "l")
    settings = parse_training({"name": "x", "volumes": volumes, "labels": ["l"]}, where="test")
    assert settings.all_labels == ("l",) and settings.volumes[0].truth["m"].path == "b"


def test_settings_and_help_do_not_load_torch():
    program = """
import sys
import neurokube.training
from neurokube.cli import main
sys.argv = ["neurokube", "train", "--help"]
try:
    main()
finally:
    print({"torch", "lightning"} & set(sys.modules))
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "--resume" in shown and shown.endswith("set()\n")


def test_training_stands_on_networks_evaluation_volumes_and_blocks():
    imported = set()
    folder = Path(training.__file__).parent
    for path in folder.rglob("*.py"):
        above = len(path.relative_to(folder).parts) + 1
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == above:
                imported |= {node.module.split(".")[0]} if node.module else {name.name for name in node.names}
    helpers = {"allocator", "errors", "machine", "progress", "words"}
    assert imported <= {"blocks", "evaluation", "networks", "volumes"} | helpers
