import re
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.errors import ConfigurationError
from neurokube.workflow import load_workflow, parse_workflow

PROPERTY = settings(max_examples=50, deadline=None)

HEAD = "name: run\ninputs: {image: {path: image.zarr}}\n"
JARGON = re.compile(
    r"input should|valid dictionary|instance of|validation|pydantic|parse string|NoneType|<unicode|Error"
)


@pytest.fixture
def refused(tmp_path):
    """Load a workflow that is wrong; return its message without the file's name, which it must start with."""

    def load(text):
        file = tmp_path / "workflow.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ConfigurationError) as error:
            load_workflow(str(file))
        message = str(error.value)
        assert error.value.exit_code == 78
        assert message.startswith(f"{file}: ")
        assert "\n" not in message
        assert not JARGON.search(message), message
        return message.removeprefix(f"{file}: ")

    return load


def chain(**settings):
    stages = ("boundaries", "fragments", "graph", "multicut", "segmentation")
    return {
        "name": "run",
        "inputs": {"image": {"path": "image.zarr"}},
        "stages": {name: settings.get(name) for name in stages},
    }


def test_paths_count_from_the_folder_of_the_workflow_file(tmp_path):
    file = tmp_path / "workflow.yaml"
    document = chain() | {"inputs": {"image": {"path": "v.zarr"}, "cloud": {"path": "s3://bucket/v.zarr"}}}
    file.write_text(yaml.safe_dump(document))
    workflow = load_workflow(str(file))
    assert workflow.workspace == str(tmp_path / "runs")
    assert workflow.inputs["image"].path == str(tmp_path / "v.zarr")
    assert workflow.inputs["cloud"].path == "s3://bucket/v.zarr"


def test_a_stage_takes_its_kind_from_its_name_or_from_the_field_stage():
    document = chain()
    document["stages"]["edges"] = {"stage": "boundaries", "contrast": 2}
    workflow = parse_workflow(document)
    assert workflow.stages["boundaries"].kind == workflow.stages["edges"].kind == "boundaries"
    assert workflow.stages["edges"].contrast == 2


@PROPERTY
@given(st.permutations(["boundaries", "fragments", "graph", "multicut", "segmentation"]))
def test_stages_come_after_what_they_read_however_they_are_listed(names):
    workflow = parse_workflow(chain() | {"stages": dict.fromkeys(names)})
    assert workflow.order() == ["boundaries", "fragments", "graph", "multicut", "segmentation"]


def test_a_workflow_reads_back_from_its_own_values():
    workflow = parse_workflow(chain(fragments={"tile": [8, 32, 32]}, boundaries={"scales": [12.0]}))
    assert parse_workflow(workflow.model_dump(mode="json")) == workflow


