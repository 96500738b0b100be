"""What plans are based on, and how good they are.

    export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
    python -m benchmarks.planning figures WORKFLOW...    bytes and memory of each kind of stage, for workflow/figures.py
    python -m benchmarks.planning prove WORKFLOW...      calibrate, run, and compare, in processor seconds

`figures` runs each workflow in a scratch folder by one worker process, networks in another, whose peak memory is told
step by step.  `prove` calibrates (--blocks places), then runs the whole in this process.  Other programs may want the
processor in the meantime, so times are processor seconds of whoever does the work: of the worker while it works on a
step's blocks in the calibration, of this process in the run.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from math import prod
from pathlib import Path
from shutil import rmtree

from benchmarks.measure import machine
from neurokube.engines import InProcess
from neurokube.engines.base import Kept
from neurokube.engines.local import Local
from neurokube.stages import VolumeOutput
from neurokube.stages.base import SINGLE
from neurokube.stages.network import NetworkStage
from neurokube.volumes import Store
from neurokube.words import human_bytes
from neurokube.workflow import Run, execute, load_workflow
from neurokube.workflow.calibration import _sample, calibrate
from neurokube.workflow.comparison import compare
from neurokube.workflow.estimate import FILE, Target, amount_of, estimate, level
from neurokube.workflow.figures import BARE
from neurokube.workflow.stored import stored

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["figures", "prove"])
    parser.add_argument("workflows", nargs="+")
    parser.add_argument("--blocks", type=int, default=None)
    options = parser.parse_args()
    if any(os.environ.get(name) != "1" for name in THREADS):
        # threads that wait for one another take processor time; a worker has one
        parser.error(f"set {' '.join(f'{name}=1' for name in THREADS)}, as the engine does for its workers")
    print(machine())
    if options.what == "figures":
        figures(options.workflows)
    else:
        for path in options.workflows:
            prove(path, options.blocks)


def figures(paths: list[str]) -> None:
    """Print bytes and memory of each kind of stage."""
    shares, tables, held = (defaultdict[str, list[float]](list) for _ in range(3))
    engines = {networks: Kept(Local(1)) for networks in (True, False)}
    try:
        for path in paths:
            with tempfile.TemporaryDirectory(prefix="neurokube-figures-") as folder:
                _one(path, folder, engines, shares, tables, held)
    finally:
        for engine in engines.values():
            engine.close()
    for title, found in (("share stored", shares), ("bytes of tables a voxel", tables), ("bytes held a voxel", held)):
        print(f"\n{title}, lowest to highest of the runs")
        for name, values in sorted(found.items()):
            print(f"  {name:<28}", " ".join(f"{v:.4g}" for v in sorted(values)))


def _one(path, folder, engines, shares, tables, held) -> None:  # type: ignore[no-untyped-def]
    run = Run.planned(load_workflow(path).model_copy(update={"workspace": folder}))
    run.prepare()
    volumes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for step in run.plan.steps.values():
        kind, stage, name = step.planned.stage.kind, step.planned.name, level(step.step.name)[0]
        sample = _sample(run, step, engines[isinstance(step.planned.stage, NetworkStage)])
        store, cell = Store(run.url), prod(map(min, step.step.grid.cell, step.step.grid.shape))
        per = amount_of(step) if step.step.grid == SINGLE else cell
        if step.step.unit != "windows":
            key = "pyramid" if name.endswith("pyramid") else f"{kind}/{name}"
            if key != "pyramid" or per > 2**20:
                held[key].append((sample.memory - BARE) / per)
        beside = 0
        for target in step.step.targets:
            size = stored(store, [f"{stage}/{target.prefix}"]).bytes
            if isinstance(target.output, VolumeOutput):
                itemsize = int(target.output.spec.dtype.removeprefix("uint")) // 8
                volumes[kind][0] += size
                volumes[kind][1] += prod(target.grid.shape) * itemsize
            else:
                beside += size - 128 * len(target.grid)
        if any(not isinstance(t.output, VolumeOutput) for t in step.step.targets):
            tables[f"{kind}/{name}"].append(beside / amount_of(step))
    for kind, (size, whole) in volumes.items():
        shares[kind].append(size / whole)


def prove(path: str, blocks: int | None) -> None:
    """Calibrate, run, compare; print a row of Markdown a workflow."""
    run = Run.planned(load_workflow(path))
    if Path(run.url).exists():
        rmtree(run.url)
    before = estimate(run, Target(1)).as_dict()
    calibration = calibrate(run, lambda: Local(1), places=blocks, quiet=True)
    told = estimate(run, Target(1), calibration).as_dict()
    run.store.write_json(FILE, told, indent=2)
    began = time.process_time()
    execute(run, InProcess(), quiet=True)
    processor = time.process_time() - began
    found = compare(Run.open(run.url))
    low, likely, high = told["totals"]["processor"]
    wall, bytes_ = found["totals"]["seconds"], found["totals"]["stored"]
    size, other = told["totals"]["stored"], before["totals"]["stored"]
    objects, beside = found["totals"]["objects"], found["totals"]["metadata and ledger"]
    print(
        f"\n{path}: {len(calibration.places)} places, {calibration.voxels / 1e6:.3g} Mvoxel, {calibration.took:.1f} s"
    )
    print(
        f"| processor s | {likely:.1f} ({low:.1f} to {high:.1f}) | {processor:.1f} | {processor / likely:.2f} |\n"
        f"| wall s of the worker | {wall['estimate'][1]:.1f} ({wall['estimate'][0]:.1f} to {wall['estimate'][2]:.1f}) "
        f"| {wall['fact']:.1f} | {wall['ratio']:.2f} |\n"
        f"| stored, calibrated | {_sizes(size)} | {human_bytes(bytes_['fact'])} | {bytes_['ratio']:.2f} |\n"
        f"| stored, by figures | {_sizes(other)} | {human_bytes(bytes_['fact'])} | {bytes_['fact'] / other[1]:.2f} |\n"
        f"| objects | {objects['estimate']} + {beside['estimate']} | {objects['fact']} + {beside['fact']} | |"
    )
    for row in found["steps"]:
        seconds = row["seconds"]
        print(
            f"    {row['step']:<28} {seconds['estimate'][1]:8.3f} s {seconds['fact']:8.3f} s  {row['stored']['ratio']}"
        )


def _sizes(ends: list[float]) -> str:
    low, likely, high = map(human_bytes, ends)
    return f"{likely} ({low} to {high})"


if __name__ == "__main__":
    main()
