"""A 3D U-Net with residual blocks whose kernels and pooling follow the voxel size.

After Lee et al., "Superhuman accuracy on the SNEMI3D connectomics challenge" (2017): residual blocks, and
skip connections that are added instead of concatenated, which costs a CPU half as much.  Where sections are
thick a 3D kernel would mix voxels that lie far apart: the first levels work section by section, until
pooling has made the voxels nearly cubic.

What other networks of ours share with it is here too: `NetworkConfig`, `Network`, `folded` and the layers.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, ClassVar, Self, TypeVar, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn

from ..blocks import Vector
from .bundle import UNetLevel as Level

SIZES = {
    "small": (8, 24, 48, 96),
    "medium": (12, 32, 64, 128),
    "large": (28, 56, 112, 224, 320),
}
"""Features a level: `small` and `medium` are for a CPU, `large` for a GPU."""

_FLAT, _HALF_FLAT = 6.0, 2.0
"""From this ratio of section thickness to pixel on both kernels of a block, or the second, are flat."""


class NetworkConfig(BaseModel):
    """A network: `channels` image channels in, a sigmoid channel a label out, levels from fine to coarse."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: ClassVar[str]
    """What a card calls the architecture."""
    sizes: ClassVar[Mapping[str, tuple[int, ...]]]
    """Features a level by what a training file calls them."""

    channels: PositiveInt = 1
    labels: PositiveInt
    levels: tuple[Level, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _odd_kernels(self) -> Self:
        if any(n < 1 or n % 2 == 0 for level in self.levels for kernel in level.kernels for n in kernel):
            raise ValueError("levels: kernels need odd sizes")
        if any(n < 1 for level in self.levels for n in level.pooling) or self.levels[0].pooling != (1, 1, 1):
            raise ValueError("levels: pooling is at least 1, and (1, 1, 1) at the first level")
        return self

    @classmethod
    def fitting(
        cls, voxel_size: tuple[float, float, float], labels: int, features: tuple[int, ...], channels: int = 1
    ) -> Self:
        """Return the network for a voxel size (z, y, x) in nm, one level for each number of features."""
        size = list(voxel_size)
        levels: list[Level] = []
        for n in features:
            pooling = (1, 1, 1)
            if levels:
                finest = min(size)
                # an axis joins in while it is nearly as fine as the finest
                z, y, x = (2 if s < 1.5 * finest else 1 for s in size)
                pooling = (z, y, x)
                size = [s * p for s, p in zip(size, pooling, strict=True)]
            ratio = size[0] / min(size[1:])
            flat, full = (1, 3, 3), (3, 3, 3)
            kernels = (flat if ratio >= _FLAT else full, flat if ratio >= _HALF_FLAT else full)
            levels.append(Level(features=n, kernels=kernels, pooling=pooling))
        return cls(channels=channels, labels=labels, levels=tuple(levels))

    @property
    def factor(self) -> Vector:
        """What a window's sides must be multiples of: all the pooling together."""
        z, y, x = (prod(level.pooling[axis] for level in self.levels) for axis in range(3))
        return z, y, x

    @property
    @abstractmethod
    def receptive_field(self) -> Vector:
        """How many voxels (z, y, x) on either side of one its value can depend on."""

    @property
    def architecture(self) -> dict[str, Any]:
        """What a card says of it."""
        return {"kind": self.kind, **self.model_dump(exclude={"channels", "labels"})}


class UNetConfig(NetworkConfig):
    """A U-Net, of any number of levels."""

    kind = "unet"
    sizes = SIZES

    @property
    def receptive_field(self) -> Vector:
        """How many voxels (z, y, x) on either side of one its value can depend on."""
        reach, scale = [stem_kernel(self.levels[0])[axis] // 2 for axis in range(3)], [1, 1, 1]
        for number, level in enumerate(self.levels):
            last = number == len(self.levels) - 1
            for axis in range(3):
                scale[axis] *= level.pooling[axis]
                # pooling and its inverse can look to either side by what they merge
                reach[axis] += scale[axis] - scale[axis] // level.pooling[axis]
                block = sum(kernel[axis] // 2 for kernel in level.kernels) * (1 if last else 2)
                reach[axis] += block * scale[axis]
        z, y, x = reach
        return z, y, x


class Network(nn.Module):
    """A network of ours: (n, channels, z, y, x) float to logits (n, labels, z, y, x) of the same z, y, x.

    Sides must be multiples of `NetworkConfig.factor`.  The last layer is the `head`, a label a channel.
    """

    head: nn.Conv3d

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config


class UNet(Network):
    """The U-Net."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        first, *rest = config.levels
        self.stem = Convolution(config.channels, first.features, stem_kernel(first))
        self.down = nn.ModuleList(Residual(level) for level in config.levels)
        pairs = list(zip(config.levels, rest, strict=False))
        self.pool = nn.ModuleList(Pool(a.features, b) for a, b in pairs)
        self.raise_ = nn.ModuleList(Raise(b, a.features) for a, b in pairs)
        self.up = nn.ModuleList(Residual(a) for a, _ in pairs)
        self.head = nn.Conv3d(first.features, config.labels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        x = self.down[0](self.stem(image))
        passed = []
        for pool, down in zip(self.pool, self.down[1:], strict=True):
            passed.append(x)
            x = down(pool(x))
        for raise_, up in reversed(list(zip(self.raise_, self.up, strict=True))):
            x = up(raise_(x) + passed.pop())
        return cast(Tensor, self.head(x))


_Module = TypeVar("_Module", bound=nn.Module)


def folded(network: _Module) -> _Module:
    """Return a copy whose batch norms are folded into the convolutions before them: inference only.

    What is left normalizes nothing, so a window's result does not depend on what is beside it in a batch.
    """
    from copy import deepcopy

    copy = deepcopy(network).eval()
    for layer in _convolutions(copy):
        layer.fold()
    return copy


def stem_kernel(level: Level) -> Vector:
    """Return the kernel of the first convolution of a network whose first level this is."""
    return (level.kernels[0][0], 5, 5)


def _convolutions(network: nn.Module) -> Iterator["Convolution"]:
    return (m for m in network.modules() if isinstance(m, Convolution))


class Convolution(nn.Module):
    """A convolution with batch norm, and ReLU if `active`; what comes out is as large as what goes in."""

    def __init__(self, before: int, after: int, kernel: Vector, *, dilation: int = 1, active: bool = True) -> None:
        super().__init__()
        z, y, x = (n // 2 * dilation for n in kernel)
        self.convolution = nn.Conv3d(before, after, kernel, padding=(z, y, x), dilation=dilation)
        self.norm: nn.Module = nn.BatchNorm3d(after)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """Return its features (n, after, z, y, x)."""
        y: Tensor = self.norm(self._convolved(x))
        return torch.relu(y) if self.active else y

    def _convolved(self, x: Tensor) -> Tensor:
        extent = x.shape[2:]
        if (
            self.training
            and x.device.type == "cpu"
            and any(n < k for n, k in zip(extent, self.convolution.kernel_size, strict=True))
        ):
            # oneDNN's gradient of a kernel that reaches beyond both faces is wrong in bfloat16 (PyTorch 2.13)
            with torch.autocast("cpu", enabled=False):
                return cast(Tensor, self.convolution(x.float()))
        return cast(Tensor, self.convolution(x))

    def fold(self) -> None:
        """Take the batch norm into the weights."""
        if isinstance(self.norm, nn.BatchNorm3d):
            self.convolution = nn.utils.fuse_conv_bn_eval(self.convolution.eval(), self.norm.eval())
            self.norm = nn.Identity()


class Residual(nn.Module):
    """Two convolutions beside a connection that skips them."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        first, second = level.kernels
        self.first = Convolution(level.features, level.features, first)
        self.second = Convolution(level.features, level.features, second, active=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        return torch.relu(x + self.second(self.first(x)))


class Pool(nn.Module):
    """To the next coarser level: the maximum, and as many features as it has."""

    def __init__(self, before: int, level: Level) -> None:
        super().__init__()
        self.pool = nn.MaxPool3d(level.pooling)
        self.widen = Convolution(before, level.features, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the coarser level."""
        return cast(Tensor, self.widen(self.pool(x)))


class Raise(nn.Module):
    """To the next finer level."""

    def __init__(self, level: Level, after: int) -> None:
        super().__init__()
        self.raise_ = nn.ConvTranspose3d(level.features, after, level.pooling, stride=level.pooling)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the finer level."""
        return cast(Tensor, self.raise_(x))
