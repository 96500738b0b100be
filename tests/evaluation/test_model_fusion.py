"""Weights of a fusion: what is fitted to what, what is scored, and what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from greys import TEST, VALIDATION, Annotations, entry, grey_model
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from neurokube.blocks import parse_region
from neurokube.cli import app
from neurokube.engines import InProcess
from neurokube.errors import ConfigurationError, DataError, NeuroKubeError, UsageError
from neurokube.evaluation.curves import Curve
from neurokube.evaluation.models import fit_fusion, fusion, print_fusion
from neurokube.evaluation.models.fusion import Joint, fit
from neurokube.stages.fusion import Weights, fuse, logits
from neurokube.volumes import open_volume
from neurokube.workflow import Run, execute, parse_workflow

# other people's models come as TorchScript, whatever PyTorch would rather have
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep to float32, in which a gray value comes back as it was."""
    monkeypatch.setattr("neurokube.networks.precision.fast_bfloat16", lambda: False)


class Bench(Annotations):
    """Annotations to which weights are fitted."""

    def fuse(self, *channels: str, **options: Any) -> Any:
        truth = options.pop("truth", None) or self.truth(
            test=[entry(TEST, bright="bright.zarr")], validation=[entry(VALIDATION, bright="bright.zarr")]
        )
        return fit_fusion(channels, truth, str(self.folder / "fusion.yaml"), quiet=True, overwrite=True, **options)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def model(bench: Bench) -> str:
    return grey_model(bench.folder / "grey", ("bright", "dark", "noise"))


# counting


def voxels(seed: int, channels: int, sections: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    shape = (sections, 4, 5)
    values = [random.integers(0, 4, shape).astype(np.uint8) * np.uint8(80) for _ in range(channels)]
    return values, random.integers(0, 2, shape), random.integers(0, 2, shape)


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 6), st.integers(0, 6))
def test_counts_are_those_of_the_known_voxels_however_they_are_cut(seed, channels, sections, cut):
    values, truth, known = voxels(seed, channels, sections)
    whole = Joint.empty(channels).plus(values, truth, known)
    parts = Joint.empty(channels)
    for part in (slice(0, cut), slice(cut, None)):
        parts = parts.plus([v[part] for v in values], truth[part], known[part])
    assert np.array_equal(whole.keys, parts.keys) and np.array_equal(whole.counts, parts.counts)
    rows = np.stack([v[known != 0] for v in values], 1)
    for row, (negative, positive) in zip(whole.values, whole.counts, strict=True):
        same = (rows == row).all(1)
        assert (same & (truth[known != 0] == 0)).sum() == negative
        assert (same & (truth[known != 0] == 1)).sum() == positive
    assert whole.counts.sum() == known.sum()


def test_a_curve_from_counts_is_that_of_the_voxels():
    values, truth, known = voxels(0, 2, 6)
    joint = Joint.empty(2).plus(values, truth, known)
    for k in range(2):
        direct = Curve.empty().plus(values[k], truth, known)
        assert np.array_equal(joint.curve(joint.values[:, k]).counts, direct.counts)


# fitting


def counted(rows: list[tuple[int, ...]], positive: list[float], voxels: int = 10**7) -> Joint:
    """Return counts of combinations of which a share is positive."""
    values = np.array(rows, np.uint64)
    keys = np.zeros(len(rows), np.uint64)
    for column in values.T:
        keys = keys << np.uint64(8) | column
    share = np.rint(np.array(positive) * voxels).astype(np.int64)
    order = np.argsort(keys)
    return Joint(values.shape[1], keys[order], np.stack([voxels - share, share], 1)[order])


@given(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), st.floats(-1, 1))
def test_weights_by_which_the_truth_was_made_are_found(weights, bias):
    rows = [(a, b) for a in range(16, 256, 32) for b in range(16, 256, 32)]
    score = logits()[np.array(rows)] @ np.array(weights) + bias
    found, found_bias = fit(counted(rows, list(1 / (1 + np.exp(-score)))))
    assert np.allclose([*found, found_bias], [*weights, bias], atol=0.02)


