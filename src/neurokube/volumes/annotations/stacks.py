"""Plain label stacks: folders of slices, TIFF (also of Fiji and of napari's Labels layers), HDF5, MRC, .npy."""

from collections.abc import Iterator
from itertools import pairwise
from math import gcd, prod
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ...blocks import Box
from ...errors import DataError
from ...words import counted
from ..files.reading import Source, blaming
from ..sources import _in_order, _pillow, _section_numbers, _slices_of, _tifffile, open_source
from .painted import PIECE, Painted


def open_stack(source: str, dataset: str | None) -> Painted:
    """Open a stack of label sections, as `open_source` does.

    Raises:
        DataError: where it is damaged, or of a kind that cannot hold labels.
    """
    file = Path(source).expanduser()
    _refuse_colours(file)
    stack = _planes(file) or open_source(source, dataset)
    if stack.lossy:
        stack.close()
        raise DataError(f"{source}: JPEG alters labels; export them as TIFF or PNG")

    def read(box: Box) -> NDArray[Any]:
        return stack.read(box.start[0], box.stop[0])[(slice(None), *box.slices[1:])]

    return Painted(
        path=stack.path,
        description=stack.description,
        extent=Box.of(stack.shape),
        read=read,
        occupied=lambda box: _batches(stack, box),
        fit="stack",
        voxel_size=stack.voxel_size,
        remarks=stack.remarks,
        step=_step(file) if file.is_dir() else 1,
        close=stack.close,
    )


def _step(folder: Path) -> int:
    """Return how far apart the numbers of the slices in a folder are."""
    numbers = _section_numbers(_in_order(folder, _slices_of(folder)[0])) or [0]
    return gcd(*(b - a for a, b in pairwise(numbers))) or 1


def _batches(stack: Source, box: Box) -> Iterator[Box]:
    step = max(1, min(stack.batch, PIECE // prod(stack.shape[1:])))
    for z in range(box.start[0], box.stop[0], step):
        yield Box((z, *box.start[1:]), (min(z + step, box.stop[0]), *box.stop[1:]))


def _planes(file: Path) -> Source | None:
    """Open a TIFF of three or four sections that its writer, as napari does, took for the planes of a colour image."""
    if not file.is_file() or file.suffix.lower() not in (".tif", ".tiff"):
        return None
    with blaming(file), _tifffile().TiffFile(file) as tif:
        page = tif.pages.first
        if len(tif.pages) > 1 or page.axes != "SYX":
            return None
        data = page.asarray()
    return Source(
        path=str(file),
        description=f"TIFF of {counted(len(data), 'plane')}",
        shape=data.shape,
        dtype=data.dtype,
        sections=lambda start, stop: data[start:stop],
        batch=len(data),
    )


def _refuse_colours(file: Path) -> None:
    """Refuse slices with a colour table: what turns them gray elsewhere would mix up the ids."""
    if file.is_dir():
        file = next((f for f in sorted(file.iterdir()) if f.suffix.lower() in (".png", ".tif", ".tiff")), file)
    if not file.is_file() or not _has_colours(file):
        return
    raise DataError(
        f"{file}: has a colour table, as label images of Fiji have; keep the ids by "
        "Image > Lookup Tables > Grays and save again"
    )


def _has_colours(file: Path) -> bool:
    with blaming(file):
        if file.suffix.lower() in (".tif", ".tiff"):
            with _tifffile().TiffFile(file) as tif:
                page = tif.pages.first
                table = page.colormap if page.photometric == _tifffile().PHOTOMETRIC.PALETTE else None
                return table is not None and bool((table.max(0) > table.min(0)).any())
        if file.suffix.lower() == ".png":
            with _pillow().open(file) as image:
                palette = image.getpalette("RGB") if image.mode == "P" else None
                return palette is not None and not palette[::3] == palette[1::3] == palette[2::3]
    return False
