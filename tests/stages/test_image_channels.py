"""A network that sees further channels: each named, the same bits however it is cut, and what is refused."""

from pathlib import Path
from typing import Any, ClassVar

import benches
import numpy as np
import pytest
import torch
from benches import on_a_device, same, texture, write_volume

from neurokube.errors import ConfigurationError, DataError
from neurokube.evaluation.models import predict_volume
from neurokube.networks import Bundle, write_bundle
from neurokube.networks.unet import UNet, UNetConfig
from neurokube.volumes import open_volume

SIZE = (10.0, 10.0, 10.0)


def write_model(folder: Path, channels: int = 2, *, blind: bool = False, **fields: Any) -> Bundle:
    """Write a U-Net of random weights; a `blind` one takes no notice of what is beside the image."""
    torch.manual_seed(0)
    config = UNetConfig.fitting(SIZE, 2, (4, 6), channels)
    network = UNet(config).train()
    with torch.no_grad():
        network(2 * torch.randn(2, channels, 8, 16, 16) + 0.3)
        network.head.weight *= 3
        if blind:
            network.stem.convolution.weight[:, 1:] = 0
    inputs = {"channels": channels, "inputs": ["image", "marker", "dye"][:channels]} if channels > 1 else {}
    card = {
        "name": "tiny",
        "architecture": config.architecture,
        **inputs,
        "labels": ["a", "b"],
        "voxel_size": SIZE,
        "window": (8, 24, 24),
        "multiple": config.factor,
        "halo": (1, 3, 3),
    }
    return write_bundle(folder, {**card, **fields}, network.state_dict())


class Bench(benches.Bench):
    """A folder with an image and two further channels."""

    kind = "semantics"
    usual: ClassVar[benches.Settings] = {"tile": [8, 16, 16], "window": [8, 24, 24], "overlap": [1, 2, 2]}

    def __init__(self, folder: Path, model: Path, voxel_size: tuple[float, float, float] = SIZE) -> None:
        super().__init__(folder, model, texture(), voxel_size)
        for name, voxels in (("marker", texture()[::-1, ::-1]), ("dye", texture()[:, :, ::-1])):
            self.inputs[name] = {"path": str(folder / f"{name}.zarr")}
            write_volume(folder / f"{name}.zarr", np.ascontiguousarray(voxels), voxel_size)


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path, write_model(tmp_path / "model").folder)


BOTH = {"channels": {"marker": "marker"}}


NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use is here")


@pytest.mark.parametrize("backend", ["openvino", "torch", pytest.param("cuda", marks=NO_CARD)])
def test_output_does_not_depend_on_blocks(bench, backend):
    settings = {**BOTH, "backend": backend, "permutations": 4}
    one = bench.results("one", block=[20, 60, 60], **settings)
    assert same(bench.results("many", block=[8, 16, 16], **settings), one)
    assert np.ptp(one["a/0"]) > 20


def test_a_device_computes_the_same_bits(bench, monkeypatch):
    reference = bench.results("one", permutations=2, **BOTH)
    on_a_device(monkeypatch)
    assert same(bench.results("device", permutations=2, **BOTH), reference)


def test_an_image_of_another_voxel_size_is_resampled_with_its_channels(tmp_path):
    here = Bench(tmp_path, write_model(tmp_path / "model").folder, (10.0, 8.0, 8.0))
    one = here.results("one", block=[20, 60, 60], **BOTH)
    assert same(here.results("many", block=[8, 16, 16], **BOTH), one)


def test_a_network_that_takes_no_notice_of_a_channel_finds_what_one_without_it_finds(tmp_path):
    one = write_model(tmp_path / "one", 1)
    both = write_model(tmp_path / "both", blind=True)
    tensors = both.tensors()
    kept = one.tensors()
    kept["stem.convolution.weight"] = torch.cat([kept["stem.convolution.weight"]] * 2, 1)
    kept["stem.convolution.weight"][:, 1] = 0
    assert tensors.keys() == kept.keys()
    both = write_bundle(tmp_path / "both", both.card.model_dump(mode="json", exclude_none=True), kept)
    here = Bench(tmp_path, one.folder)
    reference = here.results("one")
    here.model = both.folder
    assert all(np.abs(a.astype(int) - reference[n]).max() <= 1 for n, a in here.results("both", **BOTH).items())


def test_what_a_channel_holds_matters(bench):
    one = bench.results("one", channels={"marker": "marker"})
    assert not same(bench.results("other", channels={"marker": "dye"}), one)


