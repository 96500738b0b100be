"""A model's prediction of an annotated volume: what the semantics stage would write there."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ...blocks import Box
from ...errors import ConfigurationError, DataError
from ...machine import cores
from ...networks import Bundle, Normalization
from ...networks.normalization import ChannelNormalization
from ...stages.base import Source, VolumeOutput
from ...stages.inference import layers_of
from ...stages.semantics import Semantics, predicted, seen_by
from ...training.config import AnnotatedVolume
from ...volumes import Volume, open_volume

_SLAB = 16
"""Sections that are done at a time."""


Channels = Mapping[str, Volume]
"""What there is beside an image, by name; a model is shown what it sees of it."""


def sources(image: Volume, channels: Channels | None = None) -> dict[str, Source]:
    """Return an image, and further channels, as what a stage reads."""
    volumes = {"image": image} | {f"channels.{name}": volume for name, volume in (channels or {}).items()}
    return {
        role: Source(role, "volume", {role: VolumeOutput.like(role, volume.spec)}, {role: volume.url})
        for role, volume in volumes.items()
    }


def channels_of(bundle: Bundle, entry: AnnotatedVolume) -> dict[str, Volume]:
    """Open what a model sees of an entry beside its image; what the entry does not name is left out."""
    return {name: open_volume(entry.channels[name]) for name in bundle.card.further if name in entry.channels}


def stage_for(
    bundle: Bundle,
    image: Volume,
    labels: Sequence[str] | None = None,
    permutations: int = 1,
    channels: Channels | None = None,
) -> Semantics:
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
        channels={name: name for name in channels or {}},
    )
    return stage.settle(sources(image, channels), None)


def check_images(
    name: str, bundle: Bundle, labels: Sequence[str], entries: Iterable[AnnotatedVolume], permutations: int
) -> list[str]:
    """Check that a model, called `name`, can predict the image of each entry; return what should be known about it.

    Raises:
        ConfigurationError: where it cannot.
        DataError: where an image is damaged.
    """
    remarks = []
    data = bundle.card.training.get("data", ())
    trained = {row.get("fingerprint") for row in data if isinstance(row, dict)} - {None}
    for url, entry in {entry.image: entry for entry in entries}.items():
        image = open_volume(url)
        try:
            stage = stage_for(bundle, image, labels, permutations, channels_of(bundle, entry))
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
    channels: Channels | None = None,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.uint8]:
    """Return the probabilities of a region (the whole image, if None) as 0 to 255, shape (label, z, y, x).

    The voxels are the image's own; where the model's differ, the image is resampled on the way in and
    probabilities on the way out.  Windows lie on the grid of the whole image and grey values are normalized
    by all of it, as in a run: what surrounds the region is seen.  `labels` chooses and orders what is predicted
    [default: all of the model's]; `channels` are those that the model sees beside the image; `advance` is told how
    many more sections are done.

    Raises:
        ConfigurationError: where model and image do not go together.
    """
    stage = stage_for(bundle, image, labels, permutations, channels)
    box = image.spec.box if region is None else region
    volumes = [image, *((channels or {})[name] for name in stage.card.further)]
    normalization: Normalization | ChannelNormalization
    if isinstance(stage.card.normalization, Normalization):
        normalization = stage.card.normalization
    else:
        each = tuple(Normalization.of(volume) for volume in volumes)
        normalization = each[0] if len(each) == 1 else ChannelNormalization(each)
    inference = stage.inference(image.spec, normalization)
    result = np.empty((len(inference.labels), *box.shape), np.uint8)
    for part, values in predicted(inference, stage.resampling(image.spec), layers_of(box, _SLAB), seen_by(volumes)):
        result[(slice(None), *part.relative_to(box.start).slices)] = values
        if advance is not None:
            advance(part.shape[0])
    return result
