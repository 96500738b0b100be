"""Cut-outs: where truth lies in what a workflow reads, and what of a reconstruction is scored by it.

      image            region: voxels of the image (z, y, x), as of `neurokube run --region`
┌────────────────┐     truth: placed by its offset in nm; a region, if given, takes a part of it
│   ┌──truth──┐  │
│   │ region  │  │     A cut-out is reconstructed by itself and scored where truth is not 0.
│   └─────────┘  │
└────────────────┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np

from ..blocks import Box, Vector
from ..errors import DataError, UsageError
from ..evaluation.pairs import require_labels
from ..volumes import Volume, VolumeSpec, open_volume
from ..volumes.volume import nanometres
from ..workflow import Workflow

_TOLERANCE = 0.1
"""Of a voxel: volumes whose grids are less apart lie on the same voxels."""


@dataclass(frozen=True)
class Cutout:
    """A truth volume and the region of the workflow's inputs that it is compared on; None: all there is."""

    truth: Volume
    region: Box | None

    def __str__(self) -> str:
        return "all" if self.region is None else str(self.region)

    def compared(self, spec: VolumeSpec) -> tuple[Box, Volume]:
        """Return what of a reconstruction of the region, described by `spec`, is compared, and with which truth.

        Raises:
            DataError: where they do not share voxels.
        """
        truth = self.truth.spec
        if not np.allclose(truth.voxel_size, spec.voxel_size, rtol=1e-3):
            raise DataError(
                f"{self.truth.url}: has voxels of {nanometres(truth.voxel_size)}, and what is segmented of "
                f"{nanometres(spec.voxel_size)}; import it with the right --voxel-size, or make a truth of these voxels"
            )
        place, beside = truth.place(spec)
        if beside > _TOLERANCE:
            raise DataError(
                f"{self.truth.url}: begins at {_text(truth.offset)} nm, which is not on the voxels of what is "
                f"segmented (from {_text(spec.offset)} nm on); import it again with the right --offset"
            )
        shared = place.clip(truth.box)
        if not shared.size:
            raise _apart(self.truth, spec)
        return shared.relative_to(place.start), self.truth.crop(shared)


def open_truths(urls: Sequence[str]) -> list[Volume]:
    """Open label volumes.

    Raises:
        DataError: where one is not there, or holds no labels.
    """
    volumes = [open_volume(url) for url in urls]
    require_labels(*volumes)
    return volumes


def cutouts_of(workflow: Workflow, truths: Sequence[Volume], regions: Sequence[Box]) -> list[Cutout]:
    """Return the cut-outs that truths cover, or the part of them in each of the regions.

    Raises:
        DataError: where a truth covers nothing of the workflow's first input.
        UsageError: where a region has no truth, or a truth no region.
    """
    if not workflow.inputs:
        if regions:
            raise UsageError(f"region {regions[0]}: this workflow reads no volume to cut out of; leave the region out")
        return [Cutout(truth, None) for truth in truths]
    image = open_volume(next(iter(workflow.inputs.values())).path).spec
    covered = [_covered(truth, image) for truth in truths]
    if not regions:
        return [Cutout(truth, box) for truth, box in zip(truths, covered, strict=True)]
    for region in regions:
        if not any(region.clip(box).size for box in covered):
            where = ", ".join(f"{t.url} {box}" for t, box in zip(truths, covered, strict=True))
            raise UsageError(f"region {region}: there is no truth in it; choose one where it is: {where}")
    return [
        Cutout(truth, part)
        for region in regions
        for truth, box in zip(truths, covered, strict=True)
        if (part := region.clip(box)).size
    ]


def _covered(truth: Volume, image: VolumeSpec) -> Box:
    """Return the voxels of the image whose middles lie within the truth."""
    own = truth.spec
    first = np.subtract(own.offset, image.offset) / image.voxel_size
    last = first + np.multiply(np.subtract(own.shape, 1), own.voxel_size) / image.voxel_size
    start: list[int] = [ceil(a - _TOLERANCE) for a in first]
    stop: list[int] = [floor(b + _TOLERANCE) + 1 for b in last]
    box = Box(_vector(start), _vector(stop)).clip(image.box)
    if not box.size:
        raise _apart(truth, image)
    return box


def _vector(numbers: Sequence[int]) -> Vector:
    z, y, x = numbers
    return z, y, x


def _apart(truth: Volume, spec: VolumeSpec) -> DataError:
    return DataError(
        f"{truth.url}: begins at {_text(truth.spec.offset)} nm (z, y, x) and has {_text(truth.spec.shape)} voxels, "
        f"which is nowhere in the image (from {_text(spec.offset)} nm on, {_text(spec.shape)} voxels of "
        f"{nanometres(spec.voxel_size)}); import it with the --offset where it lies"
    )


def _text(vector: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in vector)