def test_settings_shared_by_a_yaml_anchor_are_merged(tmp_path):
    file = tmp_path / "workflow.yaml"
    file.write_text(
        HEAD + "stages:\n  one: &one {stage: boundaries, contrast: 2}\n  two: {<<: *one, invert: true, contrast: 3}\n"
    )
    two = load_workflow(str(file)).stages["two"]
    assert (two.contrast, two.invert) == (3, True)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("{boundries: }", "stages.boundries: unknown stage 'boundries'; did you mean 'boundaries'?"),
        ("{b: {stage: sharks}}", "stages.b: unknown stage 'sharks'; known are synthesis, boundaries, semantics"),
        ("{b: {stage: }}", "stages.b: unknown stage 'None'; known are"),
        ("{b: {stage: [boundaries]}}", "stages.b: unknown stage '['boundaries']'; "),
        ("{boundaries: {contrst: 2}}", "stages.boundaries.contrst: unknown field; did you mean 'contrast'?"),
        ("{boundaries: {bias: 2}}", "stages.boundaries.bias: unknown field; known are block, "),
        ("{boundaries: {contrast: much}}", "stages.boundaries.contrast: must be a number (it is 'much')"),
        ("{boundaries: {contrast: }}", "stages.boundaries.contrast: must be a number (it is empty)"),
        ("{boundaries: {contrast: -1}}", "stages.boundaries.contrast: must be greater than 0 (it is -1)"),
        ("{boundaries: {scales: 3}}", "stages.boundaries.scales: must be a list, as [1, 2, 3] (it is 3)"),
        ("{boundaries: {scales: []}}", "stages.boundaries.scales: must not be empty; it needs at least 1"),
        ("{boundaries: {scales: [1, a]}}", "stages.boundaries.scales.1: must be a number (it is 'a')"),
        ("{boundaries: {invert: maybe}}", "stages.boundaries.invert: must be true or false (it is 'maybe')"),
        (
            "{boundaries: {sections: flat}}",
            "stages.boundaries.sections: must be 'auto', 'one by one' or 'together' (it is 'flat')",
        ),
        ("{boundaries: , fragments: {tile: [8, 8]}}", "stages.fragments.tile: needs 3 values"),
        ("{boundaries: , fragments: {tile: [8]}}", "stages.fragments.tile: needs 3 values (and 1 more)"),
        ("{boundaries: , fragments: {tile: [8, 8, 8, 8]}}", "stages.fragments.tile: takes at most 3 values"),
        (
            "{boundaries: , fragments: {threshold: 1.5}}",
            "stages.fragments.threshold: must be a whole number (it is 1.5)",
        ),
        (
            "{boundaries: {contrast: -1, invert: 7}}",
            "stages.boundaries.contrast: must be greater than 0 (it is -1) (and 1",
        ),
        ("{synthesis: }", "stages.synthesis.shape: this field is missing; add it"),
        (
            "{synthesis: {shape: [8, 8, 8], tissue: {noize: 1}}}",
            "stages.synthesis.tissue.noize: unknown field; did you mean 'noise'?",
        ),
        (
            "{boundaries: yes please}",
            "stages.boundaries: must be a mapping, lines of 'name: value' (it is 'yes please')",
        ),
        ("{boundaries: [contrast]}", "stages.boundaries: must be a mapping"),
        ("{boundaries: ''}", "stages.boundaries: must be a mapping"),
        ("{}", "stages: must not be empty; it needs at least 1"),
        ("", "stages: must be a mapping, lines of 'name: value' (it is empty)"),
        ("[boundaries]", "stages: must be a mapping"),
        ("{3: {stage: boundaries}}", "stages.3: must be text; put it in quotes (it is 3)"),
        ("{a/b: {stage: boundaries}}", "stages.a/b: use letters, digits, '_' and '-' only"),
        ("{a.b: {stage: boundaries}}", "stages.a.b: use letters, digits, '_' and '-' only"),
        ("{..: {stage: boundaries}}", "stages...: use letters, digits, '_' and '-' only (it is '..')"),
    ],
)
def test_a_mistake_in_a_stage_names_field_and_remedy(refused, stages, message):
    assert refused(f"{HEAD}stages: {stages}\n").startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stages: {boundaries: {image: i}, i: {stage: synthesis, shape: [1, 1, 1]}}",
            "name: this field is missing; add",
        ),
        (
            "name: a/b\nstages: {synthesis: {shape: [1, 1, 1]}}",
            "name: use letters, digits, '_' and '-' only (it is 'a/b')",
        ),
        ("name: 12\nstages: {synthesis: {shape: [1, 1, 1]}}", "name: must be text; put it in quotes (it is 12)"),
        (HEAD, "stages: this field is missing; add it"),
        (HEAD + "stage: {}\nstages: {boundaries: }", "stage: unknown field; did you mean 'stages'?"),
        (HEAD + "failures: {attemps: 3}\nstages: {boundaries: }", "failures.attemps: unknown field; did you mean 'att"),
        (
            HEAD + "failures: {attempts: 0}\nstages: {boundaries: }",
            "failures.attempts: must be greater than or equal to 1",
        ),
        (
            "name: a\ninputs: {image: {pth: v}}\nstages: {boundaries: }",
            "inputs.image.pth: unknown field; did you mean 'p",
        ),
        (
            "name: a\ninputs: {image: v}\nstages: {boundaries: }",
            "inputs.image: must be a mapping, lines of 'name: value' (i",
        ),
        (
            "name: a\ninputs: {image: {path: }}\nstages: {boundaries: }",
            "inputs.image.path: must be text; put it in quotes",
        ),
        ("name: a\ninputs: [v.zarr]\nstages: {boundaries: }", "inputs: must be a mapping"),
    ],
)
def test_a_mistake_outside_the_stages_names_field_and_remedy(refused, text, message):
    assert refused(text).startswith(message)


