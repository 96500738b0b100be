import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from neurokube.errors import DataError, UsageError
from neurokube.networks import load_bundle, write_bundle
from neurokube.networks.exchange.exporting import export_model
from neurokube.networks.exchange.importing import import_model
from neurokube.networks.exchange.tables import models_table
from neurokube.networks.generator import Generator, GeneratorConfig
from neurokube.networks.permutations import permutations, permute, restore

configs = st.builds(
    GeneratorConfig,
    features=st.just(4),
    blocks=st.integers(1, 3),
    factor=st.integers(1, 4),
    plane=st.just("zx"),
    aside=st.integers(0, 2),
) | st.builds(GeneratorConfig, features=st.just(4), blocks=st.integers(1, 3), plane=st.just("yx"))


def trained(config: GeneratorConfig, seed: int = 0) -> Generator:
    """Return a network whose weights are all random, the head's too."""
    torch.manual_seed(seed)
    network = Generator(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.4, 0.4)
    return network


@settings(max_examples=10)
@given(configs)
def test_untrained_network_interpolates_linearly(config):
    image = torch.randn(2, 1, 6, 5, 5)
    with torch.no_grad():
        found = Generator(config)(image).numpy()
    assert found.shape == (2, 1, 6 * config.factor, 5, 5)
    at = np.minimum(np.arange(6 * config.factor) / config.factor, 5)
    low = np.minimum(at.astype(int), 4)
    weight = (at - low).reshape(-1, 1, 1)
    expected = image.numpy()[:, :, low] * (1 - weight) + image.numpy()[:, :, low + 1] * weight
    assert np.abs(found - expected).max() < 1e-5
    assert np.array_equal(found[:, :, :: config.factor], image.numpy())


@settings(max_examples=20)
@given(configs, st.integers(0, 99))
def test_output_depends_on_what_is_in_the_receptive_field_and_nothing_else(config, seed):
    network = trained(config, seed)
    image = torch.randn(1, 1, 19, 19, 19, requires_grad=True)
    network(image)[0, 0, 9 * config.factor : 10 * config.factor, 9, 9].sum().backward()
    reached = [np.abs(where.numpy() - 9).max() for where in torch.nonzero(image.grad[0, 0], as_tuple=True)]
    assert all(r <= f for r, f in zip(reached, config.receptive_field, strict=True))
    # ReLU can keep single inputs out, but not whole planes of them
    assert any(f == r for r, f in zip(reached, config.receptive_field, strict=True))


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_what_is_made_of_a_permuted_image_is_put_back_where_it_belongs(factor):
    network = Generator(GeneratorConfig(features=4, blocks=1, factor=factor))
    image = np.random.default_rng(0).random((2, 5, 6, 6), np.float32)

    def made(images):
        with torch.no_grad():
            return network(torch.from_numpy(np.ascontiguousarray(images))[:, None]).numpy()

    expected = made(image)[:, :, : 4 * factor + 1]
    for permutation in permutations((4.0, 1.0, 1.0), (5, 6, 6)):
        found = restore(made(permute(image, permutation)), permutation, factor)
        assert found.shape == (2, 1, 5 * factor, 6, 6)
        assert np.abs(found[:, :, : 4 * factor + 1] - expected).max() < 1e-5


def test_network_of_one_section_cannot_make_more():
    with pytest.raises(ValidationError, match="use zx"):
        GeneratorConfig(factor=2, plane="yx")


CARD = {
    "name": "finer",
    "labels": ("image",),
    "output": "image",
    "voxel_size": (20.0, 10.0, 10.0),
    "window": (16, 32, 32),
    "halo": (4, 4, 4),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    network = trained(GeneratorConfig(features=4, blocks=1, factor=2))
    architecture = {"kind": "generator", **network.config.model_dump()}
    folder = tmp_path_factory.mktemp("bundle") / "finer"
    return write_bundle(folder, {**CARD, "architecture": architecture}, network.state_dict())


def test_bundle_keeps_a_generator(bundle):
    again = load_bundle(str(bundle.folder))
    assert again.card.factor == 2
    image = torch.randn(1, 1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.network()(image), trained(again.card.architecture)(image))


def test_other_programs_run_it_on_windows_of_any_size(bundle, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    image = np.random.default_rng(0).standard_normal((2, 1, 7, 20, 9), np.float32)
    with torch.no_grad():
        expected = bundle.network()(torch.from_numpy(image)).numpy()
    assert expected.shape == (2, 1, 14, 20, 9)
    export_model(bundle, tmp_path / "finer.pt", format="torchscript")
    found = torch.jit.load(tmp_path / "finer.pt")(torch.from_numpy(image)).detach().numpy()
    assert np.abs(found - expected).max() < 1e-5
    export_model(bundle, tmp_path / "finer.onnx", format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "finer.onnx")
    assert np.abs(session.run(None, {"image": image})[0] - expected).max() < 1e-5


def test_package_of_the_zoo_is_refused(bundle, tmp_path):
    with pytest.raises(UsageError, match=r"^finer: makes images[^\n]*--format onnx or torchscript$"):
        export_model(bundle, tmp_path / "finer.zip", format="bioimageio")


def test_it_is_imported_and_listed(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROKUBE_MODELS", str(tmp_path / "models"))
    import_model(bundle.folder)
    row = next(row for row in models_table() if row["name"] == "finer")
    assert (row["labels"], row["factor"], row["scores"]) == (["image"], 2, "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": "logits"}, "output: a generator makes an image"),
        ({"labels": ("membrane",)}, "labels: .* image"),
        ({"thresholds": {"image": 0.5}}, "labels: .* without a threshold"),
    ],
)
def test_card_that_cannot_be_is_refused(tmp_path, fields, message):
    network = Generator(GeneratorConfig(features=4, blocks=1))
    architecture = {"kind": "generator", **network.config.model_dump()}
    with pytest.raises(DataError, match=message):
        write_bundle(tmp_path / "odd", {**CARD, "architecture": architecture, **fields}, network.state_dict())
