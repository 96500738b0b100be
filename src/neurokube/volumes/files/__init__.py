"""Files of other tools: one module a format, each with what reads it, writes it, or both.

`WRITERS` holds those that write, by the name that `neurokube export --format` takes; `relabelled` renumbers labels
for formats whose integers are too short for them.
"""

from . import amira, hdf5, mrc, nifti, nrrd, slices, tiff
from .relabelling import Relabelling, relabelled
from .writing import Sections, Writer

WRITERS: dict[str, Writer] = {
    writer.name: writer
    for writer in (hdf5.WRITER, nrrd.WRITER, nifti.WRITER, mrc.WRITER, amira.WRITER, *tiff.WRITERS, *slices.WRITERS)
}

__all__ = ["WRITERS", "Relabelling", "Sections", "Writer", "relabelled"]
