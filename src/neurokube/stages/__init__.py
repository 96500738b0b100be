"""The stages of the workflow, one module each.

synthesis ─┐
           ├─ image ─ boundaries ─ fragments ─ graph ─ multicut ─ segmentation
an input  ─┘

Of an image, superresolution and translation make another; semantics, instead of boundaries, needs a trained model.
"""

from .base import Block, Data, Output, Source, Stage, Step, TableOutput, Target, VolumeOutput
from .boundaries import Boundaries
from .fragments import Fragments
from .graph import Graph
from .multicut import Multicut
from .segmentation import Segmentation
from .semantics import Semantics
from .superresolution import Superresolution
from .synthesis import Synthesis
from .translation import Translation

_LEARNED = (Semantics, Superresolution, Translation)
_REST = (Fragments, Graph, Multicut, Segmentation)
STAGES: dict[str, type[Stage]] = {stage.kind: stage for stage in (Synthesis, Boundaries, *_LEARNED, *_REST)}
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