def test_a_channel_without_an_error_gets_a_weight_that_is_finite():
    weights, bias = fit(counted([(10, 0), (245, 0)], [0, 1]))
    assert np.isfinite([*weights, bias]).all() and 0.5 < weights[0] < 100
    assert abs(weights[1]) < 1e-6
    fused = fuse({"a": np.array([10, 245], np.uint8)}, Weights(weights={"a": weights[0]}, bias=bias))
    assert fused[0] < 10 and fused[1] > 245


def test_what_two_opposite_channels_say_is_shared_between_them(bench, model):
    report = bench.fuse(f"{model}:bright", f"{model}:dark")
    weights = report.weights.weights
    assert weights["bright"] == pytest.approx(-weights["dark"], abs=2e-4)
    assert weights["bright"] > 1
    # the truth is a threshold on the first, which both tell
    assert report.fusion.test == report.alone["bright"].test == 1


def test_a_second_channel_helps_where_the_first_cannot_tell(bench, model):
    # bright voxels, but those in which the noise is high
    noise = np.modf(bench.image.astype(np.float32) / np.float32(255) * 997)[0]
    bench.write("odd", (bench.image >= 100) & (noise < 0.5))
    truth = {"odd": "odd.zarr"}
    file = bench.truth(test=[entry(TEST, **truth)], validation=[entry(VALIDATION, **truth)])
    report = bench.fuse(f"{model}:bright", f"{model}:noise", truth=file)
    weights = report.weights.weights
    assert weights["bright"] > 0 > weights["noise"]
    assert report.fusion.test > max(result.test for result in report.alone.values()) + 0.05


def test_the_truth_of_the_test_changes_no_weight(bench, model):
    found = []
    for cut in (150, 220):
        bench.write("bright", bench.image >= 150)
        bench.write("other", bench.image >= cut)
        validation, test = entry(VALIDATION, bright="bright.zarr"), entry(TEST, bright="other.zarr")
        found.append(bench.fuse(f"{model}:bright", truth=bench.truth(test=[test], validation=[validation])))
    assert found[0].weights == found[1].weights
    assert found[0].fusion.level == found[1].fusion.level
    assert found[0].fusion.test != found[1].fusion.test


def test_a_model_is_asked_once_for_all_its_labels(bench, model, monkeypatch):
    asked = []
    predict = fusion.predict_volume
    monkeypatch.setattr(
        fusion, "predict_volume", lambda *args, **kwargs: asked.append(kwargs["labels"]) or predict(*args, **kwargs)
    )
    bench.fuse(f"{model}:noise", f"{model}:bright", f"again={model}:noise")
    assert asked == [("noise", "bright")] * 2


# what comes out


def test_the_file_holds_what_was_found_and_a_run_with_it_writes_what_was_scored(bench, model):
    report = bench.fuse(f"{model}:bright", f"not={model}:dark", f"{model}:noise")
    file = bench.folder / "fusion.yaml"
    document = yaml.safe_load(file.read_text())
    assert document == json.loads(json.dumps(report.as_dict()))
    assert document["channels"]["not"]["model"] == model and document["channels"]["not"]["label"] == "dark"
    assert document["voxels"] == {"validation": 6 * 40 * 40, "test": 6 * 40 * 40}
    stages = {
        "semantics": {"model": model, "window": [8, 24, 24], "backend": "torch"},
        "fusion": {
            "channels": {"bright": "semantics.bright", "not": "semantics.dark", "noise": "semantics.noise"},
            "fitted": str(file),
        },
    }
    inputs = {"image": {"path": str(bench.folder / "image.zarr")}}
    workflow = {"name": "run", "workspace": str(bench.folder / "runs"), "inputs": inputs, "stages": stages}
    run = Run.planned(parse_workflow(workflow))
    execute(run, InProcess(), quiet=True)
    region = parse_region(TEST)
    written = open_volume(f"{run.url}/fusion/boundaries").read(region)
    curve = Curve.empty().plus(written, bench.image[region.slices] >= 150)
    assert curve.f1[round(document["threshold"] * 255)] == pytest.approx(report.fusion.test)


