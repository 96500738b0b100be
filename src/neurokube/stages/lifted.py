"""Lifted: pairs of fragments that attract or repel each other for what biology knows, see `priors`.

How much a prior is worth is read off where boundaries leave no doubt.  Of two classes a and b that meet,

    log-odds(a, b) = log(share of such contacts among all that are surely cut
                         / share of such contacts among all that are surely joined)

and likewise of fragments that share an object or touch across one.  What is right for one tissue and wrong for another,
or is only noise, so finds its weight by itself: noise gets none, and does no harm.

A single fragment is weak evidence, too: a few slices of a neurite look like many things.  So fragments that are joined
without doubt (by a multicut of the tile and those around it, with a margin) share what they hold, and groups of
different classes that are at most a few contacts apart repel each other, by their largest fragments.  (Lifted multicut
with domain knowledge: Pape et al., Frontiers in Computer Science 13, 2019.)

    tables of a tile
      classes-NAME  (n, c)  int64    channels: the sum of each over fragment 1, 2, ...
      objects-NAME  (k, 6)  int64    objects: fragment, object, voxels, and the middle of these in nm
      points-NAME   (k, 3)  int64    pairs: line of the file, end of the pair, fragment
      doubtless-NAME  (2, c, c)  int64  contacts that are surely joined, and surely cut, by what meets
      lifted        (l, 2)  uint64   pairs of fragment ids, the first of the tile;  costs (l,) float64 of parting them
    and over all tiles
      far           (l, 2)  uint64   pairs that are found between all tiles at once;  far-costs (l,)
      odds-NAME     (c, c)  float64  log-odds that what meets is two cells
      priors.json   of each prior: contacts surely joined and surely cut, and the log-odds by what meets
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..blocks import Blocks, Box, Grid
from ..errors import ConfigurationError
from ..volumes import Volume, VolumeSpec
from ..volumes.store import placed
from ..words import counted
from .base import SINGLE, Block, Data, FileOutput, Source, Stage, Step, TableOutput, Target, over_cells, same_grid
from .costs import edge_costs, exact
from .fragments import first_id
from .fusion import ChannelName
from .graph import fragment_ids
from .multicut import Multicut, graph_grid
from .objects import channel
from .priors import (
    Prior,
    among,
    apart,
    class_sums,
    classes,
    clear_classes,
    clear_contacts,
    holding_most,
    log_odds,
    met,
    overlaps,
    parted,
    read_pairs,
    sharing,
)
from .problem import COST, WEIGHT, Ids, Part, has, joined, summed
from .solvers import solve

Costs = NDArray[np.float64]


class Lifted(Stage):
    """Pairs of fragments that attract or repel each other: axon and dendrite, nuclei, mitochondria, ..."""

    kind: ClassVar[str] = "lifted"
    version: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = ("graph", "fragments")
    found: ClassVar[tuple[str, ...]] = ("points",)

    graph: str = Field("graph", description="the graph stage")
    fragments: str = Field("fragments", description="the fragments stage that the graph was made of")
    priors: dict[ChannelName, Prior] = Field(
        min_length=1, description="what is known, by name: {channels | objects | contacts | pairs: ..., repel, attract}"
    )
    bias: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of the multicut by which contacts are beyond doubt [default: of the one that reads it]",
    )
    margin: float = Field(1.5, ge=0, le=20, description="log-odds of a contact that are beyond doubt, at that bias")
    points: dict[ChannelName, tuple[tuple[float, ...], ...]] | None = Field(None, description="what planning found")

    def references(self) -> dict[str, str]:
        """Return what is read: `NAME.channels.CHANNEL` and `NAME.objects` beside graph and fragments."""
        found = super().references()
        for name, prior in self.priors.items():
            found |= {f"{name}.channels.{c}": reference for c, reference in (prior.channels or {}).items()}
            if prior.objects is not None:
                found[f"{name}.objects"] = prior.objects
        return found

    def reading(self, references: Mapping[str, str]) -> Self:
        """Return the stage reading other things, see `Stage.reading`."""
        priors = {}
        for name, prior in self.priors.items():
            changed: dict[str, Any] = {}
            if prior.channels is not None:
                changed["channels"] = {c: references[f"{name}.channels.{c}"] for c in prior.channels}
            if prior.objects is not None:
                changed["objects"] = references[f"{name}.objects"]
            priors[name] = prior.model_copy(update=changed)
        own = {role: reference for role, reference in references.items() if role in self.roles}
        return self.model_copy(update={**own, "priors": priors})

    def following(self, readers: Sequence[Stage]) -> Self:
        """Return the stage with the bias of the multicuts that read it, see `Stage.following`."""
        if self.bias is not None:
            return self
        # what a forest says of a boundary is on a scale of its own
        biases = {stage.bias for stage in readers if isinstance(stage, Multicut) and stage.forest is None}
        if len(biases) > 1:
            raise ConfigurationError(
                f"bias: multicuts of the biases {', '.join(f'{bias:g}' for bias in sorted(biases))} read it; say which"
            )
        return self.model_copy(update={"bias": biases.pop() if biases else Multicut.model_fields["bias"].default})

    def placed(self, folder: Path) -> Self:
        """Return the stage with its files of pairs as they are from anywhere."""
        moved = {
            name: prior if prior.pairs is None else prior.model_copy(update={"pairs": placed(prior.pairs, folder)})
            for name, prior in self.priors.items()
        }
        return self.model_copy(update={"priors": moved})

    def settle(self, sources: Mapping[str, Source], before: Stage | None) -> Self:
        """Return the stage with the pairs of its files."""
        files = {name: prior.pairs for name, prior in self.priors.items() if prior.pairs is not None}
        points = {name: tuple(map(tuple, read_pairs(path).tolist())) for name, path in files.items()}
        # what is in the files is kept and keyed, not where they lie
        named = {
            name: prior if prior.pairs is None else prior.model_copy(update={"pairs": Path(prior.pairs).name})
            for name, prior in self.priors.items()
        }
        return self.model_copy(update={"points": points or None, "priors": named})

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Say which pairs of points lie outside of the volume."""
        found = []
        for name in self.points or {}:
            within = self.within(name, sources["fragments"].spec)
            if outside := int(np.count_nonzero(~within)):
                found.append(
                    f"{name}: of {counted(len(within), 'pair')} of points {outside:,} "
                    f"{'has' if outside == 1 else 'have'} an end outside of the volume, and "
                    f"{'is' if outside == 1 else 'are'} left out"
                )
        return found

    def findings(self, sources: Mapping[str, Source], data: Data) -> list[str]:
        """Say what each prior is worth, and which pairs of points part nothing."""
        spec = sources["fragments"].spec
        tiles = _Tiles(self, graph_grid(sources), spec)
        worth: dict[str, Any] = json.loads(data.file("priors.json"))
        found = [f"{name}: {self._worth(self.priors[name], each)}" for name, each in worth.items()]
        for name in self.points or {}:
            ends = tiles.ends(name, data)[self.within(name, spec)]
            none = (ends == 0).any(1)
            same = (ends[:, 0] == ends[:, 1]) & ~none
            reasons = {"with both ends in one fragment": int(same.sum()), "with an end in no fragment": int(none.sum())}
            if said := [f"{count:,} {reason}" for reason, count in reasons.items() if count]:
                found.append(f"{name}: of {counted(len(ends), 'pair')} of points are left out: {', '.join(said)}")
        return found

    def lines(self, name: str) -> NDArray[np.float64]:
        """Return the pairs of a prior, (n, 7), see `read_pairs`."""
        assert self.points is not None
        return np.array(self.points[name], np.float64).reshape(-1, 7)

    def places(self, name: str, spec: VolumeSpec) -> NDArray[np.int64]:
        """Return the voxels of both ends of each pair of a prior, (n, 2, 3)."""
        ends = self.lines(name)[:, :6].reshape(-1, 2, 3)
        return np.rint((ends - spec.offset) / spec.voxel_size).astype(np.int64)

    def within(self, name: str, spec: VolumeSpec) -> NDArray[np.bool_]:
        """Return which pairs of a prior lie in the volume with both ends, (n,)."""
        places = self.places(name, spec)
        return np.asarray(((places >= 0) & (places < spec.shape)).all((1, 2)))

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan what fragments hold, what is far apart, and the pairs of tiles."""
        grid, spec = graph_grid(sources), sources["fragments"].spec
        for name, prior in self.priors.items():
            self._check(name, prior, sources, spec)
        tiles = _Tiles(self, grid, spec)
        evidence = [TableOutput(tiles.table(name), grid) for name in self.priors if tiles.table(name)]
        lifted = [TableOutput(name, grid) for name in ("lifted", "costs")]
        weighed = [name for name, prior in self.priors.items() if prior.measured]
        doubtless = [TableOutput(f"doubtless-{name}", grid) for name in weighed]
        odds = [TableOutput(f"odds-{name}", SINGLE) for name in weighed]
        tables = [*(TableOutput(name, SINGLE) for name in ("far", "far-costs")), *odds]
        far = (*map(Target, tables), Target(FileOutput("priors.json")))
        steps = [Step("far", SINGLE, far, tiles.far)]
        for name, written, compute in (
            ("doubtless", doubtless, tiles.doubtless),
            ("evidence", evidence, tiles.evidence),
        ):
            if written:
                steps.insert(0, Step(name, grid, tuple(map(Target, written)), over_cells(grid, compute)))
        return [*steps, Step("lifted", grid, tuple(map(Target, lifted)), over_cells(grid, tiles.lifted))]

    def boundary_costs(self, stats: NDArray[np.int64]) -> tuple[Costs, Costs]:
        """Return costs and weights of contacts by their boundary alone."""
        assert self.bias is not None
        return edge_costs(stats, bias=self.bias, size_weight=0.8)

    def _worth(self, prior: Prior, found: Mapping[str, Any]) -> str:
        given = "; 'trusted: true' counts it as given"
        sure = f"{found['joined']:,} contacts that are surely joined and {found['cut']:,} that are surely cut"
        if not found["joined"] or not found["cut"]:
            return f"worth nothing, as there are {sure} at a bias of {self.bias:g}: set 'bias' or 'margin'{given}"
        odds, names = found["odds"], sorted(prior.channels or ())
        if prior.channels is not None:
            names = names if names[1:] else [names[0], f"not {names[0]}"]
            worth = {
                f"{one} and {other} part": odds[i][j] for (i, one), (j, other) in combinations(enumerate(names, 1), 2)
            }
        else:
            worth = {"it joins": -odds[1][1]} if prior.objects is not None else {"it parts": odds[1][1]}
        told = ", ".join(f"{what} with log-odds of {value:.1f}" for what, value in worth.items() if value > 0)
        return f"{told}, by {sure}" if told else f"worth nothing, as it says no more than chance of {sure}{given}"

    def _check(self, name: str, prior: Prior, sources: Mapping[str, Source], spec: VolumeSpec) -> None:
        for each, reference in (prior.channels or {}).items():
            role = f"{name}.channels.{each}"
            same_grid("fragments", spec, role, channel(reference, sources[role]))
        if prior.objects is not None:
            source = sources[f"{name}.objects"]
            if source.spec.kind != "labels" or source.spec.channels is not None:
                raise ConfigurationError(
                    f"priors.{name}.objects: '{source.name}' holds {source.spec.dtype} {source.spec.kind}; labels are "
                    "needed: name an objects stage, or import a volume with --labels"
                )
            _check_place(f"priors.{name}.objects", source, spec)
        if prior.contacts is not None:
            sources["graph"].table(f"stats-{prior.contacts}")
        if prior.pairs is not None and len(within := self.within(name, spec)) and not within.any():
            end = np.add(spec.offset, np.multiply(spec.shape, spec.voxel_size))
            raise ConfigurationError(
                f"priors.{name}.pairs: no pair of {prior.pairs} lies in the volume, which reaches from "
                f"{_text(spec.offset)} to {_text(end)} nm; give places in nm, z before y and x, or leave the prior out"
            )


def _check_place(role: str, source: Source, spec: VolumeSpec) -> None:
    """Check that objects cover the fragments' voxels, or that they are a cut-out of them, as annotations often are."""
    other = source.spec
    if other.shape == spec.shape or not np.allclose(other.voxel_size, spec.voxel_size):
        same_grid("fragments", spec, role, other)
    elif _place(other, spec).clip(spec.box).size == 0:
        raise ConfigurationError(
            f"{role}: '{source.name}' begins at {_text(other.offset)} nm and shares no voxel with the fragments, which "
            f"begin at {_text(spec.offset)} nm; import it with its own --offset"
        )


