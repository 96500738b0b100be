"""Workflows: what is to be computed, the plan, the ledger of what is done, and the driver.

workflow  =  a graph of stages            what is to be computed   (spec, reading, plan)
ledger    =  which blocks are done        what has been computed   (ledger, run)
worker    =  blocks to be computed        one function             (worker)
driver    =  steps to be finished         with any engine          (driver)
"""

from typing import TYPE_CHECKING, Any

from .plan import Plan, make_plan
from .run import Run
from .spec import Workflow, parse_workflow
from .worker import work

if TYPE_CHECKING:
    from .driver import Summary, execute
    from .reading import load_workflow

__all__ = ["Plan", "Run", "Summary", "Workflow", "execute", "load_workflow", "make_plan", "parse_workflow", "work"]


def __getattr__(name: str) -> Any:
    # workers start often, and have no need of it
    if name == "load_workflow":
        from .reading import load_workflow

        return load_workflow
    if name in ("Summary", "execute"):
        from . import driver

        return getattr(driver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
