"""Zarr v2 and v3: plain arrays, as napari's Labels layers are saved, and OME-Zarr images of labels."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import DataError
from ..files.reading import blaming
from ..volume import NANOMETRES, Nanometres, _placed
from .arrays import LabelArray, arrays_below, driver_of, listing
from .painted import Painted


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((folder / name).is_file() for name in (".zarray", ".zgroup", "zarr.json"))


def open_zarr(path: str, dataset: str | None) -> Painted:
    """Open a Zarr array of labels, or the finest resolution of an OME-Zarr image; `dataset` is a path inside.

    Other axes than z, y and x must have length 1.  The voxel size and the place of an OME-Zarr image are those
    of its metadata, where that gives axes a unit or a scale other than 1.

    Raises:
        DataError: where it is damaged, or holds several arrays and none is chosen.
    """
    root = Path(path).expanduser()
    folder = root / dataset if dataset else root
    with blaming(path):
        found = _ome(folder) if is_zarr(folder) else None
    if found is None:
        return _painted(LabelArray(_only_array(path, root, folder)))
    return _painted(LabelArray(folder / found.path, found.axes), found.voxel_size, found.place)


def _painted(array: LabelArray, voxel_size: Nanometres | None = None, place: Nanometres | None = None) -> Painted:
    return Painted(
        path=array.path,
        description="Zarr array",
        extent=array.box,
        read=array.read,
        occupied=array.occupied,
        fit="stack",
        voxel_size=voxel_size,
        place=place,
    )


def _only_array(path: str, root: Path, folder: Path) -> Path:
    if driver_of(folder):
        return folder
    found = list(arrays_below(folder if folder.is_dir() else root))
    if folder.is_dir() and len(found) == 1:
        return found[0]
    raise DataError(f"{path}: choose an array of labels with --dataset; it holds {listing(root, found)}")


class _Ome(NamedTuple):
    path: str
    axes: list[int]
    voxel_size: Nanometres | None
    place: Nanometres | None


def _ome(folder: Path) -> _Ome | None:
    """Return what OME-NGFF metadata, 0.3 to 0.5, says of the finest resolution; None where there is none."""
    attributes = _attributes(folder)
    scales = attributes.get("ome", attributes).get("multiscales")
    if not scales:
        return None
    finest = scales[0]["datasets"][0]
    axes = [axis if isinstance(axis, str) else axis["name"] for axis in scales[0].get("axes", "tczyx")]
    units = {axis["name"]: axis.get("unit") for axis in scales[0].get("axes", ()) if isinstance(axis, dict)}
    spatial = [name for name in "zyx" if name in axes]
    if len(spatial) < 2:
        raise DataError(f"{folder}: has axes {', '.join(axes)}; labels need y and x")
    positions = [axes.index(name) for name in spatial]
    transformations = [*finest.get("coordinateTransformations", ())]
    transformations += scales[0].get("coordinateTransformations") or []
    scale, translation = _placed(str(folder), transformations, len(axes))
    if len(spatial) < 3 or (all(scale[k] == 1 for k in positions) and not any(units.get(name) for name in spatial)):
        return _Ome(finest["path"], positions, None, None)
    nm = [NANOMETRES[units.get(name) or "nanometer"] for name in spatial]
    (sz, sy, sx), (tz, ty, tx) = ([v[k] * n for k, n in zip(positions, nm, strict=True)] for v in (scale, translation))
    return _Ome(finest["path"], positions, (sz, sy, sx), (tz, ty, tx) if transformations else None)


def _attributes(folder: Path) -> Mapping[str, Any]:
    if (folder / "zarr.json").is_file():
        return dict(json.loads((folder / "zarr.json").read_text()).get("attributes") or {})
    file = folder / ".zattrs"
    return dict(json.loads(file.read_text())) if file.is_file() else {}
