"""Graphs that runs have measured, to learn from: of a run that is there, or of a workflow, computed where it is not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from ..blocks import Box, Grid
from ..engines.base import Engine
from ..errors import ConfigurationError
from ..stages import Data, Source
from ..stages.graph import Graph
from ..volumes import VolumeSpec
from .driver import execute
from .reading import load_workflow
from .run import Run
from .spec import Workflow


@dataclass(frozen=True)
class MeasuredGraph:
    """A graph stage of a run, done; `data` reads the roles `graph` and `fragments`."""

    run: str
    stage: Graph
    key: str
    fragments: Source
    data: Data

    @property
    def tiles(self) -> Grid:
        """The grid of the tables."""
        return self.fragments.volume.grid()

    @property
    def spec(self) -> VolumeSpec:
        """What the fragments cover."""
        return self.fragments.spec


def graph_of_run(url: str, name: str | None = None) -> MeasuredGraph:
    """Return the graph of a run, the only one or that of the stage `name`.

    Raises:
        ConfigurationError: where there is no run, no such stage, or it is not done.
    """
    run = Run.open(url)
    chosen = _chosen(run.workflow, name, url)
    if (missing := _remaining(run, chosen)) is not None:
        raise ConfigurationError(
            f"{url}: its graph is not done ({missing} has blocks left); go on with 'neurokube run', or name its "
            "workflow in place of the run"
        )
    return _measured(run, chosen)


def graph_of_workflow(
    path: str, name: str | None = None, *, region: Box | None = None, engine: Callable[[], Engine], quiet: bool = False
) -> MeasuredGraph:
    """Return the graph of a workflow's run, the only one or that of the stage `name`, computed where it is not done.

    `engine` makes what computes it.  Only what the graph needs is computed, in the run's own folder: a later run of the
    whole workflow goes on from it, and stages that cannot be planned yet, as a multicut with the forest that is to be
    trained, are no hindrance.

    Raises:
        ConfigurationError: where there is no such workflow or stage.
        NeuroKubeError: where the run fails, see `execute`.
    """
    workflow = load_workflow(path)
    chosen = _chosen(workflow, name, path)
    try:
        run = Run.planned(workflow.upto(chosen), region)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    # a run that has all is left as it is, with the stages that it has beyond the graph
    if _remaining(run, chosen) is not None:
        execute(run, engine(), quiet=quiet)
    return _measured(run, chosen)


def _chosen(workflow: Workflow, name: str | None, where: str) -> str:
    graphs = [key for key, stage in workflow.stages.items() if isinstance(stage, Graph)]
    if not graphs:
        raise ConfigurationError(f"{where}: it has no graph stage; add fragments and graph to its workflow")
    if name is None and len(graphs) > 1:
        raise ConfigurationError(f"{where}: it has the graphs {', '.join(graphs)}; say which by 'graph'")
    if name is not None and name not in graphs:
        raise ConfigurationError(f"{where}: graph '{name}' is none of its graph stages, {', '.join(graphs)}")
    return name or graphs[0]


def _remaining(run: Run, name: str) -> str | None:
    """Return the first step of a graph, or of its fragments, that has blocks left."""
    own = {name, run.plan.stage(name).sources["fragments"].name}
    steps = (step for step in run.plan.steps.values() if step.planned.name in own)
    return next((step.name for step in steps if run.ledger(step).remaining()), None)


def _measured(run: Run, name: str) -> MeasuredGraph:
    planned = run.plan.stage(name)
    fragments = planned.sources["fragments"]
    data = Data({"graph": planned.own, "fragments": fragments}, Source(name, "graph", {}, {}))
    return MeasuredGraph(run.url, cast(Graph, planned.stage), planned.key, fragments, data)
