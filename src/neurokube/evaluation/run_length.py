"""Expected run length: how far one can follow a neurite in a segmentation before a split or a merge."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box, Grid, Vector
from ..errors import DataError, UsageError
from ..progress import progress
from ..volumes import Volume
from .contingency import Labels
from .pairs import as_labels, require_labels
from .skeletons import Skeletons

_SPARSE = 0.05
"""Edges of a median length under this share of a voxel's shortest side are in another unit."""


@dataclass(frozen=True)
class RunLengths:
    """Expected run lengths in nm, and the edges behind them.

    `erl` is that of the segmentation, `max_erl` of a perfect one, over `skeletons` of together `length` nm.  Of
    all `edges`, `correct` ones lie in one segment, `split` ones between two, `merged` ones in a segment that
    `mergers` counts: it has nodes of several skeletons, `merge_nodes` or more of each.  `omitted` ones have an end
    that the segmentation leaves 0.  `left_out` nodes lie outside of the volume.
    """

    erl: float
    max_erl: float
    length: float
    skeletons: int
    nodes: int
    edges: int
    correct: int
    split: int
    merged: int
    omitted: int
    mergers: int
    merge_nodes: int
    left_out: int

    @property
    def nerl(self) -> float:
        """The expected run length as a share of that of a perfect segmentation, 0 to 1."""
        return self.erl / self.max_erl

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, and `nerl`, as plain values for JSON."""
        lengths = {"erl_nm": self.erl, "max_erl_nm": self.max_erl, "length_nm": self.length}
        counts = ("skeletons", "nodes", "edges", "correct", "split", "merged", "omitted", "mergers", "merge_nodes")
        return {"nerl": self.nerl, **lengths, **{n: getattr(self, n) for n in counts}, "left_out_nodes": self.left_out}


def evaluate_skeletons(
    prediction: Volume,
    skeletons: Skeletons,
    *,
    merge_nodes: int = 1,
    clip: bool = False,
    quiet: bool = False,
) -> RunLengths:
    """Measure the expected run length (ERL) of skeletons in a segmentation, and its share of the possible (NERL).

    From a point picked at random on all skeletons, the run length is what of its skeleton lies in its segment
    (Januszewski et al., Nature Methods 15:605, 2018).  An edge counts where both ends have one label that is not
    0 and no merger's, so that

        ERL = sum of r^2 / L      NERL = ERL / (sum of l^2 / L)

    with r the length of such edges of one skeleton in one segment, l the length of a skeleton and L that of all.
    A merger is a segment with `merge_nodes` nodes or more of each of several skeletons; 1 is the strict original,
    more lets a node pass that lies just across a border.  It takes the run length of the edges in it, as in NISB
    (`adapted_erl` of BANIS); funlib.evaluate takes that of all edges of the skeletons in it, and is lower.

    Labels are looked up chunk by chunk of the volume.  With `clip`, nodes and edges outside of the volume are
    left out, and the pieces of a skeleton that are connected within it count as skeletons, other than in mergers.

    Raises:
        UsageError: where `merge_nodes` is below 1.
        DataError: where the volume holds no labels, a node is outside of it (without `clip`) or all are, or
            the skeletons seem to be in another unit.
    """
    if merge_nodes < 1:
        raise UsageError(f"merge nodes {merge_nodes}: give 1 or a number of nodes")
    require_labels(prediction)
    _require_unit(prediction, skeletons)
    voxels = _voxels(prediction, skeletons)
    inside: NDArray[np.bool_] = np.all((voxels >= 0) & (voxels < prediction.spec.shape), axis=1)
    if not clip:
        _require_inside(prediction, skeletons, inside)
    nodes, skeletons = _clipped(skeletons, inside)
    if not skeletons.lengths.any():
        raise DataError(
            f"{_of(skeletons, 0)}: no edge of this or any other skeleton lies in {prediction.url}, which, "
            f"with --region, {_reach(prediction)}; check --skeleton-unit, the offset of the volume, and --region"
        )
    labels = labels_at(prediction, voxels[nodes], quiet=quiet)
    piece = _pieces(skeletons) if clip else skeletons.skeleton
    measured = run_lengths(skeletons, labels, piece, merge_nodes=merge_nodes)
    return replace(measured, left_out=int(np.count_nonzero(~inside)))


def run_lengths(skeletons: Skeletons, labels: Labels, piece: NDArray[np.intp], *, merge_nodes: int = 1) -> RunLengths:
    """Measure run lengths where each node's label, (n,), is known; edges of one `piece`, (n,), are one run."""
    pairs, nodes = np.unique(np.stack([skeletons.skeleton.astype(np.uint64), labels]), axis=1, return_counts=True)
    among, of_skeletons = np.unique(pairs[1, (nodes >= merge_nodes) & (pairs[1] != 0)], return_counts=True)
    mergers = among[of_skeletons > 1]
    lengths = skeletons.lengths
    (one, other), own = labels[skeletons.edges].T, piece[skeletons.edges[:, 0]]
    omitted = (one == 0) | (other == 0)
    split = (one != other) & ~omitted
    merged = (one == other) & ~omitted & np.isin(one, mergers)
    correct = ~(omitted | split | merged)
    run = np.unique(np.stack([own[correct].astype(np.uint64), one[correct]]), axis=1, return_inverse=True)[1]
    runs, pieces = np.bincount(run.ravel(), lengths[correct]), np.bincount(own, lengths)
    total = float(lengths.sum())
    return RunLengths(
        erl=float((runs**2).sum()) / total,
        max_erl=float((pieces**2).sum()) / total,
        length=total,
        skeletons=np.unique(skeletons.skeleton).size,
        nodes=labels.size,
        edges=lengths.size,
        correct=int(np.count_nonzero(correct)),
        split=int(np.count_nonzero(split)),
        merged=int(np.count_nonzero(merged)),
        omitted=int(np.count_nonzero(omitted)),
        mergers=mergers.size,
        merge_nodes=merge_nodes,
        left_out=0,
    )


