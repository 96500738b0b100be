"""Volumes in the chunked formats of other tools: what a folder or URL holds is told by the metadata it has.

A module a format: OME-Zarr 0.4, N5 (plain, n5-viewer, COSEM), Paintera, BigDataViewer, and Neuroglancer
precomputed.  Each turns metadata into a `Volume` and a `VolumeSpec` into a `Target`; arrays are tensorstore's.
"""

from collections.abc import Callable

from ..volume import Volume
from . import bdv, n5, ome_zarr, paintera, precomputed
from .target import Maker, Target

MAKERS: dict[str, Maker] = {
    "ome-zarr": ome_zarr.make,
    "ome-zarr-0.4": ome_zarr.make_04,
    "n5": n5.make,
    "bdv-n5": bdv.make,
    "paintera": paintera.make,
    "precomputed": precomputed.make,
}
"""What begins a volume in each format."""

_READERS: tuple[Callable[[str, bool], Volume | None], ...] = (ome_zarr.read, n5.read, precomputed.read)


def open_chunked(url: str, *, still: bool = False) -> Volume | None:
    """Open a volume of another format than OME-NGFF 0.5; None where nothing at `url` says that it is one.

    Raises:
        DataError: where its metadata cannot be understood.
    """
    if bdv.is_xml(url):
        return bdv.read(url, still)
    return next((volume for reader in _READERS if (volume := reader(url, still)) is not None), None)


__all__ = ["MAKERS", "Maker", "Target", "open_chunked"]
