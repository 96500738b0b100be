"""Solvers of multicut problems, by name, plain and lifted; those of bioimage-cpp.

    greedy-additive   joins the pair of largest cost again and again (GAEC: Keuper et al., ICCV 2015)
    greedy-fixation   the same, and forbids joins where the largest cost is a repulsion (Levinkov et al., GCPR 2017)
    kernighan-lin     moves nodes between segments as long as that costs less (Keuper et al., ICCV 2015)
    fusion-moves      fuses proposals (Beier et al., CVPR 2015; lifted: Beier et al., ECCV 2016)
    mutex-watershed   from the strongest cost down joins or forbids joining (Wolf et al., IEEE PAMI 43:3724, 2021)

Given several, each begins with what the one before found.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SolverName = Literal["greedy-additive", "greedy-fixation", "kernighan-lin", "fusion-moves", "mutex-watershed"]

Pairs = NDArray[np.uint64]
Costs = NDArray[np.float64]


def solve(
    nodes: int,
    edges: Pairs,
    costs: Costs,
    solvers: Sequence[SolverName],
    lifted: Pairs | None = None,
    lifted_costs: Costs | None = None,
) -> NDArray[np.uint64]:
    """Return a label for each node, (n,).

    `edges` (m, 2) are unique pairs of nodes with a cost (m,) each; `lifted` (k, 2) those that need not touch.
    """
    from bioimage_cpp.graph import UndirectedGraph

    if len(edges) == 0:
        return np.arange(nodes, dtype=np.uint64)
    graph = UndirectedGraph.from_unique_edges(nodes, edges)
    objective: Any
    if lifted is None or lifted_costs is None or len(lifted) == 0:
        from bioimage_cpp.graph.multicut import MulticutObjective

        objective, make = MulticutObjective(graph, costs), _plain
        lifted, lifted_costs = np.zeros((0, 2), np.uint64), np.zeros(0)
    else:
        from bioimage_cpp.graph.lifted_multicut import LiftedMulticutObjective

        objective = LiftedMulticutObjective(graph, costs, lifted_uvs=lifted, lifted_costs=lifted_costs)
        make = _lifted
    for name in solvers:
        if name == "mutex-watershed":
            objective.labels = _mutex_watershed(graph, edges, costs, lifted, lifted_costs)
        else:
            make(name).optimize(objective)
    return np.asarray(objective.labels, np.uint64)


def energy(labels: NDArray[np.uint64], edges: Pairs, costs: Costs) -> float:
    """Return the sum of the costs of the edges that are cut."""
    return float(costs[labels[edges[:, 0]] != labels[edges[:, 1]]].sum())


def _plain(name: SolverName) -> Any:
    from bioimage_cpp.graph import multicut

    makers: dict[SolverName, Callable[[], Any]] = {
        "greedy-additive": multicut.GreedyAdditiveMulticut,
        "greedy-fixation": multicut.GreedyFixationMulticut,
        "kernighan-lin": multicut.KernighanLinMulticut,
        "fusion-moves": lambda: multicut.FusionMoveMulticut(
            proposal_generator=multicut.WatershedProposalGenerator(), sub_solver=multicut.KernighanLinMulticut()
        ),
    }
    return makers[name]()


def _lifted(name: SolverName) -> Any:
    from bioimage_cpp.graph import lifted_multicut as lifted

    makers: dict[SolverName, Callable[[], Any]] = {
        "greedy-additive": lifted.LiftedGreedyAdditiveMulticut,
        # there is no lifted variant; what follows it improves what the greedy one found
        "greedy-fixation": lifted.LiftedGreedyAdditiveMulticut,
        "kernighan-lin": lifted.LiftedKernighanLinMulticut,
        "fusion-moves": lambda: lifted.FusionMoveLiftedMulticut(
            proposal_generator=lifted.WatershedProposalGenerator(), sub_solver=lifted.LiftedKernighanLinMulticut()
        ),
    }
    return makers[name]()


def _mutex_watershed(graph: Any, edges: Pairs, costs: Costs, lifted: Pairs, lifted_costs: Costs) -> NDArray[np.uint64]:
    from bioimage_cpp.graph import UndirectedGraph
    from bioimage_cpp.graph.mutex_watershed import mutex_watershed_clustering

    attractive = costs > 0
    joining = UndirectedGraph.from_unique_edges(graph.number_of_nodes, edges[attractive])
    # a lifted pair that is better joined cannot join what does not touch
    forbidden = np.concatenate([edges[~attractive], lifted[lifted_costs < 0]])
    weights = np.concatenate([-costs[~attractive], -lifted_costs[lifted_costs < 0]])
    return np.asarray(mutex_watershed_clustering(joining, costs[attractive], forbidden, weights))
