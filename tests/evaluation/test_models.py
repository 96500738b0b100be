"""Models beside one another: what is scored, where thresholds come from, and what is refused."""

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from greys import SHAPE, SIZE, TEST, VALIDATION, Annotations, entry, grey_model
from typer.testing import CliRunner

from neurokube.blocks import Box
from neurokube.cli import app
from neurokube.engines import InProcess
from neurokube.errors import ConfigurationError, DataError, NeuroKubeError, UsageError
from neurokube.evaluation.models import evaluate_models, predict_volume, print_models
from neurokube.evaluation.models.prediction import stage_for
from neurokube.evaluation.models.sections import section_of
from neurokube.networks import Normalization, load_bundle, write_bundle
from neurokube.networks.bundle import find
from neurokube.networks.unet import UNet, UNetConfig
from neurokube.training.truth import Annotated
from neurokube.volumes import open_volume
from neurokube.workflow import Run, execute, parse_workflow

LEFT = Box((6, 0, 0), (12, 40, 20))

# other people's models come as TorchScript, whatever PyTorch would rather have
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep to float32, in which a gray value comes back as it was."""
    monkeypatch.setattr("neurokube.networks.precision.fast_bfloat16", lambda: False)


def unet(folder: Path, voxel_size: tuple[float, float, float]) -> str:
    torch.manual_seed(0)
    config = UNetConfig.fitting(SIZE, 2, (4, 6))
    network = UNet(config).train()
    with torch.no_grad():
        network(torch.randn(2, 1, 8, 16, 16))
    card = {
        "name": "unet",
        "architecture": {"kind": "unet", "levels": [level.model_dump() for level in config.levels]},
        "labels": ("bright", "dark"),
        "voxel_size": voxel_size,
        "window": (8, 24, 24),
        "multiple": config.factor,
        "halo": (1, 3, 3),
    }
    write_bundle(folder, card, network.state_dict())
    return str(folder)


class Bench(Annotations):
    """Annotations on which models are scored."""

    def evaluate(self, *models: str, truth: str | None = None, **options: Any) -> Any:
        truth = truth or self.truth(test=[entry(TEST)], validation=[entry(VALIDATION)])
        return evaluate_models(models, truth, str(self.folder / "report"), quiet=True, **options)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def model(bench: Bench) -> str:
    return grey_model(bench.folder / "grey", thresholds={"bright": 0.4})


@pytest.mark.parametrize("voxel_size", [SIZE, (10.0, 8.0, 8.0)], ids=["own voxels", "resampled"])
def test_what_is_scored_is_what_a_run_writes(bench, voxel_size):
    bundle = load_bundle(unet(bench.folder / "unet", voxel_size))
    image = open_volume(str(bench.folder / "image.zarr"))
    settled = stage_for(bundle, image).settled
    stage = {
        "model": str(bundle.folder),
        "window": list(settled.numerics.window),
        "threads": settled.numerics.threads,
        "permutations": 2,
    }
    document = {
        "name": "run",
        "workspace": str(bench.folder / "runs"),
        "inputs": {"image": {"path": image.url}},
        "stages": {"semantics": stage},
    }
    run = Run.planned(parse_workflow(document))
    execute(run, InProcess(), quiet=True)
    written = [run.plan.stages[0].data().volume(label).read(LEFT) for label in bundle.card.labels]
    sections: list[int] = []
    predicted = predict_volume(bundle, image, LEFT, permutations=2, advance=sections.append)
    np.testing.assert_array_equal(predicted, written)
    assert predicted.std() > 1
    assert sum(sections) == LEFT.shape[0]


def test_asking_for_some_labels_gives_those_in_that_order(bench):
    model = grey_model(bench.folder / "three", ("bright", "dark", "noise"))
    image = open_volume(str(bench.folder / "image.zarr"))
    predicted = predict_volume(load_bundle(model), image, LEFT, labels=("dark", "bright"))
    np.testing.assert_array_equal(predicted, [255 - bench.image[LEFT.slices], bench.image[LEFT.slices]])


def test_thresholds_come_from_validation_and_scores_from_the_test(bench, model):
    bench.write("brighter", bench.image >= 100)
    truth = bench.truth(test=[entry(TEST)], validation=[entry(VALIDATION, bright="brighter.zarr", dark="dark.zarr")])
    report = bench.evaluate(model, truth=truth)
    score = report.models[0].scores["bright"]
    tested = bench.image[6:]
    assert (score.level, score.origin) == (100, "validation")
    assert score.recall == 1
    assert score.precision == pytest.approx((tested >= 150).sum() / (tested >= 100).sum())
    assert score.f1 == pytest.approx(2 * score.precision / (1 + score.precision))
    assert score.average_precision == pytest.approx(1)
    counts = score.as_dict()
    assert counts["true_positives"] == (tested >= 150).sum()
    assert counts["false_positives"] == ((tested >= 100) & (tested < 150)).sum()
    assert counts["false_negatives"] == 0
    assert counts["true_negatives"] == (tested < 100).sum()


def test_the_truth_of_the_test_changes_no_threshold(bench, model):
    levels = []
    for cut in (150, 220):
        bench.write("bright", bench.image >= 150)
        bench.write("other", bench.image >= cut)
        validation, test = entry(VALIDATION), entry(TEST, bright="other.zarr", dark="dark.zarr")
        report = bench.evaluate(model, truth=bench.truth(test=[test], validation=[validation]))
        levels.append([score.level for score in report.models[0].scores.values()])
    assert levels[0] == levels[1]


def test_without_validation_thresholds_are_those_of_the_card_or_a_half_with_a_remark(bench, model):
    report = bench.evaluate(model, truth=bench.truth(test=[entry(TEST)]))
    scores = report.models[0].scores
    assert (scores["bright"].level, scores["bright"].origin) == (102, "card")
    assert (scores["dark"].level, scores["dark"].origin) == (128, "default")
    assert any("no threshold for 'dark'" in remark for remark in report.remarks)
    assert not any("no threshold for 'bright'" in remark for remark in report.remarks)


def test_a_label_that_validation_does_not_show_has_the_threshold_of_the_card(bench, model):
    truth = bench.truth(test=[entry(TEST)], validation=[entry(VALIDATION, dark="dark.zarr")])
    report = bench.evaluate(model, truth=truth)
    assert report.models[0].scores["bright"].origin == "card"
    assert report.models[0].scores["dark"].origin == "validation"
    assert any("do not show 'bright'" in remark for remark in report.remarks)


def test_voxels_that_nobody_annotated_do_not_count(bench, model):
    painted = np.where(bench.image >= 150, 2, 1)
    painted[:, :, 20:] = 0
    bench.write("painted", painted)
    source = {"volume": "painted.zarr", "values": [2], "unlabelled": [0]}
    report = bench.evaluate(model, truth=bench.truth(test=[entry(TEST, bright=source)]))
    counts = report.models[0].scores["bright"].as_dict()
    outcomes = ("true_positives", "false_positives", "false_negatives", "true_negatives")
    assert sum(counts[outcome] for outcome in outcomes) == LEFT.size


def test_several_test_volumes_are_scored_together(bench, model):
    halves = bench.evaluate(model, truth=bench.truth(test=[entry("6:9,0:40,0:40"), entry("9:12,0:40,0:40")]))
    whole = bench.evaluate(model, truth=bench.truth(test=[entry(TEST)]))
    assert halves.models[0].scores["dark"].as_dict() == whole.models[0].scores["dark"].as_dict()


def swapped(bench: Bench) -> tuple[str, str, str]:
    """Return two models, and truths by which the first does better in validation and the second in the test."""
    first = grey_model(bench.folder / "first")
    second = grey_model(bench.folder / "second", ("dark", "bright"))
    here, there = entry(VALIDATION), entry(TEST, bright="dark.zarr", dark="bright.zarr")
    return first, second, bench.truth(test=[there], validation=[here])


def test_the_best_is_chosen_by_validation_and_never_by_the_test(bench):
    first, second, truth = swapped(bench)
    report = bench.evaluate(second, first, truth=truth)
    scores = {model.name: model.mean_f1 for model in report.models}
    assert scores["second"] > scores["first"]
    assert report.best.name == "first"
    assert find(f"best of {bench.folder}/report/evaluation.json") == Path(first)


def test_without_validation_the_best_is_chosen_by_the_cards(bench):
    good = grey_model(bench.folder / "good", scores={"validation": {"f1": {"bright": 0.9, "dark": 0.7}}})
    bad = grey_model(bench.folder / "bad", scores={"validation": {"f1": {"bright": 0.5}}})
    foreign = grey_model(bench.folder / "foreign", scores={"validation": "very good"})
    report = bench.evaluate(bad, foreign, good, truth=bench.truth(test=[entry(TEST)]))
    assert report.best.name == "good"
    assert report.best.selection == pytest.approx(0.8)
    assert any(remark.startswith("foreign: no validation score") for remark in report.remarks)


def test_no_model_is_called_the_best_where_nothing_tells(bench, model):
    report = bench.evaluate(model, truth=bench.truth(test=[entry(TEST)]))
    assert report.best is None
    assert "best" not in report.as_dict()


def test_a_label_that_a_model_lacks_is_shown_as_such(bench, model, capsys):
    one = grey_model(bench.folder / "one", ("bright",))
    report = bench.evaluate(model, one)
    found = {entry["name"]: entry for entry in report.as_dict()["models"]}
    assert found["one"]["lacks"] == ["dark"]
    assert report.models[1].mean_f1 == report.models[1].scores["bright"].f1
    assert any("different labels" in remark for remark in report.remarks)
    # which it would not be by the mean over what it has
    assert report.best.name == "grey" and report.models[1].selection < report.models[0].selection
    print_models(report)
    assert "no such label" in capsys.readouterr().out


def test_tables_fit_the_terminal_however_many_models_there_are(bench, monkeypatch, capsys):
    names = [f"a-model-of-a-long-name-{n}" for n in range(4)]
    report = bench.evaluate(*(grey_model(bench.folder / name) for name in names))
    monkeypatch.setenv("COLUMNS", "80")
    print_models(report)
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line[:1] in "┏┃┡│└├"]
    assert max(map(len, table)) <= 80
    assert all(sum(name in line for line in table) == 1 for name in names)
    assert sum("mean" in line for line in table) > 1


def test_a_label_of_which_the_test_has_no_voxel_is_not_scored(bench):
    grey = grey_model(bench.folder / "three", ("bright", "dark", "noise"))
    bench.write("noise", np.zeros(SHAPE))
    truths = {"bright": "bright.zarr", "noise": "noise.zarr"}
    report = bench.evaluate(grey, truth=bench.truth(test=[entry(TEST, **truths)]))
    assert report.labels == ("bright",)
    assert any("no voxel of 'noise'" in remark for remark in report.remarks)


def test_models_of_one_name_are_told_apart(bench):
    models = [grey_model(bench.folder / f"seed{k}", name="grey") for k in range(2)]
    assert [model.name for model in bench.evaluate(*models).models] == models


def test_a_rare_label_is_shown_in_the_middle_of_its_picture():
    bits = np.zeros((3, 700, 900), np.uint32)
    bits[1, 300:310, 500:510] = 2
    bits[2, 300:305, 100:105] = 2
    grey = np.zeros(bits.shape, np.uint8)
    volume = Annotated("image", grey, bits, np.full_like(bits, 3), Normalization(mean=0, deviation=1), SIZE, 1.0)
    section = section_of(volume, "synapse", np.uint32(2), 0, 10)
    assert section.caption == "section 11 of image"
    assert section.positive.sum() == 100
    np.testing.assert_allclose(np.argwhere(section.positive).mean(0), np.array(section.positive.shape) / 2, atol=2)
    assert section_of(volume, "nothing", np.uint32(1), 0, 10) is None


class _Page(HTMLParser):
    """Counts the tags of a page and keeps what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


