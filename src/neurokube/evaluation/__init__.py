"""How good a segmentation or a mask is, and pictures that show where it is not.

Scores are computed block by block from integer counts: a volume is never loaded whole, and a score does
not depend on the blocks.
"""

from .components import Components
from .contingency import Contingency, ContingencySum
from .instances import Agreement, InstanceScores, adapted_rand, evaluate_instances, variation_of_information
from .masks import MaskScores, evaluate_mask

__all__ = [
    "Agreement",
    "Components",
    "Contingency",
    "ContingencySum",
    "InstanceScores",
    "MaskScores",
    "adapted_rand",
    "evaluate_instances",
    "evaluate_mask",
    "variation_of_information",
]
