"""BigDataViewer: an N5 container of setups and points of time, and an XML file that says where they lie.

Axes (x, y, z); the affine of the XML takes the centres of voxels to nanometres.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ...blocks import Vector
from ...errors import DataError
from ..store import Store, join
from ..volume import Nanometres, Volume, VolumeSpec, open_array, scaled, shaped
from .n5 import VERSION, datasets, legible
from .target import Options, Target, no_channels, turned, xyz
from .units import nanometres_of

_GROUP = "setup0/timepoint0"


def make(url: str, spec: VolumeSpec, factors: Sequence[Vector], options: Options) -> Target:
    """Begin a container of one setup at one point of time; `xml_of` gives the XML that belongs to it."""
    no_channels(spec, "bdv-n5")
    levels = datasets(join(url, _GROUP), spec, factors, options)
    documents = {f"{_GROUP}/s{k}/attributes.json": level.attributes for k, level in enumerate(levels)}
    documents[f"{_GROUP}/attributes.json"] = {
        "multiScale": True,
        "resolution": xyz(spec.voxel_size),
        "saved_completely": True,
    }
    documents["setup0/attributes.json"] = {
        "downsamplingFactors": [xyz(factor) for factor in factors],
        "dataType": spec.dtype,
    }
    documents["attributes.json"] = {"n5": VERSION, "neurokube": {"kind": spec.kind, **options.attributes}}
    return Target(url, spec, factors, [level.array for level in levels], documents)


def xml_of(spec: VolumeSpec, container: str) -> bytes:
    """Return the XML of a volume in a container, whose name is relative to the XML."""
    size, (z, y, x), (oz, oy, ox) = xyz(spec.shape), spec.voxel_size, spec.offset
    affine = (x, 0, 0, ox, 0, y, 0, oy, 0, 0, z, oz)
    root = ElementTree.Element("SpimData", version="0.2")
    _text(root, "BasePath", ".").set("type", "relative")
    sequence = ElementTree.SubElement(root, "SequenceDescription")
    loader = ElementTree.SubElement(sequence, "ImageLoader", format="bdv.n5", version="1.0")
    _text(loader, "n5", container).set("type", "relative")
    setup = ElementTree.SubElement(ElementTree.SubElement(sequence, "ViewSetups"), "ViewSetup")
    _text(setup, "id", "0")
    _text(setup, "name", PurePosixPath(container).stem)
    _text(setup, "size", " ".join(str(n) for n in size))
    voxel = ElementTree.SubElement(setup, "voxelSize")
    _text(voxel, "unit", "nm")
    _text(voxel, "size", " ".join(repr(float(v)) for v in (x, y, z)))
    times = ElementTree.SubElement(sequence, "Timepoints", type="range")
    _text(times, "first", "0")
    _text(times, "last", "0")
    registrations = ElementTree.SubElement(root, "ViewRegistrations")
    registration = ElementTree.SubElement(registrations, "ViewRegistration", timepoint="0", setup="0")
    transform = ElementTree.SubElement(registration, "ViewTransform", type="affine")
    _text(transform, "Name", "calibration")
    _text(transform, "affine", " ".join(repr(float(v)) for v in affine))
    ElementTree.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root) + b"\n"


def _text(parent: ElementTree.Element, tag: str, text: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag)
    element.text = text
    return element


# Reading

_XML = re.compile(r"(.+\.xml)(?::(\d+))?")


def is_xml(url: str) -> bool:
    """Whether a path or URL names the XML of a BigDataViewer dataset, or `FILE.xml:SETUP` one setup of it."""
    return _XML.fullmatch(url) is not None


def read(url: str, still: bool) -> Volume:
    """Open the setup of a BigDataViewer dataset, the first one where the URL names none, at its first point of time.

    Raises:
        DataError: where it is not in N5, or is turned or sheared.
    """
    match = _XML.fullmatch(url)
    assert match is not None
    file = match.group(1)
    folder, _, name = file.rpartition("/")
    content = Store(folder or ".").read(name)
    if content is None:
        raise DataError(f"{file}: no such file; give the XML of a BigDataViewer dataset")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: damaged XML ({error}); restore the file") from None
    with legible(file):
        setup = _setup(root, file, match.group(2))
        group = _container(root, file, folder or ".")
        ours = (Store(group).read_json("attributes.json") or {}).get("neurokube") or {}
        views = [v for v in root.iter("ViewRegistration") if v.get("setup") == setup.id]
        times = sorted(int(v.attrib["timepoint"]) for v in views)
        view = next(v for v in views if v.attrib["timepoint"] == str(times[0]))
        size, offset = _placed(view, setup.unit, file)
        factors = (Store(group).read_json(f"setup{setup.id}/attributes.json") or {})["downsamplingFactors"]
        arrays = [
            turned(open_array(join(group, f"setup{setup.id}/timepoint{times[0]}/s{k}"), "n5", still=still, open=True))
            for k in range(len(factors))
        ]
        sizes = tuple(scaled(size, (int(z), int(y), int(x))) for x, y, z in factors)
        spec = VolumeSpec(**shaped(arrays[0]), voxel_size=size, offset=offset, kind=ours.get("kind", "image"))
    return Volume(url, spec, tuple(arrays), ours, sizes, "n5")


@dataclass(frozen=True)
class _Setup:
    id: str
    unit: str


def _setup(root: ElementTree.Element, file: str, asked: str | None) -> _Setup:
    setups = {s.findtext("id", ""): s for s in root.iter("ViewSetup")}
    if not setups or (asked is not None and asked not in setups):
        raise DataError(f"{file}: has the setups {', '.join(setups) or 'none'}; name one of them, as {file}:0")
    number = asked if asked is not None else min(setups, key=int)
    return _Setup(number, setups[number].findtext("voxelSize/unit", "nm"))


def _container(root: ElementTree.Element, file: str, folder: str) -> str:
    loader = root.find("SequenceDescription/ImageLoader")
    if loader is None or loader.get("format") != "bdv.n5":
        found = "no image loader" if loader is None else loader.get("format")
        raise DataError(f"{file}: is stored by {found}, only bdv.n5 is read; save it as N5 in Fiji")
    element = loader.find("n5")
    if element is None or not element.text:
        raise DataError(f"{file}: names no N5 container; correct the file")
    base = root.findtext("BasePath", ".")
    if element.get("type", "relative") == "absolute" or "://" in element.text:
        return element.text
    return join(folder, base, element.text) if base != "." else join(folder, element.text)


def _placed(view: ElementTree.Element, unit: str, file: str) -> tuple[Nanometres, Nanometres]:
    """Return the voxel size and the offset that the transformations of a view come to, the last one first."""
    total: NDArray[Any] = np.eye(4)
    for transform in view.iter("ViewTransform"):
        values = [float(v) for v in transform.findtext("affine", "").split()]
        total = total @ np.vstack([np.reshape(values, (3, 4)), [0, 0, 0, 1]])
    matrix = total[:3, :3]
    if (
        not np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-6 * np.abs(matrix).max())
        or (np.diag(matrix) <= 0).any()
    ):
        raise DataError(f"{file}: its registration turns, mirrors or shears the volume; resample it in Fiji first")
    length = nanometres_of(unit, file)
    x, y, z = (np.diag(matrix) * length).tolist()
    ox, oy, oz = (total[:3, 3] * length).tolist()
    return (z, y, x), (oz, oy, ox)