def test_the_page_needs_nothing_else_and_shows_every_model_and_label(bench, model):
    other = grey_model(bench.folder / "a<b", ("bright",), name="other")
    report = bench.evaluate(model, other)
    text = (bench.folder / "report" / "report.html").read_text()
    page = _Page(text)
    assert all(source.startswith("data:image/png") for source in page.loaded)
    assert not {"script", "link"} & page.tags.keys()
    # bars: five have a value, beside the two squares of the legend
    assert page.tags["rect"] == 5 + 2
    # a curve and its dot for each model that has the label; four lines of equal F1 a chart, two dots in the legend
    assert page.tags["polyline"] == 3 + 2 * 4
    assert page.tags["circle"] == 3 + 2
    # the image and an overlay for each model that has the label
    assert page.tags["img"] == 2 + 3
    # in the chart's bar and the note below it, in the table and in place of a picture
    assert text.count("no such label") == 4
    for score in (score for model in report.models for score in model.scores.values()):
        assert f"{score.f1:.3f}" in text
    assert "a&lt;b" in text
    assert "a<b" not in text


def test_files_hold_the_numbers_of_the_report(bench, model):
    report = bench.evaluate(model)
    folder = bench.folder / "report"
    assert json.loads((folder / "evaluation.json").read_text()) == report.as_dict()
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["label"]) for row in rows] == [("grey", "bright"), ("grey", "dark")]
    assert float(rows[0]["f1"]) == report.models[0].scores["bright"].f1


