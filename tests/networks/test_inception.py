from functools import partial

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.errors import DataError
from neurokube.networks import load_bundle
from neurokube.networks.exchange.exporting import export_model
from neurokube.networks.exchange.importing import import_model
from neurokube.networks.exchange.running import predict, probabilities
from neurokube.networks.inception import Inception, InceptionConfig, largest
from neurokube.networks.networks import CONFIGS, config_of
from neurokube.networks.predictor import Numerics, open_predictor
from neurokube.networks.unet import folded

VOXEL_SIZES = [(8, 8, 8), (30, 8, 8), (50, 4, 4), (25, 9, 9), (16, 16, 8), (10, 10, 12)]
FEATURES = (2, 8)


def trained(config: InceptionConfig, seed: int = 0) -> Inception:
    """Return a network whose batch norms have seen data that is far from normal."""
    torch.manual_seed(seed)
    network = Inception(config).train()
    with torch.no_grad():
        for _ in range(3):
            network(3 * torch.randn(2, config.channels, *(4 * n for n in config.factor)) + 1)
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm3d):
                    module.weight.uniform_(0.5, 2)
                    module.bias.uniform_(-1, 1)
    return network.eval()


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("inception") / "model", "inception", (4, 8))


# the network


@settings(max_examples=20)
@given(
    st.tuples(*3 * [st.integers(1, 7)]),
    st.tuples(*3 * [st.integers(0, 2)]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 99),
)
def test_the_maximum_that_learns_on_a_card_is_that_of_a_pooling(shape, reach, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, 3, *shape).to(dtype).requires_grad_()
    other = x.detach().clone().requires_grad_()
    found = largest(x, reach)
    expected = torch.nn.functional.max_pool3d(other, [2 * n + 1 for n in reach], stride=1, padding=reach)
    assert torch.equal(found, expected)
    slope = torch.randint(-8, 8, found.shape).to(dtype)
    found.backward(slope)
    expected.backward(slope)
    if dtype == torch.float32:
        # no two are equally large
        assert torch.allclose(x.grad, other.grad, atol=1e-4)
    assert float(x.grad.double().sum()) == pytest.approx(float(slope.double().sum()), rel=0.02, abs=8)


@settings(max_examples=8)
@given(st.sampled_from(VOXEL_SIZES), st.integers(1, 3), st.integers(0, 99))
def test_folding_batch_norms_changes_nothing_but_rounding(voxel_size, labels, seed):
    network = trained(InceptionConfig.fitting(voxel_size, labels, FEATURES), seed)
    image = torch.randn(1, 1, *(4 * n for n in network.config.factor))
    with torch.no_grad():
        kept, merged = network(image), folded(network)(image)
    assert (kept - merged).abs().max() < 1e-5 * max(1, kept.abs().max())
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in folded(network).modules())


@pytest.mark.parametrize("voxel_size", VOXEL_SIZES)
def test_output_is_as_large_as_the_input(voxel_size):
    config = InceptionConfig.fitting(voxel_size, 3, FEATURES)
    for shape in (config.factor, tuple(5 * n for n in config.factor)):
        assert Inception(config).eval()(torch.zeros(2, 1, *shape)).shape == (2, 3, *shape)


def test_thick_sections_are_seen_one_by_one():
    config = InceptionConfig.fitting((50, 4, 4), 1, FEATURES)
    assert config.levels[0].kernels == ((1, 3, 3), (1, 3, 3))
    assert config.factor == (1, 2, 2)
    network = folded(trained(config)).double()
    image = torch.randn(1, 1, 5, 16, 16, dtype=torch.double)
    changed = image.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        moved = (network(changed) - network(image)).abs().amax((0, 1, 3, 4)) > 0
    # 50 x 8 x 8 nm after pooling is still flat
    assert moved.tolist() == [False, False, True, False, False]


