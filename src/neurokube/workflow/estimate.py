"""The estimate: what a run will take and leave behind, before anything runs.

What is counted is exact: blocks, windows, bytes before compression, objects (at most, as empty ones are not stored).
What tissue decides is a range, and says what it is based on: figures that were measured elsewhere, or a calibration
of this volume on this machine.  Time and cost need the latter.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..engines import InProcess
from ..stages import VolumeOutput
from ..stages.base import SINGLE
from ..stages.network import NetworkStage
from ..volumes.space import SHARE
from ..words import counted, human_bytes
from . import figures
from .plan import Plan, PlannedStage, PlannedStep
from .quantities import NONE, Range, exactly
from .run import Run

if TYPE_CHECKING:
    from ..engines.cluster import Profile

FILE = "plan.json"
"""Where a run keeps the estimate that was made of it."""

INDEXES = 512
"""Indexes of a Job, at the most, where no profile says otherwise."""

FLOAT32 = 4


@dataclass(frozen=True)
class Target:
    """Where a run is to run: worker processes or a cluster's pods; and what an hour of a core and of a GPU costs."""

    workers: int = 1
    profile: "Profile | None" = None
    price_cpu: float | None = None
    price_gpu: float | None = None


@dataclass(frozen=True)
class Timing:
    """What a calibration says of a step: seconds, the start of a worker, and bytes that are stored."""

    seconds: Range
    processor: Range
    start: float
    opening: float
    stored: Range
    memory: int


@dataclass(frozen=True)
class Calibration:
    """What was measured where, and what it says of each step and of all of them together."""

    steps: Mapping[str, Timing]
    seconds: Range
    processor: Range
    stored: Range
    places: tuple[str, ...]
    voxels: int
    remarks: tuple[str, ...] = ()
    took: float = 0.0


@dataclass(frozen=True)
class StepEstimate:
    """What a step comes to.

    `workers` can work on it at once; `uncompressed` are the bytes of its volumes, `stored` those of all that it leaves,
    compressed; `memory` is what a worker needs, in bytes; `seconds` the work of all blocks, `start` what a worker takes
    for its first one in addition.
    """

    step: str
    kind: str
    blocks: int
    block: tuple[int, ...]
    effort: float
    unit: str
    indexes: int
    workers: int
    objects: int
    uncompressed: int
    stored: Range
    memory: int
    cpus: float
    gpus: int
    seconds: Range | None = None
    processor: Range | None = None
    start: float = 0.0
    cost: Range | None = None


@dataclass(frozen=True)
class NetworkEstimate:
    """How a network sees the volume, and the size of the intermediate data of the NeuroKube paper of 2020.

    `factors` are those of the paper's product.  It is what there would be were every prediction of every window kept;
    here predictions are blended as they come, and what is stored is `stored` bytes before compression.
    """

    stage: str
    windows: int
    computed: int
    window: tuple[int, ...]
    batch: int
    backend: str
    dtype: str
    factors: dict[str, float]
    intermediate: float
    stored: int


