"""Where the stages of a run lie: what is checked of a store of their own, and what engines are told of it.

`Workflow.place` says where a stage lies; run.json repeats it, below `places`, for those who do not plan.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ..engines.base import Place
from ..errors import ConfigurationError
from ..stages import Source, VolumeOutput
from ..volumes import Store, join
from .plan import Plan, PlannedStage

_OURS = ("corrections", "corrections.json", "jobs", "ledger", "places", "quarantine", "stage.json")


def place_of(document: Any, run_url: str, stage: str) -> str:
    """Return where a stage lies by what run.json says."""
    return str(document.get("places", {}).get(stage) or join(run_url, stage))


def elsewhere(plan: Plan, run_url: str) -> dict[str, str]:
    """Return where the stages are that do not lie in the run's folder, by name."""
    return {planned.name: planned.url for planned in plan.stages if planned.url != join(run_url, planned.name)}


def places(plan: Plan) -> dict[str, Place]:
    """Return where each stage lies, and how much it reads and writes where, for engines."""
    at = {planned.name: planned.url for planned in plan.stages}
    return {
        s.name: Place(s.url, _data(s), tuple(_mark(source, at) for source in s.sources.values())) for s in plan.stages
    }


def _mark(source: Source, at: Mapping[str, str]) -> str:
    return join(at[source.name], "stage.json") if source.name in at else join(source.urls[source.name], "zarr.json")


def _data(planned: PlannedStage) -> dict[str, int]:
    found: dict[str, int] = {}
    for source in planned.sources.values():
        main = next(iter(source.outputs))
        found[source.urls[main]] = _bytes(source, main)
    return found | {planned.url: sum(_bytes(planned.own, name) for name in planned.own.outputs)}


def _bytes(source: Source, name: str) -> int:
    """Return the bytes of an output's finest resolution; 1 for a table, as none knows."""
    output = source.outputs[name]
    if not isinstance(output, VolumeOutput):
        return 1
    return prod(output.spec.shape) * np.dtype(output.spec.dtype).itemsize * (output.spec.channels or 1)


def check_places(run_url: str, plan: Plan, before: Any) -> list[str]:
    """Check that stages with a store of their own find nothing of others there; return what a user should know.

    `before` is the run.json that is there, or None.

    Raises:
        ConfigurationError: where a folder holds what another run, or no run, has put there: it would be removed.
    """
    remarks = []
    known = before["workflow"]["stages"] if before else {}
    for planned in plan.stages:
        was = place_of(before, run_url, planned.name) if planned.name in known else planned.url
        is_apart = planned.url != join(run_url, planned.name)
        mark = Store(planned.url).read_json("stage.json") if is_apart or was != planned.url else None
        if is_apart:
            _check_owner(run_url, planned, mark)
        if was != planned.url and Store(was).read_json("stage.json") is not None:
            there = mark is not None and mark.get("key") == planned.key
            remarks.append(
                f"{planned.name}: lies in {planned.url} from now on, "
                f"{'where it goes on with what is there' if there else 'and is computed anew'}; "
                f"what is in {was} stays until you remove it"
            )
    return remarks


def _check_owner(run_url: str, planned: PlannedStage, mark: Mapping[str, Any] | None) -> None:
    remedy = "give the run another name, or the store another path"
    if mark is None:
        ours = {*_OURS, *planned.own.outputs}
        if foreign := [key for key in Store(planned.url).keys("") if key.partition("/")[0] not in ours]:
            raise ConfigurationError(f"{join(planned.url, foreign[0])}: no run has put it there; {remedy}")
    elif mark.get("key") != planned.key and mark.get("run", run_url) != run_url:
        raise ConfigurationError(f"{planned.url}: holds results of another run, {mark['run']}; {remedy}")


def check_writable(url: str) -> None:
    """Check that something can be written below a path or URL.

    Raises:
        TryAgainError: where it cannot.
    """
    store = Store(url)
    store.write(".writable", b"")
    store.delete(".writable")
