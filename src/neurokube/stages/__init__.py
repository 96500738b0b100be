"""The stages of the workflow, one module each.

synthesis ─┐
           ├─ image ┬ boundaries ──────┬─ fragments ─ graph ─ multicut ─ segmentation ─┐
an input  ─┘        └ semantics ─ fusion                ╎                              │
                             │                          lifted                         │
                             └─ objects ────────────────┴──────────────────────────────┴─ measurements

Of an image, superresolution and translation make another; semantics, instead of boundaries, needs a trained model.
"""

from .base import Block, Data, FileOutput, Output, Source, Stage, Step, TableOutput, Target, VolumeOutput
from .boundaries import Boundaries
from .fragments import Fragments
from .fusion import Fusion
from .graph import Graph
from .lifted import Lifted
from .measurements import Measurements
from .multicut import Multicut
from .objects import Objects
from .segmentation import Segmentation
from .semantics import Semantics
from .superresolution import Superresolution
from .synthesis import Synthesis
from .translation import Translation

_FOUND = (Synthesis, Boundaries, Semantics, Fusion, Superresolution, Translation)
_CELLS = (Fragments, Graph, Lifted, Multicut, Segmentation, Objects, Measurements)
STAGES: dict[str, type[Stage]] = {stage.kind: stage for stage in (*_FOUND, *_CELLS)}
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
