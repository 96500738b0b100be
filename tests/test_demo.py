"""The demo, on less tissue than users get."""

import json
import re

import pytest

from neurokube.demo import WORKFLOW, demonstrate
from neurokube.errors import UsageError
from neurokube.viewer import layers_of


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    (folder / "workflow.yaml").write_text(WORKFLOW.replace("[64, 512, 512]", "[16, 256, 256]"))
    demonstrate(str(folder), workers=0, quiet=True)
    return folder


def test_the_report_has_scores_far_better_than_those_of_the_fragments(demo):
    report = json.loads((demo / "report.json").read_text())
    scores = report["scores"]
    assert scores["segmentation"]["voi"] < scores["fragments"]["voi"] / 2
    assert scores["membranes"]["f1"] > 0.85
    assert scores["mitochondria"]["f1"] > 0.75
    assert scores["segmentation"]["adapted_rand_error"] < 0.15
    assert scores["segmentation"]["floor"]["voi_merge"] == 0
    assert report["voxels"] == 16 * 256 * 256
    assert all(step["seconds"] > 0 and step["peak_memory"] > 0 for step in report["steps"].values())


def test_the_page_shows_pictures_and_needs_nothing_from_elsewhere(demo):
    page = (demo / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 10
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "VOI split" in page and "worker&#39;s peak memory" in page


def test_a_second_demo_finds_everything_done(demo, capsys):
    demonstrate(str(demo), workers=0, quiet=True)
    assert "VOI split" in capsys.readouterr().out


def test_a_run_is_shown_with_its_image_and_segmentation_visible_and_its_fragments_hidden(demo):
    layers = {layer.name: layer for layer in layers_of(str(demo / "neuropil"))}
    assert {name for name, layer in layers.items() if layer.visible} == {"synthesis.image", "segmentation"}
    assert layers["fragments"].kind == "segmentation"
    assert layers["semantics.membranes"].kind == "probability"


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="another folder"):
        demonstrate(str(tmp_path), workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
