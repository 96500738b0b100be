"""A run on disk: the validated workflow, its plan, its outputs, its ledger.

<workspace>/<run>/run.json                  the workflow, versions, keys, inputs, numerics class
<workspace>/<run>/<stage>/stage.json        the key of what lies in this folder
<workspace>/<run>/<stage>/<output>/         volumes, tables and files
<workspace>/<run>/<stage>/ledger/<key>/     records, see `ledger`
<workspace>/<run>/<stage>/quarantine/<key>/<step>/<block>.json   error and log of a failed block
<store>/<run>/<stage>/...                   all of this, of a stage that has a store of its own
"""

import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from .. import __version__
from ..blocks import Box, parse_region
from ..errors import ConfigurationError, TryAgainError, surroundings
from ..stages import STAGES, Source, Stage, VolumeOutput
from ..volumes import Store, create, exists, join
from .edits import edited
from .ledger import Ledger
from .plan import Edited, Plan, PlannedStage, PlannedStep, Settle, make_plan, numerics_class
from .spec import Workflow, parse_workflow
from .stores import check_places, check_writable, elsewhere

Errand = Callable[[str, str, Any], Any]
"""Has a stage settled elsewhere: takes the run's URL, the stage, and a task for `settle`; returns its answer."""

FORMAT = 2
"""Version of the folder's layout; raised when an older program could not read it."""