def reach(config: InceptionConfig) -> tuple[int, int, int]:
    """Return how far from a voxel of the image that is changed the output changes, the farthest over all phases.

    Every path has a positive weight, and the change is so large that even the faintest path shows it.
    """
    network = folded(Inception(config)).double()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            module.weight.data.fill_(1 / module.weight[0].numel())
            module.bias.data.zero_()
    found = [0, 0, 0]
    for axis in range(3):
        factor, far = config.factor[axis], config.receptive_field[axis]
        sides = list(config.factor)
        sides[axis] = factor * (2 * (far // factor) + 4)
        image = torch.ones(1, 1, *sides, dtype=torch.double)
        middle = sides[axis] // 2 // factor * factor
        with torch.no_grad():
            before = network(image)
            for at in range(middle, middle + factor):
                changed = image.clone()
                changed.transpose(2, 2 + axis)[:, :, at] += 1e100
                other = tuple(k for k in range(5) if k != 2 + axis)
                seen = torch.nonzero((network(changed) != before).sum(other)).ravel()
                assert seen.min() > 0 and seen.max() < sides[axis] - 1, "the image is too small to see the whole reach"
                found[axis] = max(found[axis], at - int(seen.min()), int(seen.max()) - at)
    return found[0], found[1], found[2]


@pytest.mark.parametrize("voxel_size", VOXEL_SIZES)
@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4, 1)])
def test_receptive_field_is_exactly_how_far_a_voxel_sees(voxel_size, dilations):
    config = InceptionConfig.fitting(voxel_size, 1, FEATURES).model_copy(update={"dilations": dilations})
    assert reach(config) == config.receptive_field


@pytest.mark.parametrize(
    "features, changes, message",
    [
        ((2, 6), {}, "6 features, no multiple of 4"),
        ((2, 4, 8), {}, "at most 2 items"),
        ((2,), {}, "Field required"),
        ((2, 4), {"dilations": []}, "at least 1 item"),
    ],
)
def test_networks_that_cannot_be_are_refused(features, changes, message):
    fitting = partial(InceptionConfig.fitting, (8, 8, 8), 1)
    with pytest.raises(ValueError, match=message):
        InceptionConfig.model_validate(fitting(features).model_dump() | changes)


def test_every_named_size_is_a_network():
    assert all(InceptionConfig.fitting((40, 8, 8), 1, size) for size in InceptionConfig.sizes.values())
    assert all(config.sizes.keys() == {"small", "medium", "large"} for config in CONFIGS.values())


# as a model


def test_bundle_is_read_as_it_was_written(bundle):
    again = load_bundle(str(bundle.folder))
    assert again.card.architecture.kind == "inception"
    assert config_of(again.card).receptive_field == InceptionConfig.fitting((10, 10, 10), 2, (4, 8)).receptive_field
    image = torch.randn(1, 1, *bundle.card.window)
    with torch.no_grad():
        assert torch.equal(again.network()(image), bundle.network()(image))
        assert (again.network()(image) - again.network(fold=False)(image)).abs().max() < 1e-5


def test_a_card_whose_levels_cannot_be_is_refused_in_a_line(tiny, tmp_path):
    bundle = tiny(tmp_path / "model", "inception", (4, 8))
    path = bundle.folder / "card.yaml"
    card = yaml.safe_load(path.read_text())
    card["architecture"]["levels"][1]["features"] = 6
    path.write_text(yaml.safe_dump(card))
    with pytest.raises(DataError, match=r"^tiny: architecture: [^\n]* multiple of 4; get the bundle again$"):
        load_bundle(str(bundle.folder)).network()


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_a_window_has_the_probabilities_of_the_network_and_the_same_bits_anywhere_in_a_batch(bundle, backend):
    images = np.random.default_rng(0).standard_normal((3, 8, 16, 16)).astype(np.float32)
    numerics = Numerics(backend=backend, window=(8, 16, 16), batch=3)
    predictor = open_predictor(str(bundle.folder), bundle.card.sha256, numerics)
    together = predictor(images)
    with torch.no_grad():
        logits = bundle.network(fold=False).double()(torch.from_numpy(images[:, None]).double())
    assert np.abs(together - torch.sigmoid(logits).numpy()).max() < 1e-5
    for k in range(3):
        assert np.array_equal(predictor(images[k : k + 1])[0], together[k])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("format", ["onnx", "torchscript", "bioimageio"])
def test_what_is_exported_gives_the_same_on_windows_of_another_size(bundle, tmp_path, format):
    pytest.importorskip("bioimageio.spec" if format == "bioimageio" else "onnx")
    suffix = {"onnx": "onnx", "torchscript": "pt", "bioimageio": "zip"}[format]
    file = export_model(bundle, tmp_path / f"exported.{suffix}", format=format)
    card = bundle.card
    told = {} if format == "bioimageio" else {"labels": card.labels, "voxel_size": card.voxel_size, "output": "logits"}
    told |= {} if format == "bioimageio" else {"window": (10, 12, 14), "multiple": card.multiple}
    again = import_model(str(file), "again", tmp_path / "models", **told)
    image = np.random.default_rng(1).standard_normal((1, 1, 20, 28, 26)).astype(np.float32)
    ours, theirs = (probabilities(one.card, predict(one, image)) for one in (bundle, again))
    assert np.abs(ours - theirs).max() < 1e-5
