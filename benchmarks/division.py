"""Where a split cuts: pairs of touching cells of synthetic tissue, joined and parted again by a random point in each.

python -m benchmarks.division FOLDER [--pairs 150] [--seed 5]

Compares the watershed on the graph that `neurokube edit` parts by with a multicut of the same fragments that holds the
points apart (costs as a workflow's, but none below 0, so that nothing else is parted).  The error is the part of the
smaller cell's voxels that are on the wrong side, by whole fragments: each counts as the cell that most of it is in.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import machine
from neurokube.blocks import Box
from neurokube.engines import InProcess
from neurokube.stages.division import divided
from neurokube.stages.graph import STATISTICS
from neurokube.stages.problem import has, joined
from neurokube.stages.solvers import solve
from neurokube.volumes import open_volume
from neurokube.workflow import Run, execute, parse_workflow

Ids = NDArray[np.uint64]
SHAPE = (64, 192, 192)
TILE = [64, 96, 96]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=150)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    run = Run.planned(parse_workflow(workflow(arguments.folder, arguments.seed)))
    execute(run, InProcess(), quiet=True)
    ids, voxels, cells, edges, stats = graph(run)
    errors: dict[str, list[float]] = {"watershed": [], "multicut": []}
    choice = np.random.default_rng(0)
    ends = cells[np.searchsorted(ids, edges)]
    touching = np.unique(np.sort(ends[(ends[:, 0] != ends[:, 1]) & (ends > 0).all(1)], axis=1), axis=0)
    for pair in choice.permutation(touching)[: arguments.pairs]:
        chosen = connected(ids[np.isin(cells, pair)], edges)
        inner = has(chosen, edges).all(1)
        at = np.searchsorted(ids, chosen)
        truth, sizes = cells[at] == pair[1], voxels[at].astype(float)
        if min(truth.sum(), (~truth).sum()) < 2:
            continue
        for _ in range(2):
            seeds = np.full(len(chosen), -1)
            for part, own in enumerate((~truth, truth)):
                seeds[choice.choice(np.flatnonzero(own), p=sizes[own] / sizes[own].sum())] = part
            for name, part_of in (("watershed", divided), ("multicut", by_multicut)):
                wrong = sizes[part_of(chosen, edges[inner], stats[inner], seeds) != truth].sum()
                errors[name].append(wrong / min(sizes[truth].sum(), sizes[~truth].sum()))
    print(machine())
    for name, found in errors.items():
        error = np.array(found)
        print(
            f"{name:<10} {len(error)} splits: {(error == 0).mean():.1%} without a mistake, {(error < 0.05).mean():.1%} "
            f"with less than 5 % wrong, mean error {np.minimum(error, 1).mean():.3f}"
        )


def workflow(folder: Path, seed: int) -> dict[str, Any]:
    return {
        "name": f"division-{seed}",
        "workspace": str(folder),
        "stages": {
            "synthesis": {"shape": list(SHAPE), "voxel_size": [10, 10, 10], "tissue": {"seed": seed}, "tile": TILE},
            "boundaries": {"image": "synthesis.image", "tile": TILE},
            "fragments": {"tile": TILE, "reach": 60},
            "graph": {},
        },
    }


def graph(run: Run) -> tuple[Ids, NDArray[np.int64], NDArray[np.int64], Ids, NDArray[np.int64]]:
    """Return ids of fragments, their voxels and cells, and the edges with their statistics."""
    whole = Box.of(SHAPE)
    fragments = open_volume(f"{run.url}/fragments/fragments").read(whole).ravel()
    truth = open_volume(f"{run.url}/synthesis/labels").read(whole).ravel().astype(np.uint64)
    pairs, count = np.unique(np.stack([fragments, truth], axis=1), axis=0, return_counts=True)
    order = np.lexsort((count, pairs[:, 0]))
    last = order[np.flatnonzero(np.diff(pairs[order, 0], append=np.uint64(0)) != 0)]
    ids, voxels = np.unique(fragments, return_counts=True)
    data = run.plan.stage("graph").data()
    tiles = range(len(run.plan.stage("graph").own.table("edges").cells))
    edges, stats = (np.concatenate([data.table(name, tile) for tile in tiles]) for name in ("edges", "stats"))
    return ids, voxels, pairs[last, 1].astype(np.int64), edges, stats


def connected(fragments: Ids, edges: Ids) -> Ids:
    """Return those of the largest connected group of fragments."""
    group = joined(fragments, edges[has(fragments, edges).all(1)])
    names, count = np.unique(group, return_counts=True)
    return fragments[group == names[count.argmax()]]


def by_multicut(fragments: Ids, edges: Ids, stats: NDArray[np.int64], seeds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Part fragments as `divided` does, by a multicut."""
    pairs = stats[:, STATISTICS.index("pairs")]
    p = np.clip(stats[:, STATISTICS.index("sum")] / (pairs * 510), 0.001, 0.999)
    costs = np.log1p(0.4 * (1 - p) / p) * (pairs / 100) ** 0.4
    apart = np.sort([np.flatnonzero(seeds == part)[0] for part in (0, 1)])
    ends = np.searchsorted(fragments, edges)
    other = (ends != apart).any(1)
    ends, costs = np.concatenate([ends[other], apart[None]]), np.append(costs[other], -1e9)
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    solvers = ("greedy-additive", "kernighan-lin")
    labels = solve(len(fragments), ends[order].astype(np.uint64), costs[order], solvers)
    return (labels == labels[seeds == 1][0]).astype(np.int64)


if __name__ == "__main__":
    main()
