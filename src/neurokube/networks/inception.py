"""A network of inception layers: the accessory to a U-Net, which looks at boundaries in another way.

A U-Net sees far by pooling again and again, and so blurs what is near.  This network pools once; its coarse
level is a row of inception layers, in which convolutions of several reaches and a maximum stand side by side
(Szegedy et al., "Going deeper with convolutions", CVPR 2015), the widest one as two small ones after each
other (Szegedy et al., CVPR 2016), and are added to what came in (Szegedy et al., AAAI 2017; for membranes in
electron microscopy Zeng et al., "DeepEM3D", Bioinformatics 33:2555, 2017).  Dilation (Yu and Koltun, ICLR
2016) widens the reach from layer to layer without losing resolution.

    image ─ stem ────────────────────── + ─ residual block ─ head
              └ pool ─ inception × n ─ raise

The rule by which kernels are flat where sections are thick is the U-Net's.
"""

from functools import reduce
from typing import ClassVar, Self, cast

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import max_pool3d, pad

from ..blocks import Vector
from .bundle import UNetLevel as Level
from .unet import Convolution, Network, NetworkConfig, Pool, Raise, Residual, stem_kernel

_BRANCHES = 4


class InceptionConfig(NetworkConfig):
    """A network of two levels, the coarse one of as many inception layers as there are dilations."""

    kind = "inception"
    sizes: ClassVar = {"small": (8, 48), "medium": (12, 64), "large": (24, 160)}

    levels: tuple[Level, Level]
    dilations: tuple[PositiveInt, ...] = Field((1, 2, 4, 1), min_length=1)

    @model_validator(mode="after")
    def _quarters(self) -> Self:
        if self.levels[1].features % _BRANCHES:
            raise ValueError(f"levels: the second has {self.levels[1].features} features, no multiple of {_BRANCHES}")
        return self

    @property
    def receptive_field(self) -> Vector:
        """How many voxels (z, y, x) on either side of one its value can depend on."""
        fine, coarse = self.levels
        z, y, x = (
            stem_kernel(fine)[axis] // 2
            # pooling and its inverse can look to either side by what they merge
            + coarse.pooling[axis]
            - 1
            + coarse.pooling[axis] * sum(_reach(coarse, dilation)[axis] for dilation in self.dilations)
            + sum(kernel[axis] // 2 for kernel in fine.kernels)
            for axis in range(3)
        )
        return z, y, x


class Inception(Network):
    """The network of inception layers."""

    def __init__(self, config: InceptionConfig) -> None:
        super().__init__(config)
        fine, coarse = config.levels
        self.stem = Convolution(config.channels, fine.features, stem_kernel(fine))
        self.pool = Pool(fine.features, coarse)
        self.layers = nn.Sequential(*(_Inception(coarse, dilation) for dilation in config.dilations))
        self.raise_ = Raise(coarse, fine.features)
        self.last = Residual(fine)
        self.head = nn.Conv3d(fine.features, config.labels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(image)
        x = self.last(x + self.raise_(self.layers(self.pool(x))))
        return cast(Tensor, self.head(x))


def _reach(level: Level, dilation: int) -> Vector:
    """Return how far an inception layer sees on either side, in voxels of its level."""
    z, y, x = (first // 2 + second // 2 * dilation for first, second in zip(*level.kernels, strict=True))
    return z, y, x


class _Largest(nn.Module):
    """The largest of the voxels around each, as many as a kernel is wide."""

    def __init__(self, kernel: Vector) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """Return what `max_pool3d` does; on a card, where something learns, in another way."""
        reach = (self.kernel[0] // 2, self.kernel[1] // 2, self.kernel[2] // 2)
        if not (x.is_cuda and torch.is_grad_enabled() and x.requires_grad):
            return max_pool3d(x, self.kernel, stride=1, padding=reach)
        return largest(x, reach)


def largest(x: Tensor, reach: Vector) -> Tensor:
    """Return the largest of the voxels up to `reach` on either side of each, (n, c, z, y, x), axis by axis.

    The gradient of `max_pool3d` is added up by a card in any order, where windows overlap; this one is the same every
    time.  Voxels that are equally large share it.
    """
    for axis, n in enumerate(reach, 2):
        if n:
            sides = [0] * (2 * (4 - axis)) + [n, n]
            padded = pad(x, sides, value=float("-inf"))
            x = reduce(torch.maximum, [padded.narrow(axis, k, x.shape[axis]) for k in range(2 * n + 1)])
    return x


class _Inception(nn.Module):
    """Four branches side by side, each on a quarter of the features; their mixture is added to what came in."""

    def __init__(self, level: Level, dilation: int) -> None:
        super().__init__()
        first, second = level.kernels
        n = level.features // _BRANCHES
        # the 1x1 convolutions in front of all branches, as one
        self.reduce = Convolution(level.features, level.features, (1, 1, 1))
        self.near = Convolution(n, n, first)
        self.far = nn.Sequential(Convolution(n, n, first), Convolution(n, n, second, dilation=dilation))
        self.maximum = _Largest(first)
        self.mix = Convolution(level.features, level.features, (1, 1, 1), active=False)

    def forward(self, x: Tensor) -> Tensor:
        point, near, far, wide = self.reduce(x).chunk(_BRANCHES, 1)
        branches = torch.cat([point, self.near(near), self.far(far), self.maximum(wide)], 1)
        return torch.relu(x + self.mix(branches))