class Run:
    """A planned run and where it lies."""

    def __init__(self, url: str, workflow: Workflow, plan: Plan, document: dict[str, Any]) -> None:
        self.url = url
        self.workflow = workflow
        self.plan = plan
        self.document = document
        self.store = Store(url)
        self.remarks = plan.remarks
        """What a user should know before it runs."""
        self._stores: dict[str, Store] = {}

    @classmethod
    def planned(
        cls,
        workflow: Workflow,
        region: Box | None = None,
        *,
        before: Mapping[str, Stage] | None = None,
        errand: Errand | None = None,
    ) -> Self:
        """Plan a run; writes nothing yet, unless stages are settled by an `errand` on the machines that will work.

        `before` are stages whose findings are kept where they still fit [default: those of the run that is there].

        Raises:
            ConfigurationError: where the folder belongs to something else.
        """
        url = run_url(workflow, region)
        last = _check_folder(url)
        plan = make_plan(
            workflow,
            url,
            region=region,
            before=_settled_before(last) if before is None else before,
            edited=edited(Store(url)),
            settle=None if errand is None else _by_errand(workflow, url, region, errand),
        )
        document = {
            "format": FORMAT,
            "neurokube": __version__,
            "python": platform.python_version(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "region": str(region) if region else None,
            "numerics": numerics_class(),
            **_keys(plan),
            "places": elsewhere(plan, url),
            "inputs": _described_inputs(plan),
            "settled": {planned.name: planned.stage.model_dump(mode="json") for planned in plan.stages},
            "steps": {name: {"blocks": len(s.blocks), "cells": str(s.blocks)} for name, s in plan.steps.items()},
            "workflow": workflow.model_dump(mode="json"),
        }
        run = cls(url, workflow, plan, document)
        run.remarks += check_places(url, plan, last)
        return run

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a run that was planned before, with the edits that it was planned with.

        Raises:
            ConfigurationError: where there is none, or it was made by a version with another layout.
        """
        document = Store(url).read_json("run.json")
        if document is None:
            raise ConfigurationError(f"{url}: no run there (no run.json); start one with 'neurokube run WORKFLOW'")
        _check_format(url, document)
        workflow = parse_workflow(document["workflow"], where=join(url, "run.json"))
        edits = document.get("edits", {})
        plan = _plan_of(url, workflow, document, lambda stage, _: str(edits.get(stage, "")))
        return cls(url, workflow, plan, document)

    def edited(self) -> Self:
        """Return the run as it is, planned with the edits that were made since."""
        plan = _plan_of(self.url, self.workflow, self.document, edited(self.store))
        return type(self)(self.url, self.workflow, plan, self.document | _keys(plan))

    def check_worker(self) -> None:
        """Check that this process computes what the run was planned with.

        Raises:
            ConfigurationError: where software, processor family or an input differ.
        """
        here = numerics_class()
        if here != self.document["numerics"]:
            raise ConfigurationError(
                f"{self.url}: planned with {self.document['numerics']} but this worker has {here}; "
                "use the same software, or run again from here to plan anew"
            )
        keys = {planned.name: planned.key for planned in self.plan.stages}
        if changed := [name for name, key in keys.items() if key != self.document["keys"].get(name)]:
            raise ConfigurationError(
                f"{self.url}: since it was planned, the code or an input of {', '.join(changed)} changed; run again"
            )

    def at(self, planned: PlannedStage) -> Store:
        """Return the folder of a stage."""
        if planned.name not in self._stores:
            self._stores[planned.name] = Store(planned.url)
        return self._stores[planned.name]

    def ledger(self, step: PlannedStep) -> Ledger:
        """Return the records of a step."""
        return Ledger(self.at(step.planned), step.folder, step.blocks)

    def quarantine(self, step: PlannedStep, block: int, error: str, log: str, attempts: int) -> None:
        """Note a block that was given up, with its error."""
        self.at(step.planned).write_json(
            f"{step.quarantine}/{block}.json",
            {
                "step": step.name,
                "block": block,
                # a step of a single block looks at everything at once
                "voxels": str(step.blocks.box(block)) if max(step.blocks.grid.shape) > 1 else "all",
                "error": error,
                "attempts": attempts,
                "host": socket.gethostname(),
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "log": log,
            },
            indent=2,
        )

    def release(self, step: PlannedStep, block: int) -> None:
        """Take a block out of quarantine; it need not be there."""
        store, key = self.at(step.planned), f"{step.quarantine}/{block}.json"
        if store.read(key) is not None:
            store.delete(key)

    def quarantined(self, step: PlannedStep) -> list[dict[str, Any]]:
        """Return the notes of the blocks of a step that were given up."""
        store = self.at(step.planned)
        keys = store.keys(f"{step.quarantine}/")
        return [note for key in keys if (note := store.read_json(key)) is not None]

    def prepare(self) -> list[str]:
        """Make the folder ready: drop what older settings left, create the outputs; return what was dropped.

        Only the driver does so, holding the lock.

        Raises:
            TryAgainError: where a store cannot be written; nothing has been dropped.
        """
        for url in {planned.url.rpartition("/")[0] for planned in self.plan.stages}:
            check_writable(url)
        dropped = [planned.name for planned in self.plan.stages if self._prepare_stage(planned)]
        self.store.write_json("run.json", self.document, indent=2)
        return dropped

    def _prepare_stage(self, planned: PlannedStage) -> bool:
        store = self.at(planned)
        mark = store.read_json("stage.json")
        stale = mark is not None and mark.get("key") != planned.key
        if stale or mark is None:
            # the records go first: a record must never outlive what it speaks of
            store.delete_all("ledger/")
            store.delete_all()
        for output in planned.own.outputs.values():
            if isinstance(output, VolumeOutput) and not exists(url := planned.own.urls[output.name]):
                create(
                    url,
                    output.spec,
                    shard=output.cell,
                    factors=output.factors,
                    attributes={"key": planned.key},
                )
        if mark is None or stale:
            store.write_json("stage.json", {"key": planned.key, "kind": planned.stage.kind, "run": self.url})
        return stale

    def forget_lost(self, step: PlannedStep) -> int:
        """Take back the records of blocks whose stored objects are gone; return how many objects were lost.

        An object that its record calls empty is rightly absent; any other must be there.
        """
        ledger = self.ledger(step)
        store = self.at(step.planned)
        stored = {t.prefix: set(store.keys(t.prefix)) for t in step.step.targets}
        lost = []
        for blocks, record in ledger.records():
            members = blocks.members(record.block)
            for (target, cell), checksum in zip(step.step.objects(members), record.checksums, strict=True):
                if checksum is not None and target.key(cell) not in stored[target.prefix]:
                    lost.append(cell if target.grid == step.step.grid else members[0])
        if lost:
            ledger.forget(lost)
        return len(lost)

    def lock(self) -> AbstractContextManager[None]:
        """Hold the run against other drivers on this machine, see `locked`."""
        return locked(self.url)


def run_url(workflow: Workflow, region: Box | None = None) -> str:
    """Return where the run of a workflow, or of a region of it, lies."""
    name = workflow.name if region is None else f"{workflow.name}@{str(region).replace(',', '_').replace(':', '-')}"
    return join(workflow.workspace, name)


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Hold a folder against other processes on this machine; a killed one lets go by itself.

    Raises:
        TryAgainError: where another process has it, or the folder cannot be written.
    """
    if "://" in url:
        yield
        return
    import fcntl

    path = Path(url) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise surroundings(error, url) or TryAgainError(f"{url}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise TryAgainError(
                f"{url}: in use by another process ({file.read().strip() or 'unknown'}); "
                "wait for it or stop it, or choose another name"
            ) from None
        file.truncate(0)
        import os

        file.write(f"pid {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _by_errand(workflow: Workflow, url: str, region: Box | None, errand: Errand) -> Settle:
    def settle(name: str, stage: Stage, inputs: Mapping[str, Source], so_far: Mapping[str, Stage]) -> Stage:
        task = {
            "workflow": workflow.upto(name).model_dump(mode="json"),
            "region": str(region) if region else None,
            "settled": {each: done.model_dump(mode="json") for each, done in so_far.items()},
        }
        return type(stage).model_validate(errand(url, name, task))

    return settle


def settle(url: str, name: str, task: Any) -> Any:
    """Settle a stage on this machine, by what `Errand` gives; return it as plain values.

    Raises:
        ConfigurationError, DataError: where stages and inputs do not fit together.
    """
    workflow = parse_workflow(task["workflow"])
    plan = make_plan(
        workflow,
        url,
        region=parse_region(task["region"]) if task["region"] else None,
        before=_settled(task),
        settle=lambda _, stage, inputs, so_far: stage.settle(inputs, None),
    )
    return plan.stage(name).stage.model_dump(mode="json")


def _check_format(url: str, document: Any) -> None:
    if not isinstance(document, dict) or "format" not in document:
        raise ConfigurationError(f"{join(url, 'run.json')}: not what a run leaves; choose another name for the run")
    if document["format"] != FORMAT:
        raise ConfigurationError(
            f"{url}: made by NeuroKube {document.get('neurokube', '?')}, whose folders (format "
            f"{document['format']}) this one ({__version__}, format {FORMAT}) cannot go on with; "
            "use that version, or choose another name for the run"
        )
    if missing := [key for key in ("workflow", "region", "numerics", "keys", "settled") if key not in document]:
        raise ConfigurationError(f"{join(url, 'run.json')}: damaged, it lacks {', '.join(missing)}; run again")


def _plan_of(url: str, workflow: Workflow, document: Any, edits: Edited) -> Plan:
    """Plan a run as it was planned before."""
    return make_plan(
        workflow,
        url,
        region=parse_region(document["region"]) if document["region"] else None,
        numerics=document["numerics"],
        settled=_settled(document),
        edited=edits,
    )


def _keys(plan: Plan) -> dict[str, Any]:
    """Return what of a plan's document changes with edits."""
    return {
        "keys": {planned.name: planned.key for planned in plan.stages},
        "edits": {planned.name: planned.edits for planned in plan.stages if planned.edits},
    }


def _settled(document: Any) -> dict[str, Stage]:
    """Return the stages as they were settled when the run was planned."""
    stages = document["workflow"]["stages"]
    return {name: STAGES[stages[name]["stage"]].model_validate(s) for name, s in document["settled"].items()}


def _settled_before(document: Any) -> dict[str, Stage]:
    """Return the settled stages of the run that is there, if any can be understood."""
    try:
        return _settled(document) if document else {}
    except (KeyError, TypeError, ValueError):
        return {}


def _check_folder(url: str) -> Any:
    """Check that a folder is a run's, or free for one; return what it has as run.json, None where there is none."""
    document = Store(url).read_json("run.json")
    if document is not None:
        _check_format(url, document)
    elif "://" not in url and Path(url).is_dir() and not all(map(_may_come_first, Path(url).iterdir())):
        raise ConfigurationError(f"{url}: a folder that is no run; choose another name or workspace, or empty it")
    return document


def _may_come_first(path: Path) -> bool:
    """Whether something may lie in a run's folder before the run: a lock, a cluster's word, an estimate, edits."""
    return path.name.startswith(".") or path.name == "plan.json" or path.suffix == ".edits"


def _described_inputs(plan: Plan) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        source.name: {
            "url": source.urls[source.name],
            **asdict(source.volume.spec),
            **({} if source.affine is None else {"affine": source.affine}),
        }
        for planned in plan.stages
        for source in planned.sources.values()
        if source.kind == "volume"
    }
