"""Multicut: which fragments belong together, decided level by level, for a graph that fits no memory.

Each edge has a cost, see `costs`.  The multicut is the partition of the graph whose cut edges cost least; lifted
edges, between fragments that need not touch, count where their ends are parted (Keuper et al., ICCV 2015; with what
biology knows, Horňáková et al., ICML 2017, and Pape et al., Frontiers in Computer Science 13, 2019).  It is solved by
domain decomposition (Pape et al., ICCV Workshops 2017): blocks solve their own part of the graph with a halo around
it, join what the solution joins, and leave what is between blocks to the next level, whose blocks are twice as long;
the last solution is that of all that is left.

    level 1                level 2          last
    ┌──┬──┬──┬──┐         ┌─────┬─────┐    ┌───────────┐
    ├──┼──┼──┼──┤  join   │     │     │    │           │    the halo of a block: the nodes that its own
    ├──┼──┼──┼──┤ ──────▶ ├─────┼─────┤ ─▶ │           │    lead to over a few edges
    ├──┼──┼──┼──┤         │     │     │    │           │
    └──┴──┴──┴──┘         └─────┴─────┘    └───────────┘

    tables of a tile
      values    (m, 4)  float64  of each edge of the graph, see `problem.COST`
      segments  (n,)    uint64   the segment of fragment 1, 2, ...
    of a block of level k, whose nodes are called by their first fragments
      joined-k  (n, 2)  uint64   a node of the level before, and its node
      nodes-k   (n, 2)  uint64   a node, and its voxels
      edges-k   (m, 2)  uint64   a node of the block, and one of it or of another;  values-k (m, 4) as above
      lifted-k  (l, 2)  uint64   nodes that need not touch;  lifted-costs-k (l,)
    of a block of the last level (where there is none, of a tile)
      solution  (n, 2)  uint64   a node, and its segment
    and over all
      summary.json  nodes and edges of the last problem, and the energy: what all cut edges cost
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field

from ..blocks import Blocks, Box, Grid, Vector
from ..errors import ConfigurationError
from ..volumes.volume import Nanometres
from .base import (
    SINGLE,
    Block,
    Data,
    Extent,
    FileOutput,
    Source,
    Step,
    TableOutput,
    Target,
    over_cells,
)
from .costs import Statistic, boundary_probability, edge_costs
from .forest import ForestStage
from .graph import STATISTICS, fragment_ids
from .problem import COST, Ids, Part, absorb_small, consecutive, has, joined, lookup, summed
from .solvers import SolverName, energy

Bias = Annotated[float, Field(gt=0, lt=1)]
Solvers = Annotated[tuple[SolverName, ...], Field(min_length=1)]

_FIRST = ("fragments.sizes", "graph.edges", "values", "lifted.lifted", "lifted.costs")
_KEPT = ("nodes", "edges", "values", "lifted", "lifted-costs")
"""Tables of a part of the problem: of a tile, and, with its number, of a level's block."""

MOST_LEVELS = 3
"""Levels unless more are asked for: a block of the last is then four times as long as one of the first."""

_FIRST_BLOCK = 2560.0
"""Length in nm of a block of the first level."""


