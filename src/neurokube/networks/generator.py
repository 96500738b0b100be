"""A convolutional network that makes images of images: more sections, or the look of another volume.

Residual blocks without normalization after Lim et al., "Enhanced deep residual networks for single image
super-resolution" (CVPR workshops 2017), at the resolution of the input; new sections come out of the last
convolution side by side and are put between each other, after Shi et al., "Real-time single image and video
super-resolution using an efficient sub-pixel convolutional neural network" (CVPR 2016).

Convolutions see one plane, or that and the planes beside it.  Where pixels are square, the planes across (z, x) and
(z, y) look alike, so that a network for one of them serves both: for the other, y and x change places.

Neighbours beside a plane are learned from turned volumes, in which y is taken for z and what is beside a plane is
another section.  So they are as far away as sections are thick: in the volume as it is, `aside` pixels.
"""

from typing import cast

import torch
from torch import Tensor, nn

from .bundle import GeneratorConfig

__all__ = ["Generator", "GeneratorConfig"]


class Generator(nn.Module):
    """The network: (n, 1, z, y, x) normalized grey values to (n, 1, factor * z, y, x) normalized grey values.

    Section factor * k of the output lies at section k of the input; those after factor * (z - 1) repeat what is
    beside them and are to be dropped.  What is learned is added to the linear interpolation along z (to the input
    itself where the factor is 1).  The head starts at zero, so that an untrained network is the interpolation.
    """

    weights: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        kernel = (3, 1, 3) if config.plane == "zx" else (1, 3, 3)
        self.stem = _convolution(1, config.features, kernel)
        self.blocks = nn.Sequential(*(_Residual(config.features, kernel, config.aside) for _ in range(config.blocks)))
        self.head = _convolution(config.features, config.factor, kernel)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        place = torch.arange(config.factor, dtype=torch.float32) / config.factor
        self.register_buffer("weights", place.reshape(1, -1, 1, 1, 1), persistent=False)

    def spread(self, aside: int) -> None:
        """Look for the neighbours beside a plane so many voxels away, where the network looks there at all."""
        for block in self.blocks:
            cast(_Residual, block).spread(aside)

    def forward(self, image: Tensor) -> Tensor:
        """Return what the image becomes."""
        added = self.head(self.blocks(self.stem(image)))
        if self.config.factor == 1:
            return cast(Tensor, image + added)
        following = torch.cat([image[:, :, 1:], image[:, :, -1:]], 2)
        between = image + (following - image) * self.weights + added
        return cast(Tensor, between.transpose(1, 2).flatten(1, 2).unsqueeze(1))


class _Residual(nn.Module):
    """Two convolutions beside a connection that skips them; the first sees neighbours of the plane where asked to."""

    def __init__(self, features: int, kernel: tuple[int, int, int], aside: int) -> None:
        super().__init__()
        self._across = kernel.index(1)
        self.first = _convolution(features, features, (3, 3, 3) if aside else kernel)
        self.second = _convolution(features, features, kernel)
        self.spread(aside)

    def spread(self, aside: int) -> None:
        if self.first.kernel_size == (3, 3, 3):
            spacing = [1, 1, 1]
            spacing[self._across] = aside
            self.first.dilation = self.first.padding = (spacing[0], spacing[1], spacing[2])

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.second(torch.relu(self.first(x))))


def _convolution(before: int, after: int, kernel: tuple[int, int, int]) -> nn.Conv3d:
    return nn.Conv3d(before, after, kernel, padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2))