def test_the_command_prints_what_the_file_holds(bench, model, capsys):
    truth = bench.truth(test=[entry(TEST)], validation=[entry(VALIDATION)])
    file = bench.folder / "fusion.yaml"
    options = ["--channels", f"{model}:bright,{model}:noise", "--label", "bright", "-o", str(file), "--json", "--quiet"]
    done = CliRunner().invoke(app, ["fuse", truth, *options])
    assert json.loads(done.stdout) == yaml.safe_load(file.read_text())
    assert isinstance(CliRunner().invoke(app, ["fuse", truth, *options]).exception, UsageError)
    print_fusion(bench.fuse(f"{model}:bright"))
    said = capsys.readouterr().out
    assert "F1 in the test" in said and f"channels: {{bright: STAGE.bright}}, fitted: {file}" in said


Case = Callable[[Bench, str], Any]
REFUSED: list[tuple[str, type[NeuroKubeError], str, Case]] = [
    ("no channel", UsageError, "name 1 to 8", lambda b, m: b.fuse()),
    ("too many channels", UsageError, "name 1 to 8", lambda b, m: b.fuse(*[f"c{k}={m}:dark" for k in range(9)])),
    ("a model without a label", UsageError, "write it as MODEL:LABEL", lambda b, m: b.fuse(m)),
    ("a name that is none", UsageError, "give it one of letters", lambda b, m: b.fuse(f"a.b={m}:dark")),
    ("no name before the sign", UsageError, "write it as MODEL:LABEL", lambda b, m: b.fuse(f"={m}:dark")),
    ("no such model", UsageError, "no bundle of that name", lambda b, m: b.fuse(f"{b.folder}/none:dark")),
    ("no such label", UsageError, "has no 'light'; it has bright, dark, noise", lambda b, m: b.fuse(f"{m}:light")),
    ("a name twice", UsageError, "two are called 'dark'; give one", lambda b, m: b.fuse(f"{m}:dark", f"{m}:dark")),
    ("no such truth", UsageError, "have the truth of bright", lambda b, m: b.fuse(f"{m}:dark", label="dark")),
    (
        "a truth to be chosen",
        UsageError,
        "has the truth of bright, dark; choose what to fit with --label",
        lambda b, m: b.fuse(f"{m}:dark", truth=b.truth(test=[entry(TEST)], validation=[entry(VALIDATION)])),
    ),
    ("no such file", UsageError, "name a file of truths", lambda b, m: b.fuse(f"{m}:dark", truth=f"{b.folder}/none")),
    (
        "no validation",
        ConfigurationError,
        "no volume under 'validation:' has the truth of 'bright'",
        lambda b, m: b.fuse(
            f"{m}:dark",
            label="bright",
            truth=b.truth(test=[entry(TEST)], validation=[entry(VALIDATION, dark="dark.zarr")]),
        ),
    ),
    (
        "voxels too far apart",
        ConfigurationError,
        "too far apart",
        lambda b, m: b.fuse(f"{grey_model(b.folder / 'coarse', voxel_size=(90, 90, 90))}:dark"),
    ),
    (
        "a validation that shows one side",
        DataError,
        "do not show a voxel that is not 'all'",
        lambda b, m: b.fuse(
            f"{m}:dark",
            truth=b.truth(
                test=[entry(TEST, all=b.write("all", b.image > 0))], validation=[entry(VALIDATION, all="all.zarr")]
            ),
        ),
    ),
]


@pytest.mark.parametrize(("error", "words", "case"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_fitted_is_refused_in_one_line(bench, model, error, words, case):
    with pytest.raises(error, match=re.escape(words)) as caught:
        case(bench, model)
    assert "\n" not in str(caught.value)
    assert not (bench.folder / "fusion.yaml").exists()
