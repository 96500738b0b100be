"""Calibration: a few places of the volume are worked on for a moment, as a run would, and what that takes is scaled up.

    ┌───────────────────┐     a place is a whole tile and a part of the next, of the largest tiles and windows there
    │ ┌──┐              │     are; each is a run of its own in a scratch folder, by the real engine, worker and stages,
    │ └──┘   ┌──┐       │     with the window, batch and dtype that the run was planned with
    │        └──┘  ┌──┐ │
    │              └──┘ │     places: the middle, then corners that lie opposite, then in between: tissue differs
    └───────────────────┘

A step is scaled by its effort: windows that blocks compute, or voxels that tiles look at, so that it does not matter
that a place has more faces than the volume.  A small run before warms a worker up; what the first blocks took more than
others is the start of a worker.  Coarser resolutions and levels, of which a place has too little, are taken to cost a
voxel what the finest ones do.
"""

import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..allocator import forget_peak
from ..blocks import Box, Vector, parse_region
from ..engines.base import Batch, Engine, Kept, Report
from ..errors import NeuroKubeError, UsageError
from ..progress import progress
from ..stages.base import SINGLE
from ..stages.network import NetworkStage
from .estimate import Calibration, Timing, amount_of, effort, level, margin
from .ledger import Record
from .plan import Plan, PlannedStep
from .quantities import NONE, Range
from .run import Run
from .status import distinct
from .stored import stored
from .worker import opened, work

PLACES = 3
"""Places unless a number is asked for, if the volume is large enough."""

RESAMPLES = 1000
_ENDS = (5.0, 95.0)
"""Percentiles of the resamples that a range reaches to, before it is widened."""

_NOTE = "calibration/{}.json"
_DEFERRED = ("pyramid", "level", "reduce")
"""Steps that a place has too little of to say how large it must be."""

_WITH_PYRAMID = 65
"""Voxels along an axis from which on a volume has coarser resolutions."""

_CORNERS = tuple(tuple(float(c) for c in corner) for corner in ("000", "111", "011", "100", "001", "110", "010", "101"))


@dataclass(frozen=True)
class _Sample:
    """What a step took at a place."""

    effort: float
    voxels: int
    seconds: float
    processor: float
    opening: float
    stored: int
    memory: int


