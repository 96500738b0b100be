"""Reconstructions to be scored: fragments by the ordinary engine, once for all multicuts; multicuts in memory.

What comes before the fragments is computed once, in a run for each cut-out.  Each new setting of the watershed adds
stages to that run, under names of their own, so that one that comes again finds what it left.  A multicut only joins
fragments: its scores come from the voxels that fragments and truth share, which are counted once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.base import Engine
from ..errors import ConfigurationError, DataError
from ..evaluation import Counts, InstanceScores, count_instances
from ..stages import Block, Data, Source, Stage
from ..stages.graph import fragment_ids
from ..volumes import Store, open_volume
from ..workflow import Run, Workflow, execute
from ..workflow.plan import PlannedStage
from .cutouts import Cutout
from .ranges import Settings, with_settings


@dataclass(frozen=True)
class Chain:
    """The stages of a workflow that lead to a multicut, in order: what is computed once, and what is tuned.

    `base` ends with the boundary map; `shared` are the `fragments` and what is made of them before the multicut.
    """

    base: tuple[str, ...]
    shared: tuple[str, ...]
    fragments: str
    multicut: str

    @classmethod
    def of(cls, workflow: Workflow, multicut: str) -> "Chain":
        """Sort the stages that a multicut needs."""
        order = [name for name in workflow.order() if name in workflow.stages]
        reads = {name: _read(workflow.stages[name]) for name in order}
        needed = {multicut}
        for name in reversed(order):
            if name in needed:
                needed |= reads[name] & workflow.stages.keys()
        after: set[str] = set()
        for name in order:
            if workflow.stages[name].kind == "fragments" or reads[name] & after:
                after.add(name)
        used = [name for name in order if name in needed and name != multicut]
        fragments = workflow.stages[multicut].references()["fragments"].partition(".")[0]
        base, shared = (tuple(n for n in used if (n in after) == later) for later in (False, True))
        return cls(base, shared, fragments, multicut)


def _read(stage: Stage) -> set[str]:
    return {reference.partition(".")[0] for reference in stage.references().values()}


@dataclass(frozen=True)
class Fragmented:
    """A cut-out in fragments: the multicut that could join them, and what they share with the truth."""

    multicut: PlannedStage
    counts: Counts

    def scores(self, settings: Mapping[str, Any], min_size: int) -> InstanceScores:
        """Join the fragments by a multicut with these fields changed, and score what comes out."""
        url = f"memory://tuning/{next(_number)}"
        stage = self.multicut.stage.model_copy(update=settings)
        sources = self.multicut.sources
        outputs = stage.outputs(sources)
        data = Data(sources, Source("multicut", stage.kind, outputs, {name: f"{url}/{name}" for name in outputs}))
        try:
            for step in stage.steps(sources):
                for cell in range(len(step.grid)):
                    step.compute(Block(step.grid.box(cell), (cell,)), data)
                    data.checksums(step.objects([cell]))
            grid = sources["fragments"].volume.grid()
            segments = [data.table("segments", cell) for cell in range(len(grid))]
        finally:
            Store(url).delete_all()
        ids = [fragment_ids(grid, cell, len(each)) for cell, each in enumerate(segments)]
        return self.counts.joined(np.concatenate(ids), np.concatenate(segments)).scores(min_size)


_number = count()


class Reconstructions:
    """Reconstructions of cut-outs with the settings of a workflow, or with others."""

    def __init__(self, workflow: Workflow, chain: Chain, folder: Path, engine: Engine, *, components: bool) -> None:
        self.workflow, self.chain = workflow, chain
        self._runs, self._engine, self._components = str(folder / "runs"), engine, components
        self._kept: dict[tuple[str, ...], Fragmented] = {}
        self._first: dict[str, Run] = {}

    def first(self, cutout: Cutout) -> Run:
        """Plan all stages as they are, once, as it can take long to try which way a network is fastest."""
        if str(cutout) not in self._first:
            self._first[str(cutout)] = self.planned(cutout, {})
        return self._first[str(cutout)]

    def planned(self, cutout: Cutout, settings: Mapping[str, Any]) -> Run:
        """Plan all stages with some settings changed; writes nothing.

        Raises:
            ConfigurationError, DataError: where stages and inputs do not fit together.
        """
        chain = self.chain
        stages = with_settings(self.workflow.stages, settings)
        shared = {name: stages[name] for name in chain.shared}
        mark = _mark(shared)
        names = {name: f"{name}-{mark}" for name in chain.shared}
        chosen = {name: stages[name] for name in chain.base}
        chosen |= {names.get(name, name): _reading(stages[name], names) for name in (*chain.shared, chain.multicut)}
        update = {"stages": chosen, "workspace": self._runs}
        try:
            return Run.planned(self.workflow.model_copy(update=update).in_one_place(), cutout.region)
        except (ConfigurationError, DataError) as error:
            raise type(error)(str(error).replace(f"-{mark}", "")) from None

    def prepare(self, cutouts: Sequence[Cutout], *, quiet: bool) -> None:
        """Compute what comes before the fragments; again to go on after any interruption."""
        for cutout in cutouts:
            if self.chain.base:
                execute(_only(self.first(cutout), self.chain.base), self._engine, quiet=quiet, tell=False)

    def scores(self, cutouts: Sequence[Cutout], settings: Settings, min_size: int) -> list[InstanceScores]:
        """Return the scores of each cut-out, reconstructed with some settings changed."""
        own = {n: v for n, v in settings.items() if n.partition(".")[0] == self.chain.multicut}
        shared = {name: value for name, value in settings.items() if name not in own}
        fields = {name.partition(".")[2]: value for name, value in own.items()}
        return [self._fragmented(cutout, shared).scores(fields, min_size) for cutout in cutouts]

    def _fragmented(self, cutout: Cutout, settings: Settings) -> Fragmented:
        shared = json.dumps(settings, sort_keys=True)
        key = (shared, cutout.truth.url, str(cutout))
        if key not in self._kept:
            # one group of trials at a time needs them
            self._kept = {k: v for k, v in self._kept.items() if k[0] == shared}
            run = self.planned(cutout, settings)
            *before, multicut = run.plan.stages
            execute(_only(run, [stage.name for stage in before]), self._engine, quiet=True, tell=False)
            fragments = multicut.sources["fragments"]
            box, truth = cutout.compared(fragments.spec)
            volume = open_volume(fragments.urls["fragments"]).crop(box)
            counts = count_instances(volume, truth, components=self._components, quiet=True)
            self._kept[key] = Fragmented(multicut, counts)
        return self._kept[key]


def _only(run: Run, names: Sequence[str]) -> Run:
    """Return a run that computes some of its stages; the others are planned, as workers must plan the same."""
    stages = tuple(stage for stage in run.plan.stages if stage.name in names)
    return Run(run.url, run.workflow, replace(run.plan, stages=stages), run.document)


def _reading(stage: Stage, names: Mapping[str, str]) -> Stage:
    """Return the stage with what it reads under other names."""

    def renamed(reference: str) -> str:
        name, dot, output = reference.partition(".")
        return names.get(name, name) + dot + output

    return stage.reading({role: renamed(reference) for role, reference in stage.references().items()})


def _mark(stages: Mapping[str, Stage]) -> str:
    text = json.dumps({name: stage.model_dump(mode="json") for name, stage in stages.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
