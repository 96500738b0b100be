"""Trainings of networks that make images of images: sections between sections, and the look of another volume."""

import json
import signal

import numpy as np
import pytest
import torch
import yaml
from blobs import write, write_file
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter

from neurokube.errors import ConfigurationError, DataError, Drained, NeuroKubeError, UsageError
from neurokube.networks import load_bundle, write_bundle
from neurokube.networks.generator import Generator, GeneratorConfig
from neurokube.networks.unet import UNet, UNetConfig
from neurokube.training import parse_training
from neurokube.training.images import planes, translation
from neurokube.training.images.adversary import Discriminator, ImageBuffer, patch
from neurokube.training.images.cyclegan import Coarsener
from neurokube.training.images.degradation import Degradation
from neurokube.training.images.superresolution import usual_degradation
from neurokube.training.trainer import train

THICK = (20.0, 10.0, 10.0)
TINY = {
    "features": 8,
    "blocks": 1,
    "batch": 4,
    "steps": 8,
    "interval": 4,
    "precision": "float32",
    "threads": 1,
    "loggers": [],
    "average": 0.9,
}
"""Settings that take a second."""
GAN = {"features": 4, "buffer": 6}


def texture(seed, shape=(24, 48, 48), sigma=1.6):
    """Return an isotropic texture, its grey values spread from dark to bright."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return np.clip(128 + 40 * field / field.std(), 1, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Return paths: texture of which every second section was removed, another, and one that looks different."""
    folder = tmp_path_factory.mktemp("texture")
    paths = {
        name: write(folder / f"{name}.zarr", texture(seed)[::2], "image", voxel_size=THICK)
        for seed, name in enumerate(("coarse", "unseen"))
    }
    paths["far"] = write(folder / "far.zarr", texture(4, (72, 48, 48))[::6], "image", voxel_size=(60.0, 10.0, 10.0))
    paths["isotropic"] = write(folder / "isotropic.zarr", texture(2), "image")
    paths["stained"] = write(folder / "stained.zarr", np.where(texture(3) > 128, 211, 171).astype(np.uint8), "image")
    return paths


@pytest.fixture
def document(volumes, tmp_path):
    """Return what makes a training file's content; fields as keywords."""

    def make(task="superresolution", **fields):
        content = {"name": "net", "workspace": str(tmp_path), "task": task, "volumes": [{"image": volumes["coarse"]}]}
        if task == "superresolution":
            content |= {"factor": 2, "window": [8, 16]}
        else:
            content |= {"volumes": [{"image": volumes["isotropic"]}], "targets": [{"image": volumes["stained"]}]}
            content |= {"window": [1, 16, 16], "gan": GAN}
        if fields.get("method") == "cyclegan":
            content["gan"] = GAN
        return {**content, **TINY, **fields}

    return make


@pytest.fixture
def trained(document):
    """Return what trains with changed settings."""

    def run(task="superresolution", *, resume=False, start=None, **fields):
        return train(parse_training(document(task, **fields), where="test"), resume=resume, start=start, quiet=True)

    return run


def history(bundle):
    return [json.loads(line) for line in (bundle.folder.parent / "history.jsonl").read_text().splitlines()]


degradations = st.builds(
    Degradation,
    factor=st.integers(2, 6),
    step=st.just(1.0) | st.floats(1.0, 4.0),
    average=st.booleans(),
)


@settings(max_examples=30, deadline=None)
@given(degradations, st.integers(2, 9))
def test_thick_section_k_lies_at_thin_section_factor_k(degradation, sections):
    rows = degradation.rows(sections)
    assert degradation.most(rows) == sections and degradation.most(rows - 1) == sections - 1
    # of a ramp, what a section shows is where its middle is
    ramp = np.arange(rows, dtype=np.float32)[:, None].repeat(2, 1)
    thick, thin = degradation.to_thick(ramp, sections), degradation.to_thin(ramp, sections)
    assert thick.shape == (sections, 2) and thin.shape == (degradation.thin(sections), 2)
    # a mean is over whole pixels and parts of them, within which nothing is known
    atol = 0.3 if degradation.average else 1e-3
    assert np.allclose(thick, thin[:: degradation.factor], atol=atol)
    assert np.allclose(np.diff(thin, axis=0), degradation.step, atol=atol)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_thin_sections_are_thickened_as_planes_are_cut(factor, average):
    degradation = Degradation(factor, 1.0, average)
    plane = np.random.default_rng(factor).standard_normal((degradation.rows(6), 5), np.float32)
    thick, thin = degradation.to_thick(plane, 6), degradation.to_thin(plane, 6)
    again = degradation.thickened(torch.from_numpy(thin)[None, None, :, None])[0, 0, :, 0].numpy()
    # the first and the last reach beyond the thin ones
    assert np.allclose(again[1:-1], thick[1:-1], atol=1e-5)
    if average:
        assert thick.std() < 0.9 * thin.std()
    else:
        assert np.array_equal(thick, thin[::factor])


