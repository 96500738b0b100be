"""Annotations and datasets of webKnossos: a downloaded zip, or a folder with datasource-properties.json."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree
from zipfile import ZipFile

from ...errors import DataError
from ..files.reading import blaming
from ..volume import NANOMETRES, Nanometres
from .arrays import LabelArray, driver_of
from .painted import Painted

PROPERTIES = "datasource-properties.json"
_REMEDY = "download the annotation again, with its volume data as Zarr"


def is_webknossos(folder: Path) -> bool:
    """Whether a folder is a webKnossos dataset, or what a downloaded annotation unpacks to."""
    return (folder / PROPERTIES).is_file() or any(folder.glob("*.nml"))


def open_webknossos(path: str, dataset: str | None) -> Painted:
    """Open a volume annotation or a segmentation layer of webKnossos, at its finest magnification.

    `dataset` names the layer where there are several.  Voxel (0, 0, 0) is that of the webKnossos dataset.  Names of
    segments are those of the annotation's .nml.

    Raises:
        DataError: where there is no volume data, or none that can be read, as in the WKW format.
    """
    file = Path(path).expanduser()
    with ExitStack() as unpacked:
        folder = file if file.is_dir() else _unpack(path, file, unpacked)
        if (folder / PROPERTIES).is_file():
            layer = _layer(path, folder, dataset, _Annotated())
        else:
            layer = _annotation(path, folder, dataset, unpacked)
        return replace(layer, close=unpacked.pop_all().close)


def _unpack(path: str, file: Path, unpacked: ExitStack) -> Path:
    """Unpack a zip, which holds a file a chunk, until `unpacked` is closed."""
    folder = Path(unpacked.enter_context(TemporaryDirectory(prefix="neurokube-")))
    with blaming(path), ZipFile(file) as archive:
        archive.extractall(folder)
    inside = [found.parent for found in folder.glob(f"*/{PROPERTIES}")]
    return inside[0] if len(inside) == 1 and not is_webknossos(folder) else folder


def _annotation(path: str, folder: Path, dataset: str | None, unpacked: ExitStack) -> Painted:
    """Return the volume layer of a downloaded annotation: an .nml beside a zip for each layer."""
    nmls = sorted(folder.glob("*.nml"))
    if len(nmls) != 1:
        raise DataError(f"{path}: holds {len(nmls)} .nml files and no {PROPERTIES}; give one annotation at a time")
    with blaming(f"{path}: {nmls[0].name}"):
        chosen = _choose(path, _annotated(nmls[0]), dataset)
    data = folder / chosen.location
    if not data.is_file():
        raise DataError(f"{path}: layer '{chosen.name}' has no volume data; {_REMEDY}")
    if chosen.format in (None, "wkw"):
        raise DataError(f"{path}: layer '{chosen.name}' is stored as WKW, which is not read here; {_REMEDY}")
    return _layer(path, _unpack(f"{path}: {data.name}", data, unpacked), None, chosen)


@dataclass(frozen=True)
class _Annotated:
    """What an .nml says of a volume layer."""

    name: str = ""
    location: str = ""
    format: str | None = "zarr3"
    fallback: str | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    scale: Nanometres | None = None


def _annotated(nml: Path) -> list[_Annotated]:
    root = ElementTree.parse(nml).getroot()
    scale = root.find("parameters/scale")
    size = None if scale is None else _nanometres([float(scale.attrib[a]) for a in "xyz"], scale.get("unit"))
    return [
        _Annotated(
            name=volume.get("name") or f"volume {volume.get('id')}",
            location=volume.get("location", ""),
            format=volume.get("format"),
            fallback=volume.get("fallbackLayer"),
            names={int(s.attrib["id"]): s.attrib["name"] for s in volume.iter("segment") if s.get("name")},
            scale=size,
        )
        for volume in root.iter("volume")
    ]


def _choose(path: str, found: Sequence[_Annotated], dataset: str | None) -> _Annotated:
    chosen = [volume for volume in found if dataset in (None, volume.name)]
    if not found:
        raise DataError(f"{path}: holds no volume layer, only skeletons; {_REMEDY}")
    if len(chosen) != 1:
        names = ", ".join(volume.name for volume in found)
        raise DataError(f"{path}: choose a volume layer with --dataset; it holds {names}")
    return chosen[0]


def _nanometres(xyz: Sequence[float], unit: str | None) -> Nanometres:
    x, y, z = (value * NANOMETRES[unit or "nanometer"] for value in xyz)
    return z, y, x


def _layer(path: str, folder: Path, dataset: str | None, annotated: _Annotated) -> Painted:
    """Return the segmentation layer of a folder, or the one named `dataset`."""
    with blaming(f"{path}: {PROPERTIES}"):
        properties = json.loads((folder / PROPERTIES).read_text())
        layer = _segmentation(path, properties["dataLayers"], dataset)
        mags = layer.get("mags") or [{"mag": mag} for mag in layer.get("resolutions", ())]
        finest = min(mags, key=lambda entry: sum(_mag(entry)))
        size, (mz, my, mx) = _scale(properties["scale"]) or annotated.scale, _mag(finest)
        stored = _folder(path, folder, layer["name"], finest)
        axes = _axes(stored, finest)
    shown = f"{path}: layer '{annotated.name or layer['name']}'"
    array = LabelArray(stored, axes, shown)
    fallback = annotated.fallback
    return Painted(
        path=shown,
        description=f"webKnossos layer at magnification {mx}-{my}-{mz}",
        extent=array.box,
        read=array.read,
        occupied=array.occupied,
        fit="paint",
        voxel_size=(size[0] * mz, size[1] * my, size[2] * mx) if size else None,
        names=annotated.names,
        remarks=(f"only what was edited is there, the rest of layer '{fallback}' is not",) if fallback else (),
    )


def _segmentation(path: str, layers: Sequence[Mapping[str, Any]], dataset: str | None) -> Mapping[str, Any]:
    found = [layer for layer in layers if layer.get("category") == "segmentation"]
    chosen = [layer for layer in found if dataset in (None, layer["name"])]
    if len(chosen) != 1:
        names = ", ".join(layer["name"] for layer in found) or "none"
        raise DataError(f"{path}: choose a segmentation layer with --dataset; it holds {names}")
    if chosen[0].get("dataFormat", "wkw") == "wkw":
        raise DataError(f"{path}: layer '{chosen[0]['name']}' is stored as WKW, which is not read here; {_REMEDY}")
    return chosen[0]


def _scale(scale: Any) -> Nanometres | None:
    """Return the size of a voxel; 1 nm stands for one that was not known when the annotation was downloaded."""
    if isinstance(scale, dict):
        return _nanometres(scale["factor"], scale.get("unit"))
    return None if list(scale) == [1, 1, 1] else _nanometres(scale, None)


def _mag(entry: Mapping[str, Any]) -> tuple[int, int, int]:
    mag = entry["mag"]
    values = [int(m) for m in mag.split("-")] if isinstance(mag, str) else mag if isinstance(mag, list) else [mag]
    x, y, z = values * 3 if len(values) == 1 else values
    return z, y, x


def _folder(path: str, folder: Path, layer: str, entry: Mapping[str, Any]) -> Path:
    z, y, x = _mag(entry)
    names = [f"{layer}/{x}-{y}-{z}"] + [f"{layer}/{x}"] * (x == y == z)
    if "path" in entry:
        names = [entry["path"]]
    found = next((folder / name for name in names if driver_of(folder / name)), None)
    if found is None:
        raise DataError(f"{path}: no Zarr or N5 array at {' or '.join(names)}; download the layer again")
    return found


def _axes(stored: Path, entry: Mapping[str, Any]) -> list[int]:
    """Return which stored axes are z, y and x; webKnossos takes them for the last three, in order x, y, z."""
    order = entry.get("axisOrder")
    if order is None:
        rank = len(_shape(stored))
        order = {"x": rank - 3, "y": rank - 2, "z": rank - 1}
    return [order["z"], order["y"], order["x"]]


def _shape(stored: Path) -> list[int]:
    for name, key in ((".zarray", "shape"), ("zarr.json", "shape"), ("attributes.json", "dimensions")):
        if (stored / name).is_file():
            return list(json.loads((stored / name).read_text())[key])
    return []
