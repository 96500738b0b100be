"""Edges of fragment graphs with their truth: whether both fragments are parts of one body, or of two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, parse_region
from ..engines.base import Engine
from ..errors import ConfigurationError, DataError
from ..evaluation import Contingency, ContingencySum
from ..stages.features import missing_channels, read_features
from ..stages.graph import fragment_ids
from ..training.config import GraphVolume
from ..volumes import Volume, open_volume
from ..volumes.resampling import ALIKE
from ..volumes.volume import nanometres
from ..workflow.graphs import MeasuredGraph, graph_of_run, graph_of_workflow

Ids = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class AnnotatedGraph:
    """A graph and the edges whose truth is known: row `rows[k]` of tile `tiles[k]`; `boundary` says that it parts."""

    entry: GraphVolume
    graph: MeasuredGraph
    truth: Volume
    tiles: NDArray[np.intp]
    rows: NDArray[np.intp]
    boundary: NDArray[np.bool_]

    def features(self, channels: Sequence[str], chosen: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the features of some of the edges, (n, f); tile by tile, of which only these are kept."""
        tiles, rows = self.tiles[chosen], self.rows[chosen]
        size = self.graph.spec.voxel_size
        found = [
            read_features(int(tile), self.graph.data, self.graph.tiles, channels, size)[rows[tiles == tile]]
            for tile in np.unique(tiles)
        ]
        return np.concatenate(found)

    def told(self, role: str) -> dict[str, Any]:
        """Return what a card says of it."""
        return {
            "role": role,
            # where it lay says little elsewhere, and is nobody's business
            "run": "/".join(self.graph.run.rstrip("/").split("/")[-2:]),
            "graph": self.graph.key,
            "truth": "/".join(self.entry.truth.rstrip("/").split("/")[-2:]),
            "fingerprint": self.truth.fingerprint,
            "region": self.entry.region,
            "shape": list(self.graph.spec.shape),
            "voxel_size": list(self.graph.spec.voxel_size),
            "edges": len(self.boundary),
            "boundaries": int(self.boundary.sum()),
        }


def load(
    entry: GraphVolume, *, smallest: int, share: float, engine: Callable[[], Engine], quiet: bool = False
) -> AnnotatedGraph:
    """Return the edges of a graph whose truth is known.

    A fragment is part of the body that holds most of its voxels, at least `share` of all it has; others, and those in
    bodies of fewer than `smallest` voxels or in none, are left out with their edges.  Voxels are counted tile by tile.

    Raises:
        ConfigurationError: where there is no graph.
        DataError: where the truth is none, lies elsewhere, or tells of no edge.
    """
    region = None if entry.region is None else parse_region(entry.region)
    if entry.run is not None:
        graph = graph_of_run(entry.run, entry.graph)
        part = graph.spec.box if region is None else region
    else:
        assert entry.workflow is not None
        graph = graph_of_workflow(entry.workflow, entry.graph, region=region, engine=engine, quiet=quiet)
        part = graph.spec.box
    if not graph.spec.box.contains(part):
        raise DataError(f"{entry.path}: region {part} is not inside its fragments {graph.spec.box}; choose one that is")
    truth = _Truth(entry, graph, part)
    bodies = _bodies(graph, truth, smallest, share)
    tiles, rows, flags = [], [], []
    for cell in truth.cells:
        edges = graph.data.table("graph.edges", cell)
        ends = bodies.of(edges)
        known = np.flatnonzero((ends > 0).all(1))
        tiles.append(np.full(len(known), cell))
        rows.append(known)
        flags.append(ends[known, 0] != ends[known, 1])
    boundary = np.concatenate(flags)
    if not len(boundary):
        raise DataError(
            f"{entry.truth}: of no edge of {entry.path} lie both fragments in bodies; check its offset, 'region', "
            f"'smallest' ({smallest}) and 'share' ({share:g})"
        )
    return AnnotatedGraph(entry, graph, truth.volume, np.concatenate(tiles), np.concatenate(rows), boundary)


