"""The training of a network that makes sections between sections: from its settings to what learns."""

from collections.abc import Sequence
from typing import Literal

from rich.progress import Progress

from ...errors import ConfigurationError, DataError, UsageError
from ...networks import Bundle
from ...networks.bundle import GeneratorArchitecture
from ...networks.generator import Generator, GeneratorConfig
from ...networks.networks import fill
from ...volumes.resampling import ALIKE
from ...volumes.volume import COARSE, Nanometres, nanometres
from ..config import ImageVolume, Superresolution
from ..stacks import Stack, load_stack, open_image
from .cyclegan import Coarsener, SectionsCycleGAN
from .degradation import Degradation
from .planes import Across, Pairs, Turned, Unpaired
from .restoration import ImageLearner, Restorer
from .showcase import HeldOut

_WINDOW = (32, 64)
_BESIDE = 12
"""Planes beside each other that a network learns from, where it sees neighbours of a plane."""
_NEAR = 4
"""Pixels to the next section up to which it looks enough like this one to be worth seeing."""


def prepare(settings: Superresolution, origin: Bundle | None, bars: Progress) -> ImageLearner:
    """Read the volumes, and return the module to train.

    Raises:
        UsageError: where `origin` is no such network.
        ConfigurationError: where settings do not fit it.
        DataError: where volumes are isotropic, too small, or cannot be used.
    """
    voxel_size = settings.voxel_size or (origin.card.voxel_size if origin else _voxel_size(settings.volumes[0]))
    config = _config(settings, origin, voxel_size)
    window = settings.window or _WINDOW
    modality = settings.modality or (origin.card.modality if origin else None)
    average = (settings.degradation or usual_degradation(modality, voxel_size)) == "average"
    bar = bars.add_task(
        "reading", total=len(settings.volumes) + len(settings.fine) + len(settings.validation), unit="volumes"
    )

    def loaded(entries: Sequence[ImageVolume]) -> list[Stack]:
        stacks = []
        for entry in entries:
            # sections stay as thick as they are where they are looked at one by one
            across = entries is settings.volumes and settings.method == "cyclegan"
            depth = voxel_size[0] if across else _voxel_size(entry)[0]
            stacks.append(load_stack(entry, (depth, *voxel_size[1:])))
            bars.advance(bar)
        return stacks

    def degraded(stacks: Sequence[Stack]) -> list[Degradation]:
        return [_degradation(stack, voxel_size[0], settings.factor, average=average) for stack in stacks]

    volumes, fine, held_out = loaded(settings.volumes), loaded(settings.fine), loaded(settings.validation)
    sources = fine or volumes
    permute = settings.augmentation.permutations
    beside = min([_BESIDE, *(len(stack.image) for stack in sources)]) if config.aside else 1
    slab = (window[0], beside, window[1])
    turned = Turned(sources, degraded(sources), slab, permute=permute)
    learned = [("volume", volumes), *([("fine", fine)] if fine else [])]
    showcase = HeldOut(learned, held_out, degraded(held_out or volumes[:1]), slab)
    normal = [stack.normalization for stack in volumes]
    network = Generator(config)
    if origin is not None:
        fill(network, origin)
    # turned, what is beside a plane is the next section
    network.spread(1)
    if settings.method == "self-supervised":
        pairs = Pairs(turned, settings.augmentation, settings.seed)
        rate = 1e-3 if origin is None else 3e-4
        return Restorer(settings, network, pairs, showcase, normal, voxel_size, rate)
    across = Across(volumes, slab, permute=permute)
    # the rows of a plane are thin sections already where sections are taken out again
    degradation = Degradation(settings.factor, 1.0, average)
    return SectionsCycleGAN(
        settings,
        network,
        Coarsener(config, degradation),
        Unpaired(across, turned, permute=permute, seed=settings.seed),
        showcase,
        normal,
        voxel_size,
        (slab, (degradation.thin(slab[0]), *slab[1:])),
        degradation=degradation,
    )


def usual_degradation(modality: str | None, voxel_size: Nanometres) -> Literal["average", "subsample"]:
    """Return how thick sections come of thin ones, by how images were taken or, if nobody says, by the voxel size."""
    cut = modality == "sstem" if modality else voxel_size[0] / min(voxel_size[1:]) >= COARSE
    return "average" if cut else "subsample"


def _config(settings: Superresolution, origin: Bundle | None, voxel_size: Nanometres) -> GeneratorConfig:
    pixels = voxel_size[0] / voxel_size[1]
    unpaired = settings.method == "cyclegan"
    if origin is None:
        wanted = pixels <= _NEAR and not unpaired if settings.neighbours is None else settings.neighbours
        aside = max(1, round(pixels)) if wanted else 0
        return GeneratorConfig(features=settings.features, blocks=settings.blocks, factor=settings.factor, aside=aside)
    known = origin.card.architecture
    if not isinstance(known, GeneratorArchitecture) or known.factor == 1:
        raise UsageError(f"{origin.folder}: no network that makes sections; name one, or leave --from out")
    if known.factor != settings.factor:
        raise ConfigurationError(
            f"factor: {origin.card.name} makes {known.factor} sections of one, not {settings.factor}; "
            f"write factor: {known.factor}, or leave --from out"
        )
    if settings.neighbours not in (None, bool(known.aside)):
        raise ConfigurationError(f"neighbours: {origin.card.name} is what it is; leave it out, or leave --from out")
    if known.aside and unpaired:
        raise ConfigurationError(
            f"method: {origin.card.name} sees neighbours of a plane, a CycleGAN single planes; "
            "leave --from out, or method"
        )
    return GeneratorConfig.model_validate(known.model_dump(exclude={"kind"}))


def _degradation(stack: Stack, thickness: float, factor: int, *, average: bool) -> Degradation:
    """Return how the planes of a stack are degraded.

    Raises:
        DataError: where its pixels are coarser than sections are to be.
    """
    pixel = stack.voxel_size[1]
    possible = int(thickness / pixel * (1 + ALIKE))
    voxels = nanometres((thickness, *stack.voxel_size[1:]))
    if possible < 2:
        raise DataError(
            f"{stack.name}: voxels of {voxels} are nearly as wide as deep, so that its planes show nothing that its "
            "sections do not: superresolution gains nothing; leave it out"
        )
    if factor > possible:
        raise DataError(
            f"{stack.name}: a factor of {factor} would make sections of {thickness / factor:.3g} nm of voxels of "
            f"{voxels}: finer than the pixels that it is learned from; use factor: {possible}"
        )
    step = thickness / factor / pixel
    return Degradation(factor, 1.0 if abs(step - 1) <= ALIKE else step, average)


def _voxel_size(entry: ImageVolume) -> Nanometres:
    image, _ = open_image(entry)
    return image.spec.voxel_size