def test_the_command_prints_what_the_file_holds(bench, model):
    truth = bench.truth(test=[entry(TEST)], validation=[entry(VALIDATION)])
    folder = bench.folder / "report"
    done = CliRunner().invoke(app, ["evaluate", truth, "--models", model, "-o", str(folder), "--json", "--quiet"])
    assert json.loads(done.stdout) == json.loads((folder / "evaluation.json").read_text())


def test_training_on_a_tested_image_is_remarked(bench):
    fingerprint = open_volume(str(bench.folder / "image.zarr")).fingerprint
    trained = grey_model(bench.folder / "own", training={"data": [{"image": "image.zarr", "fingerprint": fingerprint}]})
    assert any("was trained on a part of" in remark for remark in bench.evaluate(trained).remarks)


Case = Callable[[Bench, str], Any]
REFUSED: list[tuple[str, type[NeuroKubeError], str, Case]] = [
    ("no model", UsageError, "at least one", lambda b, m: b.evaluate()),
    ("a model twice", UsageError, "same model", lambda b, m: b.evaluate(m, f"{m}/../grey")),
    ("no such model", UsageError, "no bundle of that name", lambda b, m: b.evaluate(str(b.folder / "none"))),
    ("too many permutations", UsageError, "give 1 to 16", lambda b, m: b.evaluate(m, permutations=17)),
    (
        "permutations that pixels do not allow",
        ConfigurationError,
        "allow 8",
        lambda b, m: b.evaluate(grey_model(b.folder / "long", window=(8, 24, 32)), permutations=16),
    ),
    (
        "no label shared",
        ConfigurationError,
        "predicts membrane",
        lambda b, m: b.evaluate(grey_model(b.folder / "membranes", ("membrane",))),
    ),
    (
        "voxels too far apart",
        ConfigurationError,
        "too far apart",
        lambda b, m: b.evaluate(grey_model(b.folder / "coarse", voxel_size=(90, 90, 90))),
    ),
    ("no such file", UsageError, "name a file of truths", lambda b, m: b.evaluate(m, truth=f"{b.folder}/none.yaml")),
    (
        "an unknown field",
        ConfigurationError,
        "tests: unknown field",
        lambda b, m: b.evaluate(m, truth=b.truth(tests=[], test=[entry(TEST)])),
    ),
    (
        "an unknown field of a volume",
        ConfigurationError,
        "test.0.regions: unknown field",
        lambda b, m: b.evaluate(m, truth=b.truth(test=[{**entry(), "regions": TEST}])),
    ),
    (
        "nothing to test",
        ConfigurationError,
        "test: is missing",
        lambda b, m: b.evaluate(m, truth=b.truth(validation=[entry()])),
    ),
    (
        "an empty file",
        ConfigurationError,
        "names no volumes",
        lambda b, m: b.evaluate(m, truth=b.truth()),
    ),
    (
        "validation on what is tested",
        ConfigurationError,
        "share voxels",
        lambda b, m: b.evaluate(m, truth=b.truth(test=[entry(TEST)], validation=[entry("5:7,0:9,0:9")])),
    ),
    (
        "an image without a region on both sides",
        ConfigurationError,
        "share voxels",
        lambda b, m: b.evaluate(m, truth=b.truth(test=[entry()], validation=[entry(VALIDATION)])),
    ),
    (
        "truth of another voxel size",
        DataError,
        "with the voxel size of its image",
        lambda b, m: b.evaluate(
            m,
            truth=b.truth(test=[entry(bright=b.write("fine", b.image > 9, voxel_size=(5.0, 5.0, 5.0)))]),
        ),
    ),
    (
        "an empty truth",
        DataError,
        "no voxel of any label",
        lambda b, m: b.evaluate(m, truth=b.truth(test=[entry(bright=b.write("empty", b.image > 255))])),
    ),
    (
        "a region outside the image",
        DataError,
        "not inside the image",
        lambda b, m: b.evaluate(m, truth=b.truth(test=[entry("6:13,0:40,0:40")])),
    ),
]


@pytest.mark.parametrize(("error", "words", "case"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_evaluated_is_refused_in_one_line(bench, model, error, words, case):
    with pytest.raises(error, match=re.escape(words)) as caught:
        case(bench, model)
    assert "\n" not in str(caught.value)
    assert not (bench.folder / "report" / "evaluation.json").exists()
