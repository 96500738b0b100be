"""A picture of what the network makes of the validation volume as it learns."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..evaluation.overlays import overlay

_SIDE = 384


def save_picture(
    path: Path,
    image: NDArray[np.uint8],
    predicted: NDArray[np.uint8],
    truth: NDArray[np.bool_],
    thresholds: Sequence[int],
) -> None:
    """Write a PNG of one section: the image, then label by label right yellow, false red, missed green.

    `image` is (y, x), `predicted` (labels, y, x) from 0 to 255, `truth` of the same shape.
    """
    y, x = ((n - min(n, _SIDE)) // 2 for n in image.shape)
    here = (slice(y, y + _SIDE), slice(x, x + _SIDE))
    tiles = [np.repeat(image[here][..., None], 3, -1)]
    for prediction, true, threshold in zip(predicted, truth, thresholds, strict=True):
        tiles.append(overlay(prediction[here] >= threshold, true[here], image[here]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(tiles, 1)).save(path)


def save_row(path: Path, tiles: Sequence[NDArray[np.uint8]]) -> None:
    """Write a PNG of grey images (y, x) side by side, the middle of each, as high as the highest."""
    gap, shown = 4, []
    for tile in tiles:
        y, x = ((n - min(n, _SIDE)) // 2 for n in tile.shape)
        shown.append(tile[y : y + _SIDE, x : x + _SIDE])
    height = max(len(tile) for tile in shown)
    padded = [np.pad(tile, ((0, height - len(tile)), (0, gap)), constant_values=255) for tile in shown]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(padded, 1)[:, :-gap]).save(path)
