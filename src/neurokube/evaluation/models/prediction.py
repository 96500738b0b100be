"""A model's prediction of an annotated volume: what the semantics stage would write there."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...blocks import Box
from ...errors import ConfigurationError, DataError
from ...machine import cores
from ...networks import Bundle, Normalization
from ...stages.base import Source, VolumeOutput
from ...stages.inference import layers_of
from ...stages.semantics import Semantics, predicted
from ...volumes import Volume, open_volume

_SLAB = 16
"""Sections that are done at a time."""


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
        threads=cores(),
    )
    return stage.settle(sources(image), None)


def check_images(
    name: str, bundle: Bundle, labels: Sequence[str], images: Iterable[str], permutations: int
) -> list[str]:
    """Check that a model, called `name`, can predict each image; return what a person should know about it.

    Raises:
        ConfigurationError: where it cannot.
        DataError: where an image is damaged.
    """
    remarks = []
    data = bundle.card.training.get("data", ())
    trained = {row.get("fingerprint") for row in data if isinstance(row, dict)} - {None}
    for url in dict.fromkeys(images):
        image = open_volume(url)
        try:
            stage = stage_for(bundle, image, labels, permutations)
        except (ConfigurationError, DataError) as error:
            raise type(error)(f"{name} on {url}: {error}") from None
        remarks += [f"{name}: {remark}" for remark in stage.remarks(sources(image))]
        if image.fingerprint in trained:
            remarks.append(f"{name} was trained on a part of {url}: be sure that nothing of it is tested")
    return list(dict.fromkeys(remarks))


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
    normalization = stage.card.normalization
    if not isinstance(normalization, Normalization):
        normalization = Normalization.of(image)
    inference = stage.inference(image.spec, normalization)
    result = np.empty((len(inference.labels), *box.shape), np.uint8)
    for part, values in predicted(inference, stage.resampling(image.spec), layers_of(box, _SLAB), image):
        result[(slice(None), *part.relative_to(box.start).slices)] = values
        if advance is not None:
            advance(part.shape[0])
    return result
