"""Pure geometry: boxes, canonical grids, blocks, halos, windows and blending weights.

Axis order is (z, y, x) throughout; a coordinate is a voxel index.  Nothing here reads or writes data.
"""

from .blending import Blend, quantized
from .box import Box, Vector, parse_region
from .grid import Blocks, Grid, WindowGrid

__all__ = ["Blend", "Blocks", "Box", "Grid", "Vector", "WindowGrid", "parse_region", "quantized"]
