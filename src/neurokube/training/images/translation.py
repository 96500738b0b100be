"""The training of a network that makes one volume look like another: from its settings to what learns."""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.random import default_rng
from rich.progress import Progress
from torch import Tensor

from ...blocks import Box, Vector
from ...errors import ConfigurationError, UsageError
from ...networks import Bundle, Card, Normalization, load_bundle
from ...networks.bundle import GeneratorArchitecture
from ...networks.generator import Generator, GeneratorConfig
from ...networks.networks import fill
from ...volumes.resampling import ALIKE
from ...volumes.volume import Nanometres, nanometres
from ..augmentation import permute_window
from ..config import Translation
from ..sampling import Numbered, check_size, shares
from ..stacks import Stack, load_stack, open_image
from .cyclegan import Segmenter, TranslationCycleGAN
from .showcase import Translated

_WINDOW = (1, 128, 128)


class Looks(Numbered):
    """For each number, a window (1, z, y, x) of a volume and one of a target, each from anywhere in it."""

    def __init__(
        self, volumes: Sequence[Stack], targets: Sequence[Stack], window: Vector, *, permute: bool, seed: int
    ) -> None:
        for stack in (*volumes, *targets):
            check_size(stack.name, stack.shape, window)
        self._kinds = [(stacks, shares([stack.weight for stack in stacks])) for stacks in (volumes, targets)]
        self._window, self._permute, self._seed = window, permute, seed

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Return two windows."""
        random = default_rng([self._seed, self.first + index])
        windows = []
        for stacks, often in self._kinds:
            stack = stacks[int(random.choice(len(stacks), p=often))]
            z, y, x = (int(random.integers(n - w + 1)) for n, w in zip(stack.shape, self._window, strict=True))
            image = stack.normalization.apply(stack.image[Box.of(self._window).shift((z, y, x)).slices])
            if self._permute:
                image, _ = permute_window(stack.voxel_size, self._window, image, [], random)
            # a copy: flipped along a single section, an array counts as contiguous but is of no use to torch
            windows.append(torch.from_numpy(image.copy())[None])
        return tuple(windows)


def prepare(settings: Translation, origin: Bundle | None, bars: Progress) -> TranslationCycleGAN:
    """Read the volumes, and return the module to train.

    Raises:
        UsageError: where `origin` is no such network.
        ConfigurationError: where the segmentation's model does not fit.
        DataError: where volumes are too small or cannot be used.
    """
    config = _config(settings, origin)
    model = None if settings.segmentation is None else load_bundle(settings.segmentation)
    voxel_size = _voxel_size(settings, origin, model)
    window = settings.window or (_WINDOW if model is None else model.card.window)
    bar = bars.add_task("reading", total=len(settings.volumes) + len(settings.targets), unit="volumes")
    stacks = []
    for entry in (*settings.volumes, *settings.targets):
        stacks.append(load_stack(entry, voxel_size))
        bars.advance(bar)
    volumes, targets = stacks[: len(settings.volumes)], stacks[len(settings.volumes) :]
    windows = Looks(volumes, targets, window, permute=settings.augmentation.permutations, seed=settings.seed)
    watched: list[dict[str, Any]] = []
    if model is not None:
        watched = [{"role": "segmentation", "name": model.card.name, "sha256": model.card.sha256}]
    showcase = Translated(volumes, targets, window, watched)
    there, back = Generator(config), Generator(config)
    if origin is not None:
        fill(there, origin)
    return TranslationCycleGAN(
        settings,
        there,
        back,
        windows,
        showcase,
        [stack.normalization for stack in volumes],
        voxel_size,
        (window, window),
        segmenter=None if model is None else _segmenter(settings, model, voxel_size, window, showcase.target),
    )


def _config(settings: Translation, origin: Bundle | None) -> GeneratorConfig:
    if origin is None:
        return GeneratorConfig(features=settings.features, blocks=settings.blocks, plane="yx")
    known = origin.card.architecture
    if not isinstance(known, GeneratorArchitecture) or known.factor != 1:
        raise UsageError(f"{origin.folder}: no network that translates images; name one, or leave --from out")
    return GeneratorConfig.model_validate(known.model_dump(exclude={"kind"}))


def _voxel_size(settings: Translation, origin: Bundle | None, model: Bundle | None) -> Nanometres:
    if settings.voxel_size is not None:
        return settings.voxel_size
    for bundle in (origin, model):
        if bundle is not None:
            return bundle.card.voxel_size
    image, _ = open_image(settings.targets[0])
    return image.spec.voxel_size


def _segmenter(
    settings: Translation, model: Bundle, voxel_size: Nanometres, window: Vector, target: Normalization
) -> Segmenter:
    """Return a model as one that watches.

    Raises:
        ConfigurationError: where it does not fit the windows.
    """
    card: Card = model.card
    if card.output == "image" or card.channels != 1 or card.architecture.kind == "onnx":
        raise ConfigurationError(
            f"segmentation: {card.name} is no network of one channel that labels structures and that PyTorch runs; "
            "name another, or leave it out"
        )
    if any(abs(a / b - 1) > ALIKE for a, b in zip(card.voxel_size, voxel_size, strict=True)):
        raise ConfigurationError(
            f"segmentation: {card.name} sees voxels of {nanometres(card.voxel_size)}, the training "
            f"{nanometres(voxel_size)}; leave out voxel_size and --from, or name another model"
        )
    if any(w % m for w, m in zip(window, card.multiple, strict=True)):
        raise ConfigurationError(f"window: {window} must be multiples of {card.multiple} for {card.name}")
    scale, shift = 1.0, 0.0
    if isinstance(card.normalization, Normalization):
        fixed = card.normalization
        scale, shift = target.deviation / fixed.deviation, (target.mean - fixed.mean) / fixed.deviation
    return Segmenter(
        model.network(), logits=card.output == "logits", scale=scale, shift=shift, weight=settings.segmentation_weight
    )
