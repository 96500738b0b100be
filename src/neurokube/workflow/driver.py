"""The driver: works through the plan with an engine, and says what happened."""

import signal
import threading
import time
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from rich.progress import Progress

from ..engines import Observer
from ..engines.base import Engine
from ..errors import Drained, NeuroKubeError
from ..progress import console, progress
from ..words import counted, named
from .corrections import Corrections
from .edits import EditLog
from .estimate import Target, keep
from .plan import PlannedStage, PlannedStep
from .run import Run
from .stores import places
from .worker import work


@dataclass
class Summary:
    """What a run did: blocks computed now and found done, by step, and stages whose old results were dropped."""

    computed: dict[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def execute(
    run: Run, engine: Engine, *, observer: Observer | None = None, quiet: bool = False, tell: bool = True
) -> Summary:
    """Run every step that is not done, in order; call again to go on after any interruption.

    A stage with failed blocks holds back only what depends on it.  An observer is told what happens.

    Raises:
        Drained: where Ctrl-C or SIGTERM ended it; all that was done is recorded.
        NeuroKubeError: where blocks failed; names them.
        TryAgainError: where the folder is busy, full or read-only.
    """
    with run.lock():
        keep(run, Target(engine.workers, getattr(engine, "profile", None) if engine.kind == "kubernetes" else None))
        return finish(run, engine, observer=observer, quiet=quiet, tell=tell)


def finish(
    run: Run,
    engine: Engine,
    *,
    stages: Container[str] | None = None,
    observer: Observer | None = None,
    quiet: bool = False,
    tell: bool = True,
) -> Summary:
    """Do what `execute` does, for some stages only where they are named; the lock is held.

    Of named stages it is taken for granted that no stored object was lost.
    """
    engine.observer = observer = observer or Observer()
    engine.places = places(run.plan)
    with _draining(engine) as asked, engine, engine.hold(run.url):
        summary = Summary(dropped=run.prepare())
        for name in summary.dropped if stages is None else ():
            console.print(f"[yellow]{name}: its settings or inputs changed; it is computed anew[/]")
        chosen = [planned for planned in run.plan.stages if stages is None or planned.name in stages]
        with progress(quiet=quiet) as bars:
            driver = _Driver(run, engine, bars, summary, asked, whole=stages is None, tell=tell)
            failed = _at_once(driver, chosen) if engine.overlaps else _in_order(driver, chosen)
    if failed:
        raise NeuroKubeError("; ".join(message for message in failed.values() if message))
    return summary


def _reads(planned: PlannedStage) -> set[str]:
    return {source.name for source in planned.sources.values()}


def _in_order(driver: "_Driver", chosen: Sequence[PlannedStage]) -> dict[str, str]:
    """Work through stages one by one; return what failed, "" for what could not begin therefore."""
    failed: dict[str, str] = {}
    for planned in chosen:
        message = "" if _reads(planned) & failed.keys() else driver.stage(planned)
        if message is not None:
            failed[planned.name] = message
    return failed


def _at_once(driver: "_Driver", chosen: Sequence[PlannedStage]) -> dict[str, str]:
    """Do what `_in_order` does, each stage as soon as what it reads is done."""
    failed: dict[str, str] = {}
    waiting = {planned.name: planned for planned in chosen}
    running: dict[Future[str | None], str] = {}
    ended: BaseException | None = None
    pool = ThreadPoolExecutor(max_workers=len(chosen) or 1)
    try:
        while waiting or running:
            for name, planned in list(waiting.items()):
                held = waiting.keys() | set(running.values())
                if _reads(planned) & failed.keys():
                    failed[name] = ""
                    del waiting[name]
                elif not _reads(planned) & held:
                    running[pool.submit(driver.stage, planned)] = waiting.pop(name).name
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                if (error := future.exception()) is not None:
                    # the others end their blocks, and nothing begins
                    ended = ended or error
                    driver.engine.drain()
                    waiting.clear()
                elif (message := future.result()) is not None:
                    failed[name] = message
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if ended is not None:
        raise ended
    return failed


@dataclass(frozen=True)
class _Driver:
    """What it takes to work through stages: all of the run (`whole`), and what they found is said (`tell`)."""

    run: Run
    engine: Engine
    bars: Progress
    summary: Summary
    asked: threading.Event
    whole: bool
    tell: bool

    def stage(self, planned: PlannedStage) -> str | None:
        """Work through the steps of a stage; return what failed, None where nothing did."""
        editing = planned.stage.editable and not self.asked.is_set()
        if editing:
            _correct(self.run, planned, self.bars)
        for step in self.run.plan.steps.values():
            if step.planned is not planned:
                continue
            if self.whole and (lost := self.run.forget_lost(step)):
                console.print(f"[yellow]{step.name}: gone from the store: {counted(lost, 'object')}; computed again[/]")
            with self.engine.observer.at_work(step.name):
                message = _step(self.run, step, self.engine, self.bars, self.summary, self.asked)
            if message:
                return message
        if editing:
            Corrections(self.run, planned, EditLog.read(self.run.store, planned.name)).finish()
        if self.tell:
            _tell(planned, self.summary)
        return None


def _correct(run: Run, planned: PlannedStage, bars: Progress) -> None:
    """Bring people's corrections of a stage to what its log says, and say what of the log could not be applied."""
    corrections = Corrections(run, planned, EditLog.read(run.store, planned.name), bars)
    for remark in corrections.write():
        console.print(f"[yellow]{planned.name}: {remark}[/]")
    if away := [edit.number for edit in corrections.log.standing() if edit.on != corrections.on]:
        console.print(
            f"[yellow]{planned.name}: left out, as made on other fragments: {named('edit', away)}; kept in "
            f"{planned.name}.edits, to count again once '{planned.sources['fragments'].name}' is as it was[/]"
        )


def _tell(planned: PlannedStage, summary: Summary) -> None:
    """Say what a user should know of what a stage has just made."""
    if any(count for name, count in summary.computed.items() if name.startswith(f"{planned.name}/")):
        for finding in planned.stage.findings(planned.sources, planned.data()):
            console.print(f"[yellow]{planned.name}: {finding}[/]")


def _step(run: Run, step: PlannedStep, engine: Engine, bars: Progress, summary: Summary, asked: threading.Event) -> str:
    """Work through one step; return what failed, or nothing."""
    ledger = run.ledger(step)
    remaining = ledger.remaining()
    total = len(step.blocks)
    found = summary.found[step.name] = total - len(remaining)
    bar = bars.add_task(step.name, total=total, completed=found, unit="blocks")
    failures = run.workflow.failures
    if remaining and not asked.is_set():
        given_up, next_look = 0, 0.0
        outcomes = engine.execute(work, run.url, step.name, engine.batches(remaining), failures.attempts)
        for outcome in outcomes:
            if outcome is not None and outcome.report is None:
                block = outcome.batch.first
                run.quarantine(step, block, outcome.lost, outcome.lost, failures.attempts)
                given_up += 1
            elif outcome is not None and outcome.report is not None:
                given_up += len(outcome.report.failed)
            if (began := time.monotonic()) >= next_look:
                bars.update(bar, completed=ledger.count())
                # the more records, the longer a look takes: it may not become what the driver does
                next_look = time.monotonic() + 20 * (time.monotonic() - began)
            if given_up >= failures.limit:
                engine.drain()
                raise NeuroKubeError(f"{_failure(run, step)}; ended early, as failures.limit is {failures.limit}")
    remaining = ledger.remaining()
    bars.update(bar, completed=total - len(remaining))
    summary.computed[step.name] = total - len(remaining) - found
    if not remaining:
        return ""
    if asked.is_set():
        raise Drained(
            f"stopped in {step.name} with {total - len(remaining)} of {total} blocks done; run again to go on"
        )
    return _failure(run, step)


def _failure(run: Run, step: PlannedStep) -> str:
    notes = run.quarantined(step)
    if not notes:
        return f"{step.name}: blocks are missing, and no worker said why; run again"
    first = notes[0]
    names = ", ".join(str(note["block"]) for note in notes[:10]) + (", ..." if len(notes) > 10 else "")
    error = first["error"].splitlines()[0]
    return (
        f"{step.name}: {len(notes)} of {len(step.blocks)} blocks failed (block {names}); "
        f"block {first['block']}, voxels {first['voxels']}: {error}; "
        f"log in {step.planned.url}/{step.quarantine}/{first['block']}.json; mend the cause and run again"
    )


@contextmanager
def _draining(engine: Engine) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one stops at once."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise Drained("stopped at once; what was recorded is kept, run again to go on")
        asked.set()
        engine.drain()
        console.print("[yellow]stopping after the blocks at hand; once more to stop at once[/]")

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