class _Truth:
    """The bodies of a truth volume, read in voxels of the fragments, in the part that is used."""

    def __init__(self, entry: GraphVolume, graph: MeasuredGraph, part: Box) -> None:
        self.volume = open_volume(entry.truth)
        spec, ours = self.volume.spec, graph.spec
        if np.dtype(spec.dtype).kind != "u" or spec.kind != "labels" or spec.channels is not None:
            raise DataError(f"{entry.truth}: holds {spec.dtype} {spec.kind}, no bodies; import it with --labels")
        if any(abs(a / b - 1) > ALIKE for a, b in zip(spec.voxel_size, ours.voxel_size, strict=True)):
            raise DataError(
                f"{entry.truth}: its voxels are {nanometres(spec.voxel_size)}, the fragments of {entry.path} have "
                f"{nanometres(ours.voxel_size)}; import it with their voxel size"
            )
        moved = [(a - b) / v for a, b, v in zip(spec.offset, ours.offset, ours.voxel_size, strict=True)]
        z, y, x = (round(m) for m in moved)
        self._box = Box.of(spec.shape).shift((z, y, x))  # in voxels of the fragments
        self._inside = self._box.clip(part)
        if self._inside.size == 0:
            raise DataError(
                f"{entry.truth}: lies at {self._box} of {entry.path}, outside the part that is used ({part}); "
                "check its offset and the region"
            )
        tiles = graph.tiles
        self.cells = [cell for cell in range(len(tiles)) if tiles.box(cell).clip(self._inside).size]

    def read(self, tile: Box) -> tuple[Box, Ids]:
        """Return the part of a tile that is used, and the bodies in it."""
        box = tile.clip(self._inside)
        return box, self.volume.read(box.relative_to(self._box.start)).astype(np.uint64)


@dataclass(frozen=True, eq=False)
class _Bodies:
    """The body of each fragment that has one; fragments ascending."""

    fragments: Ids
    bodies: Ids

    def of(self, ids: Ids) -> Ids:
        """Return the body of each of some fragments, 0 where it has none; any shape."""
        if not len(self.fragments):
            return np.zeros_like(ids)
        place = np.minimum(np.searchsorted(self.fragments, ids), len(self.fragments) - 1)
        return np.where(self.fragments[place] == ids, self.bodies[place], np.uint64(0))


def _bodies(graph: MeasuredGraph, truth: _Truth, smallest: int, share: float) -> _Bodies:
    shared = ContingencySum()
    fragments = graph.data.volume("fragments")
    for cell in truth.cells:
        box, bodies = truth.read(graph.tiles.box(cell))
        shared.add(Contingency.of(fragments.read(box), bodies))
    table = shared.result()
    _, voxels, body = table.sizes(table.truth)
    table = table.where((voxels[body] >= smallest) & (table.prediction > 0))
    # the first of each fragment's rows is that of the body with most of it, of equal ones the lowest
    table = table.where(np.lexsort((table.truth, -table.count, table.prediction)))
    first = np.ones(len(table), bool)
    first[1:] = table.prediction[1:] != table.prediction[:-1]
    table = table.where(first)
    sizes = [graph.data.table("fragments.sizes", cell) for cell in truth.cells]
    ids = np.concatenate([fragment_ids(graph.tiles, c, len(s)) for c, s in zip(truth.cells, sizes, strict=True)])
    enough = table.count >= share * np.concatenate(sizes)[np.searchsorted(ids, table.prediction)]
    return _Bodies(table.prediction[enough], table.truth[enough])


def check_channels(volumes: Sequence[AnnotatedGraph], channels: Sequence[str]) -> None:
    """Check that edges were measured on these channels and filters in all graphs.

    Raises:
        ConfigurationError: names the graph and what it lacks.
    """
    for volume in volumes:
        stage = volume.graph.stage
        if missing := missing_channels(channels, dict.fromkeys(stage.tables)):
            raise ConfigurationError(
                f"{volume.entry.path}: its graph has not measured edges on {missing[0]}; add it to the channels or "
                "filters of the graph, or name the 'channels' to learn from"
            )