def test_sections_are_cut_from_a_block_or_milled_off_it():
    assert usual_degradation("sstem", (20, 10, 10)) == usual_degradation(None, (40, 8, 8)) == "average"
    assert usual_degradation("fib-sem", (40, 8, 8)) == usual_degradation(None, THICK) == "subsample"


@settings(max_examples=15, deadline=None)
@given(st.integers(4, 80), st.integers(4, 80))
def test_discriminator_judges_patches_that_fit_the_plane(rows, columns):
    judge = Discriminator(2, (rows, columns), "zx")
    depth = len([layer for layer in judge.layers if getattr(layer, "stride", 1) == (2, 2)])
    assert patch(depth) <= min(rows, columns) or depth == 0
    verdicts = judge(torch.randn(2, 1, rows, 3, columns))
    # planes side by side in y are judged one by one
    assert len(verdicts) == 6 and verdicts[0].numel() >= 1


def test_patches_of_the_paper_are_of_70_pixels():
    assert [patch(depth) for depth in range(4)] == [7, 16, 34, 70]
    assert len([n for n in Discriminator(2, (128, 128), "yx").layers if isinstance(n, torch.nn.Conv2d)]) == 5


def test_buffer_shows_new_images_until_it_is_full_then_half_of_them_from_earlier():
    buffer, random = ImageBuffer(10, (1,)), np.random.default_rng(0)
    shown = torch.cat([buffer(torch.full((1, 1), float(n)), random) for n in range(410)]).flatten()
    assert shown[:10].tolist() == list(range(10))
    fresh = sum(bool(shown[n] == n) for n in range(10, 410)) / 400
    assert 0.4 < fresh < 0.6 and all(shown[n] <= n for n in range(410))
    # what was shown has left the buffer: nothing is shown twice but what stays in it
    assert len(set(shown.tolist()) | set(buffer.images.flatten().tolist())) == 410
    assert ImageBuffer(0, (1,))(torch.ones(2, 1), random).tolist() == [[1], [1]]


@pytest.mark.parametrize("average", [False, True])
def test_untrained_way_back_takes_sections_out(average):
    degradation = Degradation(3, 1.0, average)
    back = Coarsener(GeneratorConfig(features=4, blocks=1, factor=3, plane="zx"), degradation)
    thin = torch.randn(2, 1, degradation.thin(4), 1, 8)
    with torch.no_grad():
        assert torch.equal(back(thin), degradation.thickened(thin)) and back(thin).shape == (2, 1, 4, 1, 8)


def test_superresolution_learns_to_beat_linear_interpolation(trained, volumes):
    bundle = trained(
        validation=[{"image": volumes["unseen"]}],
        **{"steps": 60, "interval": 30, "learning_rate": 0.005, "licence": "CC0", "modality": "fib-sem"},
    )
    card = bundle.card
    scores = card.scores["validation"]
    assert scores["psnr"] > scores["psnr_linear"] + 1
    assert card.architecture.kind == "generator" and card.factor == 2 and card.output == "image"
    assert card.labels == ("image",) and card.voxel_size == THICK and card.window == (8, 16, 16)
    assert card.licence == "CC0" and card.training["data"][0]["role"] == "volume"
    rows = history(bundle)
    assert [row["step"] for row in rows] == [30, 60] and rows[-1]["psnr"] > rows[0]["psnr"]
    # thick sections, linear interpolation, what is made of them, what there was: 47 sections between 48 pixels
    assert Image.open(bundle.folder.parent / "pictures" / "step-000060.png").size == (4 * 48 + 3 * 4, 47)
    # real sections that were removed come back better too, which training never saw
    truth = texture(1)
    thick = torch.from_numpy((truth[::2].astype(np.float32) - 128) / 40)[None, None]
    with torch.inference_mode():
        made, linear = (n(thick)[0, 0, 1:-1:2].numpy() * 40 + 128 for n in (bundle.network(), Generator(_of(bundle))))
    wrong, plain = (np.square(found - truth[1:-1:2]).mean() for found in (made, linear))
    assert wrong < 0.8 * plain
    again = trained(
        name="again", validation=[{"image": volumes["unseen"]}], start=str(bundle.folder), learning_rate=1e-12, steps=1
    )
    assert again.card.scores["validation"]["psnr"] == pytest.approx(scores["psnr"], abs=0.01)