def test_channels_go_by_the_names_on_the_card_and_not_by_their_order(tmp_path):
    here = Bench(tmp_path, write_model(tmp_path / "model", 3).folder)
    one = here.results("one", channels={"marker": "marker", "dye": "dye"})
    assert same(here.results("turned", channels={"dye": "dye", "marker": "marker"}), one)
    assert not same(here.results("swapped", channels={"dye": "marker", "marker": "dye"}), one)


def test_a_changed_channel_is_computed_anew(bench):
    key = bench.plan(**BOTH).plan.stages[0].key
    assert bench.plan(channels={"marker": "dye"}).plan.stages[0].key != key
    kept = bench.plan(**BOTH)
    assert kept.plan.stages[0].key == key


def test_an_empty_image_is_not_predicted_whatever_the_channel_holds(tmp_path):
    here = Bench(tmp_path, write_model(tmp_path / "model").folder)
    write_volume(tmp_path / "empty.zarr", np.zeros(here.image.shape, np.uint8), SIZE)
    half = here.image.copy()
    half[:, :, 8:] = 0
    write_volume(tmp_path / "half.zarr", half, SIZE)
    here.inputs["half"] = {"path": str(tmp_path / "half.zarr")}
    found = here.results("half", image="half", **BOTH)
    assert (found["a/0"][:, :, 34:] == 0).all() and found["a/0"][:, :, :8].any()


@pytest.mark.parametrize(
    ("channels", "model", "message"),
    [
        ({}, 2, "sees marker beside the image; say what that is, as channels: {marker: STAGE}"),
        ({"marker": "marker"}, 1, "sees nothing beside the image, and no marker; leave it out"),
        ({"marker": "marker", "dye": "dye"}, 2, "sees marker beside the image, and no dye; leave it out"),
        ({"marker": "shifted"}, 2, "image (which begins at"),
        ({"marker": "wide"}, 2, "must be an 8-bit image of one channel, as a resampling stage makes it"),
    ],
)
def test_channels_that_do_not_fit_are_refused_in_a_line(tmp_path, channels, model, message):
    here = Bench(tmp_path, write_model(tmp_path / "model", model).folder)
    write_volume(tmp_path / "shifted.zarr", here.image, SIZE, (0.0, 0.0, 50.0))
    from neurokube.volumes import VolumeSpec, create

    create(str(tmp_path / "wide.zarr"), VolumeSpec(here.image.shape, "uint16", SIZE))
    for name in ("shifted", "wide"):
        here.inputs[name] = {"path": str(tmp_path / f"{name}.zarr")}
    with pytest.raises(ConfigurationError) as caught:
        here.plan(channels=channels)
    assert message in str(caught.value) and str(caught.value).startswith("stages.semantics.")
    assert "\n" not in str(caught.value)


def test_an_image_stage_refuses_a_model_of_two_channels(tmp_path):
    here = Bench(tmp_path, write_model(tmp_path / "model").folder)
    document = here.document("run", {})
    settings = document["stages"].pop("semantics")
    document["stages"]["translation"] = {k: v for k, v in settings.items() if k != "overlap"}
    from neurokube.workflow import Run, parse_workflow

    with pytest.raises(ConfigurationError, match="wants 2 image channels"):
        Run.planned(parse_workflow(document))


def test_a_prediction_is_that_of_a_run(tmp_path):
    bundle = write_model(tmp_path / "model")
    here = Bench(tmp_path, bundle.folder)
    image, marker = (open_volume(str(tmp_path / f"{name}.zarr")) for name in ("image", "marker"))
    found = predict_volume(bundle, image, channels={"marker": marker})
    settings = {"window": list(bundle.card.window), "overlap": None, "tile": None, "backend": None}
    run = here.results("run", network_batch=None, **settings, **BOTH)
    assert np.array_equal(found[0], run["a/0"])
    with pytest.raises(ConfigurationError, match="sees marker beside the image"):
        predict_volume(bundle, image)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": ["image"]}, "inputs: 2 different names are needed"),
        ({"inputs": ["image", "image"]}, "inputs: 2 different names are needed"),
        ({"normalization": {"mean": 100, "deviation": 20}}, "normalization: of several channels each is measured"),
    ],
)
def test_a_card_that_says_what_cannot_be_is_refused(tmp_path, fields, message):
    with pytest.raises(DataError, match=message):
        write_model(tmp_path / "model", **fields)


def test_a_channel_that_does_not_reach_here_says_nothing_and_stops_nothing(tmp_path):
    here = Bench(tmp_path, write_model(tmp_path / "model").folder)
    write_volume(tmp_path / "marker-none.zarr", np.zeros(here.image.shape, np.uint8), SIZE)
    here.inputs["none"] = {"path": str(tmp_path / "marker-none.zarr")}
    assert np.ptp(here.results(channels={"marker": "none"})["a/0"]) > 20
