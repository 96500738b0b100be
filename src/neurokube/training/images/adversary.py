"""What a generator is trained against: a discriminator of patches, and the buffer of images it is shown again."""

import torch
from numpy.random import Generator
from torch import Tensor, nn

_MOST_DEPTH = 3


class Discriminator(nn.Module):
    """Judges patches of planes: (n, 1, z, y, x) to (n, verdicts...), by least squares 1 for real ones, 0 for made ones.

    A PatchGAN (Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017), whose
    patches of 70 x 70 pixels shrink where planes are smaller.  It sees planes of the axes named, the third is a batch.
    """

    def __init__(self, features: int, sides: tuple[int, int], plane: str) -> None:
        super().__init__()
        self.batch_axis = 2 + "zyx".index(next(axis for axis in "zyx" if axis not in plane))
        depth = max((n for n in range(_MOST_DEPTH + 1) if patch(n) <= min(sides)), default=0)
        layers: list[nn.Module] = []
        before = 1
        for n in range(depth + 1):
            after = features * 2**n
            layers.append(nn.Conv2d(before, after, 4, stride=2 if n < depth else 1, padding=1))
            if n:
                layers.append(nn.InstanceNorm2d(after))
            layers.append(nn.LeakyReLU(0.2))
            before = after
        layers.append(nn.Conv2d(before, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Return verdicts, one a patch."""
        planes = image.movedim(self.batch_axis, 1).flatten(0, 1)
        verdicts: Tensor = self.layers(planes)
        return verdicts


def patch(depth: int) -> int:
    """Return the side of what a verdict is on, in pixels, of a discriminator that halves the plane `depth` times."""
    side = 7
    for _ in range(depth):
        side = 2 * side + 2
    return side


class ImageBuffer(nn.Module):
    """Images made earlier: in half the cases the discriminator is shown one of them in place of a new one.

    After Shrivastava et al., "Learning from simulated and unsupervised images through adversarial training"
    (CVPR 2017).  Its content is a part of the module's state, so that a training goes on from a checkpoint exactly.
    """

    images: Tensor
    count: Tensor

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, made: Tensor, random: Generator) -> Tensor:
        """Return as many images (n, ...) as were made, some of them from earlier."""
        shown = made.detach().float().clone()
        size = len(self.images)
        for k in range(len(shown) if size else 0):
            held = int(self.count)
            if held < size:
                self.images[held] = shown[k]
                self.count += 1
            elif random.random() < 0.5:
                place = int(random.integers(size))
                earlier = self.images[place].clone()
                self.images[place] = shown[k]
                shown[k] = earlier
        return shown
