"""Edits of a workflow file: what is wanted is changed, and nothing else."""

import pytest
import yaml

from neurokube.workflow.reading import load_workflow
from neurokube.workflow.text import anywhere, edited

BIAS = ("stages", "multicut", "bias")
DEPTH = ("stages", "fragments", "depth")


def test_a_value_is_changed_where_it_stands():
    text = "# ours\nstages:\n  multicut:\n    bias: 0.5   # of contacts\n"
    assert edited(text, {BIAS: 0.25}) == text.replace("0.5 ", "0.25")


def test_a_shown_default_makes_way():
    text = "stages:\n  multicut:\n    # bias: 0.72       # above 0.5: smaller\n    # smallest: 0\n  segmentation:\n"
    expected = "stages:\n  multicut:\n    bias: 0.25         # above 0.5: smaller\n    # smallest: 0\n  segmentation:\n"
    assert edited(text, {BIAS: 0.25}) == expected


def test_a_shown_default_of_another_stage_stays():
    text = "stages:\n  fragments:\n    # bias: 3\n    reach: 60\n  multicut:\n    smallest: 3\n"
    assert edited(text, {BIAS: 0.25}) == text + "    bias: 0.25\n"


def test_a_value_is_added_in_braces():
    text = "stages:\n  multicut: {smallest: 3}  # ours\n  fragments: {}\n"
    expected = "stages:\n  multicut: {smallest: 3, bias: 0.25}  # ours\n  fragments: {depth: 0.1}\n"
    assert edited(text, {BIAS: 0.25, DEPTH: 0.1}) == expected


def test_a_value_is_added_after_a_list_and_before_what_follows():
    text = "stages:\n  multicut:\n    solver:\n      - greedy-additive\n\n  # the last\n  segmentation:\n"
    expected = text.replace("additive\n", "additive\n    bias: 0.25\n")
    assert edited(text, {BIAS: 0.25}) == expected


@pytest.mark.parametrize(
    "stage", ["  multicut:\n", "  multicut:", "  multicut: {}\n", "  multicut: # ours\n", "  multicut: null\n"]
)
def test_a_stage_may_be_empty(stage):
    text = f"stages:\n  graph:\n{stage}"
    document = yaml.safe_load(edited(text, {BIAS: 0.25, ("stages", "multicut", "statistic"): "q10"}))
    assert document == {"stages": {"graph": None, "multicut": {"bias": 0.25, "statistic": "q10"}}}


@pytest.mark.parametrize(
    "text",
    [
        "stages:\n  fragments: &a {depth: 0.5}\n  multicut: *a\n",
        "usual: &a {multicut: {smallest: 3}}\nstages:\n  <<: *a\n  fragments:\n",
        "usual: &a {smallest: 3}\nstages:\n  multicut: {<<: *a}\n  fragments:\n",
        "{stages: {multicut: , fragments: {depth: 1}}}",
        '{"stages": {"multicut": {"bias": 0.1}, "fragments": null}}',
        "stages:\n  multicut:\n    bias: >\n      x\n  fragments: {depth: 1,}\n",
    ],
)
def test_a_file_of_any_style_means_what_it_should(text):
    expected = yaml.safe_load(text)
    expected["stages"]["multicut"] = {**(expected["stages"]["multicut"] or {}), "bias": 0.25}
    expected["stages"]["fragments"] = {**(expected["stages"]["fragments"] or {}), "depth": 0.1}
    assert yaml.safe_load(edited(text, {BIAS: 0.25, DEPTH: 0.1})) == expected


def test_a_value_is_added_after_text_of_several_lines():
    text = "stages:\n  multicut:\n    note: |\n      one\n\n  segmentation:\n"
    assert edited(text, {BIAS: 0.25}) == text.replace("one\n", "one\n    bias: 0.25\n")


def test_paths_mean_the_same_from_anywhere(tmp_path):
    (tmp_path / "model").mkdir()
    text = (
        "name: a\ninputs:\n  image: {path: ../image.zarr}  # ours\n  there: {path: /there.zarr}\n"
        "stages:\n  semantics: {model: model}\n"
    )
    (tmp_path / "workflow.yaml").write_text(text)
    workflow = load_workflow(str(tmp_path / "workflow.yaml"))
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "moved.yaml"
    moved.write_text(edited(text, anywhere(text, workflow)))
    assert load_workflow(str(moved)) == workflow
    assert "{path: /there.zarr}" in moved.read_text()
    assert "# ours" in moved.read_text()


def test_an_affine_from_a_file_means_the_same_from_anywhere(tmp_path):
    (tmp_path / "affine.txt").write_text("1 0 0 0.5\n0 1 0 0\n0 0 1 2\n")
    text = (
        "name: a\ninputs:\n  image: {path: image.zarr}\n"
        "  light: {path: light.zarr, affine: {file: affine.txt, axes: xyz, unit: micrometer}}\n"
        "stages:\n  marker: {stage: resampling, volume: light}\n"
    )
    (tmp_path / "workflow.yaml").write_text(text)
    workflow = load_workflow(str(tmp_path / "workflow.yaml"))
    assert workflow.inputs["light"].affine.matrix == ((1, 0, 0, 2000), (0, 1, 0, 0), (0, 0, 1, 500))
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "moved.yaml"
    moved.write_text(edited(text, anywhere(text, workflow)))
    assert load_workflow(str(moved)) == workflow
