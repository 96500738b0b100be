"""Which of the known models suits a volume."""

from dataclasses import dataclass
from math import log

from ..volumes.volume import nanometres
from .bundle import Card, known

FARTHEST = 3.0
"""A model is not used on voxels that differ from its own by more than this factor along an axis."""
_OTHER_MODALITY = 0.5  # as bad as voxels that differ by a half
VoxelSize = tuple[float, float, float]


@dataclass(frozen=True)
class Proposal:
    """A model for a volume of some voxel size (nm, z, y, x)."""

    model: str
    card: Card
    voxel_size: VoxelSize

    @property
    def remarks(self) -> list[str]:
        """What to know about the choice, a line each."""
        size = nanometres(self.card.voxel_size)
        kind = f", {self.card.modality}" if self.card.modality else ""
        lines = [f"The model was trained on voxels of {size}{kind}: {self.card.description}".rstrip(": ")]
        if far(self.card.voxel_size, self.voxel_size) > 0.05:
            lines.append("The image is resampled to these on the way in, probabilities back on the way out.")
        lines.append("On other tissue it is a start: a few annotated sections adapt it, see docs/adaptation.md.")
        return lines


def far(one: VoxelSize, other: VoxelSize) -> float:
    """Return how different two voxel sizes are: the sum over axes of the absolute log ratios."""
    return sum(abs(log(a / b)) for a, b in zip(one, other, strict=True))


def fits(one: VoxelSize, other: VoxelSize) -> bool:
    """Whether a model for one voxel size can be used at another."""
    return all(max(a / b, b / a) <= FARTHEST for a, b in zip(one, other, strict=True))


def propose(voxel_size: VoxelSize, modality: str | None = None, label: str = "membranes") -> Proposal | None:
    """Return the known model of `label` whose voxel size and modality are nearest; None where none fits."""
    found = []
    for card, _ in known():
        if isinstance(card, Card) and label in card.labels and card.channels == 1 and fits(card.voxel_size, voxel_size):
            other = _OTHER_MODALITY if modality and card.modality and card.modality != modality else 0.0
            found.append((far(card.voxel_size, voxel_size) + other, card.name, card))
    if not found:
        return None
    _, name, card = min(found, key=lambda entry: entry[:2])
    return Proposal(name, card, voxel_size)
