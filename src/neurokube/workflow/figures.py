"""What stages were measured to store and to hold, for an estimate before anything has run.

Lowest and highest of what `python -m benchmarks.planning figures` found on tissue of 10 x 10 x 10, 50 x 4.6 x 4.6 and
(synthetic) 40 x 8 x 8 nm, with and without a network, see benchmarks/RESULTS.md.  A calibration knows better.
"""

from math import sqrt

from .quantities import Range

BEYOND = 1.5
"""How far other tissue is expected to lie outside of what was measured, at the most."""

SHARES = {
    "boundaries": (0.61, 0.70),
    "fragments": (0.0077, 0.0183),
    "fusion": (0.65, 0.65),
    "objects": (0.0065, 0.0175),
    "segmentation": (0.0077, 0.0154),
    "semantics": (0.26, 0.69),
    "superresolution": (0.86, 0.86),
    "synthesis": (0.096, 0.096),
    # an image as grainy as that of superresolution
    "translation": (0.86, 0.86),
}
"""Bytes that are stored for each byte of volumes before compression, by the kind of stage."""

TABLES = {
    "fragments/fragments": (0.00101, 0.0088),
    "graph/edges": (0.091, 0.83),
    "lifted/doubtless": (0.00011, 0.00011),
    "lifted/evidence": (0.0117, 0.0117),
    "lifted/far": (0.0012, 0.0012),
    "lifted/lifted": (0.0012, 0.0012),
    "measurements/counts": (0.0187, 0.2),
    "measurements/table": (0.0144, 0.149),
    "multicut/costs": (0.026, 0.238),
    "multicut/last": (0.002, 0.0109),
    "multicut/level": (0.0025, 0.0176),
    "multicut/reduce": (0.045, 0.203),
    "multicut/segments": (0.00101, 0.0088),
    "objects/links": (0.000037, 0.00035),
    "objects/numbers": (0.00017, 0.0047),
    "objects/pieces": (0.22, 0.46),
    "segmentation/segmentation": (0.002, 0.0176),
}
"""Bytes of tables and files for each voxel that a step goes over, beside HEADER, by `kind/step` without a level."""

HEADER = 128
"""Bytes of a table without rows."""

BARE = 107 * 2**20
"""Bytes of a worker's Python and libraries."""

HELD = {
    "boundaries/boundaries": 254,
    "fragments/fragments": 217,
    "fusion/fusion": 55,
    "graph/edges": 206,
    "lifted/evidence": 131,
    "measurements/counts": 165,
    "objects/objects": 98,
    "objects/pieces": 99,
    "pyramid": 235,
    "segmentation/segmentation": 207,
    "synthesis/synthesis": 143,
}
"""Bytes that a worker holds for each voxel of a cell, the most of what was measured."""

OTHERS_HELD = 100
"""The same of steps that go over tables only."""

GROWING = {"multicut/last": 0.06}
"""Bytes for each voxel of the volume, of steps that are one block: at a teravoxel, by what 2 Gvoxel took."""


def expected(measured: tuple[float, float] | None) -> Range:
    """Return what is expected of other tissue, from the lowest and highest that were measured."""
    low, high = measured or (0.0, 0.0)
    return Range(low / BEYOND, sqrt(low * high), high * BEYOND)