def test_neighbours_are_seen_where_sections_are_near(trained, volumes):
    assert trained().card.architecture.aside == 2
    assert trained(name="alone", neighbours=False).card.architecture.aside == 0
    assert trained(name="unpaired", method="cyclegan").card.architecture.aside == 0
    # of voxels of 60 x 10 x 10 nm a neighbour is 6 pixels away, and has little to do with a plane
    far = {"volumes": [{"image": volumes["far"]}], "factor": 3, "window": [6, 16]}
    assert trained(name="far", **far).card.architecture.aside == 0
    asked = trained(name="asked", neighbours=True, **far)
    assert asked.card.architecture.aside == 6 and asked.card.architecture.receptive_field == (4, 6, 4)


def test_neighbours_help(trained, volumes):
    """Learned from turned volumes a section away, they serve the volume as it is, `aside` pixels away."""
    fields = {"steps": 80, "interval": 40, "learning_rate": 0.005, "blocks": 2}
    truth = texture(1)
    thick = torch.from_numpy((truth[::2].astype(np.float32) - 128) / 40)[None, None]
    wrong = {}
    for neighbours in (False, True):
        network = trained(name=f"net-{neighbours}", neighbours=neighbours, **fields).network()
        with torch.inference_mode():
            made = network(thick)[0, 0, 1:-1:2].numpy() * 40 + 128
        wrong[neighbours] = np.square(made - truth[1:-1:2]).mean()
    assert wrong[True] < wrong[False]


def _of(bundle):
    return GeneratorConfig.model_validate(bundle.card.architecture.model_dump(exclude={"kind"}))


def interrupted(monkeypatch, kind, number, *, asked):
    """Make a training stop where it asks for a window: at once, or asked to, after the step."""
    get = kind.__getitem__

    def stop(self, index):
        if self.first + index == number:
            if not asked:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
        return get(self, index)

    monkeypatch.setattr(kind, "__getitem__", stop)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, planes.Pairs),
        ({"method": "cyclegan", "degradation": "average"}, planes.Unpaired),
        ({"task": "translation"}, translation.Looks),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_interrupted_training_ends_with_the_weights_of_an_undisturbed_one(trained, monkeypatch, fields, kind, asked):
    undisturbed = trained(**fields, name="undisturbed", steps=12)
    interrupted(monkeypatch, kind, 4 * 9, asked=asked)
    with pytest.raises(Drained, match="stopped after step 10" if asked else "from the last checkpoint"):
        trained(**fields, steps=12)
    monkeypatch.undo()
    resumed = trained(**fields, steps=12, resume=True)
    assert resumed.card.sha256 == undisturbed.card.sha256
    rows = history(resumed), history(undisturbed)
    assert all(len(r) == 3 for r in rows)
    assert [{**row, "seconds": 0} for row in rows[0]] == [{**row, "seconds": 0} for row in rows[1]]
    assert [p.name for p in sorted((resumed.folder.parent / "pictures").iterdir())] == [
        f"step-{n:06d}.png" for n in (4, 8, 12)
    ]


