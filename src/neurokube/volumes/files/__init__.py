"""Files of other tools: one module a format, each with what reads it, writes it, or both.

`WRITERS` holds those that write, by the name that `neurokube export --format` takes; `relabelled` renumbers labels
for formats whose integers are too short for them.
"""

from . import hdf5, mrc
from .relabelling import Relabelling, relabelled
from .writing import Sections, Writer

WRITERS: dict[str, Writer] = {writer.name: writer for writer in (hdf5.WRITER, mrc.WRITER)}

__all__ = ["WRITERS", "Relabelling", "Sections", "Writer", "relabelled"]
