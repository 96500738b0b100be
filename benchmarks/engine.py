"""What an engine costs a block: NeuroKube's local engine beside raw Parsl and daisy.

    python -m benchmarks.engine [--blocks 3000] [--rounds 3]

Two works: `note` writes one tiny object a block; `invert` reads 16^3 voxels of a Zarr volume and writes as many.
All three contestants do the same reads and durable writes, in 2 worker processes.  NeuroKube and daisy also keep
records of what is done; Parsl does not.  Parsl has the settings of NeuroKube's engine, and one task a block.

Start-up is the time until the first block is stored.  A block's cost is the time from the first to the last block
stored over their number, so it is free of start-up; and it includes the work, whose own cost, measured in one
process without any engine, is printed too.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import daisy.v2 as daisy
import numpy as np
import parsl

from neurokube.engines.local import Local
from neurokube.volumes import VolumeSpec, create
from neurokube.workflow import Run, execute, parse_workflow

from .measure import machine, ratio
from .noop import CELL, LocalWithStages, invert, note

ROOT = str(Path(__file__).parents[1])
WORKERS = 2


class Timing(NamedTuple):
    """Seconds until the first block was stored, and between blocks after it."""

    start: float
    block: float


class Task(NamedTuple):
    """A work for all contestants: a workflow, and a function of (folder, block)."""

    stages: dict[str, dict[str, object]]
    inputs: dict[str, dict[str, str]]
    function: Callable[[str, int], None]
    prepare: Callable[[str], object]


def timed(folder: Path, blocks: int, run: Callable[[], object]) -> Timing:
    """Run blocks that store one object each below a folder; the objects' times tell how it went."""
    began = time.time()
    run()
    stored = sorted(p.stat().st_mtime for p in folder.rglob("*") if p.name.endswith(".npy") or p.parts[-4:-3] == ("c",))
    if len(stored) != blocks:
        raise RuntimeError(f"{folder}: {len(stored)} of {blocks} blocks are stored")
    return Timing(stored[0] - began, (stored[-1] - stored[0]) / (blocks - 1))


def by_neurokube(task: Task, blocks: int, folder: Path) -> Timing:
    document = {"name": "run", "workspace": str(folder), "inputs": task.inputs, "stages": task.stages}
    return timed(
        folder,
        blocks,
        lambda: execute(Run.planned(parse_workflow(document)), LocalWithStages(WORKERS), quiet=True),
    )


def by_parsl(task: Task, blocks: int, folder: Path) -> Timing:
    def run() -> None:
        task.prepare(str(folder))
        with Local(WORKERS) as engine:
            app = parsl.python_app(task.function, data_flow_kernel=engine._kernel)
            for future in [app(str(folder), block) for block in range(blocks)]:
                future.result()

    return timed(folder, blocks, run)


def by_daisy(task: Task, blocks: int, folder: Path) -> Timing:
    function, target = task.function, str(folder)

    def process(block: daisy.Block) -> None:
        function(target, int(block.write_roi.begin[0]))

    def run() -> None:
        task.prepare(target)
        one = daisy.Roi((0,), (1,))
        whole = daisy.Roi((0,), (blocks,))
        work = daisy.Task(
            task_id="work",
            total_roi=whole,
            read_roi=one,
            write_roi=one,
            process_function=process,
            read_write_conflict=False,
            max_workers=WORKERS,
            tracking_path=str(folder / "tracking"),
        )
        if not daisy.run_blockwise(daisy.Pipeline([work], []), progress=False, summary=False):
            raise RuntimeError("daisy did not finish")

    return timed(folder, blocks, run)


def alone(task: Task, blocks: int, folder: Path) -> Timing:
    def run() -> None:
        task.prepare(str(folder))
        for block in range(blocks):
            task.function(str(folder), block)

    return timed(folder, blocks, run)


def tasks(folder: str, blocks: int) -> dict[str, Task]:
    """Return both works; the volume that one of them reads is made here."""
    side = round(blocks**0.5)
    spec = VolumeSpec((CELL[0], CELL[1] * side, CELL[2] * (blocks // side)), "uint8", (8.0, 8.0, 8.0))
    source = f"{folder}/image.zarr"
    image = create(source, spec, attributes={"fingerprint": "noise"})
    image.write(spec.box, np.random.default_rng(0).integers(1, 255, spec.shape, np.uint8))
    return {
        "note": Task({"note": {"blocks": blocks}}, {}, note, lambda _: None),
        "invert": Task(
            {"invert": {}},
            {"image": {"path": source}},
            partial(invert, source),
            lambda target: create(target, spec, shard=CELL),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=3025, help="a square number")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
    contestants = {"neurokube": by_neurokube, "parsl": by_parsl, "daisy": by_daisy, "alone": alone}
    print(machine())
    with tempfile.TemporaryDirectory(prefix="engine-") as folder:
        for name, task in tasks(folder, options.blocks).items():
            found: dict[str, list[Timing]] = {contestant: [] for contestant in contestants}
            for turn in range(options.rounds):
                for contestant, run in contestants.items():
                    (here := Path(folder, f"{name}-{contestant}-{turn}")).mkdir()
                    found[contestant].append(run(task, options.blocks, here))
            ours = [t.block for t in found["neurokube"]]
            for contestant, timings in found.items():
                cost = [t.block for t in timings]
                print(
                    f"{name:7} {contestant:10} {median(cost) * 1e3:6.2f} ms a block, start-up "
                    f"{median(t.start for t in timings):5.2f} s; neurokube / {contestant}: {ratio(ours, cost):.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