class Multicut(ForestStage):
    """Partition of the fragment graph."""

    kind: ClassVar[str] = "multicut"
    version: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = ("graph", "fragments", "lifted")

    graph: str = Field("graph", description="the graph stage")
    fragments: str = Field("fragments", description="the fragments stage that the graph was made of")
    lifted: str | None = Field(
        None, description="a lifted stage: what biology knows about which fragments belong together"
    )
    bias: Bias = Field(0.72, description="above 0.5: edges are cut more readily, segments get smaller; below: joined")
    size_weight: float = Field(
        0.8, ge=0, le=1, description="how much more a large contact counts than a small one; 0: all alike"
    )
    z_bias: Bias | None = Field(None, description="bias of contacts across z [default: as of all others]")
    z_weight: float = Field(1.0, ge=0, le=100, description="how much contacts across z count beside others")
    statistic: Statistic = Field(
        "mean", description="what of the boundary map along an edge counts as its probability, without a forest"
    )
    smallest: int = Field(
        0, ge=0, description="segments under this many voxels join the neighbour behind the weakest boundary"
    )
    levels: int | None = Field(
        None,
        ge=0,
        le=10,
        description=f"levels before the last; 0: all at once [default: till one block is left, at most {MOST_LEVELS}]",
    )
    first_block: Extent | None = Field(
        None, description="voxels (z, y, x) of a block of the first level, rounded up to whole tiles"
    )
    halo: int = Field(2, ge=0, le=100, description="edges between a block's fragments and the farthest it considers")
    margin: float = Field(
        1.0,
        ge=0,
        le=20,
        description="blocks join only what would be joined were the log-odds of all boundaries higher by this",
    )
    solver: Solvers = Field(
        ("greedy-additive", "kernighan-lin"),
        description="how blocks are solved; each begins with what the one before found",
    )
    last_solver: Solvers | None = Field(None, description="how what is left is solved [default: as blocks are]")

    def remarks(self, sources: Mapping[str, Source]) -> list[str]:
        """Say which levels the volume is too small for, beside what the forest has to say."""
        found = super().remarks(sources)
        asked = self.levels or 0
        made = len(self._grids(graph_grid(sources), sources["fragments"].spec.voxel_size)) - 1
        if made < asked:
            which = f"level {asked} is" if made == asked - 1 else f"levels {made + 1} to {asked} are"
            found.append(f"{which} left out, as one block of level {made + 1} would hold all of the volume")
        return found

    def steps(self, sources: Mapping[str, Source]) -> list[Step]:
        """Plan costs, the levels, the last solution, and the segments of tiles."""
        grid = graph_grid(sources)
        if "lifted" in sources and (
            sources["lifted"].kind != "lifted" or sources["lifted"].table("lifted").cells != grid
        ):
            raise ConfigurationError(
                f"lifted: '{sources['lifted'].name}' has no lifted edges of the graph '{sources['graph'].name}'"
            )
        levels = _Levels(self, grid, self._grids(grid, sources["fragments"].spec.voxel_size))
        tables = {name: TableOutput(name, grid) for name in ("values", "segments")}
        steps = [Step("costs", grid, (Target(tables["values"]),), over_cells(grid, levels.costs))]
        for level, blocks in enumerate(levels.grids[1:], 1):
            steps.append(
                Step(
                    f"level-{level}",
                    blocks,
                    (Target(TableOutput(f"joined-{level}", blocks)),),
                    over_cells(blocks, levels.solver(level)),
                )
            )
            names = [f"{name}-{level}" for name in _KEPT]
            steps.append(
                Step(
                    f"reduce-{level}",
                    blocks,
                    tuple(Target(TableOutput(name, blocks)) for name in names),
                    over_cells(blocks, levels.reducer(level)),
                )
            )
        solution, summary = TableOutput("solution", levels.grids[-1]), FileOutput("summary.json")
        return [
            *steps,
            Step("last", SINGLE, (Target(solution), Target(summary)), levels.last),
            Step("segments", grid, (Target(tables["segments"]),), over_cells(grid, levels.segments)),
        ]

    def sample(self, shape: Vector, number: int) -> Self:
        """Return the stage with blocks so small that a sample has a level too."""
        return self if self.levels == 0 else self.model_copy(update={"first_block": (1, 1, 1)})

    def _grids(self, tiles: Grid, voxel_size: Nanometres) -> list[Grid]:
        """Return the grid of tiles and those of the levels."""
        if self.first_block is None:
            cells = [max(1, round(_FIRST_BLOCK / (c * v))) for c, v in zip(tiles.cell, voxel_size, strict=True)]
        else:
            cells = [ceil(b / c) for b, c in zip(self.first_block, tiles.cell, strict=True)]
        grids = [tiles]
        for level in range(MOST_LEVELS if self.levels is None else self.levels):
            z, y, x = (c * n * 2**level for c, n in zip(tiles.cell, cells, strict=True))
            blocks = Grid(tiles.shape, (z, y, x))
            if len(blocks) == 1:
                break
            grids.append(blocks)
        return grids


