import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.errors import DataError, UsageError
from neurokube.networks import load_bundle
from neurokube.volumes import VolumeSpec, create
from neurokube.workflow import load_workflow, make_plan
from neurokube.workflow.template import workflow_text, write_workflow

SPEC = VolumeSpec((24, 64, 64), "uint8", (40.0, 8.0, 8.0))


@pytest.fixture
def image(tmp_path):
    return create(str(tmp_path / "image.zarr"), SPEC)


def load(folder, text):
    file = folder / "workflow.yaml"
    file.write_text(text, encoding="utf-8")
    return load_workflow(str(file))


def uncommented(text):
    """Take the '#' away from every line of a setting, as the text tells its reader to do."""
    return re.sub(r"(?m)^    # (\w+: )", r"    \1", text)


def test_the_template_is_a_workflow_that_can_be_planned(image, tmp_path):
    workflow = load(tmp_path, workflow_text(image, tmp_path))
    assert workflow.inputs["image"].path == image.url
    assert list(make_plan(workflow, str(tmp_path / "run")).steps)[-1] == "segmentation/segmentation"


def test_the_defaults_it_shows_are_the_real_ones(image, tmp_path):
    text = workflow_text(image, tmp_path)
    assert uncommented(text).count("\n    block: null") == 5
    assert load(tmp_path, uncommented(text)) == load(tmp_path, text)


def test_every_field_of_every_stage_is_shown_with_its_meaning(image, tmp_path):
    text = workflow_text(image, tmp_path)
    for stage in load(tmp_path, text).stages.values():
        for name, field in type(stage).model_fields.items():
            if name in stage.found:
                continue
            assert re.search(rf"    # {name}: .*# {re.escape(field.description)}", text)


NAMES = st.text(st.characters(exclude_characters="/\\", exclude_categories=("C",)), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(NAMES.filter(lambda name: name not in (".", "..")))
def test_a_volume_of_any_name_gets_a_workflow_that_loads(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("named")
    image = create("memory://template", SPEC)
    volume = type(image)(str(folder / f"{name}.zarr"), image.spec, image.arrays)
    assert load(folder, workflow_text(volume, folder)).inputs["image"].path == str(folder / f"{name}.zarr")


def test_a_file_that_is_there_is_kept_unless_told_otherwise(image, tmp_path):
    file = tmp_path / "workflow.yaml"
    file.write_text("mine")
    with pytest.raises(UsageError, match="is there already; choose another name with --output, or give --overwrite"):
        write_workflow(image.url, str(file))
    assert file.read_text() == "mine"
    write_workflow(image.url, str(file), overwrite=True)
    assert load_workflow(str(file)).name == "image"


def test_a_workflow_starts_from_what_the_model_calls_the_borders_of_cells(tmp_path):
    near = create(str(tmp_path / "near.zarr"), VolumeSpec((64, 64, 64), "uint8", (10.0, 10.0, 10.0))).url
    file = str(tmp_path / "workflow.yaml")
    # of two that are as near, that which found more of them in its own validation
    proposal = write_workflow(near, file)
    assert (proposal.model, proposal.also) == ("boundaries-fib25-10-10-10", ("fib25-10-10-10",))
    assert "# As near: fib25-10-10-10; its own validation gave this one the higher F1." in Path(file).read_text()
    stages = load_workflow(file).stages
    assert stages["fragments"].boundaries == stages["graph"].boundaries == "semantics.boundaries"
    assert stages["multicut"].bias == load_bundle("boundaries-fib25-10-10-10").card.bias == 0.1
    write_workflow(near, file, model="fib25-10-10-10", overwrite=True)
    assert load_workflow(file).stages["graph"].boundaries == "semantics.membranes"
    with pytest.raises(
        UsageError, match=r"^finer-20-10-10: finds image, and a workflow starts from membranes or bound"
    ):
        write_workflow(near, file, model="finer-20-10-10", overwrite=True)


def test_a_model_that_no_run_could_use_is_refused(image, tmp_path):
    file = tmp_path / "workflow.yaml"
    with pytest.raises(
        UsageError, match=r"trained on voxels of 10 x 10 x 10 nm, too far from 40 x 8 x 8 nm to resample"
    ):
        write_workflow(image.url, str(file), model="fib25-10-10-10")
    broken = shutil.copytree(load_bundle("synthetic-40-8-8").folder, tmp_path / "broken")
    (broken / "weights.safetensors").write_bytes(b"cut short")
    with pytest.raises(DataError, match="weights"):
        write_workflow(image.url, str(file), model=str(broken))
    assert not file.exists()


def test_a_folder_that_is_not_there_is_named(image, tmp_path):
    with pytest.raises(UsageError, match="give --output a file in a folder that is there"):
        write_workflow(image.url, str(tmp_path / "none" / "workflow.yaml"))


@pytest.mark.parametrize(
    "spec",
    [
        VolumeSpec((8, 8, 8), "uint64", (8.0, 8.0, 8.0), kind="labels"),
        VolumeSpec((8, 8, 8), "uint16", (8.0, 8.0, 8.0)),
        VolumeSpec((8, 8, 8), "uint8", (8.0, 8.0, 8.0), channels=2),
    ],
)
def test_a_volume_that_no_workflow_can_start_from_is_refused(tmp_path, spec):
    url = create(str(tmp_path / "other.zarr"), spec).url
    with pytest.raises(DataError, match="a workflow starts from an 8-bit image"):
        write_workflow(url, str(tmp_path / "workflow.yaml"))
    assert not Path(tmp_path, "workflow.yaml").exists()
