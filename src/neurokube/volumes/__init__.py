"""Volumes on disk and in object stores: open, create, import, look at, downsample.

A volume is a multiscale OME-NGFF 0.5 image (Zarr v3, sharded) with axes (z, y, x) or (c, z, y, x), a
voxel size and an offset in nanometres.  Nothing here knows about stages.
"""

from .store import Store, join
from .volume import Volume, VolumeSpec, create, exists, layout, open_volume, pyramid_factors

__all__ = [
    "Store",
    "Volume",
    "VolumeSpec",
    "create",
    "exists",
    "join",
    "layout",
    "open_volume",
    "pyramid_factors",
]
