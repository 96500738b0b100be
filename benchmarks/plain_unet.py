"""The peer of `benchmarks.semantics`: a plain anisotropic 3D U-Net with group norm, as one writes it in an hour."""

import torch
from torch import Tensor, nn


class PlainUNet(nn.Module):
    """(n, 1, z, y, x) to logits (n, labels, z, y, x); y and x are multiples of 8."""

    def __init__(self, labels: int, features: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        before = 1
        for level, n in enumerate(features):
            self.down.append(_block(before, n, flat=level == 0))
            before = n
        for level in reversed(range(len(features) - 1)):
            self.up.append(_block(features[level + 1] + features[level], features[level], flat=level == 0))
        self.head = nn.Conv3d(features[0], labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.max_pool3d(x, (1, 2, 2)))
            passed.append(x)
        passed.pop()
        for block in self.up:
            x = nn.functional.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
            x = block(torch.cat([x, passed.pop()], 1))
        return self.head(x)


def _block(before: int, after: int, *, flat: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for kernel in ((1, 3, 3) if flat else (3, 3, 3), (1, 3, 3)):
        layers += [
            nn.Conv3d(before, after, kernel, padding=tuple(k // 2 for k in kernel)),
            nn.GroupNorm(8, after),
            nn.ReLU(inplace=True),
        ]
        before = after
    return nn.Sequential(*layers)