@dataclass(frozen=True)
class Estimate:
    """All that is known of a run before it runs."""

    url: str
    keys: Mapping[str, str]
    steps: tuple[StepEstimate, ...]
    networks: tuple[NetworkEstimate, ...]
    metadata: int
    ledger: int
    target: Target
    calibration: Calibration | None = None
    remarks: tuple[str, ...] = ()
    made: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def stored(self) -> Range:
        """Bytes that will be stored."""
        return self.calibration.stored if self.calibration else sum((s.stored for s in self.steps), NONE)

    @property
    def seconds(self) -> Range | None:
        """Seconds of work, of all workers together, their starts included."""
        return self.calibration.seconds + exactly(self._start) if self.calibration else None

    @property
    def processor(self) -> Range | None:
        """Seconds of a processor core, of all workers together, their starts included."""
        return self.calibration.processor + exactly(self._start) if self.calibration else None

    @property
    def _start(self) -> float:
        return sum(s.start * s.workers for s in self.steps)

    @property
    def elapsed(self) -> Range | None:
        """Seconds till the end if no worker ever waits but for the end of a step."""
        if self.calibration is None:
            return None
        start = sum(s.start + self.calibration.steps[s.step].opening for s in self.steps)
        return sum((s.seconds.times(1 / s.workers) for s in self.steps if s.seconds), exactly(start))

    @property
    def gpu_hours(self) -> Range | None:
        """Hours of GPUs; None where they are used and nobody timed them."""
        used = [s for s in self.steps if s.gpus]
        if used and self.calibration is None:
            return None
        return sum((s.seconds.times(s.gpus / 3600) for s in used if s.seconds), NONE)

    @property
    def cost(self) -> Range | None:
        """What the run costs at the prices given."""
        costs = [s.cost for s in self.steps if s.cost]
        return sum(costs, NONE) if costs else None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; ranges are [low, likely, high]."""
        steps = [_plain(asdict(s), s) for s in self.steps]
        totals = {
            "blocks": sum(s.blocks for s in self.steps),
            "indexes": sum(s.indexes for s in self.steps),
            "objects": {"data": sum(s.objects for s in self.steps), "metadata": self.metadata, "ledger": self.ledger},
            "uncompressed": sum(s.uncompressed for s in self.steps),
            "stored": _listed(self.stored),
            "memory": max(s.memory for s in self.steps),
            "seconds": _listed(self.seconds),
            "processor": _listed(self.processor),
            "elapsed": _listed(self.elapsed),
            "gpu_hours": _listed(self.gpu_hours),
            "cost": _listed(self.cost),
        }
        calibration = None
        if self.calibration:
            c = self.calibration
            calibration = {
                "places": list(c.places),
                "voxels": c.voxels,
                "took": round(c.took, 1),
                "margin": margin(len(c.places)),
                "remarks": list(c.remarks),
            }
        return {
            "neurokube": __version__,
            "made": self.made,
            "run": self.url,
            "keys": dict(self.keys),
            "workers": self.target.workers,
            "basis": "calibration" if self.calibration else "figures measured elsewhere",
            "steps": steps,
            "networks": [asdict(n) for n in self.networks],
            "totals": totals,
            "calibration": calibration,
            "remarks": list(self.remarks),
        }


MARGIN = 1.3
"""How far beyond the spread of the places a range of time goes, either way, for what a sample cannot tell."""
_LONE = 2.0
"""The same of a single place, which says nothing of how tissue differs."""


def margin(places: int) -> float:
    """Return how far a range goes beyond what so many places say, either way."""
    return _LONE if places < 2 else MARGIN


def estimate(run: Run, target: Target, calibration: Calibration | None = None) -> Estimate:
    """Estimate a planned run."""
    plan = run.plan
    steps = tuple(_step(step, target, calibration) for step in plan.steps.values())
    volumes = [o for s in plan.stages for o in s.own.outputs.values() if isinstance(o, VolumeOutput)]
    # a group and its resolutions; the mark of a stage; run.json and plan.json
    metadata = sum(1 + len(o.factors) for o in volumes) + len(plan.stages) + 2
    ledger = sum(s.indexes if target.profile else _batches(s.blocks, target.workers) for s in steps)
    return Estimate(
        run.url,
        run.document["keys"],
        steps,
        tuple(_network(s) for s in plan.steps.values() if _is_network(s)),
        # a Job says which batches it has
        metadata + (len(steps) if target.profile else 0),
        ledger,
        target,
        calibration,
        _remarks(plan, steps, target),
    )


def _step(step: PlannedStep, target: Target, calibration: Calibration | None) -> StepEstimate:
    planned, grid, blocks = step.planned, step.step.grid, len(step.blocks)
    block = [min(c * n, s) for c, n, s in zip(grid.cell, step.blocks.cells, grid.shape, strict=True)]
    uncompressed = sum(target_bytes(step).values())
    measured = calibration.steps[step.name] if calibration else None
    profile = target.profile.of(planned.name, planned.stage.kind) if target.profile else None
    cpus, gpus = _devices(step, profile)
    stored = measured.stored if measured else _stored(step, uncompressed)
    indexes = min(blocks, target.profile.indexes if target.profile else INDEXES)
    workers = min(profile.parallelism, indexes) if profile else max(1, min(target.workers, blocks))
    cost = None
    if measured and (target.price_cpu is not None or target.price_gpu is not None):
        hourly = cpus * (target.price_cpu or 0) + gpus * (target.price_gpu or 0)
        start = workers * (measured.start + measured.opening)
        cost = (measured.seconds + exactly(start)).times(hourly / 3600)
    return StepEstimate(
        step.name,
        planned.stage.kind,
        blocks,
        tuple(block),
        effort(step),
        step.step.unit,
        indexes,
        workers,
        sum(len(t.grid) for t in step.step.targets),
        uncompressed,
        stored,
        _memory(step, measured),
        cpus,
        gpus,
        measured.seconds if measured else None,
        measured.processor if measured else None,
        measured.start if measured else 0.0,
        cost,
    )


# what is counted


def voxels(planned: PlannedStage) -> int:
    """Return the voxels of the largest volume that a stage reads or writes."""
    sources = [*planned.sources.values(), planned.own]
    shapes = [o.spec.shape for s in sources for o in s.outputs.values() if isinstance(o, VolumeOutput)]
    return max(map(prod, shapes), default=0)


def amount_of(step: PlannedStep) -> int:
    """Return the voxels that a step goes over."""
    return voxels(step.planned) if step.step.grid == SINGLE else prod(step.step.grid.shape)


def effort(step: PlannedStep) -> float:
    """Return what all blocks of a step cost, in its unit."""
    found = step.step.effort
    if found is None:
        return amount_of(step)
    sides = [n * c for n, c in zip(step.blocks.cells, step.step.grid.cell, strict=True)]
    return prod(
        sum(found(axis, start, min(start + side, length)) for start in range(0, length, side))
        for axis, (length, side) in enumerate(zip(step.step.grid.shape, sides, strict=True))
    )


def target_bytes(step: PlannedStep) -> dict[str, int]:
    """Return the bytes of each volume that a step fills, of its resolution and before compression."""
    return {
        t.output.name: prod(t.grid.shape) * np.dtype(t.output.spec.dtype).itemsize * (t.output.spec.channels or 1)
        for t in step.step.targets
        if isinstance(t.output, VolumeOutput)
    }


def _batches(blocks: int, workers: int) -> int:
    """Return how many batches the local engine makes of a step, each of which leaves one object of records."""
    engine = InProcess()
    engine.workers = max(1, workers)
    return sum(1 for _ in engine.batches(range(blocks)))


# what was measured elsewhere


def level(name: str) -> tuple[str, int]:
    """Return the name of a step without the number of its level, and that; 0 where there is none."""
    found = re.fullmatch(r"(.*?)-(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)


def _stored(step: PlannedStep, uncompressed: int) -> Range:
    """Return what a step stores by figures of other tissue; of volumes never more than before compression."""
    kind = step.planned.stage.kind
    share = figures.expected(figures.SHARES[kind]) if kind in figures.SHARES else _guess(step)
    volume = Range(share.low, share.likely, min(1.0, share.high)).times(uncompressed)
    tables = sum(len(t.grid) for t in step.step.targets if not isinstance(t.output, VolumeOutput))
    if not tables:
        return volume
    rows = figures.expected(figures.TABLES.get(f"{kind}/{level(step.step.name)[0]}")).times(amount_of(step))
    return volume + rows + exactly(figures.HEADER * tables)


def _guess(step: PlannedStep) -> Range:
    """Return the share that is kept of volumes of whose kind of stage nobody measured it."""
    kinds = [t.output.spec.kind for t in step.step.targets if isinstance(t.output, VolumeOutput)]
    return Range(0.0, max((SHARE[kind] for kind in kinds), default=0.0), 1.0)


def _memory(step: PlannedStep, measured: Timing | None) -> int:
    """Return what a worker holds: what a network may take, or what a cell and what it looks at took elsewhere."""
    stage, found = step.planned.stage, step.step
    if isinstance(stage, NetworkStage) and _is_network(step):
        return int(stage.memory * 2**30)
    if found.grid == SINGLE:
        held = figures.GROWING.get(f"{stage.kind}/{found.name}", 0.0) * voxels(step.planned)
        return max(measured.memory if measured else 0, int(figures.BARE + held))
    if measured:
        return measured.memory
    cell = prod(min(c, s) for c, s in zip(found.grid.cell, found.grid.shape, strict=True))
    name = level(found.name)[0]
    key = "pyramid" if name.endswith("pyramid") else f"{stage.kind}/{name}"
    per_voxel = figures.HELD.get(key, figures.OTHERS_HELD)
    return int(figures.BARE + per_voxel * cell)


# networks


def _is_network(step: PlannedStep) -> bool:
    return isinstance(step.planned.stage, NetworkStage) and step.step.unit == "windows"


def _devices(step: PlannedStep, profile: "Profile | None") -> tuple[float, int]:
    """Return the cores and the GPUs that a worker has."""
    stage = step.planned.stage
    settled = stage.settled if isinstance(stage, NetworkStage) and _is_network(step) else None
    on_gpu = settled is not None and settled.numerics.backend == "cuda"
    if profile:
        from ..engines.cluster.profile import amount

        return float(amount(profile.resources.cpu)), max(profile.resources.gpu, int(on_gpu))
    return float(stage.threads if isinstance(stage, NetworkStage) else 1), int(on_gpu)


def _network(step: PlannedStep) -> NetworkEstimate:
    planned, stage = step.planned, step.planned.stage
    assert isinstance(stage, NetworkStage) and stage.settled is not None
    image, numerics = planned.sources["image"].spec, stage.settled.numerics
    grid = stage.grid(image)
    _, y, x = grid.shape
    factors = {
        "x": image.shape[2],
        "y": image.shape[1],
        "z": image.shape[0],
        "z_upscaling": stage.card.factor,
        "window_depth": numerics.window[0],
        "permutations": len(stage.turns(image, numerics.window)),
        "overlap": round(prod(map(len, grid.starts[1:])) * prod(numerics.window[1:]) / (y * x), 3),
        "classes": len(step.step.targets),
        "bytes": FLOAT32,
    }
    return NetworkEstimate(
        planned.name,
        len(grid),
        round(effort(step)),
        numerics.window,
        numerics.batch,
        numerics.backend,
        numerics.dtype,
        factors,
        round(prod(factors.values())),
        sum(target_bytes(step).values()),
    )


def _remarks(plan: Plan, steps: tuple[StepEstimate, ...], target: Target) -> tuple[str, ...]:
    """Return where a profile does not fit."""
    if target.profile is None:
        return ()
    from ..engines.cluster.profile import amount

    found = []
    needs: dict[tuple[str, float], list[StepEstimate]] = {}
    for step in steps:
        name = step.step.partition("/")[0]
        given = float(amount(target.profile.of(name, step.kind).resources.memory))
        if given < step.memory:
            needs.setdefault((name, given), []).append(step)
    for (name, given), short in needs.items():
        most = max(short, key=lambda step: step.memory)
        others = f" ({counted(len(short) - 1, 'other')} less)" if short[1:] else ""
        found.append(
            f"{most.step}: needs {human_bytes(most.memory)} of memory a pod{others}, the profile gives "
            f"{human_bytes(given)}; raise stages.{name}.resources.memory, as a pod that uses more is killed"
        )
    for planned in plan.stages:
        settled = planned.stage.settled if isinstance(planned.stage, NetworkStage) else None
        gpus = target.profile.of(planned.name, planned.stage.kind).resources.gpu
        if settled and gpus and settled.numerics.backend != "cuda":
            found.append(
                f"{planned.name}: the profile gives it a GPU, but it was planned with {settled.numerics.backend} and "
                "will not use it; plan where there is a GPU, or give it none"
            )
    return tuple(found)


# an estimate that is kept


def keep(run: Run, target: Target) -> None:
    """Leave an estimate in a run that is about to begin, unless there is one of the same plan."""
    if kept(run) is None:
        run.store.write_json(FILE, estimate(run, target).as_dict(), indent=2)


def kept(run: Run) -> dict[str, Any] | None:
    """Return the estimate that a run keeps, if it is one of what it does now."""
    found = run.store.read_json(FILE)
    blocks = {name: len(step.blocks) for name, step in run.plan.steps.items()}
    if not isinstance(found, dict) or found.get("keys") != run.document["keys"]:
        return None
    return found if {row["step"]: row["blocks"] for row in found["steps"]} == blocks else None


def _plain(values: dict[str, Any], step: StepEstimate) -> dict[str, Any]:
    ranges = {name: value for name in values if isinstance(value := getattr(step, name), Range)}
    return {**values, **{name: _listed(value) for name, value in ranges.items()}}


def _listed(value: Range | None) -> list[float] | None:
    return None if value is None else [float(f"{v:.6g}") for v in (value.low, value.likely, value.high)]