def labels_at(volume: Volume, voxels: NDArray[np.intp], *, quiet: bool = False) -> Labels:
    """Return the labels of voxels (n, 3) inside a volume, reading a chunk of it at a time.

    Raises:
        DataError: where one is negative.
    """
    z, y, x = (int(n) for n in volume.arrays[0].chunk_layout.read_chunk.shape[-3:])
    cell: Vector = (max(1, z), max(1, y), max(1, x))
    grid = Grid(volume.spec.shape, cell)
    cells = np.ravel_multi_index(tuple((voxels // cell).T), grid.counts)
    order = np.argsort(cells, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(cells[order])) + 1)
    labels = np.zeros(len(voxels), np.uint64)
    with progress(quiet=quiet) as bars:
        for nodes in bars.track(groups, description="skeletons"):
            box = Box.of(voxels[nodes].max(axis=0) + 1)
            box = Box(tuple(voxels[nodes].min(axis=0).tolist()), box.stop)
            there = tuple((voxels[nodes] - box.start).T)
            labels[nodes] = as_labels(volume, volume.read(box)[there])
    return labels


def _voxels(volume: Volume, skeletons: Skeletons) -> NDArray[np.intp]:
    """Return the voxel (z, y, x) that each node is in; as in OME-NGFF, the offset is the first voxel's centre."""
    voxels = np.rint((skeletons.places - volume.spec.offset) / volume.spec.voxel_size)
    return np.clip(voxels, -1, volume.spec.shape).astype(np.intp)


def _clipped(skeletons: Skeletons, inside: NDArray[np.bool_]) -> tuple[NDArray[np.intp], Skeletons]:
    """Return which nodes are inside, and the graph of them."""
    nodes, number = np.flatnonzero(inside), np.cumsum(inside) - 1
    kept = replace(
        skeletons,
        places=skeletons.places[nodes],
        skeleton=skeletons.skeleton[nodes],
        numbers=skeletons.numbers[nodes],
        edges=number[skeletons.edges[inside[skeletons.edges].all(axis=1)]],
    )
    return nodes, kept


def _pieces(skeletons: Skeletons) -> NDArray[np.intp]:
    """Return the connected piece, (n,), that each node is of."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = len(skeletons.places)
    edges = coo_array((np.ones(len(skeletons.edges), bool), tuple(skeletons.edges.T)), shape=(nodes, nodes))
    piece: NDArray[np.intp] = connected_components(edges, directed=False)[1].astype(np.intp)
    return piece


def _require_inside(volume: Volume, skeletons: Skeletons, inside: NDArray[np.bool_]) -> None:
    if inside.all():
        return
    outside = np.flatnonzero(~inside)
    node = int(outside[0])
    are = " is" if outside.size == 1 else f", and {outside.size - 1} more, are"
    raise DataError(
        f"{_of(skeletons, node)}: node {skeletons.numbers[node]} at {_text(skeletons.places[node])} nm (z, y, x){are} "
        f"outside of {volume.url}, which {_reach(volume)}; check --skeleton-unit and the "
        f"volume's offset, or leave out what is outside with --region {volume.spec.box}"
    )


def _reach(volume: Volume) -> str:
    spec = volume.spec
    end = [o + n * s for o, n, s in zip(spec.offset, spec.shape, spec.voxel_size, strict=True)]
    return f"reaches from {_text(spec.offset)} to {_text(end)} nm"


def _text(place: Iterable[float]) -> str:
    return ", ".join(f"{v:g}" for v in place)


def _require_unit(volume: Volume, skeletons: Skeletons) -> None:
    lengths = skeletons.lengths
    median, shortest = float(np.median(lengths[lengths > 0])), min(volume.spec.voxel_size)
    if median < _SPARSE * shortest:
        raise DataError(
            f"{skeletons.sources[0]}: edges have a median length of {median:.2g} nm, far less than a voxel of "
            f"{shortest:g} nm; say with --skeleton-unit what its positions are in, um or voxels"
        )


def _of(skeletons: Skeletons, node: int) -> str:
    number = skeletons.skeleton[node] if skeletons.skeleton.size else 0
    return f"{skeletons.sources[number]}: '{skeletons.names[number]}'"
