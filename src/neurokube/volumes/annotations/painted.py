"""What a person painted, read a box at a time, in the voxels of the annotation itself."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ...blocks import Box
from ...errors import DataError
from ..volume import Nanometres

PIECE = 1 << 24
"""Most voxels that are looked at in one go."""

Fit = Literal["stack", "paint", "outlines"]
"""What must lie inside the image: the whole stack; all that is painted; or the sections of the outlines,
which may reach beyond the edges of a section."""


@dataclass(frozen=True)
class Painted:
    """An open annotation; close it, or use it as a context manager.

    `extent` is what it covers, in its own voxels (z, y, x); `read` returns a box of it, 0 where nothing is
    painted, and is safe in threads; `occupied` yields boxes that together hold everything painted inside a
    box.  `voxel_size` and `place`, the position of voxel (0, 0, 0), are (z, y, x) in nm where the source says
    them; `names` maps ids to names; `step` is how far apart the numbers of slices are.
    """

    path: str
    description: str
    extent: Box
    read: Callable[[Box], NDArray[Any]]
    occupied: Callable[[Box], Iterable[Box]]
    fit: Fit
    voxel_size: Nanometres | None = None
    place: Nanometres | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    step: int = 1
    close: Callable[[], None] = lambda: None

    def ids(self, box: Box) -> NDArray[Any]:
        """Return a box as unsigned integers, shape (z, y, x).

        Raises:
            DataError: where values are negative or no whole numbers.
        """
        data = self.read(box)
        if data.dtype.kind == "u":
            return data
        if data.dtype.kind == "b":
            return data.view(np.uint8)
        if data.dtype.kind == "f":
            fraction = ~np.isfinite(data) | (data != np.floor(data))
            self._refuse(fraction, box, "values that are no whole numbers", "save ids as integers")
        self._refuse(data < 0, box, "negative values", "renumber the ids from 1 up, 0 is 'not annotated'")
        return data.astype(np.uint64)

    def _refuse(self, bad: NDArray[np.bool_], box: Box, what: str, remedy: str) -> None:
        if (sections := bad.any((1, 2))).any():
            raise DataError(f"{self.path}: section {box.start[0] + int(sections.argmax())} holds {what}; {remedy}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def class_ids(path: str, found: Iterable[str], asked: Mapping[int, str] | None) -> dict[str, int]:
    """Return the id of each class name: as `asked` says, or else 1, 2, ... in the order found.

    Raises:
        DataError: where a class is found that was not asked for.
    """
    distinct = list(dict.fromkeys(found))
    if not asked:
        return {name: k for k, name in enumerate(distinct, start=1)}
    ids = {name: k for k, name in asked.items()}
    if unknown := [name for name in distinct if name not in ids]:
        raise DataError(
            f"{path}: holds '{unknown[0]}', the names given are {', '.join(ids)}; rename it, or give it an id too"
        )
    return {name: ids[name] for name in distinct}
