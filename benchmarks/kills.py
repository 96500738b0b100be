"""Does a reconstruction survive kill -9?  Several hundred of them, at random moments, over several runs.

    python -m benchmarks.kills [--kills 300] [--seed 1]

A small workflow is run again and again, each time from nothing, while processes are killed with SIGKILL:

    worker   one worker process, busy or idle; the others go on
    part     one of the programs of Parsl between driver and workers
    driver   the driver; its workers must leave by themselves, the next driver starts at once
    all      the driver and all that it started

After each kill, before anything else happens, the blocks that have a durable record are noted.  Workers log
each block that they begin, with the moment when their batch began.  It is a failure when

- a block is begun in a batch that began after the block's record was noted;
- a noted record is not, unchanged, in the ledger when the run is done;
- an output of a completed run differs in one byte from that of an undisturbed run;
- a driver that nobody disturbed ends without having finished, or does not end.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from uuid import uuid4

import psutil

from neurokube.engines import Batch, Engine, InProcess, Outcome, Report
from neurokube.engines.base import Work
from neurokube.engines.local import Local
from neurokube.errors import NeuroKubeError
from neurokube.stages import Block, Data
from neurokube.workflow import Run, execute, load_workflow
from neurokube.workflow import worker as neurokube_worker
from neurokube.workflow.ledger import Writer
from neurokube.workflow.plan import PlannedStep

ROOT = Path(__file__).parents[1]

WORKFLOW = """\
name: small
workspace: .
stages:
  synthesis: {shape: [64, 128, 128], voxel_size: [40, 8, 8]}
  boundaries: {image: synthesis.image}
  fragments: {tile: [8, 32, 32]}
  graph:
  lifted: {priors: {shades: {channels: {dark: boundaries, grey: synthesis.image}, repel: 2}}}
  multicut: {lifted: lifted, first_block: [8, 32, 32]}
  segmentation:
"""

PATIENCE = 180.0
"""Seconds after which a driver that was not killed counts as hanging."""


# In the driver and its workers


def drive(workflow: str, workers: int) -> None:
    """Do as `neurokube run`, with workers that log what they begin."""
    engine = LoggingLocal(workers) if workers else LoggingInProcess()
    execute(Run.planned(load_workflow(workflow)), engine, quiet=True)


def work(run_url: str, step_name: str, batch: Batch, stop: Callable[[], bool] | str | None = None) -> Report:
    """Do as `neurokube.workflow.work`, and log each block before it is computed."""
    began = time.time()
    one_block = neurokube_worker._one_block

    def logged(run: Run, step: PlannedStep, data: Data, block: int, writer: Writer) -> bool:
        compute = step.step.compute

        def compute_and_log(block_at_hand: Block, data: Data) -> None:
            _log(run_url, {"step": step_name, "block": block, "batch_began": began, "pid": os.getpid()})
            compute(block_at_hand, data)

        return one_block(run, replace(step, step=replace(step.step, compute=compute_and_log)), data, block, writer)

    neurokube_worker._one_block = logged
    try:
        return neurokube_worker.work(run_url, step_name, batch, stop)
    finally:
        neurokube_worker._one_block = one_block


def _log(run_url: str, entry: dict[str, object]) -> None:
    # one write to a file opened for appending: lines of several processes do not mix, and a kill loses none
    handle = os.open(_log_file(run_url), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (json.dumps(entry) + "\n").encode())
    os.close(handle)


def _log_file(run_url: str) -> Path:
    return Path(run_url).parent / "begun.jsonl"


class _Logging(Engine):
    def execute(
        self, work: Work, run_url: str, step_name: str, batches: Iterable[Batch], attempts: int
    ) -> Iterator[Outcome | None]:
        return super().execute(_work, run_url, step_name, batches, attempts)  # type: ignore[safe-super]


_work = work


class LoggingLocal(_Logging, Local):
    """The local engine, its workers logging."""


class LoggingInProcess(_Logging, InProcess):
    """The engine of one process, logging."""


# In the benchmark


MARK = "NEUROKUBE_BENCHMARK_DRIVER"
"""Name of the environment variable by which a driver's processes are known."""


