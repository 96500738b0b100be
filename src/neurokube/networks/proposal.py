"""Which of the known models suits a volume."""

from dataclasses import dataclass
from math import log

from ..volumes.volume import nanometres
from .bundle import Card, known, numbers

EDGES = ("membranes", "boundaries")
"""Labels that tell where cells end."""

FARTHEST = 3.0
"""A model is not used on voxels that differ from its own by more than this factor along an axis."""
_OTHER_MODALITY = 0.5  # as bad as voxels that differ by a half
VoxelSize = tuple[float, float, float]


@dataclass(frozen=True)
class Proposal:
    """A model for a volume of some voxel size (nm, z, y, x), and the names of others that fit as well."""

    model: str
    card: Card
    voxel_size: VoxelSize
    also: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """What to know about the choice, a line each."""
        size = nanometres(self.card.voxel_size)
        kind = f", {self.card.modality}" if self.card.modality else ""
        lines = [f"The model was trained on voxels of {size}{kind}: {self.card.description}".rstrip(": ")]
        if far(self.card.voxel_size, self.voxel_size) > 0.05:
            lines.append("The image is resampled to these on the way in, probabilities back on the way out.")
        if self.also:
            lines.append(f"As near: {', '.join(self.also)}; its own validation gave this one the higher F1.")
        lines.append("On other tissue it is a start: a few annotated sections adapt it, see docs/adaptation.md.")
        return lines


def far(one: VoxelSize, other: VoxelSize) -> float:
    """Return how different two voxel sizes are: the sum over axes of the absolute log ratios."""
    return sum(abs(log(a / b)) for a, b in zip(one, other, strict=True))


def fits(one: VoxelSize, other: VoxelSize) -> bool:
    """Whether a model for one voxel size can be used at another."""
    return all(max(a / b, b / a) <= FARTHEST for a, b in zip(one, other, strict=True))


def edge_label(card: Card) -> str | None:
    """Return the label of a model that tells where cells end."""
    return next((label for label in EDGES if label in card.labels), None)


def propose(voxel_size: VoxelSize, modality: str | None = None) -> Proposal | None:
    """Return the known model of where cells end whose voxel size and modality are nearest; None where none fits.

    Of equally near ones that with the higher F1 in its own validation comes first, and the others are told.
    """
    found = []
    for card, _ in known():
        if not isinstance(card, Card) or card.channels != 1 or not fits(card.voxel_size, voxel_size):
            continue
        if (label := edge_label(card)) is not None:
            other = _OTHER_MODALITY if modality and card.modality and card.modality != modality else 0.0
            away = round(far(card.voxel_size, voxel_size) + other, 3)
            found.append((away, -numbers(card).get(label, 0.0), card.name, card))
    if not found:
        return None
    nearest, _, _, card = min(found, key=lambda entry: entry[:3])
    also = sorted(name for away, _, name, _ in found if away == nearest and name != card.name)
    return Proposal(card.name, card, voxel_size, tuple(also))
