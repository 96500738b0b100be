"""The stages of the workflow, one module each.

synthesis ─┐
           ├─ image ┬ boundaries ─────── fragments ─ graph ─ multicut ─ segmentation
an input  ─┘        └ semantics ─ fusion ┘
"""

from .base import Block, Data, Output, Source, Stage, Step, TableOutput, Target, VolumeOutput
from .boundaries import Boundaries
from .fragments import Fragments
from .fusion import Fusion
from .graph import Graph
from .multicut import Multicut
from .segmentation import Segmentation
from .semantics import Semantics
from .synthesis import Synthesis

STAGES: dict[str, type[Stage]] = {
    stage.kind: stage for stage in (Synthesis, Boundaries, Semantics, Fusion, Fragments, Graph, Multicut, Segmentation)
}
"""Every stage that a workflow can name."""

__all__ = [
    "STAGES",
    "Block",
    "Data",
    "Output",
    "Source",
    "Stage",
    "Step",
    "TableOutput",
    "Target",
    "VolumeOutput",
]
