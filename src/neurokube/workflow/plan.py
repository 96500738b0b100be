"""The plan: every step of a workflow with its grid, its outputs, and the key its records are kept under."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..blocks import Blocks, Box
from ..errors import ConfigurationError, DataError, UsageError
from ..stages import Data, Output, Source, Stage, Step, VolumeOutput
from ..stages.base import outputs_of
from ..versions import version
from ..volumes import Store, Volume, VolumeSpec, join, layout, open_volume
from ..volumes.affine import HERE, apart, between, extent
from .spec import Workflow


def numerics_class() -> dict[str, str]:
    """Return what decides the bits that come out: processor family and the numeric libraries.

    Fixed when a run is planned, kept in it, and part of every key; a worker of another class refuses.
    """
    return {
        "machine": platform.machine(),
        **{name: version(name) for name in ("bioimage-cpp", "numpy", "scipy")},
    }


def digest(value: Any) -> str:
    """Return a short hash of plain values, the same for equal values in any order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its key, what it reads, and its steps.

    `url` is where all that belongs to it lies; `reads` are the keys of what it reads, by role; `edits` tells apart the
    corrections that people made of it, "" where there are none.  They are no part of its own key, as they renew only a
    few of its blocks, but of its readers'.
    """

    name: str
    stage: Stage
    url: str
    key: str
    sources: Mapping[str, Source]
    own: Source
    steps: tuple[Step, ...]
    reads: Mapping[str, str]
    edits: str = ""

    def data(self) -> Data:
        """Open what the stage reads and writes."""
        return Data({**self.sources, **self.stage.beside(self.own)}, self.own)


@dataclass(frozen=True)
class PlannedStep:
    """A step with the stage it belongs to and the blocks it is worked through in."""

    planned: PlannedStage
    step: Step
    blocks: Blocks

    @property
    def name(self) -> str:
        """`stage/step`, the name that a worker is given."""
        return f"{self.planned.name}/{self.step.name}"

    @property
    def folder(self) -> str:
        """The folder of the step's records, below the stage's."""
        return f"ledger/{self.planned.key}/{self.step.name}"

    @property
    def quarantine(self) -> str:
        """The folder of the step's failed blocks, below the stage's."""
        return f"quarantine/{self.planned.key}/{self.step.name}"


@dataclass(frozen=True)
class Plan:
    """All stages of a run, in an order in which each comes after what it reads."""

    stages: tuple[PlannedStage, ...]
    workflow: Workflow

    @cached_property
    def steps(self) -> dict[str, PlannedStep]:
        """Every step by its name `stage/step`, in order."""
        found = {}
        for planned in self.stages:
            for step in planned.steps:
                voxels = planned.stage.block or self.workflow.block or step.block
                blocks = Blocks.near(step.grid, voxels)
                entry = PlannedStep(planned, step, blocks)
                found[entry.name] = entry
        return found

    @property
    def remarks(self) -> list[str]:
        """What a user should know before it runs."""
        return [f"{s.name}: {remark}" for s in self.stages for remark in s.stage.remarks(s.sources)]

    @property
    def chosen(self) -> dict[str, str]:
        """What planning chose for this machine, by stage."""
        return {s.name: chosen for s in self.stages if (chosen := s.stage.chosen())}

    def stage(self, name: str) -> PlannedStage:
        """Return a stage by its name."""
        return next(planned for planned in self.stages if planned.name == name)

    def step(self, name: str) -> PlannedStep:
        """Return a step by its name.

        Raises:
            UsageError: where there is none of that name.
        """
        try:
            return self.steps[name]
        except KeyError:
            raise UsageError(f"there is no step '{name}' in this run; there are {', '.join(self.steps)}") from None


Settle = Callable[[str, Stage, Mapping[str, Source], Mapping[str, Stage]], Stage]
"""Settles a stage on a machine as those that will work on it: from its name, itself, what it reads, and the stages
before it as they were settled."""

Edited = Callable[[str, str], str]
"""Tells apart the corrections of an editable stage, from its name and the key of its fragments; "" for none."""


def make_plan(
    workflow: Workflow,
    run_url: str,
    *,
    region: Box | None = None,
    numerics: Mapping[str, str] | None = None,
    settled: Mapping[str, Stage] | None = None,
    before: Mapping[str, Stage] | None = None,
    edited: Edited | None = None,
    settle: Settle | None = None,
) -> Plan:
    """Plan a workflow: open its inputs, check that all fits, compute keys.  Writes nothing.

    `settled` are the stages as an earlier plan settled them, to be taken as they are; `before` those of the
    last plan, to be kept where nothing changed.  `settle` is asked where a stage has to be settled on the machines that
    will work on it, and these are others than this.

    Raises:
        ConfigurationError: where stages do not fit together.
        DataError: where an input cannot be read, or the region is not inside it.
    """
    numerics = numerics or numerics_class()
    sources = _inputs(workflow, region)
    _check_region(workflow, region)
    planned: list[PlannedStage] = []
    stages = workflow.followed().stages
    for name in workflow.order():
        stage = stages[name]
        references = {role: _resolve(name, role, text, sources) for role, text in stage.references().items()}
        inputs = {role: source for role, (source, _) in references.items()}
        try:
            _check_affines(stage, inputs)
            was = (before or {}).get(name)
            if settled is not None:
                stage = settled[name]
            elif settle is None or not stage.probes:
                stage = stage.settle(inputs, was)
            else:
                so_far = {each.name: each.stage for each in planned}
                stage = stage.kept(inputs, was) or settle(name, stage, inputs, so_far)
            steps = tuple(stage.steps(inputs))
        except ConfigurationError as error:
            raise ConfigurationError(f"stages.{name}.{error}") from None
        outputs = outputs_of(steps)
        reads = {role: key for role, (_, key) in references.items()}
        key = digest(
            {
                "kind": stage.kind,
                "version": stage.version,
                "settings": stage.model_dump(mode="json", exclude={*stage.unkeyed, *stage.roles}),
                "reads": reads,
                "writes": [asdict(output) for output in outputs.values()],
                "numerics": dict(numerics),
            }
        )
        url = workflow.place(name, run_url)
        own = Source(name, stage.kind, outputs, {o: join(url, o) for o in outputs})
        edits = edited(name, sources[inputs["fragments"].name][1]) if edited and stage.editable else ""
        sources[name] = (own, digest({"key": key, "edits": edits}) if edits else key)
        planned.append(PlannedStage(name, stage, url, key, inputs, own, steps, reads, edits))
    return Plan(tuple(planned), workflow)


def _inputs(workflow: Workflow, region: Box | None) -> dict[str, tuple[Source, str]]:
    """Return the inputs and their keys by name.

    The region is one of the first that lies without an affine; what has an affine, or another voxel size, is whole.
    """
    sources = {}
    affines: dict[str, tuple[VolumeSpec, NDArray[np.float64]]] = {}
    first: VolumeSpec | None = None
    for name, entry in workflow.inputs.items():
        volume = open_volume(entry.path)
        affine = None if entry.affine is None else entry.affine.loaded(Path()).matrix
        if first is None and affine is None:
            first = volume.spec
        own = region if affine is None and first is not None and _alike(volume.spec, first) else None
        source, key = _input_source(name, volume, own), input_key(volume, own)
        if affine is not None:
            affines[name] = volume.spec, np.array(affine)
            source, key = replace(source, affine=affine), digest({"volume": key, "affine": affine})
        sources[name] = (source, key)
    for name, (spec, matrix) in affines.items():
        if first is not None and apart(between(matrix, spec, first), spec, first):
            raise ConfigurationError(
                f"inputs.{name}.affine: leads it to {_span(matrix, spec)} nm (z, y, x), away from the first input "
                f"({_span(HERE, first)} nm); check its axes, unit and direction (inverse: true)"
            )
    return sources


def _span(affine: NDArray[np.float64], spec: VolumeSpec) -> str:
    low, high = extent(affine, spec)
    return ", ".join(f"{a:.0f} to {b:.0f}" for a, b in zip(low, high, strict=True))


def _alike(spec: VolumeSpec, other: VolumeSpec) -> bool:
    return np.allclose(spec.voxel_size, other.voxel_size, rtol=1e-3, atol=0)


def _check_affines(stage: Stage, inputs: Mapping[str, Source]) -> None:
    """Check that what lies by an affine is read only where that is heeded."""
    for role, source in inputs.items():
        if source.affine is not None and role not in stage.transformed:
            raise ConfigurationError(
                f"{role}: '{source.name}' has an affine and voxels of its own; read it through a stage of kind "
                f"resampling, as  aligned: {{stage: resampling, volume: {source.name}}}"
            )


def _check_region(workflow: Workflow, region: Box | None) -> None:
    if region is not None and not workflow.inputs:
        raise UsageError("--region cuts out of input volumes, and this workflow has none; change its shape instead")


def _resolve(stage: str, role: str, text: str, sources: Mapping[str, tuple[Source, str]]) -> tuple[Source, str]:
    """Return what a reference `name` or `name.output` stands for, and its key."""
    name, _, output = text.partition(".")
    source, key = sources[name]
    if not output:
        return source, key
    if output not in source.outputs:
        raise ConfigurationError(
            f"stages.{stage}.{role}: '{name}' has no output '{output}'; it has {', '.join(source.outputs)}"
        )
    first = {output: source.outputs[output]} | dict(source.outputs)
    return replace(source, outputs=first), f"{key}.{output}"


def _input_source(name: str, volume: Volume, region: Box | None) -> Source:
    spec = volume.spec
    if region is not None:
        if not spec.box.contains(region):
            raise DataError(
                f"inputs.{name}: region {region} is not inside {volume.url} ({spec.box}); choose one that is"
            )
        spec = spec.crop(region)
    if np.dtype(spec.dtype).kind not in "u":
        raise DataError(f"inputs.{name}: {volume.url} holds {spec.dtype}; import it as unsigned 8-bit or labels")
    output: Output = VolumeOutput(name, spec, layout(spec)[0])
    return Source(name, "volume", {name: output}, {name: volume.url}, region)


def input_key(volume: Volume, region: Box | None) -> str:
    """Return what identifies an input: its fingerprint, or, where a stranger wrote it, what is stored."""
    content = volume.fingerprint or _stored(volume)
    return digest({"content": content, "spec": volume.spec, "region": str(region) if region else None})


def _stored(volume: Volume) -> list[Any]:
    """Return the keys of a volume and, in a folder, size and time of each object; from a web server its metadata."""
    from pathlib import Path

    url = volume.data or volume.url
    if url.startswith(("http://", "https://")):
        return [url, *(array.spec().to_json() for array in volume.arrays)]
    keys = Store(url).keys()
    if "://" in url:
        return [url, *keys]
    stats = ((key, (Path(url) / key).stat()) for key in keys)
    return [[key, s.st_size, s.st_mtime_ns] for key, s in stats]
