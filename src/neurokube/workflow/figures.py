"""What stages were measured to store and to hold, for an estimate before anything has run.

Ratios and bytes are the lowest, the usual and the highest of the runs that `benchmarks/planning.py figures` measured:
tissue at 10 x 10 x 10, 50 x 4.6 x 4.6 and (synthetic) 40 x 8 x 8 nm, with and without a network; see
benchmarks/RESULTS.md.  Other tissue may lie outside: calibration measures it.
"""

from .quantities import Range

SHARES: dict[str, Range] = {}
"""Bytes that are stored for each byte of a volume before compression, by the kind of stage."""

TABLES: dict[str, Range] = {}
"""Bytes of tables and files for each voxel that the stage reads, by `kind/step`, without the number of a level."""

HEADER = 128
"""Bytes of a table without rows."""

BARE = 110 * 2**20
"""Bytes of a worker's Python and libraries."""

HELD: dict[str, float] = {"pyramid": 20.0}
"""Bytes that a worker holds for each voxel of a cell, by `kind/step`."""

GROWING: dict[str, float] = {"multicut/last": 0.06}
"""Bytes for each voxel of the volume, of steps that are one block."""
