"""A report of one file that shows each of the worst splits and merges where it happens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Vector
from ..errors import DataError, UsageError
from ..volumes import Volume
from ..volumes.volume import nanometres
from .contingency import Labels
from .mistakes import Mistake
from .overlays import RGB, blend, boundaries_of
from .pairs import as_labels
from .report import Picture, Table, write_report
from .scores import MISTAKE_COLUMNS, MISTAKES, Row, meeting, mistake_rows

SIDE = 2500.0
"""Nanometres that a picture shows."""

_SIDE_VOXELS = 400
"""And at most so many voxels."""

_FIRST, _SECOND, _OTHER = (255, 140, 0), (0, 160, 255), (190, 0, 190)
_GRAY = 96
"""What stands for the image where there is none."""
_BORDER, _MARK = (255, 255, 255), (255, 255, 0)


@dataclass(frozen=True)
class MistakesReport:
    """A self-contained HTML page, at `path`, with tables of scores and pictures of mistakes.

    Pictures are a section (y, x) and a plane across the sections (z, x), at most 2.5 um wide, around each place.
    The `image`, where there is one, is drawn below.  `start` is the first voxel of a cut-out that `prediction`
    and `truth` are: the places of mistakes count from the whole.
    """

    path: str
    prediction: Volume
    truth: Volume
    image: Volume | None
    start: Vector

    @classmethod
    def planned(
        cls, path: str, prediction: Volume, truth: Volume, image: Volume | None = None, region: Box | None = None
    ) -> "MistakesReport":
        """Check, before anything is computed, whether the page can be made.

        Raises:
            UsageError: where there is no such folder.
            DataError: where the image is not 8-bit, has other voxels, or lacks some of the prediction's.
        """
        if not Path(path).absolute().parent.is_dir() or Path(path).is_dir():
            raise UsageError(f"--report {path}: name a file in a folder that exists")
        if region is not None:
            prediction, truth = prediction.crop(region), truth.crop(region)
        if image is not None:
            image = _cut_out(image, prediction)
        return cls(path, prediction, truth, image, region.start if region else (0, 0, 0))

    def write(
        self,
        mistakes: Sequence[Mistake],
        scores: Sequence[tuple[str, Sequence[Row]]],
        provenance: Mapping[str, Any],
        links: Sequence[str] = (),
    ) -> None:
        """Write the page; `links` lead each of the mistakes on to the viewer.

        Raises:
            TryAgainError: where the file cannot be written.
        """
        groups = [
            (
                f"{number + 1}. {mistake.kind.capitalize()} of {mistake.label}",
                _said(mistake),
                self._pictures(mistake, links[number] if links else ""),
            )
            for number, mistake in enumerate(mistakes)
        ]
        tables = [Table(title, ("", ""), found) for title, found in scores]
        tables.append(Table("The worst splits and merges", MISTAKE_COLUMNS, mistake_rows(mistakes), MISTAKES))
        write_report(
            self.path,
            title="Where a segmentation is wrong",
            summary=f"{self.prediction.url} against {self.truth.url}: its scores, its worst splits and merges.",
            tables=tables,
            pictures=groups,
            provenance=provenance,
        )

    def _pictures(self, mistake: Mistake, link: str) -> list[Picture]:
        """Draw a mistake in a section and from the side."""
        spec = self.prediction.spec
        z, y, x = (v - s for v, s in zip(mistake.voxel, self.start, strict=True))
        sz, sy, sx = spec.voxel_size
        hz, hy, hx = (min(_SIDE_VOXELS, max(1, round(SIDE / size))) // 2 for size in (sz, sy, sx))
        planes = [
            (f"section {mistake.voxel[0]}", Box((z, y - hy, x - hx), (z + 1, y + hy + 1, x + hx + 1)), 0, sy / sx),
            ("from the side: z down, x right", Box((z - hz, y, x - hx), (z + hz + 1, y + 1, x + hx + 1)), 1, sz / sx),
        ]
        pictures = []
        for caption, box, axis, aspect in planes:
            seen = box.clip(spec.box)
            predicted, true = (as_labels(v, v.read(seen)).squeeze(axis) for v in (self.prediction, self.truth))
            gray = (
                np.full(predicted.shape, _GRAY, np.uint8) if self.image is None else self.image.read(seen).squeeze(axis)
            )
            drawn = draw(mistake, predicted, true, gray)
            row, column = (c - s for k, (c, s) in enumerate(zip((z, y, x), seen.start, strict=True)) if k != axis)
            _mark(drawn, row, column, aspect)
            pictures.append(Picture(caption, drawn, aspect, link))
        return pictures


def _said(mistake: Mistake) -> str:
    one, other = mistake.between
    what = (
        f"Truth body {mistake.label} (white outline) is in {mistake.part_count} predicted segments"
        if mistake.kind == "split"
        else f"Predicted segment {mistake.label} (white outline) is in {mistake.part_count} truth bodies"
    )
    others = " Purple: others." if mistake.part_count > 2 else ""
    return f"{what}. Orange: {one}. Blue: {other}.{others} At the mark, {meeting(mistake)}."


def draw(mistake: Mistake, prediction: Labels, truth: Labels, gray: NDArray[np.uint8]) -> RGB:
    """Draw a mistake in a plane: labels and a gray image of one shape (y, x)."""
    segment, parts = (truth, prediction) if mistake.kind == "split" else (prediction, truth)
    of_it = segment == mistake.label
    colours = np.zeros((*gray.shape, 3), np.uint8)
    colours[of_it & (parts != 0)] = _OTHER
    for label, colour in zip(mistake.between, (_FIRST, _SECOND), strict=True):
        colours[of_it & (parts == label)] = colour
    drawn = blend(gray, colours, 0.45)
    # the borders of all other segments, faint, say what they are merged or split beside
    faint = boundaries_of(truth)
    drawn[faint] = drawn[faint] // 2 + 40
    drawn[boundaries_of(of_it)] = _BORDER
    return drawn


def _mark(picture: RGB, row: int, column: int, aspect: float) -> None:
    """Mark a pixel by four ticks around it, which leave it free; rows are `aspect` times as high as wide."""
    for step in (*range(-12, -5), *range(6, 13)):
        down = round(step / aspect) or (1 if step > 0 else -1)
        for r, c in ((row + down, column), (row, column + step)):
            if 0 <= r < picture.shape[0] and 0 <= c < picture.shape[1]:
                picture[r, c] = _MARK


def _cut_out(image: Volume, prediction: Volume) -> Volume:
    """Return what of an image lies where a prediction does."""
    spec, wanted = image.spec, prediction.spec
    if spec.dtype != "uint8" or spec.channels is not None:
        raise DataError(f"{image.url}: holds {spec.dtype} and not 8-bit gray; import it with --to-8bit")
    if not np.allclose(spec.voxel_size, wanted.voxel_size, rtol=1e-3, atol=0):
        raise DataError(
            f"{image.url}: has voxels of {nanometres(spec.voxel_size)}, and {prediction.url} of "
            f"{nanometres(wanted.voxel_size)}; give the image that was segmented"
        )
    return image.crop(spec.place(wanted)[0])