def test_what_a_stage_reads_must_be_there(refused):
    assert refused("name: a\nstages: {boundaries: }") == (
        "stages.boundaries.image: there is no input or stage 'image'; known are boundaries"
    )
    assert refused(HEAD + "stages: {boundaries: {image: imag}}") == (
        "stages.boundaries.image: there is no input or stage 'imag'; did you mean 'image'?"
    )


def test_stages_that_read_each_other_are_named_in_their_circle(refused):
    circle = (
        "{a: {stage: fragments, boundaries: c}, b: {stage: boundaries, image: a}, c: {stage: boundaries, image: b}}"
    )
    message = refused(f"{HEAD}stages: {circle}")
    names = re.fullmatch(r"stages: they read each other in a circle: (.*); break it", message)[1].split(" reads ")
    reads = {"a": "c", "b": "a", "c": "b"}
    assert len(names) == 4
    assert all(reads[reader] == read for reader, read in pairwise(names))


def test_an_input_and_a_stage_cannot_share_a_name(refused):
    text = "name: a\ninputs: {boundaries: {path: v}}\nstages: {boundaries: {image: boundaries}}"
    assert refused(text) == "inputs.boundaries: a stage has this name too; give one of them another"


def test_a_key_that_is_given_twice_is_named_with_its_line(refused):
    assert refused(HEAD + "stages:\n  boundaries:\n    contrast: 1\n    contrast: 2\n") == (
        "not valid YAML in line 6: 'contrast' is given twice; correct it"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [a\nstages: }", "not valid YAML in line 2: "),
        ("name: a\n\tstages: b", "not valid YAML in line 2: "),
        ("name: \x01", "not valid YAML: unacceptable character"),
        ("stages: !!python/object:os.system {}", "not valid YAML in line 1: could not determine a constructor"),
        ("name: 2020-99-99", "not valid YAML: month must be in 1..12"),
        ("", "no workflow in it; it needs the fields name, inputs and stages: write one with 'neurokube init"),
        ("# only a comment", "no workflow in it"),
        ("- a\n- b", "no workflow in it"),
        ("a sentence", "no workflow in it"),
        (b"\xff\xfe\x00\x01", "not a text file; give the workflow's YAML file"),
    ],
)
def test_what_is_no_workflow_is_refused(refused, text, message):
    assert refused(text).startswith(message)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigurationError, match="'neurokube init VOLUME'") as error:
            load_workflow(str(path))
        assert str(error.value).startswith(f"{path}: ")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))
STAGES = st.dictionaries(st.sampled_from(["boundaries", "fragments", "a", "", "."]), VALUES, max_size=3)
FIELDS = st.sampled_from(["name", "inputs", "block", "failures", "workspace", "stage"])


@PROPERTY
@given(st.dictionaries(FIELDS, VALUES), STAGES | VALUES)
def test_whatever_the_values_the_message_is_one_plain_line(fields, stages):
    try:
        parse_workflow({"name": "run", **fields, "stages": stages})
    except ConfigurationError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 500
