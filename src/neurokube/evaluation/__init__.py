"""How good a segmentation or a mask is, and pictures that show where it is not.

Scores are computed block by block from integer counts: a volume is never loaded whole, and a score does
not depend on the blocks.
"""

from .components import Components
from .contingency import Contingency, ContingencySum
from .instances import Agreement, InstanceScores, adapted_rand, evaluate_instances, variation_of_information
from .masks import MaskScores, evaluate_mask
from .report import Picture, Table, write_report
from .scores import FLOOR, print_rows, print_scores, score_rows

__all__ = [
    "FLOOR",
    "Agreement",
    "Components",
    "Contingency",
    "ContingencySum",
    "InstanceScores",
    "MaskScores",
    "Picture",
    "Table",
    "adapted_rand",
    "evaluate_instances",
    "evaluate_mask",
    "print_rows",
    "print_scores",
    "score_rows",
    "variation_of_information",
    "write_report",
]
