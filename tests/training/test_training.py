"""Whole trainings of tiny networks."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import QUIET, blobs, document, write, write_file
from PIL import Image

from neurokube.errors import ConfigurationError, DataError, NeuroKubeError, UsageError
from neurokube.networks.bundle import write_files
from neurokube.training import module, parse_training
from neurokube.training.losses import MaskedLoss
from neurokube.training.module import Diverged
from neurokube.training.trainer import train


def history(bundle):
    return [json.loads(line) for line in (bundle.folder.parent / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def taught(tissue, tmp_path_factory):
    """A model that knows blobs."""
    folder = tmp_path_factory.mktemp("taught")
    content = document(tissue, folder, validated=True, steps=30, interval=10, licence="CC0", modality="fib-sem")
    settings = parse_training({**content, "loggers": ["tensorboard"]}, where="test")
    return train(settings, command="neurokube train blobs.yaml", quiet=True)


def test_it_learns(taught):
    assert taught.card.scores["validation"]["f1"]["blob"] > 0.8


def test_card_says_how_the_model_came_about(taught, tissue):
    card = taught.card
    assert card.name == "blobs" and card.labels == ("blob",) and card.licence == "CC0" and card.modality == "fib-sem"
    assert card.voxel_size == (10, 10, 10) and card.window == (4, 16, 16) and card.multiple == (2, 2, 2)
    assert all(0 < 2 * h < w for h, w in zip(card.halo, card.window, strict=True))
    assert 0 < card.thresholds["blob"] <= 1
    (data,) = card.training["data"]
    assert (
        data["image"] == "/".join(Path(tissue["image"]).parts[-2:])
        and data["shape"] == [8, 48, 48]
        and 0.15 < data["shares"]["blob"] < 0.25
    )
    assert card.trained_normalization.mean == pytest.approx(data["normalization"]["mean"])
    assert card.training["command"] == "neurokube train blobs.yaml" and card.training["from"] is None
    assert card.training["settings"]["steps"] == 30 and card.training["seconds"] > 0
    assert taught.network()(torch.zeros(1, 1, 4, 16, 16)).shape == (1, 1, 4, 16, 16)


def test_history_and_pictures_of_each_interval_are_written(taught):
    rows = history(taught)
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert all(0 <= row["f1"] <= 1 and row["f1"] == pytest.approx(row["f1/blob"], abs=1e-3) for row in rows)
    pictures = sorted((taught.folder.parent / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step-000010.png", "step-000020.png", "step-000030.png"]
    # the image, and beside it one label
    assert all(Image.open(path).size == (96, 48) for path in pictures)


def test_last_interval_is_as_short_as_the_steps_that_are_left(settings):
    assert [row["step"] for row in history(train(settings(steps=6, interval=4), quiet=True))] == [4, 6]


def test_tensorboard_is_written(taught):
    assert list((taught.folder.parent / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_is_written(settings, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    bundle = train(settings(loggers=["mlflow"], steps=2, interval=1, validated=True), quiet=True)
    assert list((bundle.folder.parent / "mlflow").rglob("metrics/mean_f1"))


def test_same_seed_gives_the_same_weights_and_another_does_not(settings):
    augmentation = {"augmentation": {**QUIET, "rotation": 30, "noise": 0.3, "elastic": 20}}
    shas = [
        train(settings(name=name, seed=seed, steps=4, **augmentation), quiet=True).card.sha256
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert shas[0] == shas[1] != shas[2]


def test_scratch_gives_the_same_weights_as_memory(settings, tmp_path):
    cache = {"cache": "scratch", "scratch": str(tmp_path / "scratch")}
    shas = [
        train(settings(name=f"n{n}", steps=4, **more), quiet=True).card.sha256 for n, more in enumerate(({}, cache))
    ]
    assert shas[0] == shas[1]
    assert len(list((tmp_path / "scratch").iterdir())) == 1


def test_processes_that_prepare_windows_change_nothing(settings):
    shas = [train(settings(name=f"n{n}", steps=4, loaders=n), quiet=True).card.sha256 for n in (0, 2)]
    assert shas[0] == shas[1]


def test_bfloat16_learns_too(settings):
    bundle = train(settings(validated=True, steps=4, precision="bfloat16"), quiet=True)
    assert all(tensor.dtype != torch.bfloat16 for tensor in bundle.tensors().values())
    assert bundle.card.scores["validation"]["f1"]["blob"] > 0.5


def test_wrong_values_in_unlabelled_voxels_do_no_harm(settings, tissue, tmp_path):
    _, mask = blobs(0)
    random = np.random.default_rng(5)
    # 0: unlabelled, 1: none, 2: blob; one voxel in ten is labelled
    sparse = np.where(random.random(mask.shape) < 0.1, mask + 1, 0).astype(np.uint8)
    path = write(tmp_path / "sparse.zarr", sparse)
    truth = {"blob": {"volume": path, "values": [0, 2], "unlabelled": [0]}}
    volumes = [{"image": tissue["image"], "truth": truth}]
    bundle = train(settings(validated=True, volumes=volumes, steps=30, interval=10), quiet=True)
    assert bundle.card.scores["validation"]["f1"]["blob"] > 0.8


def test_the_best_step_is_kept(settings, monkeypatch):
    scores = iter([0.4, 0.9, 0.7, 0.8, 0.6])
    monkeypatch.setattr(module, "mean_f1", lambda curves: next(scores))
    early = train(settings(name="early", validated=True, steps=40, interval=2, patience=2, average=0), quiet=True)
    assert [row["f1"] for row in history(early)] == [0.4, 0.9, 0.7, 0.8]
    saved = torch.load(early.folder.parent / "best.pt", weights_only=True)
    assert saved["step"] == 4
    weights = early.tensors()
    assert all(torch.equal(weights[name], tensor) for name, tensor in saved["weights"].items())
    # it stays ended: no score is left to ask for
    again = train(
        settings(name="early", validated=True, steps=40, interval=2, patience=2, average=0), resume=True, quiet=True
    )
    assert again.card.sha256 == early.card.sha256 and next(scores) == 0.6


def test_labels_of_the_same_name_keep_what_they_learned(taught, settings, tissue):
    truth = {"new": {"volume": tissue["blob"], "values": [0]}, "blob": tissue["blob"]}
    still = {"learning_rate": 1e-12, "weight_decay": 0, "average": 0, "steps": 1, "interval": 1}
    volumes = [{"image": tissue["image"], "truth": truth}]
    tuned = train(settings(volumes=volumes, **still), start=str(taught.folder), quiet=True)
    before, after = taught.tensors(), tuned.tensors()
    assert tuned.card.labels == ("new", "blob")
    assert torch.allclose(after["head.weight"][1], before["head.weight"][0], atol=1e-6)
    assert torch.allclose(after["head.bias"][1], before["head.bias"][0], atol=1e-6)
    assert after["head.bias"][0] == pytest.approx(-2)
    assert torch.allclose(after["stem.convolution.weight"], before["stem.convolution.weight"], atol=1e-6)
    assert tuned.card.training["from"] == {"name": "blobs", "sha256": taught.card.sha256}
    assert tuned.card.modality == "fib-sem"


def test_fine_tuning_starts_better_than_nothing(taught, settings):
    tuned = train(settings(name="tuned", validated=True, steps=2, interval=2), start=str(taught.folder), quiet=True)
    fresh = train(settings(name="fresh", validated=True, steps=2, interval=2), quiet=True)
    assert history(tuned)[0]["loss"] < 0.7 * history(fresh)[0]["loss"]
    assert history(tuned)[0]["f1"] > history(fresh)[0]["f1"]


def test_fine_tuning_resamples_to_the_voxels_of_the_model(taught, settings, tmp_path):
    image, mask = (array[:, ::2, ::2].copy() for array in blobs(0))
    coarse = {"voxel_size": (10.0, 20.0, 20.0)}
    truth = write(tmp_path / "blob.zarr", mask, **coarse)
    volumes = [{"image": write(tmp_path / "image.zarr", image, "image", **coarse), "truth": {"blob": truth}}]
    tuned = train(settings(volumes=volumes, validated=True, steps=4), start=str(taught.folder), quiet=True)
    assert tuned.card.voxel_size == (10, 10, 10)
    assert tuned.card.training["data"][0]["shape"] == [8, 48, 48]
    assert tuned.card.scores["validation"]["f1"]["blob"] > 0.8


INCEPTION = {"network": "inception", "size": [4, 8]}


def test_a_network_of_another_kind_learns_and_is_trained_on(settings):
    made = settings(**INCEPTION, validated=True, steps=40, interval=10)
    taught = train(made, quiet=True)
    assert taught.card.architecture.kind == "inception" and taught.card.multiple == (2, 2, 2)
    assert taught.card.scores["validation"]["f1"]["blob"] > 0.8
    # the kind is that of the model, and so are the sizes
    still = {"learning_rate": 1e-12, "weight_decay": 0, "average": 0, "steps": 1, "interval": 1}
    tuned = train(settings(name="tuned", **still), start=str(taught.folder), quiet=True)
    assert tuned.card.architecture == taught.card.architecture
    before, after = taught.tensors(), tuned.tensors()
    assert torch.allclose(after["head.weight"], before["head.weight"], atol=1e-6)
    assert torch.allclose(after["layers.0.mix.convolution.weight"], before["layers.0.mix.convolution.weight"])
    with pytest.raises(ConfigurationError, match=r"^network: unet, but [^\n]* is of kind inception; leave it out$"):
        train(settings(name="other", network="unet"), start=str(taught.folder), quiet=True)


def test_a_network_of_another_kind_goes_on_to_the_same_weights(settings):
    made = settings(**INCEPTION, steps=8)
    undisturbed = train(made, quiet=True)
    (undisturbed.folder.parent / "checkpoints" / "step-00000008.ckpt").unlink()
    assert train(made, resume=True, quiet=True).card.sha256 == undisturbed.card.sha256


def test_a_model_from_elsewhere_is_refused(taught, settings, tmp_path):
    card = taught.card.model_dump(mode="json", exclude={"architecture", "weights", "sha256"})
    write_files(tmp_path / "foreign", {**card, "architecture": {"kind": "torchscript"}}, "model.pt", b"none of ours")
    with pytest.raises(UsageError, match="a model from elsewhere"):
        train(settings(), start=str(tmp_path / "foreign"), quiet=True)


@pytest.mark.parametrize("good_steps", [1, 6])
def test_loss_that_is_no_number_ends_the_training_with_what_was_good(settings, monkeypatch, good_steps):
    forward, calls = MaskedLoss.forward, []

    def fail_later(self, logits, truth, known):
        calls.append(1)
        return forward(self, logits, truth, known) * (1 if len(calls) <= good_steps else float("nan"))

    monkeypatch.setattr(MaskedLoss, "forward", fail_later)
    made = settings()
    with pytest.raises(NeuroKubeError) as raised:
        train(made, quiet=True)
    message = str(raised.value)
    first = 2 * good_steps
    assert f"the loss is nan at step {good_steps} (windows {first} to {first + 1})" in message
    assert "lower learning_rate (now 0.02)" in message and "\n" not in message
    monkeypatch.undo()
    if good_steps == 1:
        assert "--overwrite" in message and "--from" not in message
        return
    # the weights of step 4 are a model, with which a training can begin
    kept = message.split("is kept as ")[1].split(":")[0]
    assert train(settings(name="next", learning_rate=1e-3, steps=1), start=kept, quiet=True).card.training["from"]


def test_weights_that_are_no_numbers_are_not_kept(settings, monkeypatch):
    forward = MaskedLoss.forward
    # the loss is fine, its slope is not
    monkeypatch.setattr(
        MaskedLoss, "forward", lambda self, logits, *rest: forward(self, logits, *rest) + (0 * logits).sum().sqrt()
    )
    with pytest.raises(NeuroKubeError, match="the weights are no numbers after step 1") as raised:
        train(settings(interval=1), quiet=True)
    assert not isinstance(raised.value, Diverged)
    folder = Path(str(raised.value).split(":")[0])
    assert folder.is_dir() and not list(folder.rglob("*.ckpt"))


def test_huge_learning_rate_is_one_line(tissue, tmp_path, neurokube):
    file = write_file(tmp_path / "blobs.yaml", document(tissue, tmp_path, learning_rate=1e30))
    code, said = neurokube("train", file, "--quiet")
    assert code == 1 and "learning_rate (now 1e+30)" in said and said.count("\n") == 1


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_shortest_trainings_have_a_learning_rate_for_each_step(tissue, tmp_path, steps):
    content = document(tissue, tmp_path, steps=steps, interval=3)
    assert train(parse_training(content, where="test"), quiet=True).card.training["settings"]["steps"] == steps


def test_label_that_no_voxel_has_is_refused(tissue, tmp_path):
    truth = {"blob": tissue["blob"], "absent": {"volume": tissue["blob"], "values": [99]}}
    content = document(tissue, tmp_path, volumes=[{"image": tissue["image"], "truth": truth}])
    with pytest.raises(DataError, match="no voxel of any volume is 'absent'"):
        train(parse_training(content, where="test"), quiet=True)


def test_label_that_every_known_voxel_has_is_refused(tissue, tmp_path):
    truth = {"blob": {"volume": tissue["blob"], "values": [1], "unlabelled": [0]}}
    content = document(tissue, tmp_path, volumes=[{"image": tissue["image"], "truth": truth}])
    with pytest.raises(DataError, match="every annotated voxel is 'blob', from which nothing tells it apart; paint"):
        train(parse_training(content, where="test"), quiet=True)
