"""How good a segmentation or a mask is, where it is not, and pictures that show it.

Scores are computed block by block from integer counts: a volume is never loaded whole, and a score does
not depend on the blocks.
"""

from .assessment import Assessment, assess
from .components import Components
from .contingency import Contingency, ContingencySum
from .instances import (
    Agreement,
    Counts,
    InstanceScores,
    adapted_rand,
    count_instances,
    evaluate_instances,
    variation_of_information,
)
from .masks import MaskScores, evaluate_mask
from .mistakes import Mistake, Part
from .mistakes_report import MistakesReport
from .report import Picture, Table, write_report
from .run_length import RunLengths, evaluate_skeletons
from .scores import FLOOR, print_mistakes, print_rows, print_scores, run_length_rows, score_rows
from .skeletonization import skeletonize
from .skeletons import Skeletons, read_skeletons

__all__ = [
    "FLOOR",
    "Agreement",
    "Assessment",
    "Components",
    "Contingency",
    "ContingencySum",
    "Counts",
    "InstanceScores",
    "MaskScores",
    "Mistake",
    "MistakesReport",
    "Part",
    "Picture",
    "RunLengths",
    "Skeletons",
    "Table",
    "adapted_rand",
    "assess",
    "count_instances",
    "evaluate_instances",
    "evaluate_mask",
    "evaluate_skeletons",
    "print_mistakes",
    "print_rows",
    "print_scores",
    "read_skeletons",
    "run_length_rows",
    "score_rows",
    "skeletonize",
    "variation_of_information",
    "write_report",
]
