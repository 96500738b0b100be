"""Skeletons of neurites, as people trace them: read from SWC and webKnossos NML files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, UsageError, surroundings
from ..volumes.volume import NANOMETRES, Nanometres

_NONE = (-1, 0)
"""What stands for no parent; some programs number nodes from 1 and write 0."""


@dataclass(frozen=True, eq=False)
class Skeletons:
    """Skeletons as one graph.

    `names` says what each is called, `sources` which file it comes from.  Node i lies at `places[i]`
    (z, y, x), nm, belongs to the skeleton `skeleton[i]` and has the number `numbers[i]` in its file; `edges`
    (m, 2) are pairs of nodes.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    places: NDArray[np.float64]
    skeleton: NDArray[np.intp]
    numbers: NDArray[np.int64]
    edges: NDArray[np.intp]

    @property
    def lengths(self) -> NDArray[np.float64]:
        """The length of each edge in nm."""
        ends = self.places[self.edges]
        return np.asarray(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1))

    @classmethod
    def of(cls, skeletons: Sequence["Skeleton"]) -> "Skeletons":
        """Put skeletons together."""
        sizes = [len(s.places) for s in skeletons]
        first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)
        edges = [np.reshape(s.edges, (-1, 2)).astype(np.intp) + f for s, f in zip(skeletons, first, strict=False)]
        return cls(
            tuple(s.name for s in skeletons),
            tuple(s.source for s in skeletons),
            np.concatenate([np.empty((0, 3)), *(np.reshape(s.places, (-1, 3)) for s in skeletons)]),
            np.repeat(np.arange(len(sizes)), sizes),
            np.concatenate([np.empty(0, np.int64), *(np.array(s.numbers, np.int64) for s in skeletons)]),
            np.concatenate([np.empty((0, 2), np.intp), *edges]),
        )


class Skeleton(NamedTuple):
    """One skeleton: places (n, 3) of its nodes (z, y, x), nm, their numbers in its file, and edges (m, 2)."""

    name: str
    source: str
    numbers: Sequence[int]
    places: Sequence[Sequence[float]] | NDArray[np.float64]
    edges: Sequence[tuple[int, int]] | NDArray[np.integer]


def read_skeletons(path: str, *, unit: str = "nm", voxel_size: Nanometres = (1.0, 1.0, 1.0)) -> Skeletons:
    """Read an SWC or NML file, or all in a folder.

    An SWC file is one skeleton, named like the file, with positions from the origin of the volume's coordinates in
    a `unit`: nm, nanometres as connectomics has it (kimimaro, CAVE, Neuroglancer), um, as neuroanatomy
    has it (NeuroMorpho), or voxels of `voxel_size` (z, y, x), nm.  In an NML file of webKnossos or KNOSSOS
    each tree is a skeleton; positions are voxels whose size the file knows.

    Raises:
        UsageError: where the unit is unknown.
        DataError: where a file is damaged, has no node or edge, or a node's parent is missing or its descendant.
    """
    scales = {"nm": (1.0, 1.0, 1.0), "um": (1e3, 1e3, 1e3), "voxels": voxel_size}
    if unit not in scales:
        raise UsageError(f"skeleton unit '{unit}': choose one of {', '.join(scales)}")
    scale = scales[unit]
    found = []
    for file in _files(path):
        found += list(_read_nml(file)) if file.suffix.lower() == ".nml" else [_read_swc(file, scale)]
    skeletons = Skeletons.of(found)
    if not skeletons.lengths.any():
        raise DataError(f"{path}: no skeleton has an edge with a length, so there is nothing to score; check the files")
    return skeletons


def _files(path: str) -> list[Path]:
    place = Path(path).expanduser()
    if place.is_file():
        if place.suffix.lower() not in (".swc", ".nml"):
            raise DataError(f"{path}: not a skeleton file; give an .swc or .nml file, or a folder of them")
        return [place]
    if not place.is_dir():
        raise DataError(f"{path}: no such file or folder; give an .swc or .nml file, or a folder of them")
    files = sorted(file for file in place.iterdir() if file.suffix.lower() in (".swc", ".nml"))
    if not files:
        raise DataError(f"{path}: holds no .swc or .nml file; name the folder that does")
    return files


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise surroundings(error, str(file)) or DataError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not a text file; export the skeleton again") from None