def calibrate(run: Run, engine: Callable[[], Engine], *, places: int | None = None, quiet: bool = False) -> Calibration:
    """Time the steps of a planned run at a few places (`places`, else up to PLACES), in a scratch folder.

    `engine` makes an engine of one worker.

    Raises:
        UsageError: where the volume has no room for so many places.
        NeuroKubeError: where a step fails at every place.
    """
    began, shape = time.monotonic(), _shape(run.plan)
    size = sample_shape(run.plan, shape)
    # of a small volume fewer, as no more than half of it is to be worked on
    most = max(1, min(PLACES, prod(shape) // (2 * prod(size)))) if places is None else places
    boxes = spread(shape, size, most)
    if places is not None and len(boxes) < places:
        raise UsageError(
            f"--blocks {places}: the volume has room for {len(boxes)} places of {_text(size)} voxels; give at most that"
        )
    if 2 * prod(size) > prod(shape):
        raise UsageError(
            f"--calibrate: a place is {_text(size)} voxels, more than half of the volume's {_text(shape)}: run it "
            "instead, that takes as long"
        )
    found: list[dict[str, _Sample]] = []
    remarks: list[str] = []
    with ExitStack() as open_:
        # what is entered last is left first: no worker writes any more when the folder goes
        folder = open_.enter_context(tempfile.TemporaryDirectory(prefix="neurokube-plan-"))
        bars = open_.enter_context(progress(quiet=quiet))
        bar = bars.add_task("calibration", total=(len(boxes) + 1) * len(run.plan.steps), unit="steps")
        # a network keeps its memory: what other steps hold is only to be seen in another process
        engines = {networks: Kept(engine()) for networks in (True, False)}
        for each in engines.values():
            open_.callback(each.close)

        def sampled(name: str, box: Box, number: int) -> dict[str, _Sample]:
            scratch = _planned(run, folder, name, box, number)
            scratch.prepare()
            samples = {}
            for step in scratch.plan.steps.values():
                samples[step.name] = _sample(scratch, step, engines[isinstance(step.planned.stage, NetworkStage)])
                bars.advance(bar)
            return samples

        cold: dict[str, _Sample] = {}
        with suppress(NeuroKubeError):
            # of other tissue: a worker may remember tissue that it has synthesized
            cold = sampled("warm-up", _first(boxes[0], run.plan), len(boxes))
        for number, box in enumerate(boxes):
            try:
                found.append(sampled(f"place-{number}", box, number))
            except NeuroKubeError as error:
                remarks.append(f"the place {box} is left out: {error}")
    if not found:
        raise NeuroKubeError(f"calibration: {remarks[0]}; there is no other place: run it, or plan without")
    return _scaled(run.plan, found, cold, boxes, remarks, time.monotonic() - began)


# where


def _shape(plan: Plan) -> Vector:
    """Return the voxels of what the run is about: of its first input, or of what its first stage makes.

    What lies by an affine is not what places are cut out of.
    """
    read = {s.name: s for planned in plan.stages for s in planned.sources.values() if s.kind == "volume"}
    names = (name for name, entry in plan.workflow.inputs.items() if entry.affine is None and name in read)
    first = next((read[name] for name in names), plan.stages[0].own)
    return first.spec.shape


def sample_shape(plan: Plan, shape: Vector) -> Vector:
    """Return the voxels (z, y, x) of a place: the largest tile, window and row of a batch, and a quarter tile more."""
    sides = [1, 1, 1]
    for step in plan.steps.values():
        if step.step.grid != SINGLE and not _is_deferred(step.step.name):
            sides = [max(a, b) for a, b in zip(sides, step.step.grid.cell, strict=True)]
    # along the axis with most tiles, so that there are faces between tiles
    counts = [-(-n // side) for n, side in zip(shape, sides, strict=True)]
    axis = counts.index(max(counts))
    sides[axis] += -(-sides[axis] // 4)
    if max(sides) < _WITH_PYRAMID:
        sides[shape.index(max(shape))] = _WITH_PYRAMID
    for planned in plan.stages:
        stage = planned.stage
        if isinstance(stage, NetworkStage) and stage.settled is not None:
            image, settled = planned.sources["image"].spec, stage.settled
            scale = [n / seen for n, seen in zip(image.shape, stage.seen(image), strict=True)]
            window = [*settled.numerics.window]
            window[2] += (settled.numerics.batch - 1) * settled.stride[2]
            sides = [max(a, int(w * s)) for a, w, s in zip(sides, window, scale, strict=True)]
    z, y, x = (min(side, n) for side, n in zip(sides, shape, strict=True))
    return z, y, x


def spread(shape: Vector, size: Vector, most: int) -> list[Box]:
    """Return up to `most` boxes of `size` voxels within a volume, spread over it, of which no two share half."""
    halves = [(0.5, 0.5, 0.5), *_CORNERS, *product((0.5, 0.0, 1.0), repeat=3)]
    # a sequence of Halton's: however many there are, they fill the volume evenly
    between = [tuple(_radical(k, base) for base in (2, 3, 5)) for k in range(1, 8 * most)]
    found: list[Box] = []
    for fraction in (*halves, *between):
        z, y, x = (round(f * (n - s)) for f, n, s in zip(fraction, shape, size, strict=True))
        box = Box.of(size).shift((z, y, x))
        if all(2 * box.clip(other).size < box.size for other in found):
            found.append(box)
        if len(found) == most:
            break
    return found


def _radical(k: int, base: int) -> float:
    """Return the digits of k after the point and in reverse."""
    value, share = 0.0, 1.0
    while k:
        share /= base
        value += share * (k % base)
        k //= base
    return value


def _first(box: Box, plan: Plan) -> Box:
    """Return the part of a place that warms a worker up: a window, or a small tile."""
    least = [16, 64, 64]
    for planned in plan.stages:
        if isinstance(planned.stage, NetworkStage) and planned.stage.settled is not None:
            least = [max(a, b) for a, b in zip(least, planned.stage.settled.numerics.window, strict=True)]
    z, y, x = (min(a, b) for a, b in zip(least, box.shape, strict=True))
    return Box.of((z, y, x)).shift(box.start)


# one place


def _planned(run: Run, folder: str, name: str, box: Box, number: int) -> Run:
    """Plan a run of a place in a scratch folder, with what was found out when the whole was planned."""
    whole = run.workflow.in_one_place()
    stages = {key: stage.sample(box.shape, number) for key, stage in whole.stages.items()}
    workflow = whole.model_copy(update={"workspace": folder, "name": name, "stages": stages})
    region = None
    if workflow.inputs:
        cut = run.document["region"]
        region = box if cut is None else box.shift(parse_region(cut).start)
    return Run.planned(workflow, region, before={p.name: p.stage for p in run.plan.stages})


def measured(run_url: str, step_name: str, batch: Batch, stop: Callable[[], bool] | str | None = None) -> Report:
    """Work through a batch, and note processor seconds beside the records, see `work`."""
    began = time.monotonic()
    run, _, _ = opened(run_url, step_name)
    opening = time.monotonic() - began
    forget_peak()
    before = time.process_time()
    report = work(run_url, step_name, batch, stop)
    run.store.write_json(_NOTE.format(step_name), {"processor": time.process_time() - before, "opening": opening})
    return report


def _sample(scratch: Run, step: PlannedStep, engine: Engine) -> _Sample:
    count = len(step.blocks)
    for outcome in engine.execute(measured, scratch.url, step.name, [Batch(0, count)], 1):
        if outcome is not None and outcome.report is None:
            raise NeuroKubeError(f"{step.name}: {outcome.lost}")
        if outcome is not None and outcome.report is not None and outcome.report.failed:
            raise NeuroKubeError(f"{step.name}: {scratch.quarantined(step)[0]['error'].splitlines()[0]}")
    records: list[Record] = distinct(scratch, step)
    if len(records) < count:
        raise NeuroKubeError(f"{step.name}: blocks are missing, and no worker said why; try again")
    told = scratch.store.read_json(_NOTE.format(step.name))
    return _Sample(
        effort(step),
        amount_of(step),
        sum(r.seconds for r in records),
        told["processor"],
        told["opening"],
        stored(scratch.store, [f"{step.planned.name}/{t.prefix}" for t in step.step.targets]).bytes,
        max(r.peak_memory for r in records),
    )


# all of them


def _scaled(
    plan: Plan,
    found: Sequence[Mapping[str, _Sample]],
    cold: Mapping[str, _Sample],
    boxes: Sequence[Box],
    remarks: Sequence[str],
    took: float,
) -> Calibration:
    """Scale what was measured to the whole; ranges are of resamples of the places, widened by `margin`."""
    drawn = np.random.default_rng(0).multinomial(len(found), [1 / len(found)] * len(found), RESAMPLES)
    counts = np.vstack([np.ones(len(found), int), drawn])
    steps, notes = {}, [*remarks]
    sums: dict[str, NDArray[np.float64]] = {}
    for step in plan.steps.values():
        name = _stand_in(step.name, found[0])
        if name is None:
            notes.append(f"{step.name}: no place has such a step; it is not timed")
            steps[step.name] = Timing(NONE, NONE, 0.0, 0.0, NONE, 0)
            continue
        samples = [place[name] for place in found]
        efforts = counts @ np.array([s.effort for s in samples], float)
        sizes = counts @ np.array([s.voxels for s in samples], float)
        ranges = {}
        for what, over, total in (
            ("seconds", efforts, effort(step)),
            ("processor", efforts, effort(step)),
            ("stored", sizes, amount_of(step)),
        ):
            values = counts @ np.array([getattr(s, what) for s in samples], float) / over * total
            sums[what] = sums.get(what, 0) + values
            ranges[what] = _range(values, len(found))
        # in processor seconds: another program at the wrong moment would count once a worker
        rate = ranges["processor"].likely / effort(step)
        start = max(0.0, cold[name].processor - rate * cold[name].effort) if name in cold else 0.0
        steps[step.name] = Timing(
            ranges["seconds"],
            ranges["processor"],
            start if name == step.name else 0.0,
            cold[name].opening if name in cold else 0.0,
            ranges["stored"],
            max(s.memory for s in samples),
        )
    return Calibration(
        steps,
        _range(sums["seconds"], len(found)),
        _range(sums["processor"], len(found)),
        _range(sums["stored"], len(found)),
        tuple(str(box) for box in boxes),
        sum(box.size for box in boxes),
        tuple(notes),
        took,
    )


def _range(values: NDArray[np.float64], places: int) -> Range:
    """Return the first value, and how far the others go."""
    low, high = np.percentile(values[1:], _ENDS)
    likely = float(values[0])
    return Range(min(float(low), likely), likely, max(float(high), likely)).widened(margin(places))


def _stand_in(name: str, samples: Mapping[str, _Sample]) -> str | None:
    """Return the step whose rate holds for a step: of resolutions and levels the first, else itself."""
    first = f"{level(name)[0]}-1"
    if _is_deferred(name) and first in samples:
        return first
    return name if name in samples else None


def _is_deferred(name: str) -> bool:
    """Whether a step is of a coarser resolution or of a level, as `labels-pyramid-2`."""
    return re.split("[/-]", level(name)[0])[-1] in _DEFERRED


def _text(size: Vector) -> str:
    return " x ".join(map(str, size))
