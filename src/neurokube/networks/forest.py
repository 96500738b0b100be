"""A random forest over edges, evaluated with numpy alone: flat arrays, nothing that is unpickled.

Nodes of all trees stand in one list, a tree's root before its children, so that every walk ends (Breiman,
Machine Learning 45:5, 2001; the flat layout is that of scikit-learn, which trains them):

    roots        (t,)    int32    the node that each tree begins with
    feature      (n,)    int32    the feature that a node asks for; of a leaf 0
    threshold    (n,)    float64  values up to this go to the first child, others to the second; of a leaf infinity
    children     (n, 2)  int32    both children; of a leaf itself
    probability  (n,)    float64  that an edge in this node is a boundary
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigurationError, DataError
from .bundle import ForestBundle, load_any

_AT_ONCE = 1 << 18
"""Walks through a tree that are under way at once; bounds the memory, and changes no bit."""
_DTYPES = {"roots": "int32", "feature": "int32", "threshold": "float64", "children": "int32", "probability": "float64"}


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees as flat arrays, see above."""

    roots: NDArray[np.int32]
    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    children: NDArray[np.int32]
    probability: NDArray[np.float64]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], features: int) -> Self:
        """Return the forest of `features` features that arrays hold.

        Raises:
            DataError: where they are no forest.
        """
        if wrong := [name for name, dtype in _DTYPES.items() if name not in arrays or arrays[name].dtype != dtype]:
            raise DataError(f"weights: '{wrong[0]}' is missing, or no {_DTYPES[wrong[0]]}; get the bundle again")
        forest = cls(**{name: arrays[name] for name in _DTYPES})
        if not forest._is_sound(features):
            raise DataError("weights: they are no trees over the features that the card names; get the bundle again")
        return forest

    def _is_sound(self, features: int) -> bool:
        """Whether every walk stays inside and ends: children come after their node, or are it, both of them."""
        count = len(self.feature)
        if self.children.shape != (count, 2) or not count == len(self.threshold) == len(self.probability):
            return False
        own, first, second = np.arange(count), self.children[:, 0], self.children[:, 1]
        ends = (first == own) & (second == own)
        inside = ((first > own) & (second > own) | ends) & (self.children < count).all(1)
        return bool(
            len(self.roots)
            and inside.all()
            and ((self.roots >= 0) & (self.roots < count)).all()
            and ((self.feature >= 0) & (self.feature < features)).all()
            and ((self.probability >= 0) & (self.probability <= 1)).all()
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is stored."""
        return {name: getattr(self, name) for name in _DTYPES}

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probability that each edge is a boundary, (m,), from features (m, f): the mean over the trees."""
        many = max(1, _AT_ONCE // len(self.roots))
        parts = [self._part(features[k : k + many]) for k in range(0, len(features), many)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _part(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        # a row a tree, so that the sum below goes tree by tree, in one order whatever the processor
        node = np.repeat(self.roots[:, None], len(features), axis=1)
        edge = np.broadcast_to(np.arange(len(features)), node.shape)
        # compared as float64: thresholds lie between neighbouring float32 values
        while True:
            second = features[edge, self.feature[node]] > self.threshold[node]
            following = self.children[node, second.astype(np.intp)]
            if np.array_equal(following, node):
                break
            node = following
        total = np.zeros(len(features))
        for row in node:
            total += self.probability[row]
        mean: NDArray[np.float64] = total / len(self.roots)
        return mean


def load_forest(model: str) -> ForestBundle:
    """Open a forest by the path of its bundle's folder, or by the name of an installed or shipped one.

    Raises:
        UsageError: where there is none.
        ConfigurationError: where it is a network.
        DataError: where it is damaged: names what.
    """
    bundle = load_any(model)
    if not isinstance(bundle, ForestBundle):
        raise ConfigurationError(
            f"forest: {model} is a network ({bundle.card.architecture.kind}), which sees images and no edges; "
            "name a forest, as 'neurokube train' makes by task: forest"
        )
    return bundle


def trees(bundle: ForestBundle) -> Forest:
    """Return what a bundle holds.

    Raises:
        DataError: where it is damaged.
    """
    try:
        return Forest.of(bundle.arrays(), len(bundle.card.architecture.features))
    except DataError as error:
        raise DataError(f"{bundle.folder}: {error}") from None
