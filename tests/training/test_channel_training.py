"""Training with further image channels: what only they show is learned, and they move with the image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import QUIET, blobs, document, write, write_file

from neurokube.errors import ConfigurationError, DataError
from neurokube.evaluation.models import evaluate_models
from neurokube.networks.exchange.exporting import export_model
from neurokube.networks.exchange.importing import import_model
from neurokube.training import parse_training
from neurokube.training.config import AnnotatedVolume, Augmentation
from neurokube.training.sampling import Windows
from neurokube.training.trainer import train
from neurokube.training.truth import load

SIZE = (10.0, 10.0, 10.0)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """Return volumes whose label the image does not show and a channel does."""
    folder, entries = tmp_path_factory.mktemp("hidden"), {}
    for seed, name in enumerate(("train", "test")):
        image, _ = blobs(seed + 10)
        marker, mask = blobs(seed)
        entries[name] = {
            "image": write(folder / f"{name}-image.zarr", image, "image"),
            "channels": {"marker": write(folder / f"{name}-marker.zarr", marker, "image")},
            "truth": {"blob": write(folder / f"{name}-blob.zarr", mask)},
        }
    return entries


def settings(hidden: dict[str, dict[str, Any]], folder: Path, *, seen: bool = True, **fields: Any) -> Any:
    entries = [entry if seen else {**entry, "channels": {}} for entry in hidden.values()]
    content = document({"image": "", "blob": ""}, folder, steps=30, interval=10)
    return parse_training({**content, "volumes": entries[:1], "validation": entries[1:], **fields}, where="test")


@pytest.fixture(scope="module")
def taught(hidden, tmp_path_factory):
    return train(settings(hidden, tmp_path_factory.mktemp("taught")), quiet=True)


def test_what_only_a_channel_shows_is_learned_with_it_and_not_without(taught, hidden, tmp_path):
    blind = train(settings(hidden, tmp_path, seen=False, name="blind"), quiet=True)
    assert taught.card.scores["validation"]["f1"]["blob"] > 0.8
    assert blind.card.scores["validation"]["f1"]["blob"] < 0.5
    # both are scored on one file
    file = write_file(tmp_path / "truth.yaml", {"test": [hidden["test"]]})
    report = evaluate_models(
        [str(taught.folder), str(blind.folder)], str(file), str(tmp_path / "evaluation"), quiet=True
    )
    scores = {model.name: model.scores["blob"].f1 for model in report.models}
    assert scores["blobs"] > 0.8 and scores["blind"] < 0.5


def test_the_card_names_the_channels(taught):
    assert (taught.card.channels, taught.card.inputs, taught.card.further) == (2, ("image", "marker"), ("marker",))
    assert taught.network()(torch.zeros(1, 2, 4, 16, 16)).shape == (1, 1, 4, 16, 16)


@pytest.mark.parametrize("kind", ["unet", "inception"])
def test_a_model_of_the_image_alone_keeps_what_it_knows(hidden, tmp_path, kind):
    size = {"network": kind, "size": [4, 8]}
    alone = train(
        settings(hidden, tmp_path, seen=False, name="alone", **{**size, "steps": 2, "interval": 2}), quiet=True
    )
    tuned = settings(hidden, tmp_path, name="tuned", **{**size, "steps": 1, "interval": 1, "learning_rate": 1e-12})
    both = train(tuned, start=str(alone.folder), quiet=True)
    one, two = alone.tensors()["stem.convolution.weight"], both.tensors()["stem.convolution.weight"]
    assert two.shape[1] == 2
    assert torch.allclose(two[:, 0], one[:, 0], atol=1e-6) and two[:, 1].abs().max() < 1e-6
    assert both.card.inputs == ("image", "marker")
    with pytest.raises(ConfigurationError, match="sees marker beside the image; name it for all volumes"):
        train(settings(hidden, tmp_path, seen=False, name="back"), start=str(both.folder), quiet=True)


def test_a_channel_moves_with_the_image_and_has_faults_of_its_own(hidden, tmp_path):
    image = hidden["train"]["image"]
    entry = AnnotatedVolume.model_validate({**hidden["train"], "channels": {"copy": image}})
    volume = load(entry, ["blob"], SIZE)
    still = {name: value for name, value in QUIET.items() if name != "permutations"}
    moving = Augmentation(**{**still, "permutations": True, "elastic": 25, "rotation": 30, "scale": 0.15})
    windows = Windows([volume], 1, (4, 16, 16), seed=0, balance=0.5, augmentation=moving)
    windows.count = 8
    for number in range(8):
        seen = windows[number][0]
        assert seen.shape == (2, 4, 16, 16) and torch.equal(seen[0], seen[1])
    faulty = Augmentation(**{**QUIET, "contrast": 0.5})
    windows = Windows([volume], 1, (4, 16, 16), seed=0, balance=0.5, augmentation=faulty)
    windows.count = 1
    seen = windows[0][0]
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("cache", ["memory", "scratch"])
def test_channels_are_read_in_order_of_their_names_and_resampled_with_the_image(hidden, tmp_path, cache):
    marker = hidden["train"]["channels"]["marker"]
    entry = AnnotatedVolume.model_validate(
        {**hidden["train"], "channels": {"b": marker, "a": hidden["train"]["image"]}}
    )
    scratch = str(tmp_path) if cache == "scratch" else None
    for _ in range(2):
        volume = load(entry, ["blob"], (20.0, 10.0, 10.0), scratch=scratch)
        assert volume.channels.shape == (2, 4, 48, 48)
        assert np.array_equal(volume.channels[0], volume.image)
        assert not np.array_equal(volume.channels[1], volume.image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["validation"][0].pop("channels"), "channels: not all volumes name 'marker'"),
        (lambda v: v["volumes"][0]["channels"].update(dye="x.zarr"), "channels: not all volumes name 'dye'"),
        (lambda v: [e[0].update(channels={"image": "x"}) for e in v.values()], "another name"),
    ],
)
def test_volumes_that_name_other_channels_are_refused(hidden, tmp_path, change, message):
    entries = {
        "volumes": [{**hidden["train"], "channels": dict(hidden["train"]["channels"])}],
        "validation": [dict(hidden["test"])],
    }
    change(entries)
    with pytest.raises(ConfigurationError, match=message):
        settings(hidden, tmp_path, **entries)


def test_a_channel_of_other_voxels_is_refused(hidden, tmp_path):
    other = write(tmp_path / "other.zarr", blobs(3, (8, 48, 40))[0], "image")
    wide = write(tmp_path / "wide.zarr", np.ones((8, 48, 48), np.uint16), "image")
    for path, message in ((other, "has other voxels than"), (wide, "must be an 8-bit image")):
        entry = AnnotatedVolume.model_validate({**hidden["train"], "channels": {"marker": path}})
        with pytest.raises(DataError, match=message):
            load(entry, ["blob"], SIZE)


def test_a_bundle_of_two_channels_goes_out_and_in_and_a_package_of_the_zoo_is_refused(taught, tmp_path):
    path = tmp_path / "model.pt"
    export_model(taught, path, format="torchscript")
    found = torch.jit.load(path)(torch.zeros(1, 2, 4, 16, 16))
    assert torch.allclose(found, taught.network()(torch.zeros(1, 2, 4, 16, 16)), atol=1e-5)
    back = import_model(taught.folder, "again", tmp_path / "models")
    assert back.card.inputs == ("image", "marker")
    pytest.importorskip("bioimageio.spec")
    with pytest.raises(DataError, match="takes 2 image channels; packages are written for one"):
        export_model(taught, tmp_path / "zoo.zip", format="bioimageio")
