"""Costs of cutting edges: positive where fragments are better joined, negative where they are better parted.

The cost is the log-odds that both sides are one cell (Andres et al., ICCV 2011; Beier et al., Nature Methods 14:101,
2017): with p the probability of a boundary and b the bias,

    cost = (log((1 - p) / p) + log((1 - b) / b)) * (pairs of voxels / 100) ** (size_weight / 2)

A large contact says more than a small one, but not as much more as it has voxels, since neighbouring voxels agree.
Costs are whole multiples of 2 ** -16: sums of them are exact, in whatever order they are added.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .graph import STATISTICS

Statistic = Literal["mean", "q10", "q25", "median", "q75", "q90", "highest"]

UNIT = 2.0**-16
"""Costs are multiples of this."""

_LEAST = 0.001
"""Probabilities are kept this far from 0 and 1, so that costs are finite."""


def boundary_probability(stats: NDArray[np.int64], statistic: Statistic = "mean") -> NDArray[np.float64]:
    """Return the probability of a boundary along each edge, (m,), from its statistics (m, 12)."""
    if statistic == "mean":
        pairs = stats[:, STATISTICS.index("pairs")]
        return stats[:, STATISTICS.index("sum")] / (pairs * 510)
    return stats[:, STATISTICS.index(statistic)] / 510


def edge_costs(
    stats: NDArray[np.int64],
    probability: NDArray[np.float64] | None = None,
    *,
    bias: float,
    size_weight: float,
    z_bias: float | None = None,
    z_weight: float = 1.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cost of cutting each edge and its weight, (m,), from its statistics (m, 12) and the probability of a
    boundary.

    Contacts across z have the bias `z_bias` and count `z_weight` times as much; one that is partly across z is in
    between, by its share of voxel pairs.
    """
    pairs = stats[:, STATISTICS.index("pairs")].astype(np.float64)
    across = stats[:, STATISTICS.index("pairs_z")] / pairs
    p = np.clip(boundary_probability(stats) if probability is None else probability, _LEAST, 1 - _LEAST)
    offset = np.log((1 - bias) / bias)
    if z_bias is not None:
        offset = offset + across * (np.log((1 - z_bias) / z_bias) - offset)
    weight = (pairs / 100) ** (size_weight / 2) * (1 + across * (z_weight - 1))
    return exact((np.log((1 - p) / p) + offset) * weight), exact(weight)


def exact(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return costs rounded to whole multiples of the unit."""
    rounded: NDArray[np.float64] = np.rint(costs / UNIT) * UNIT
    return rounded
