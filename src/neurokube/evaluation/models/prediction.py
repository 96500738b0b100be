"""A model's prediction of an annotated volume: what the semantics stage would write there."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ...blocks import Box
from ...networks import Bundle, Normalization
from ...networks.permutations import permutations as allowed
from ...networks.predictor import open_predictor
from ...stages.base import Source, VolumeOutput
from ...stages.inference import Inference, Read
from ...stages.semantics import Semantics
from ...volumes import Volume
from ...volumes.resampling import Resampling
from ..curves import quantized

_SLAB = 16
"""Sections that are resampled back at a time."""


def sources(image: Volume) -> dict[str, Source]:
    """Return an image as what a stage reads."""
    return {"image": Source("image", "volume", {"image": VolumeOutput.like("image", image.spec)}, {"image": image.url})}


def stage_for(bundle: Bundle, image: Volume, labels: Sequence[str] | None = None, permutations: int = 1) -> Semantics:
    """Return the stage that applies a model to an image, with the window of its card and the fastest backend.

    Raises:
        ConfigurationError: where model and image do not go together.
    """
    stage = Semantics(
        model=str(bundle.folder),
        labels=None if labels is None else tuple(labels),
        permutations=permutations,
        window=bundle.card.window,
        threads=_cores(),
    )
    return stage.settle(sources(image), None)


def predict_volume(
    bundle: Bundle,
    image: Volume,
    region: Box | None = None,
    *,
    labels: Sequence[str] | None = None,
    permutations: int = 1,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Return the probabilities of a region (the whole image, if None) as 0 to 255, shape (label, z, y, x).

    The voxels are the image's own; where the model's differ, the image is resampled on the way in and
    probabilities on the way out.  Windows lie on the grid of the whole image and grey values are normalized
    by all of it, as in a run: what surrounds the region is seen.  `labels` chooses and orders channels
    [default: all of the model's]; `advance` is told how many more sections are done.

    Raises:
        ConfigurationError: where model and image do not go together.
    """
    stage = stage_for(bundle, image, labels, permutations)
    box = image.spec.box if region is None else region
    names = bundle.card.labels if labels is None else tuple(labels)
    result = np.empty((len(names), *box.shape), np.uint8)
    for part, values in _parts(stage, image, box, names):
        result[(slice(None), *part.relative_to(box.start).slices)] = values
        if advance is not None:
            advance(part.shape[0])
    return result


def _parts(stage: Semantics, image: Volume, box: Box, labels: Sequence[str]) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    card, settled = stage.card, stage.settled
    assert settled is not None
    normalization = card.normalization
    if not isinstance(normalization, Normalization):
        normalization = Normalization.of(image)
    inference = Inference(
        open_predictor(stage.model, settled.sha256, settled.numerics),
        stage.grid(image.spec),
        normalization,
        allowed(card.voxel_size, settled.numerics.window)[: stage.permutations],
        tuple(card.labels.index(label) for label in labels),
    )
    to_model = Resampling.between(image.spec.shape, image.spec.voxel_size, card.voxel_size)
    if to_model.is_identity:
        for part, probabilities in inference.layers(box, image.read):
            yield part, quantized(probabilities)
        return
    back = to_model.inverse
    for z in range(box.start[0], box.stop[0], _SLAB):
        slab = Box((z, *box.start[1:]), (min(z + _SLAB, box.stop[0]), *box.stop[1:]))
        needed = back.needed(slab)
        held = np.empty((len(labels), *needed.shape), np.float32)
        for part, probabilities in inference.layers(needed, _resampled(image, to_model)):
            held[(slice(None), *part.relative_to(needed.start).slices)] = probabilities
        yield slab, quantized(back.linear(held, slab))


def _resampled(image: Volume, to_model: Resampling) -> Read:
    def read(box: Box) -> NDArray[np.uint8]:
        grey = to_model.linear(image.read(to_model.needed(box)).astype(np.float32), box)
        return cast(NDArray[np.uint8], np.rint(grey).astype(np.uint8))

    return read


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