def _place(other: VolumeSpec, spec: VolumeSpec) -> Box:
    """Return which voxels of a volume another of its voxel size covers."""
    start = np.rint(np.subtract(other.offset, spec.offset) / spec.voxel_size).astype(int)
    return other.box.shift(start.tolist())


def _read_where_it_is(volume: Volume, box: Box, spec: VolumeSpec) -> Ids:
    """Return a cut-out's labels in a box of voxels of the whole, 0 beyond it."""
    place = _place(volume.spec, spec)
    there = box.clip(place)
    if there == box:
        return volume.read(box.relative_to(place.start)).astype(np.uint64, copy=False)
    found = np.zeros(box.shape, np.uint64)
    if there.size:
        found[there.relative_to(box.start).slices] = volume.read(there.relative_to(place.start))
    return found


def _text(place: Iterable[float]) -> str:
    return ", ".join(f"{v:g}" for v in place)


@dataclass(frozen=True)
class _Tiles:
    """The passes of the stage."""

    stage: Lifted
    grid: Grid
    spec: VolumeSpec

    def table(self, name: str) -> str:
        """Return the table of what fragments hold of a prior; of contacts there is none."""
        prior = self.stage.priors[name]
        kinds = {"classes": prior.channels, "objects": prior.objects, "points": prior.pairs}
        return next((f"{kind}-{name}" for kind, given in kinds.items() if given is not None), "")

    def evidence(self, cell: int, box: Box, data: Data) -> None:
        """Count what the fragments of a tile hold."""
        count = len(data.table("fragments.sizes", cell))
        ids = data.volume("fragments").read(box)
        fragments = np.where(ids, ids - np.uint64(first_id(self.grid, cell)), 0).astype(np.uint32)
        for name, prior in self.stage.priors.items():
            if prior.channels is not None:
                # in an order that does not depend on that of the file
                maps = [data.volume(f"{name}.channels.{c}").read(box) for c in sorted(prior.channels)]
                data.put(self.table(name), cell, class_sums(fragments, maps, count))
            elif prior.objects is not None:
                objects = _read_where_it_is(data.volume(f"{name}.objects"), box, self.spec)
                data.put(self.table(name), cell, self._held(fragments, objects, cell, box))
            elif prior.pairs is not None:
                data.put(self.table(name), cell, self._points(name, ids, box))

    def _held(self, fragments: NDArray[np.uint32], objects: Ids, cell: int, box: Box) -> NDArray[np.int64]:
        rows, places = overlaps(fragments, objects)
        middle = np.rint(self.spec.offset + (places + box.start) * self.spec.voxel_size).astype(np.int64)
        rows[:, 0] += first_id(self.grid, cell)
        return np.concatenate([rows, middle], axis=1)

    def _points(self, name: str, ids: Ids, box: Box) -> NDArray[np.int64]:
        places = self.stage.places(name, self.spec).reshape(-1, 3)
        inside = np.flatnonzero(((places >= box.start) & (places < box.stop)).all(1))
        z, y, x = (places[inside] - box.start).T
        return np.stack([inside // 2, inside % 2, ids[z, y, x].astype(np.int64)], axis=1)

    def doubtless(self, cell: int, box: Box, data: Data) -> None:
        """Count what meets within a tile where the boundary leaves no doubt."""
        sizes = data.table("fragments.sizes", cell).astype(np.int64)
        own = fragment_ids(self.grid, cell, len(sizes))
        edges, stats = data.table("graph.edges", cell), data.table("graph.stats", cell)
        costs, weights = self.stage.boundary_costs(stats)
        sure = self.stage.margin * weights
        inside = np.asarray(has(own, edges).all(1))
        verdicts = [inside & (costs > sure), inside & (costs < -sure)]
        for name, prior in self.stage.priors.items():
            if not prior.measured:
                continue
            if prior.channels is not None:
                kinds, _ = clear_classes(data.table(self.table(name), cell), sizes, prior.least)
                ends = np.where(
                    inside[:, None], kinds[np.where(inside[:, None], edges - first_id(self.grid, cell) - 1, 0)], 0
                )
                count = classes(prior) + 1
            elif prior.contacts is not None:
                across = clear_contacts(data.table(f"graph.stats-{prior.contacts}", cell), prior.least)
                ends, count = np.repeat(across[:, None], 2, axis=1).astype(np.int64), 2
            elif prior.objects is not None:
                pairs, _ = sharing(data.table(self.table(name), cell)[:, :3], prior.overlap)
                shared = among(edges, np.sort(pairs, axis=1))
                ends, count = np.repeat(shared[:, None], 2, axis=1).astype(np.int64), 2
            else:
                continue
            counts = [met(ends[verdict], count) for verdict in verdicts]
            data.put(f"doubtless-{name}", cell, np.stack(counts))

    def far(self, block: Block, data: Data) -> None:
        """Find what each prior is worth, and the pairs for which all tiles have to be seen."""
        worth: dict[str, Any] = {}
        for name, prior in self.stage.priors.items():
            if prior.measured:
                counts = np.asarray(sum(data.tables(f"doubtless-{name}", range(len(self.grid)))))
                odds = log_odds(counts)
                data.put(f"odds-{name}", 0, odds)
                # each contact is counted from both its ends
                joined, cut = counts.sum((1, 2)) // 2
                worth[name] = {"joined": int(joined), "cut": int(cut), "odds": odds.tolist()}
        data.put_file("priors.json", (json.dumps(worth, indent=2) + "\n").encode())
        pairs, costs = [np.zeros((0, 2), np.uint64)], [np.zeros(0)]
        for name, prior in self.stage.priors.items():
            if prior.objects is not None and prior.repel:
                tiles = data.tables(self.table(name), range(len(self.grid)))
                rows = [holding_most(each, prior.overlap) for each in tiles]
                pairs.append(apart(np.concatenate(rows), prior.within))
                costs.append(np.full(len(pairs[-1]), -prior.repel))
            elif prior.pairs is not None:
                ends = self.ends(name, data)
                # a pair with an end in no fragment, and one within a fragment, part nothing
                both = (ends > 0).all(1) & (ends[:, 0] != ends[:, 1])
                pairs.append(ends[both])
                costs.append(self.stage.lines(name)[both, 6])
        together, cost = summed(np.concatenate(pairs), exact(np.concatenate(costs)))
        data.put("far", 0, together)
        data.put("far-costs", 0, cost)

    def ends(self, name: str, data: Data) -> Ids:
        """Return the fragments that pairs of points lie in, (n, 2), 0 for none."""
        ends = np.zeros((len(self.stage.lines(name)), 2), np.uint64)
        for rows in data.tables(self.table(name), range(len(self.grid))):
            ends[rows[:, 0], rows[:, 1]] = rows[:, 2]
        return ends

    def odds(self, name: str, data: Data) -> Costs:
        """Return the log-odds that what meets is two cells, as they were found; 1 either way where they are given."""
        prior = self.stage.priors[name]
        if prior.measured:
            return data.table(f"odds-{name}", 0)
        return np.full((classes(prior) + 1,) * 2, -1.0 if prior.objects is not None else 1.0)

    def around(self, cell: int) -> list[int]:
        """Return a tile and those that touch it."""
        return self.grid.within(Blocks(self.grid).cell_box(cell).grow((1, 1, 1)))

    def lifted(self, cell: int, box: Box, data: Data) -> None:
        """Write the pairs whose first fragment is of a tile."""
        own = fragment_ids(self.grid, cell, len(data.table("fragments.sizes", cell)))
        near = self.around(cell)
        pairs, costs = [data.table("far", 0)], [data.table("far-costs", 0)]
        groups: _Groups | None = None
        for name, prior in self.stage.priors.items():
            if prior.pairs is not None:
                continue
            table, odds = self.table(name), self.odds(name, data)
            if prior.contacts is not None:
                across = clear_contacts(data.table(f"graph.stats-{prior.contacts}", cell), prior.least)
                pairs.append(data.table("graph.edges", cell)[across])
                costs.append(np.full(across.sum(), -prior.repel * max(odds[1, 1], 0.0)))
            elif prior.channels is not None:
                groups = groups or _Groups.of(self, near, data)
                found, cost = groups.repelling(np.concatenate(list(data.tables(table, near))), prior, odds)
                pairs.append(found)
                costs.append(-prior.repel * cost)
            else:
                rows = np.concatenate(list(data.tables(table, near)))[:, :3]
                if prior.attract:
                    found, share = sharing(rows, prior.overlap)
                    pairs.append(found)
                    costs.append(prior.attract * max(-odds[1, 1], 0.0) * share)
                if prior.repel:
                    # what touches, besides the pair that speaks for two objects wherever they are
                    edges = data.table("graph.edges", cell)
                    pairs.append(edges[parted(edges, rows, prior.overlap)])
                    costs.append(np.full(len(pairs[-1]), -prior.repel))
        found, cost = summed(np.concatenate(pairs), exact(np.concatenate(costs)))
        kept = has(own, found[:, 0]) & (cost != 0)
        data.put("lifted", cell, found[kept])
        data.put("costs", cell, cost[kept])


@dataclass(frozen=True)
class _Groups:
    """Fragments of some tiles that are joined without doubt.

    `part` is the graph between them, `names` (n,) the first fragment of the group of each.
    """

    part: Part
    names: Ids

    @classmethod
    def of(cls, tiles: _Tiles, cells: list[int], data: Data) -> "_Groups":
        """Join the fragments of tiles by their boundaries alone."""
        parts = []
        for cell in data.ahead(cells, "fragments.sizes", "graph.stats", "graph.edges"):
            sizes = data.table("fragments.sizes", cell).astype(np.int64)
            stats = data.table("graph.stats", cell)
            costs, weights = tiles.stage.boundary_costs(stats)
            nothing = np.zeros(len(costs))
            values = np.stack([costs, weights, nothing, nothing], axis=1)
            nodes = fragment_ids(tiles.grid, cell, len(sizes))
            edges = data.table("graph.edges", cell)
            parts.append(Part(nodes, sizes, edges, values, np.zeros((0, 2), np.uint64), np.zeros(0)))
        whole = Part.together(parts)
        whole = whole.within(whole.nodes)
        ends = np.searchsorted(whole.nodes, whole.edges)
        costs = whole.values[:, COST] - tiles.stage.margin * whole.values[:, WEIGHT]
        labels = solve(len(whole.nodes), ends.astype(np.uint64), costs, ["greedy-additive"])
        return cls(whole, joined(whole.nodes, whole.edges[labels[ends[:, 0]] == labels[ends[:, 1]]]))

    def repelling(self, sums: NDArray[np.int64], prior: Prior, odds: Costs) -> tuple[Ids, Costs]:
        """Return pairs of fragments (k, 2) of groups of different classes, and by how much they repel each other.

        `sums` are those of the channels over the fragments, in the order of their ids; `odds` those of two classes.
        """
        from bioimage_cpp.graph import UndirectedGraph
        from bioimage_cpp.graph.lifted_multicut import lifted_edges_from_node_labels

        names, group = np.unique(self.names, return_inverse=True)
        held = np.zeros((len(names), sums.shape[1]), np.int64)
        np.add.at(held, group, sums)
        sizes = np.bincount(group, self.part.sizes, len(names)).astype(np.int64)
        kinds, clear = clear_classes(held, sizes, prior.least)
        # the largest fragment of each group speaks for it
        order = np.lexsort((self.part.nodes, -self.part.sizes, group))
        largest = self.part.nodes[order[np.unique(group[order], return_index=True)[1]]]
        ends = group[np.searchsorted(self.part.nodes, self.part.edges)].astype(np.uint64)
        contacts, _ = summed(ends, self.part.values)
        if not len(contacts):
            return np.zeros((0, 2), np.uint64), np.zeros(0)
        graph = UndirectedGraph.from_unique_edges(len(names), contacts)
        far = lifted_edges_from_node_labels(
            graph, kinds, prior.distance, mode="different", ignore_label=0, number_of_threads=1
        )
        first, second = kinds[contacts].T
        pairs = np.concatenate([contacts[(first != second) & (first > 0) & (second > 0)], far])
        one, other = pairs.T
        weight = np.maximum(odds[kinds[one], kinds[other]], 0) * np.minimum(clear[one], clear[other])
        return largest[pairs], weight
