"""What is done to training windows: the shapes and the faults that real sections have.

All geometry is one resampling of each section, so that an image is interpolated once.
"""

from collections.abc import Sequence
from math import cos, radians, sin

import numpy as np
import torch
from monai.transforms.intensity.array import AdjustContrast, GaussianSmooth
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from ..blocks import Vector
from ..networks.permutations import permutations, permute
from ..volumes.volume import COARSE, Nanometres
from .config import Augmentation

Image = NDArray[np.float32]
Bits = NDArray[np.uint32]

_LATTICE = 48  # pixels between the points that elastic deformation moves


def margin(settings: Augmentation, voxel_size: Nanometres, window: Vector) -> Vector:
    """Return how much wider than the window (z, y, x) the source must be on either side."""
    side = max(window[1:])
    moved = 3 * (settings.elastic + _shift(settings, voxel_size)) / min(voxel_size[1:])
    # turned by an angle a square reaches out by less than its half diagonal
    turned = side / 2 * ((1 + settings.scale) * (1.4143 if settings.rotation else 1) - 1)
    across = int(np.ceil(moved + turned)) if moved + turned else 0
    return 0, across, across


def deform(
    settings: Augmentation,
    voxel_size: Nanometres,
    window: Vector,
    image: Image,
    bits: Sequence[Bits],
    random: Generator,
) -> tuple[Image, list[Bits]]:
    """Cut a window out of a source that is `margin` wider: turned, scaled, bent, its sections shifted.

    `image`, ([channel,] z, y, x), and each of `bits` have the source's shape (z, y, x); the image is interpolated, bits
    are taken from the nearest pixel, 0 outside.
    """
    source = image.shape[-2:]
    grid = _grid(settings, voxel_size, window, random)
    scale = torch.tensor([2 / source[1], 2 / source[0]])
    grid = grid * scale
    channels = image if image.ndim == 4 else image[None]
    stack = torch.from_numpy(np.ascontiguousarray(channels.swapaxes(0, 1)))
    warped = grid_sample(stack, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    moved = []
    for plane in bits:
        # below 2^24 a float holds an integer exactly
        stack = torch.from_numpy(plane.astype(np.float32))[:, None]
        nearest = grid_sample(stack, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        moved.append(nearest[:, 0].numpy().astype(np.uint32))
    window_of = warped.transpose(0, 1).numpy()
    return window_of if image.ndim == 4 else window_of[0], moved


def _grid(settings: Augmentation, voxel_size: Nanometres, window: Vector, random: Generator) -> Tensor:
    """Return where each pixel of the window comes from, (z, y, x, 2) as (x, y) pixels from the source's middle."""
    depth, height, width = window
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    angle = radians(random.uniform(-settings.rotation, settings.rotation))
    size = 1 + random.uniform(-settings.scale, settings.scale)
    turn = torch.tensor([[cos(angle), -sin(angle)], [sin(angle), cos(angle)]]) * size
    grid = torch.stack([x, y], -1).float() @ turn.float()
    grid = grid.expand(depth, height, width, 2).clone()
    pixel = min(voxel_size[1:])
    if settings.elastic:
        points = (max(2, depth // 8 + 1), height // _LATTICE + 2, width // _LATTICE + 2)
        bend = random.standard_normal((1, 2, *points)).clip(-2.5, 2.5) * random.uniform(0, settings.elastic) / pixel
        field = interpolate(torch.from_numpy(bend).float(), size=window, mode="trilinear", align_corners=True)
        grid += field[0].permute(1, 2, 3, 0)
    if shift := _shift(settings, voxel_size):
        jumps = random.standard_normal((depth, 1, 1, 2)).clip(-2.5, 2.5) * random.uniform(0, shift) / pixel
        grid += torch.from_numpy(jumps).float()
    return grid


def _shift(settings: Augmentation, voxel_size: Nanometres) -> float:
    return settings.shift if voxel_size[0] / min(voxel_size[1:]) >= COARSE else 0.0


def permute_window(
    voxel_size: Nanometres, window: Vector, image: Image, bits: Sequence[Bits], random: Generator
) -> tuple[Image, list[Bits]]:
    """Flip and turn a window by a random one of the permutations that its voxels allow."""
    choices = permutations(voxel_size, window)
    chosen = choices[random.integers(len(choices))]
    return permute(image, chosen), [permute(plane, chosen) for plane in bits]


def expose(settings: Augmentation, image: Image, random: Generator) -> Image:
    """Change the grey values of a normalized window (z, y, x) as microscopes and sections do."""
    if settings.gamma:
        gamma = float(np.exp(settings.gamma * _normal(random)))
        image = _array(AdjustContrast(gamma)(torch.from_numpy(image)))
    if settings.blur and random.random() < 0.5:
        sigma = random.uniform(0.2, max(settings.blur, 0.2))
        image = _array(GaussianSmooth(sigma)(torch.from_numpy(image)))
    depth = len(image)
    gain = np.exp(settings.contrast * _normal(random))
    bright = settings.contrast * _normal(random)
    gains = gain * np.exp(settings.section_contrast * random.standard_normal((depth, 1, 1)).clip(-2, 2))
    brights = bright + settings.section_contrast * random.standard_normal((depth, 1, 1)).clip(-2, 2)
    dark = random.random(depth) < settings.dark
    gains[dark] *= random.uniform(0.2, 0.8, (int(dark.sum()), 1, 1))
    brights[dark] += random.uniform(-2, 1, (int(dark.sum()), 1, 1))
    image = image * gains.astype(np.float32) + brights.astype(np.float32)
    if settings.noise:
        noise = random.standard_normal(image.shape, np.float32)
        image = image + noise * np.float32(random.uniform(0, settings.noise))
    missing = random.random(depth) < settings.missing
    if depth > 1 and not missing.all():
        image[missing] = np.float32(random.uniform(-3, 0))
    return np.asarray(image, np.float32)


def _normal(random: Generator) -> float:
    return float(np.clip(random.standard_normal(), -2, 2))


def _array(value: object) -> Image:
    return np.asarray(value, np.float32)
