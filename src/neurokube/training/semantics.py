"""The training of a network that labels structures: from its settings to what learns."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from rich.progress import Progress

from ..blocks import Vector
from ..errors import ConfigurationError, DataError, UsageError
from ..networks import Bundle
from ..networks.bundle import GeneratorArchitecture, OwnArchitecture
from ..networks.networks import CONFIGS, config_of, fill, network_of
from ..networks.unet import Network, NetworkConfig
from ..volumes import open_volume
from ..volumes.volume import COARSE, Nanometres
from .config import AnnotatedVolume, Training
from .module import SemanticsModule
from .sampling import Windows
from .truth import Annotated, load

_CONTEXT = (3, 32, 32)
"""Voxels of the image around a validation volume that the network may look at."""
_STEM = "stem.convolution.weight"
"""The weights that see the image, (feature, channel, z, y, x), in all our networks that label."""


def prepare(settings: Training, origin: Bundle | None, bars: Progress) -> SemanticsModule:
    """Read volumes and truth, and return the module to train.

    Raises:
        UsageError: where `origin` is no network of ours that labels.
        ConfigurationError: where settings do not fit the data.
        DataError: where volumes and truth do not fit.
    """
    labels, voxel_size, config = _architecture(settings, origin)
    window = _window(settings, config, voxel_size, origin)
    scratch = settings.scratch if settings.cache == "scratch" else None
    volumes = _loaded(settings.volumes, labels, voxel_size, scratch, window, bars)
    validation = [load(entry, labels, voxel_size, scratch=scratch, context=_CONTEXT) for entry in settings.validation]
    windows = Windows(
        volumes,
        len(labels),
        window,
        seed=settings.seed,
        balance=settings.balance,
        augmentation=settings.augmentation,
    )
    network = _network(config, labels, settings.channels, origin)
    rare = _positive_weights(volumes, labels, settings.positive_weight)
    rate = 3e-3 if origin is None else 1e-3
    return SemanticsModule(settings, network, labels, windows, validation, rare, voxel_size, rate)


def _architecture(settings: Training, origin: Bundle | None) -> tuple[tuple[str, ...], Nanometres, NetworkConfig]:
    labels = settings.all_labels
    first = open_volume(settings.volumes[0].image).spec.voxel_size
    if origin is None:
        voxel_size = settings.voxel_size or first
        made = CONFIGS[settings.network or "unet"]
        features = made.sizes[settings.size] if isinstance(settings.size, str) else settings.size
        channels = 1 + len(settings.channels)
        return labels, voxel_size, made.fitting(voxel_size, len(labels), features, channels)
    if not isinstance(origin.card.architecture, OwnArchitecture):
        foreign = "" if isinstance(origin.card.architecture, GeneratorArchitecture) else "a model from elsewhere, "
        raise UsageError(
            f"{origin.folder}: {foreign}not a network of this program that labels; only these can be trained on"
        )
    if settings.network not in (None, kind := origin.card.architecture.kind):
        raise ConfigurationError(f"network: {settings.network}, but {origin.folder} is of kind {kind}; leave it out")
    if missing := [name for name in origin.card.further if name not in settings.channels]:
        raise ConfigurationError(
            f"channels: {origin.folder} sees {missing[0]} beside the image; name it for all volumes, or train another"
        )
    voxel_size = settings.voxel_size or origin.card.voxel_size
    sizes = {"labels": len(labels), "channels": 1 + len(settings.channels)}
    config = config_of(origin.card).model_copy(update=sizes)
    return labels, voxel_size, config


def _window(settings: Training, config: NetworkConfig, voxel_size: Nanometres, origin: Bundle | None) -> Vector:
    window = settings.window
    if window is None and origin is not None:
        window = origin.card.window
    if window is None:
        window = (8, 160, 160) if voxel_size[0] / min(voxel_size[1:]) >= COARSE else (64, 64, 64)
        window = cast(Vector, tuple(-(-w // f) * f for w, f in zip(window, config.factor, strict=True)))
    if odd := [f for w, f in zip(window, config.factor, strict=True) if w % f]:
        raise ConfigurationError(f"window: {window} must be multiples of {config.factor}; {odd[0]} does not fit")
    return window


def _loaded(
    entries: Sequence[AnnotatedVolume],
    labels: Sequence[str],
    voxel_size: Nanometres,
    scratch: str | None,
    window: Vector,
    bars: Progress,
) -> list[Annotated]:
    bar = bars.add_task("reading", total=len(entries), unit="volumes")
    volumes = []
    for entry in entries:
        volumes.append(load(entry, labels, voxel_size, scratch=scratch, at_least=window))
        bars.advance(bar)
    return volumes


def _network(config: NetworkConfig, labels: Sequence[str], channels: Sequence[str], origin: Bundle | None) -> Network:
    network = network_of(config)
    with torch.no_grad():
        # rare labels start as rare
        cast(torch.Tensor, network.head.bias).fill_(-2.0)
    if origin is None:
        return network
    known = network_of(config_of(origin.card))
    fill(known, origin)
    state = network.state_dict()
    for name, tensor in known.state_dict().items():
        if name == _STEM:
            # channels that are new to it say nothing at first
            state[name].zero_()
            for k, channel in enumerate(("image", *origin.card.further)):
                state[name][:, ("image", *channels).index(channel)] = tensor[:, k]
            continue
        if not name.startswith("head."):
            state[name] = tensor
            continue
        for k, label in enumerate(labels):
            if label in origin.card.labels:
                state[name][k] = tensor[origin.card.labels.index(label)]
    network.load_state_dict(state)
    return network


def _positive_weights(volumes: Sequence[Annotated], labels: Sequence[str], largest: float) -> torch.Tensor:
    counts = np.sum([volume.counts(len(labels)) for volume in volumes], axis=0).astype(float)
    if empty := [label for label, (_, positive) in zip(labels, counts, strict=True) if not positive]:
        raise DataError(
            f"labels: no voxel of any volume is '{empty[0]}'; check its 'values' and 'region', or leave it out"
        )
    if full := [label for label, (negative, _) in zip(labels, counts, strict=True) if not negative]:
        raise DataError(
            f"labels: every annotated voxel is '{full[0]}', from which nothing tells it apart; paint what it is not too"
        )
    ratio = np.sqrt(counts[:, 0] / np.maximum(1, counts[:, 1]))
    return torch.tensor(np.clip(ratio, 1, largest), dtype=torch.float32)
