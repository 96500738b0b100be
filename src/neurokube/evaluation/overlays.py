"""Pictures of sections: right and wrong voxels, labels in colours, borders of segments."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RGB = NDArray[np.uint8]
"""Shape (y, x, 3)."""

TRUE_POSITIVE = (255, 255, 0)
FALSE_POSITIVE = (255, 0, 0)
FALSE_NEGATIVE = (0, 255, 0)
TRUE_NEGATIVE = (0, 0, 0)


def overlay(
    prediction: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    image: NDArray[np.uint8] | None = None,
    alpha: float = 0.5,
) -> RGB:
    """Colour two masks (y, x): both yellow, prediction alone red, truth alone green, neither black.

    With a gray `image` (y, x) the colours are laid over it, and where neither mask is the image shows.
    """
    colours = np.array([TRUE_NEGATIVE, FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE], np.uint8)
    rgb: RGB = colours[2 * (prediction != 0) + (truth != 0)]
    return rgb if image is None else blend(image, rgb, alpha)


def label_colours(labels: NDArray[np.integer], seed: int = 0) -> RGB:
    """Colour labels (y, x), each by a hash of it and the seed: the same in every section; 0 is black."""
    ids, position = np.unique(labels, return_inverse=True)
    bits = _mixed(ids.astype(np.uint64) + _mixed(np.array([seed], np.uint64)))
    hue, saturation, value = ((bits >> np.uint64(shift) & np.uint64(0xFFFF)) / 0xFFFF for shift in (0, 16, 32))
    # the distance on the colour circle to red, green and blue says how much of each is in a hue
    pure = np.clip(np.abs((6 * hue[:, None] + [0, 4, 2]) % 6 - 3) - 1, 0, 1)
    saturation, value = 0.5 + saturation / 2, 0.6 + 0.4 * value
    colours = (255 * value[:, None] * (1 - saturation[:, None] * (1 - pure))).astype(np.uint8)
    colours[ids == 0] = 0
    rgb: RGB = colours[position.reshape(labels.shape)]
    return rgb


def blend(image: NDArray[np.uint8], rgb: RGB, alpha: float = 0.5) -> RGB:
    """Lay colours over a gray image (y, x), hidden by an `alpha` of 1; black lets the image through."""
    gray = np.repeat(image[..., None], 3, axis=-1)
    mixed = np.rint((1 - alpha) * gray + alpha * rgb.astype(np.float32)).astype(np.uint8)
    return np.where(rgb.any(axis=-1, keepdims=True), mixed, gray)


def boundaries_of(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return the pixels of labels (y, x) whose lower or right neighbour has another label."""
    mask = np.zeros(labels.shape, bool)
    mask[:-1] |= labels[:-1] != labels[1:]
    mask[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return mask


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encode a picture, RGB (y, x, 3) or gray (y, x), as a PNG file."""
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG", optimize=True)
    return file.getvalue()


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits (the finalizer of SplitMix64: Steele, Lea & Flood, OOPSLA 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
