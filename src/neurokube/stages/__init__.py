"""The stages of the workflow, one module each.

synthesis ─┐
           ├─ image ─ boundaries ─ fragments ─ graph ─ multicut ─ segmentation ─┐
an input  ─┘    └─── semantics ─── objects ─────────────────────────────────────┴─ measurements
"""

from .base import Block, Data, FileOutput, Output, Source, Stage, Step, TableOutput, Target, VolumeOutput
from .boundaries import Boundaries
from .fragments import Fragments
from .graph import Graph
from .measurements import Measurements
from .multicut import Multicut
from .objects import Objects
from .segmentation import Segmentation
from .semantics import Semantics
from .synthesis import Synthesis

STAGES: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (
        Synthesis,
        Boundaries,
        Semantics,
        Fragments,
        Graph,
        Multicut,
        Segmentation,
        Objects,
        Measurements,
    )
}
"""Every stage that a workflow can name."""

__all__ = [
    "STAGES",
    "Block",
    "Data",
    "FileOutput",
    "Output",
    "Source",
    "Stage",
    "Step",
    "TableOutput",
    "Target",
    "VolumeOutput",
]