def _read_swc(file: Path, scale: Nanometres) -> Skeleton:
    """Read `number type x y z radius parent` lines (Cannon et al., J. Neuroscience Methods 84:49, 1998)."""
    row: dict[int, int] = {}
    places: list[list[float]] = []
    parents = []
    sz, sy, sx = scale
    for line, text in enumerate(_text(file).splitlines(), 1):
        words = text.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            (x, y, z), number, parent = (float(w) for w in words[2:5]), _whole(words[0]), _whole(words[6])
        except (ValueError, IndexError):
            raise DataError(
                f"{file}: line {line}: '{text.strip()[:60]}' is not 'number type x y z radius parent'; correct it"
            ) from None
        _require_finite(file, number, (z, y, x))
        if number in row:
            raise DataError(f"{file}: line {line}: node {number} is there twice; number the nodes anew")
        row[number] = len(places)
        places.append([z * sz, y * sy, x * sx])
        parents.append((number, parent))
    if not places:
        raise DataError(f"{file}: holds no node; remove the file or export the skeleton again")
    edges = []
    for number, parent in parents:
        if parent in row:
            edges.append((row[number], row[parent]))
        elif parent not in _NONE:
            raise DataError(
                f"{file}: node {number}: its parent, node {parent}, is missing; make it -1, or add the node"
            )
    _require_trees(file, list(row), edges)
    return Skeleton(file.stem, str(file), list(row), places, edges)


def _whole(text: str) -> int:
    """Read a whole number; some programs write all columns as floating point."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def _require_trees(file: Path, numbers: Sequence[int], edges: Sequence[tuple[int, int]]) -> None:
    """Check that from every node of an SWC file, parent by parent, one comes to a root."""
    parent = dict(edges)
    ends: set[int] = set()
    for node in range(len(numbers)):
        way = []
        while node in parent and node not in ends:
            ends.add(node)
            way.append(node)
            node = parent[node]
        if node in way:
            raise DataError(f"{file}: node {numbers[node]} is its own ancestor; cut the cycle at one of its parents")


def _read_nml(file: Path) -> Iterator[Skeleton]:
    """Read the trees of a webKnossos or KNOSSOS file."""
    try:
        root = ElementTree.fromstring(_text(file))
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: damaged XML ({error}); download the annotation again") from None
    size = _scale(file, root)
    things = list(root.iter("thing"))
    if not any(thing.find("nodes/node") is not None for thing in things):
        raise DataError(f"{file}: holds no tree with a node; remove the file, or export the skeletons again")
    for thing in things:
        name = thing.get("name") or f"{file.stem} {thing.get('id')}"
        row: dict[int, int] = {}
        places: list[list[float]] = []
        for node in thing.iterfind("nodes/node"):
            number, x, y, z = _attributes(file, name, node, ("id", "x", "y", "z"))
            _require_finite(file, int(number), (z, y, x))
            if int(number) in row:
                raise DataError(f"{file}: tree '{name}': node {number:g} is there twice; export the skeletons again")
            row[int(number)] = len(places)
            places.append([v * s for v, s in zip((z, y, x), size, strict=True)])
        edges = []
        for edge in thing.iterfind("edges/edge"):
            ends = [int(end) for end in _attributes(file, name, edge, ("source", "target"))]
            if missing := [end for end in ends if end not in row]:
                raise DataError(
                    f"{file}: tree '{name}': an edge ends at node {missing[0]}, which is missing; add it, or remove it"
                )
            edges.append((row[ends[0]], row[ends[1]]))
        if places:
            yield Skeleton(name, str(file), list(row), places, edges)


def _scale(file: Path, root: ElementTree.Element) -> Nanometres:
    """Return the size of a voxel (z, y, x) in nm."""
    element = root.find("parameters/scale")
    if element is None:
        raise DataError(f"{file}: parameters/scale, the size of a voxel, is missing; add it, or download it again")
    unit = element.get("unit", "nanometer")
    if unit not in NANOMETRES:
        raise DataError(
            f"{file}: parameters/scale: unknown unit '{unit}'; correct it to one of {', '.join(NANOMETRES)}"
        )
    x, y, z = (NANOMETRES[unit] * v for v in _attributes(file, "", element, ("x", "y", "z")))
    if not all(0 < v < inf for v in (z, y, x)):
        raise DataError(f"{file}: parameters/scale: is {x:g}, {y:g}, {z:g} nm; correct it to lengths above 0")
    return z, y, x


def _attributes(file: Path, tree: str, element: ElementTree.Element, names: Sequence[str]) -> list[float]:
    where = f"{file}: tree '{tree}'" if tree else f"{file}"
    found = []
    for name in names:
        try:
            found.append(float(element.attrib[name]))
        except (KeyError, ValueError):
            value = f"is '{element.attrib[name]}', not a number" if name in element.attrib else "is missing"
            raise DataError(f"{where}: <{element.tag}>: {name} {value}; export the skeletons again") from None
    return found


def _require_finite(file: Path, number: int, place: Sequence[float]) -> None:
    if not all(isfinite(v) for v in place):
        raise DataError(f"{file}: node {number}: its position is not a number; correct it, or remove the node")
