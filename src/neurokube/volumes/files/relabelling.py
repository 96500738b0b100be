"""Consecutive relabelling: labels numbered from 1 on, for formats whose integers are too short for them."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..volume import VolumeSpec
from .writing import Sections, Writer, batches, whole_file


@dataclass(frozen=True)
class Relabelling:
    """`ids[k]` is the old label of the new label k + 1, ascending; 0 stays 0.

    `spec` and `sections` describe the volume with its new labels, as a `Writer` takes them.
    """

    ids: NDArray[np.uint64]
    spec: VolumeSpec
    sections: Sections

    def write_table(self, path: Path) -> None:
        """Write the old label of every new one as CSV, with the columns `label` and `id`."""
        with whole_file(path) as work, work.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("label", "id"))
            rows.writerows(enumerate(self.ids.tolist(), start=1))


def relabelled(writer: Writer, spec: VolumeSpec, sections: Sections) -> Relabelling:
    """Return labels renumbered, in order, as the narrowest integers that the format has for them.

    Reads all sections once, a few at a time; memory grows with the number of labels only.

    Raises:
        UsageError: where it is no volume of labels, or has more labels than the format can tell apart.
    """
    if spec.kind != "labels" or np.dtype(spec.dtype).kind != "u":
        raise UsageError("--relabel is for labels: images keep their values; leave it out")
    ids = np.zeros(0, np.uint64)
    for start, stop in batches(spec):
        ids = np.union1d(ids, np.unique(sections(start, stop)).astype(np.uint64))
    ids = ids[ids != 0]
    fitting = [d for d in writer.label_dtypes if np.dtype(d).kind == "u" and len(ids) <= np.iinfo(d).max]
    if not fitting:
        raise UsageError(
            f"{writer.name}: cannot tell the {len(ids)} labels of the volume apart; export a smaller region, "
            "or use --format hdf5"
        )
    dtype = np.dtype(fitting[0])

    def renumbered(start: int, stop: int) -> NDArray[Any]:
        old = sections(start, stop)
        new = (np.searchsorted(ids, old.astype(np.uint64)) + 1).astype(dtype)
        new[old == 0] = 0
        return new

    return Relabelling(ids, replace(spec, dtype=dtype.name), renumbered)