@dataclass
class Driver:
    """A driver and what it started, which carries its mark in the environment."""

    process: subprocess.Popen[bytes]
    mark: str

    @classmethod
    def start(cls, workflow: Path, workers: int) -> "Driver":
        """Start to compute a workflow."""
        command = [sys.executable, "-m", "benchmarks.kills", "--drive", str(workflow), "--workers", str(workers)]
        mark = uuid4().hex
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, MARK: mark}
        with (workflow.parent / "driver.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        return cls(process, mark)

    def started(self) -> list[psutil.Process]:
        """Return all its living processes, itself included."""
        # some are adopted by init, some hide their environment: by descent, and by the mark
        found = set()
        with suppress(psutil.NoSuchProcess):
            found = {psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.add(process)
        return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def workers(self) -> list[psutil.Process]:
        """Return the processes that compute blocks."""
        found = []
        for process in self.started():
            try:
                if "process_worker_pool" in " ".join(process.cmdline()):
                    pool = [p for p in process.children() if "multiprocessing.spawn" in " ".join(p.cmdline())]
                    # the first that the pool starts is the keeper of what the others share
                    found += sorted(pool, key=lambda p: p.create_time())[1:]
            except psutil.Error:
                continue
        return found

    def parts(self) -> list[psutil.Process]:
        """Return what is neither driver nor worker: the programs of Parsl that hold them together."""
        others = {self.process.pid, *(p.pid for p in self.workers())}
        return [p for p in self.started() if p.pid not in others]

    def kill_all(self) -> None:
        """Kill driver and workers together, so that none has time to react."""
        for process in self.started():
            with suppress(psutil.NoSuchProcess):
                process.kill()


Noted = dict[tuple[str, int], str]
"""Step and block -> its record, as JSON."""


@dataclass
class Tally:
    """What happened, over all runs."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    drivers: int = 0
    begun: int = 0
    noted: int = 0
    failures: list[str] = field(default_factory=list)


class Disturbed:
    """One run from nothing to its end, under kills."""

    def __init__(self, folder: Path, chance: random.Random, tally: Tally, limit: int, blocks: int) -> None:
        self.folder, self.chance, self.tally, self.limit, self.blocks = folder, chance, tally, limit, blocks
        self.workflow = folder / "workflow.yaml"
        self.workflow.write_text(WORKFLOW)
        self.run_url = str(folder / "small")
        self.notes: list[tuple[float, Noted]] = []

    def finish(self) -> None:
        """Start drivers, and kill, until one ends by itself with everything done."""
        while True:
            spare = self.tally.kills.total() >= self.limit or self.chance.random() < 0.5
            driver = Driver.start(self.workflow, 2 if spare else self.chance.choice((2, 0)))
            self.tally.drivers += 1
            try:
                if self._kill_workers(driver) if spare else self._kill_driver(driver):
                    return
            finally:
                driver.kill_all()

    def _kill_driver(self, driver: Driver) -> bool:
        """Kill the driver at a random moment; return whether it had ended before."""
        # every fifth is killed while it starts
        if not self._wait(driver, self.chance.uniform(-self.blocks / 12, self.blocks / 3)):
            return self._finished(driver, disturbed=False)
        kind = self.chance.choice(("driver", "all"))
        driver.process.kill() if kind == "driver" else driver.kill_all()
        driver.process.wait()
        self._note(kind)
        return False

    def _kill_workers(self, driver: Driver) -> bool:
        """Kill a few workers, one at a time, and wait for the driver; return whether it finished the run."""
        for _ in range(min(self.chance.randint(1, 12), self.limit - self.tally.kills.total())):
            if not self._wait(driver, self.chance.expovariate(8 / self.blocks)):
                break
            kind = self.chance.choices(("worker", "part"), (5, 1))[0]
            if processes := driver.workers() if kind == "worker" else driver.parts():
                with suppress(psutil.NoSuchProcess):
                    self.chance.choice(processes).kill()
                    self._note(kind)
        return self._finished(driver, disturbed=True)

    def _wait(self, driver: Driver, blocks: float) -> bool:
        """Wait until so many more blocks were begun, and a moment; return whether the driver is there still."""
        end = self._begun() + blocks
        give_up = time.monotonic() + PATIENCE
        while self._begun() < end and driver.process.poll() is None and time.monotonic() < give_up:
            time.sleep(0.02)
        time.sleep(self.chance.uniform(0, 5.0 if blocks < 0 else 0.5))
        return driver.process.poll() is None

    def _begun(self) -> int:
        log = _log_file(self.run_url)
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def _finished(self, driver: Driver, *, disturbed: bool) -> bool:
        """Wait for a driver that is left in peace now; return whether it finished the run."""
        try:
            code = driver.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.tally.failures.append(f"{self.folder}: a driver did not end in {PATIENCE:.0f} s")
            return False
        if code and not disturbed:
            raise NeuroKubeError(f"a driver ended with {code}, undisturbed: {(self.folder / 'driver.log').read_text()}")
        return code == 0

    def _note(self, kind: str = "") -> None:
        """Note what has a record now, after a kill."""
        if kind:
            self.tally.kills[kind] += 1
        noted: Noted = {}
        if Path(self.run_url, "run.json").exists():
            run = Run.open(self.run_url)
            for name, step in run.plan.steps.items():
                noted |= {(name, r.block): json.dumps(asdict(r)) for _, r in run.ledger(step).records()}
        self.notes.append((time.time(), noted))

    def check(self, undisturbed: dict[str, str]) -> None:
        """Compare with an undisturbed run, the log and the ledger with the notes."""
        lines = _log_file(self.run_url).read_text().splitlines()
        self._note()
        _, final = self.notes[-1]
        failures = self.tally.failures
        for entry in map(json.loads, lines):
            block = (entry["step"], entry["block"])
            if any(entry["batch_began"] > moment and block in noted for moment, noted in self.notes):
                failures.append(f"{self.folder}: block {block} has a record and was begun again")
        for _, noted in self.notes:
            failures += [f"{self.folder}: the record of {b} changed" for b, r in noted.items() if final.get(b) != r]
        if (outputs := digests(self.run_url)) != undisturbed:
            wrong = [k for k in outputs.keys() | undisturbed.keys() if outputs.get(k) != undisturbed.get(k)]
            failures.append(f"{self.folder}: {len(wrong)} stored objects differ, as {wrong[0]}")
        self.tally.runs += 1
        self.tally.begun += len(lines)
        self.tally.noted += sum(len(noted) for _, noted in self.notes[:-1])


def digests(run_url: str) -> dict[str, str]:
    """Return a digest of every object that the run's stages store, by its path."""
    files = (p for p in Path(run_url).rglob("*") if p.is_file() and "ledger" not in p.parts)
    # a process that is killed in the middle of a write leaves a file that nobody reads
    files = (p for p in files if not p.name.endswith((".lock", ".__lock")))
    kept = (p for p in files if p.name not in ("run.json", "plan.json", "stage.json") and "quarantine" not in p.parts)
    return {str(p.relative_to(run_url)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


def undisturbed(folder: Path) -> tuple[dict[str, str], int]:
    """Run the workflow in peace; return the digests of what it stores, and the number of its blocks."""
    workflow = folder / "workflow.yaml"
    workflow.write_text(WORKFLOW)
    if Driver.start(workflow, 2).process.wait() != 0:
        raise NeuroKubeError((folder / "driver.log").read_text())
    run_url = str(folder / "small")
    return digests(run_url), sum(len(step.blocks) for step in Run.open(run_url).plan.steps.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        # the workers find their function by the name under which this module can be imported
        from benchmarks import kills

        return kills.drive(options.drive, options.workers)
    chance, tally, began = random.Random(options.seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        Path(folder, "peace").mkdir()
        truth, blocks = undisturbed(Path(folder, "peace"))
        print(f"undisturbed: {blocks} blocks, {len(truth)} stored objects", flush=True)
        while tally.kills.total() < options.kills:
            (here := Path(folder, str(tally.runs))).mkdir()
            disturbed = Disturbed(here, chance, tally, options.kills, blocks)
            disturbed.finish()
            disturbed.check(truth)
            print(
                f"run {tally.runs}: {dict(tally.kills)}, {tally.drivers} drivers, {time.monotonic() - began:.0f} s, "
                f"{len(tally.failures)} failures",
                flush=True,
            )
    print(
        f"{tally.kills.total()} kills {dict(tally.kills)} over {tally.runs} runs and {tally.drivers} drivers in "
        f"{time.monotonic() - began:.0f} s: {tally.begun} blocks begun, {tally.noted} records noted and checked, "
        f"{len(tally.failures)} failures"
    )
    for failure in tally.failures:
        print(failure)
    sys.exit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
