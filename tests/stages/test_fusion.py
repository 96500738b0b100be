"""Channels into one boundary map: what comes out, the same bits however it is cut, and what is refused."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from neurokube.blocks import Box
from neurokube.engines import InProcess
from neurokube.errors import ConfigurationError
from neurokube.stages.fusion import MOST_CHANNELS, Fusion, Weights, fuse
from neurokube.volumes import VolumeSpec, create, open_volume
from neurokube.workflow import Run, execute, load_workflow, parse_workflow

SHAPE, SIZE = (10, 40, 36), (10.0, 10.0, 10.0)
CHANNELS = {"membranes": "one", "boundaries": "two"}
WEIGHTS = {"membranes": 0.8, "boundaries": -0.3}
EVERY = np.arange(256, dtype=np.uint8)
weights = st.floats(-100, 100, allow_nan=False)


def sigmoid(channels: list[np.ndarray], each: list[float], bias: float) -> np.ndarray:
    """Return the fusion in plain floating point, 0 to 256."""
    p = (np.array(channels, float) + 0.5) / 256
    score = bias + np.tensordot(each, np.log(p / (1 - p)), 1)
    return 128 * (1 + np.tanh(score / 2))


# the function


@given(st.lists(weights, min_size=1, max_size=MOST_CHANNELS), weights, st.integers(0, 2**32))
def test_it_is_the_sigmoid_of_the_weighted_logits_but_for_rounding(each, bias, seed):
    values = np.random.default_rng(seed).integers(0, 256, (len(each), 3, 4, 5), np.uint8)
    channels = {str(k): v for k, v in enumerate(values)}
    found = fuse(channels, Weights(weights=dict(zip(channels, each, strict=True)), bias=bias))
    exact = sigmoid(list(values), each, bias)
    assert found.dtype == np.uint8 and found.shape == (3, 4, 5)
    # a value holds for all from itself to the next one
    assert (found - 0.15 <= exact).all() and (exact <= found + 1.15).all()


def test_a_channel_alone_comes_out_as_it_went_in():
    one = Weights(weights={"a": 1.0})
    assert np.array_equal(fuse({"a": EVERY}, one), EVERY)
    assert np.array_equal(fuse({"a": EVERY}, Weights(weights={"a": -1.0})), EVERY[::-1])


def test_a_channel_without_weight_changes_nothing():
    others = np.random.default_rng(0).permuted(EVERY)
    assert np.array_equal(fuse({"a": EVERY, "b": others}, Weights(weights={"a": 1, "b": 0})), EVERY)


@given(st.floats(0, 100), weights, weights)
def test_more_evidence_never_makes_a_boundary_less_likely(weight, other, bias):
    both = Weights(weights={"a": weight, "b": other}, bias=bias)
    found = fuse({"a": EVERY, "b": np.full_like(EVERY, 77)}, both)
    assert (np.diff(found.astype(int)) >= 0).all()


def test_the_bits_are_these_on_every_machine():
    rows, columns = np.meshgrid(EVERY, EVERY, indexing="ij")
    found = fuse({"a": rows, "b": columns}, Weights(weights={"a": 0.8, "b": -0.3}, bias=-0.5))
    assert hashlib.sha256(found.tobytes()).hexdigest().startswith("8bde93ade704e1a95c34e0dd5300c2fe")


# the stage


def write(folder: Path, name: str, voxels: np.ndarray, **fields: Any) -> str:
    spec = VolumeSpec(voxels.shape, voxels.dtype.name, **{"voxel_size": SIZE, **fields})
    create(str(folder / name), spec, attributes={"fingerprint": name}).write(spec.box, voxels)
    return str(folder / name)


def channel(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "one", channel(1))
    write(tmp_path, "two", channel(2))
    return tmp_path


def document(folder: Path, name: str = "run", block: list[int] | None = None, **stage: Any) -> dict[str, Any]:
    inputs = {path.name: {"path": str(path)} for path in folder.iterdir() if (path / "zarr.json").exists()}
    fusion = {"tile": [4, 16, 16], "channels": CHANNELS} | stage
    fusion |= {} if "fitted" in fusion or "weights" in fusion else {"weights": WEIGHTS, "bias": -0.5}
    blocks = {} if block is None else {"block": block}
    return {"name": name, "workspace": str(folder / "runs"), "inputs": inputs, "stages": {"fusion": fusion}, **blocks}


def planned(folder: Path, **changes: Any) -> Run:
    return Run.planned(parse_workflow(document(folder, **changes)))


def computed(run: Run) -> list[np.ndarray]:
    execute(run, InProcess(), quiet=True)
    volume = open_volume(f"{run.url}/fusion/boundaries")
    return [volume.read(Box.of(volume.level_shape(level)), level) for level in range(len(volume.arrays))]


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        planned(folder, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("block", [[1, 1, 1], [5, 17, 40], [20, 60, 60]])
def test_output_is_the_fusion_of_the_channels_whatever_the_block_and_the_tile(folder, block):
    expected = fuse({"membranes": channel(1), "boundaries": channel(2)}, Weights(weights=WEIGHTS, bias=-0.5))
    found = computed(planned(folder, block=block))
    assert np.array_equal(found[0], expected)
    assert all(
        np.array_equal(*pair) for pair in zip(found, computed(planned(folder, name="b", tile=None)), strict=True)
    )


def test_it_reads_the_outputs_of_other_stages(folder):
    stages = {
        "boundaries": {"image": "one", "tile": [4, 16, 16]},
        "fusion": {"channels": {"ridges": "boundaries.boundaries", "net": "two"}, "weights": {"ridges": 1, "net": 1}},
    }
    found = computed(Run.planned(parse_workflow({**document(folder), "stages": stages})))[0]
    ridges = open_volume(str(folder / "runs/run/boundaries/boundaries")).read(Box.of(SHAPE))
    assert np.array_equal(found, fuse({"r": ridges, "n": channel(2)}, Weights(weights={"r": 1, "n": 1})))


def test_weights_can_come_from_a_file_beside_the_workflow(folder):
    fitted = {"weights": WEIGHTS, "bias": -0.5, "label": "membranes", "f1": {}}
    (folder / "fusion.yaml").write_text(yaml.safe_dump(fitted))
    (folder / "workflow.yaml").write_text(yaml.safe_dump(document(folder, fitted="fusion.yaml")))
    run = Run.planned(load_workflow(str(folder / "workflow.yaml")))
    own = planned(folder, name="own")
    assert run.plan.stages[0].key == own.plan.stages[0].key
    assert all(np.array_equal(*pair) for pair in zip(computed(run), computed(own), strict=True))
    # a worker needs no file: the run holds what was in it
    (folder / "fusion.yaml").unlink()
    assert Run.open(run.url).plan.stages[0].key == own.plan.stages[0].key


def test_what_weights_say_is_in_the_key_and_where_they_are_is_not(folder):
    def key(**changes: Any) -> str:
        return planned(folder, **changes).plan.stages[0].key

    same = {"weights": dict(reversed(WEIGHTS.items())), "bias": -0.5, "channels": dict(reversed(CHANNELS.items()))}
    assert key() == key(**same) == key(block=[4, 16, 16])
    (folder / "a.yaml").write_text(yaml.safe_dump({"weights": WEIGHTS, "bias": -0.5}))
    (folder / "b.yaml").write_text(yaml.safe_dump({"weights": WEIGHTS, "bias": -0.6}))
    assert key(fitted=str(folder / "a.yaml")) == key() != key(fitted=str(folder / "b.yaml"))
    assert key() != key(channels={"membranes": "two", "boundaries": "one"})


def test_a_changed_file_of_weights_is_computed_anew(folder):
    file = folder / "fusion.yaml"
    file.write_text(yaml.safe_dump({"weights": WEIGHTS, "bias": 0}))
    before = computed(planned(folder, fitted=str(file)))
    file.write_text(yaml.safe_dump({"weights": WEIGHTS, "bias": 1}))
    after = computed(planned(folder, fitted=str(file)))
    assert (after[0] >= before[0]).all() and (after[0] > before[0]).any()


# what is refused


def test_a_channel_without_a_weight_and_a_weight_without_a_channel_are_refused(folder):
    assert "weights: no weight for the channel 'boundaries'" in refused(folder, weights={"membranes": 1})
    more = {"weights": WEIGHTS | {"synapses": 1}, "bias": 0}
    assert "weights: a weight for 'synapses', which is no channel" in refused(folder, weights=more["weights"])
    (folder / "fusion.yaml").write_text(yaml.safe_dump(more))
    assert "fitted: a weight for 'synapses'" in refused(folder, fitted=str(folder / "fusion.yaml"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory; write it with 'neurokube fuse'"),
        ("weights: {a: 1}", "not what 'neurokube fuse' writes"),
        ("- nothing", "not what 'neurokube fuse' writes"),
        ("weights: {", "not what 'neurokube fuse' writes"),
        ("{weights: {a: .nan}, bias: 0}", "weights.a: must be "),
        ("{weights: {}, bias: 0}", "weights: "),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_by_name(folder, content, words):
    file = folder / "fusion.yaml"
    if content is not None:
        file.write_text(content)
    message = refused(folder, fitted=str(file))
    assert message.startswith(f"stages.fusion.fitted: {file}: ") and words in message


def test_channels_that_cannot_be_fused_are_refused(folder):
    write(folder, "narrow", channel(3)[:, :, :30])
    write(folder, "coarse", channel(3), voxel_size=(40.0, 10.0, 10.0))
    write(folder, "cells", channel(3).astype(np.uint64), kind="labels")
    for name, words in (
        ("narrow", "channels.boundaries ((10, 40, 30) voxels"),
        ("coarse", "must cover the same voxels"),
        ("cells", "channels.boundaries: 'cells' holds uint64 labels; only probabilities"),
        ("twp", "channels.boundaries: there is no input or stage 'twp'; did you mean 'two'?"),
    ):
        assert words in refused(folder, channels=CHANNELS | {"boundaries": name})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": None}, "give either 'weights' or 'fitted'"),
        ({"weights": WEIGHTS, "fitted": "f.yaml"}, "give either 'weights' or 'fitted'"),
        ({"fitted": "f.yaml", "bias": 1}, "bias: goes with weights; 'fitted' has its own"),
        ({"channels": {}}, "channels: must not be empty"),
        ({"channels": {"a.b": "one"}}, "channels.a.b: use letters, digits"),
        ({"weights": {"membranes": 1e6, "boundaries": 1}}, "weights.membranes: must be less than or equal to 100"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(folder, changes, words):
    assert f"stages.fusion{'.' if ': ' in words and not words.startswith('bias') else ': '}{words}" in refused(
        folder, **changes
    )


def test_its_settings_are_documented():
    assert all(field.description for field in Fusion.model_fields.values())
