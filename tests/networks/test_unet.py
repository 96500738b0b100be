from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.networks.permutations import permutations, permute, restore
from neurokube.networks.unet import SIZES, UNet, UNetConfig, folded

VOXEL_SIZES = [(8, 8, 8), (30, 8, 8), (50, 4, 4), (25, 9, 9), (16, 16, 8), (10, 10, 12)]
FEATURES = (2, 3, 4)


def trained(config: UNetConfig, seed: int = 0) -> UNet:
    """Return a network whose batch norms have seen data that is far from normal."""
    torch.manual_seed(seed)
    network = UNet(config).train()
    with torch.no_grad():
        for _ in range(3):
            network(3 * torch.randn(2, config.channels, *(2 * n for n in config.factor)) + 1)
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm3d):
                    module.weight.uniform_(0.5, 2)
                    module.bias.uniform_(-1, 1)
    return network.eval()


@settings(max_examples=12)
@given(st.sampled_from(VOXEL_SIZES), st.integers(1, 3), st.integers(0, 99))
def test_folding_batch_norms_changes_nothing_but_rounding(voxel_size, labels, seed):
    network = trained(UNetConfig.fitting(voxel_size, labels, FEATURES), seed)
    image = torch.randn(1, 1, *(2 * n for n in network.config.factor))
    with torch.no_grad():
        kept, merged = network(image), folded(network)(image)
    assert (kept - merged).abs().max() < 1e-5 * max(1, kept.abs().max())
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in folded(network).modules())


def test_folding_leaves_the_network_itself_as_it_was():
    network = trained(UNetConfig.fitting((8, 8, 8), 1, FEATURES))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded(network)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_folded_window_does_not_depend_on_its_neighbours_in_the_batch():
    network = folded(trained(UNetConfig.fitting((30, 8, 8), 2, FEATURES)))
    images = torch.randn(3, 1, *(2 * n for n in network.config.factor))
    with torch.no_grad():
        together, alone = network(images), network(images[1:2])
    assert (together[1:2] - alone).abs().max() < 1e-6


@pytest.mark.parametrize("voxel_size", VOXEL_SIZES)
def test_output_is_as_large_as_the_input(voxel_size):
    config = UNetConfig.fitting(voxel_size, 3, FEATURES)
    shape = tuple(2 * n for n in config.factor)
    assert UNet(config).eval()(torch.zeros(1, 1, *shape)).shape == (1, 3, *shape)


@pytest.mark.parametrize("voxel_size", VOXEL_SIZES)
def test_pooling_brings_voxels_nearer_to_cubes(voxel_size):
    config = UNetConfig.fitting(voxel_size, 1, SIZES["large"])
    last = [size * factor for size, factor in zip(voxel_size, config.factor, strict=True)]
    assert max(last) / min(last) <= max(2, max(voxel_size) / min(voxel_size) / 4)
    assert all(prod(level.pooling) > 1 for level in config.levels[1:])


def test_thick_sections_are_seen_one_by_one_at_first():
    config = UNetConfig.fitting((50, 4, 4), 1, SIZES["small"])
    assert config.levels[0].kernels == ((1, 3, 3), (1, 3, 3))
    assert config.levels[1].pooling == (1, 2, 2)
    assert config.levels[-1].kernels[0] == (3, 3, 3)
    assert UNetConfig.fitting((8, 8, 8), 1, SIZES["small"]).levels[0].kernels == ((3, 3, 3), (3, 3, 3))


def reach(config: UNetConfig) -> tuple[int, int, int]:
    """Return how far from an output voxel the input has any weight, on either side, the worst of all phases.

    Weights of one and no bias let every path through, and averages in place of maxima all voxels of a pool.
    """
    network = folded(UNet(config))
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 1e-1)
    for pool in network.pool:
        size = pool.pool.kernel_size
        pool.pool = torch.nn.AvgPool3d(size)
    network = network.double()
    found = [0, 0, 0]
    for axis in range(3):
        sides = [config.factor[a] for a in range(3)]
        sides[axis] = config.factor[axis] * (2 * (config.receptive_field[axis] // config.factor[axis]) + 4)
        image = torch.ones(1, 1, *sides, dtype=torch.double, requires_grad=True)
        output = network(image)
        middle = sides[axis] // 2 // config.factor[axis] * config.factor[axis]
        for phase in range(config.factor[axis]):
            at = [0, 0, 0]
            at[axis] = middle + phase
            (gradient,) = torch.autograd.grad(output[0, 0, at[0], at[1], at[2]], image, retain_graph=True)
            other = tuple(a for a in range(3) if a != axis)
            seen = torch.nonzero(gradient[0, 0].abs().sum(other)).ravel()
            assert seen.min() > 0 and seen.max() < sides[axis] - 1, "the image is too small to see the whole reach"
            found[axis] = max(found[axis], int(at[axis] - seen.min()), int(seen.max() - at[axis]))
    return found[0], found[1], found[2]


@pytest.mark.parametrize("voxel_size", VOXEL_SIZES)
def test_receptive_field_is_exactly_how_far_a_voxel_sees(voxel_size):
    config = UNetConfig.fitting(voxel_size, 1, FEATURES)
    assert reach(config) == config.receptive_field


@given(
    st.sampled_from([(8.0, 8.0, 8.0), (50.0, 4.0, 4.0), (10.0, 4.0, 5.0)]),
    st.sampled_from([(2, 4, 4), (4, 4, 4), (2, 4, 6)]),
)
def test_permutations_are_undone_and_all_different(voxel_size, window):
    image = np.arange(2 * np.prod(window)).reshape(2, *window)
    several = permutations(voxel_size, window)
    turned = [permute(image, p) for p in several]
    assert all(np.array_equal(restore(t, p), image) for t, p in zip(turned, several, strict=True))
    assert len({t.tobytes() for t in turned}) == len(several)
    assert all(t.shape == image.shape for t in turned)


def test_sixteen_permutations_of_square_pixels_and_eight_of_others():
    assert len(permutations((40, 4, 4), (8, 16, 16))) == 16
    assert len(permutations((40, 4, 4), (8, 16, 32))) == 8
    assert len(permutations((40, 4, 5), (8, 16, 16))) == 8
    assert permutations((40, 4, 4), (8, 16, 16))[0] == ((0, 1, 2), ())


@pytest.mark.parametrize(
    "broken, message",
    [
        ({"features": 2, "kernels": [[2, 3, 3], [3, 3, 3]], "pooling": [1, 1, 1]}, "odd"),
        ({"features": 2, "kernels": [[3, 3, 3], [3, 3, 3]], "pooling": [2, 2, 2]}, "first level"),
    ],
)
def test_levels_that_cannot_be_are_refused(broken, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(labels=1, levels=[broken])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_gradients_in_bfloat16_are_those_in_float32_where_a_kernel_is_deeper_than_what_it_sees(depth):
    torch.manual_seed(depth)
    network = UNet(UNetConfig.fitting((10, 10, 10), 1, (16, 16)))
    image = torch.randn(2, 1, 2 * depth, 16, 16)

    def gradients(half):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = network(image)
        found.float().square().mean().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if "down.1" in name and p.dim() > 1}

    exact = gradients(False)
    for name, gradient in gradients(True).items():
        # rounding makes 0.2 of it here; the wrong one is off by 0.8 and more
        assert (gradient - exact[name]).norm() < 0.4 * exact[name].norm(), name
