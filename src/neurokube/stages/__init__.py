"""The stages of the workflow, one module each.

synthesis ─┐
           ├─ image ┬ boundaries ──────┬─ fragments ─ graph ─ multicut ─ segmentation ─┐
an input  ─┘        └ semantics ─ fusion                ╎                              │
                             │                          lifted                         │
                             └─ objects ────────────────┴──────────────────────────────┴─ measurements

Of an image, superresolution and translation make another; semantics, instead of boundaries, needs a trained model.
Resampling brings another volume, as one of light microscopy, onto the voxels of the image.
"""

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import Block, Data, FileOutput, Output, Source, Stage, Step, TableOutput, Target, VolumeOutput

if TYPE_CHECKING:
    from .boundaries import Boundaries
    from .fragments import Fragments
    from .fusion import Fusion
    from .graph import Graph
    from .lifted import Lifted
    from .measurements import Measurements
    from .multicut import Multicut
    from .objects import Objects
    from .resampling import Resampling
    from .segmentation import Segmentation
    from .semantics import Semantics
    from .superresolution import Superresolution
    from .synthesis import Synthesis
    from .translation import Translation

_FOUND = ("synthesis", "boundaries", "semantics", "fusion", "superresolution", "translation", "resampling")
_CELLS = ("fragments", "graph", "lifted", "multicut", "segmentation", "objects", "measurements")


class _Stages(MutableMapping[str, type[Stage]]):
    """Stages by kind, each imported when it is first asked for: a worker needs few, and starts often."""

    def __init__(self) -> None:
        self._found: dict[str, type[Stage] | None] = dict.fromkeys((*_FOUND, *_CELLS))

    def __getitem__(self, kind: str) -> type[Stage]:
        found = self._found[kind]
        if found is None:
            # the module of a stage has its name, and the class in capitals
            found = self._found[kind] = getattr(import_module(f".{kind}", __name__), kind.capitalize())
        return found

    def __setitem__(self, kind: str, stage: type[Stage]) -> None:
        self._found[kind] = stage

    def __delitem__(self, kind: str) -> None:
        del self._found[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


STAGES: MutableMapping[str, type[Stage]] = _Stages()
"""Every stage that a workflow can name."""


def __getattr__(name: str) -> Any:
    if (kind := name.lower()) in STAGES and name == kind.capitalize():
        return STAGES[kind]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "STAGES",
    "Block",
    "Boundaries",
    "Data",
    "FileOutput",
    "Fragments",
    "Fusion",
    "Graph",
    "Lifted",
    "Measurements",
    "Multicut",
    "Objects",
    "Output",
    "Resampling",
    "Segmentation",
    "Semantics",
    "Source",
    "Stage",
    "Step",
    "Superresolution",
    "Synthesis",
    "TableOutput",
    "Target",
    "Translation",
    "VolumeOutput",
]