def test_cyclegan_changes_its_generator_by_each_of_its_losses(trained, volumes):
    fields = {"method": "cyclegan", "steps": 2, "interval": 2, "fine": [{"image": volumes["isotropic"]}]}
    full = trained(name="full", gan=GAN, **fields)
    assert [row["role"] for row in full.card.training["data"]] == ["volume", "fine"]
    for loss in ("adversarial", "cycle", "identity"):
        assert trained(name=loss, gan={**GAN, loss: 0}, **fields).card.sha256 != full.card.sha256
    half = trained(name="half", gan=GAN, precision="bfloat16", **fields)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in half.tensors().values())
    (row,) = history(full)
    assert 0 < row["discriminator"] < 1 and row["cycle"] > 0 and 0.5 < row["contrast"] < 2


def test_translation_makes_the_grey_values_of_the_target(trained):
    bundle = trained("translation", steps=4)
    card = bundle.card
    assert card.factor == 1 and card.output == "image" and card.voxel_size == (10, 10, 10)
    assert card.target.mean == pytest.approx(191, abs=8) and card.target.deviation == pytest.approx(20, abs=3)
    assert card.window == (1, 16, 16) and card.halo[0] == 0
    assert [row["role"] for row in card.training["data"]] == ["volume", "target"]
    assert Image.open(bundle.folder.parent / "pictures" / "step-000004.png").size == (3 * 48 + 2 * 4, 48)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that labels structures, of another voxel size if asked."""

    def make(**fields):
        torch.manual_seed(0)
        network = UNet(UNetConfig.fitting((10, 10, 10), 1, (4, 6)))
        card = {"name": "unet", "labels": ("blob",), "voxel_size": (10.0, 10.0, 10.0), "window": (4, 16, 16)}
        card |= {"architecture": {"kind": "unet", "levels": network.config.model_dump()["levels"]}}
        card |= {"halo": (1, 2, 2), "multiple": (2, 2, 2), **fields}
        return str(write_bundle(tmp_path_factory.mktemp("model") / "unet", card, network.state_dict()).folder)

    return make


def test_segmentation_joins_in(trained, model):
    fields = {"steps": 4, "window": [2, 16, 16], "batch": 1, "segmentation": model()}
    watched = trained("translation", name="watched", **fields)
    assert watched.card.training["data"][-1]["name"] == "unet"
    assert not any("segmenter" in key for key in _state(watched))
    heavy = trained("translation", name="heavy", segmentation_weight=100, **fields)
    alone = trained("translation", name="alone", **{**fields, "segmentation": None})
    assert len({bundle.card.sha256 for bundle in (watched, heavy, alone)}) == 3
    fixed = model(normalization={"mean": 10, "deviation": 1})
    assert trained("translation", name="fixed", **{**fields, "segmentation": fixed}).card.sha256 != watched.card.sha256


def _state(bundle):
    *_, newest = sorted((bundle.folder.parent / "checkpoints").glob("*.ckpt"))
    return torch.load(newest, weights_only=True)["state_dict"]


def test_discriminator_that_always_wins_ends_the_training_with_the_last_good_generator(trained):
    # the generator hardly moves, the discriminator learns fast what it makes
    gan = {**GAN, "features": 16, "rate": 4e5}
    with pytest.raises(NeuroKubeError) as raised:
        trained("translation", gan=gan, learning_rate=1e-8, steps=400, interval=10)
    said = str(raised.value)
    assert "the discriminator always wins" in said and "less than 0.01" in said and "\n" not in said
    assert "lower learning_rate (now 1e-08) or gan.rate (now 400000)" in said
    assert "leave images as they are: lower gan.cycle (now 10) and gan.identity (now 5); or" in said
    kept = load_bundle(said.split("is kept as ")[1].split(":")[0])
    rows = history(kept)
    good = max(row["step"] for row in rows if row["discriminator"] >= 0.01)
    # two intervals in succession end it
    assert [row["discriminator"] < 0.01 for row in rows[-3:]] == [False, True, True]
    assert torch.load(kept.folder.parent / "best.pt", weights_only=True)["step"] == good


def test_generator_that_makes_one_grey_is_not_kept(trained, monkeypatch):
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, image: 0.01 * forward(self, image))
    with pytest.raises(NeuroKubeError, match=r"makes but one grey: at step 8 its images have 0\.0[01]") as raised:
        trained("translation", steps=40)
    assert "start again with --overwrite" in str(raised.value) and "is kept as" not in str(raised.value)
    assert "leave images as they are" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task": "denoising"}, "task: must be semantics, superresolution, translation, forest, not 'denoising'"),
        ({"factr": 2}, "factr: unknown field; did you mean 'factor'?"),
        ({"gan": {"cylce": 2}, "method": "cyclegan"}, "gan.cylce: unknown field; did you mean 'cycle'?"),
        ({"factor": 1}, "factor: must be greater than or equal to 2"),
        ({"method": "gan"}, "method: "),
        ({"gan": GAN}, "gan: only a CycleGAN uses it; write method: cyclegan"),
        ({"fine": [{"image": "x"}]}, "fine: only a CycleGAN uses it"),
        ({"method": "cyclegan", "augmentation": {"noise": 1}}, "augmentation.noise: grey values are what"),
        ({"method": "cyclegan", "neighbours": True}, "neighbours: a CycleGAN sees single planes"),
        ({"method": "cyclegan", "devices": 2}, "devices: a GAN trains on one"),
        ({"task": "translation", "devices": 2}, "devices: a GAN trains on one"),
        ({"task": "translation", "targets": []}, "targets: "),
        ({"task": "translation", "factor": 2}, "factor: unknown field"),
    ],
)
def test_settings_that_cannot_be(document, fields, words):
    with pytest.raises(ConfigurationError) as raised:
        parse_training(document(**fields), where="file")
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_data_that_does_not_fit_is_refused_in_one_line(document, trained, volumes, model, tmp_path, neurokube):
    code, said = neurokube(
        "train", write_file(tmp_path / "t.yaml", document(volumes=[{"image": volumes["isotropic"]}])), "-q"
    )
    assert code == 65 and "nearly as wide as deep" in said and "leave it out" in said and said.count("\n") == 1
    with pytest.raises(DataError, match=r"sections of 6.67 nm .* finer than the pixels .* use factor: 2"):
        trained(factor=3)
    with pytest.raises(DataError, match=r"12 sections of 48 pixels across are too few .* method: self-supervised"):
        trained(method="cyclegan", window=[16, 16])
    with pytest.raises(DataError, match=r"are too small for a window of .* which needs 63 x 16; use more of it"):
        trained(window=[32, 16])
    with pytest.raises(DataError, match=r"too small to take sections out of, which needs 3; use more of it"):
        trained(validation=[{"image": volumes["unseen"], "region": "0:4,0:2,0:48"}])
    with pytest.raises(DataError, match="too few for a window"):
        trained("translation", window=[30, 16, 16])
    with pytest.raises(UsageError, match="no network that makes sections"):
        trained(start=model())
    near = str(trained(name="near").folder)
    with pytest.raises(ConfigurationError, match=r"^neighbours: near is what it is; leave it out"):
        trained(start=near, neighbours=False)
    with pytest.raises(ConfigurationError, match=r"^method: near sees neighbours of a plane, a CycleGAN single planes"):
        trained(start=near, method="cyclegan")
    with pytest.raises(UsageError, match="no network that translates"):
        trained("translation", start=model())
    with pytest.raises(ConfigurationError, match=r"window: \(1, 16, 16\) must be multiples of \(2, 2, 2\)"):
        trained("translation", segmentation=model())
    with pytest.raises(ConfigurationError, match="unet sees voxels of 10 x 10 x 10 nm, the training 20 x 20 x 20 nm"):
        trained("translation", segmentation=model(), voxel_size=[20, 20, 20], window=[2, 16, 16])
    assert [file.parent.name for file in tmp_path.rglob("training.json")] == ["near"]


def test_paths_count_from_the_folder_of_the_training_file(document, tmp_path, model):
    (tmp_path / "m").symlink_to(model())
    content = document("translation", volumes=[{"image": "a.zarr"}], targets=[{"image": "s3://b/c"}], segmentation="m")
    placed = parse_training(yaml.safe_load(yaml.safe_dump(content)), where="test", folder=tmp_path)
    assert placed.volumes[0].image == f"{tmp_path}/a.zarr" and placed.targets[0].image == "s3://b/c"
    assert placed.segmentation == f"{tmp_path}/m"
    assert parse_training({**content, "segmentation": "name"}, where="t", folder=tmp_path).segmentation == "name"