def graph_grid(sources: Mapping[str, Source]) -> Grid:
    """Return the grid of tiles of a graph.

    Raises:
        ConfigurationError: where `graph` is no graph stage or was made of other fragments.
    """
    graph, fragments = sources["graph"], sources["fragments"]
    if graph.kind != "graph":
        raise ConfigurationError(f"graph: '{graph.name}' is not a graph stage; name one")
    if fragments.kind != "fragments" or fragments.volume.grid() != graph.table("edges").cells:
        raise ConfigurationError(f"fragments: '{fragments.name}' is not what the graph '{graph.name}' was made of")
    return graph.table("edges").cells


@dataclass(frozen=True)
class _Levels:
    """The passes of the stage; `grids[0]` is that of the tiles, whose fragments are the nodes of level 0."""

    stage: Multicut
    tiles: Grid
    grids: Sequence[Grid]

    def costs(self, cell: int, box: Box, data: Data) -> None:
        """Give each edge of a tile its cost."""
        stage, stats = self.stage, data.table("graph.stats", cell)
        learned = stage.boundaries(cell, data, self.tiles)
        costs, weights = edge_costs(
            stats,
            boundary_probability(stats, stage.statistic) if learned is None else learned,
            bias=stage.bias,
            size_weight=stage.size_weight,
            z_bias=stage.z_bias,
            z_weight=stage.z_weight,
        )
        pairs, total = (stats[:, STATISTICS.index(name)].astype(np.float64) for name in ("pairs", "sum"))
        if learned is not None:
            # as many as the boundary map would have summed up to, and whole, so that sums of them are exact
            total = np.rint(learned * pairs * 510)
        data.put("values", cell, np.stack([costs, weights, pairs, total], axis=1))

    def part(self, level: int, block: int, data: Data) -> Part:
        """Return what a block of a level keeps of the problem."""
        if level == 0:
            sizes = data.table("fragments.sizes", block).astype(np.int64)
            nodes = fragment_ids(self.tiles, block, len(sizes))
            lifted, costs = np.zeros((0, 2), np.uint64), np.zeros(0)
            if data.has("lifted"):
                lifted, costs = data.table("lifted.lifted", block), data.table("lifted.costs", block)
            return Part(nodes, sizes, data.table("graph.edges", block), data.table("values", block), lifted, costs)
        nodes, *others = (data.table(f"{name}-{level}", block) for name in _KEPT)
        return Part(nodes[:, 0], nodes[:, 1].astype(np.int64), *others)

    def parts(self, level: int, blocks: Sequence[int], data: Data) -> list[Part]:
        """Return what blocks of a level keep of the problem."""
        names = _FIRST if level == 0 else [f"{name}-{level}" for name in _KEPT]
        return [self.part(level, block, data) for block in data.ahead(blocks, *names)]

    def home(self, ids: Ids, level: int) -> Ids:
        """Return the block of a level that each node is of."""
        grid, tile = self.grids[level], (ids - np.uint64(1)) // np.uint64(prod(self.tiles.cell))
        place = np.unravel_index(tile.astype(np.int64), self.tiles.counts)
        cells = [g // t for g, t in zip(grid.cell, self.tiles.cell, strict=True)]
        z, y, x = (p // c for p, c in zip(place, cells, strict=True))
        return np.ravel_multi_index((z, y, x), grid.counts).astype(np.uint64)

    def children(self, level: int, block: int) -> tuple[list[int], list[int]]:
        """Return the blocks of the level before that make up a block, and those that touch it at a face."""
        below, grid = self.grids[level - 1], self.grids[level]
        z, y, x = (g // b for g, b in zip(grid.cell, below.cell, strict=True))
        blocks = Blocks(below, (z, y, x))
        inside, box = blocks.members(block), blocks.cell_box(block)
        grown = (box.grow(int(a == axis) for a in range(3)) for axis in range(3))
        return inside, [c for each in grown for c in below.within(each) if c not in inside]

    def solver(self, level: int) -> Callable[[int, Box, Data], None]:
        """Return the function that solves a block of a level and keeps what is joined in it."""

        def compute(block: int, box: Box, data: Data) -> None:
            inside, around = self.children(level, block)
            parts = self.parts(level - 1, [*inside, *around], data)
            own = np.sort(np.concatenate([p.nodes for p in parts[: len(inside)]]))
            whole = Part.together(parts)
            problem = whole.within(whole.neighbourhood(own, self.stage.halo))
            labels = problem.solve(self.stage.solver, self.stage.margin)
            ends = np.searchsorted(problem.nodes, problem.edges)
            same = (labels[ends[:, 0]] == labels[ends[:, 1]]) & has(own, problem.edges).all(1)
            data.put(f"joined-{level}", block, np.stack([own, joined(own, problem.edges[same])], axis=1))

        return compute

    def reducer(self, level: int) -> Callable[[int, Box, Data], None]:
        """Return the function that contracts a block's part of the problem by what was joined."""

        def compute(block: int, box: Box, data: Data) -> None:
            part = Part.together(self.parts(level - 1, self.children(level, block)[0], data))
            ends = np.concatenate([part.nodes, part.edges.ravel(), part.lifted.ravel()])
            blocks = np.unique(self.home(ends, level)).tolist()
            tables = list(data.tables(f"joined-{level}", blocks))
            nodes, where = np.unique(lookup(part.nodes, tables), return_inverse=True)
            sizes = np.bincount(where, part.sizes, len(nodes)).astype(np.uint64)
            edges, values = summed(lookup(part.edges, tables), part.values)
            lifted, costs = summed(lookup(part.lifted, tables), part.lifted_costs)
            data.put(f"nodes-{level}", block, np.stack([nodes, sizes], axis=1))
            for name, table in (("edges", edges), ("values", values), ("lifted", lifted), ("lifted-costs", costs)):
                data.put(f"{name}-{level}", block, table)

        return compute

    def last(self, block: Block, data: Data) -> None:
        """Solve what is left, and number the segments."""
        level = len(self.grids) - 1
        parts = self.parts(level, range(len(self.grids[level])), data)
        problem = Part.together(parts)
        labels = problem.solve(self.stage.last_solver or self.stage.solver)
        cost = energy(labels, np.searchsorted(problem.nodes, problem.edges).astype(np.uint64), problem.values[:, COST])
        cost += energy(labels, np.searchsorted(problem.nodes, problem.lifted).astype(np.uint64), problem.lifted_costs)
        segments = consecutive(absorb_small(problem, labels, self.stage.smallest))
        for k, part in enumerate(parts):
            found = segments[np.searchsorted(problem.nodes, part.nodes)]
            data.put("solution", k, np.stack([part.nodes, found], axis=1))
        summary = {
            "energy": cost,
            "segments": int(segments.max(initial=0)),
            "nodes": len(problem.nodes),
            "edges": len(problem.edges),
            "lifted_edges": len(problem.lifted),
        }
        data.put_file("summary.json", (json.dumps(summary, indent=2) + "\n").encode())

    def segments(self, cell: int, box: Box, data: Data) -> None:
        """Follow the fragments of a tile through all levels to their segments."""
        ids = fragment_ids(self.tiles, cell, len(data.table("fragments.sizes", cell)))
        last = len(self.grids) - 1
        if not len(ids):
            data.put("segments", cell, ids)
            return
        blocks = [int(self.home(ids[:1], level)[0]) for level in range(last + 1)]
        for level in range(1, last + 1):
            ids = lookup(ids, [data.table(f"joined-{level}", blocks[level])])
        data.put("segments", cell, lookup(ids, [data.table("solution", blocks[last])]))
