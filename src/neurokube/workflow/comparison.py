"""Estimate against fact: what was expected of a run, beside what its ledger and its folder say."""

from typing import Any

from ..errors import UsageError
from .estimate import Target, estimate, kept
from .run import Run
from .status import cost, distinct
from .stored import stored
from .stores import elsewhere


def compare(run: Run) -> dict[str, Any]:
    """Return a row a step with what was estimated and what came of it, and the totals of the steps that are done.

    Estimates are those that the run keeps; where it has none that fit, they are made now.

    Raises:
        UsageError: where no block is done yet.
    """
    before = kept(run)
    told = before or estimate(run, Target()).as_dict()
    expected = {row["step"]: row for row in told["steps"]}
    rows: list[dict[str, Any]] = []
    for name, step in run.plan.steps.items():
        records = distinct(run, step)
        was = expected[name]
        found = stored(run.at(step.planned), [target.prefix for target in step.step.targets])
        fact = cost(records)
        done = run.ledger(step).count()
        seconds = was["seconds"]
        if seconds is not None:
            seconds = [s + was["start"] * was["workers"] for s in seconds]
        rows.append(
            {
                "step": name,
                "done": done,
                "blocks": len(step.blocks),
                "finished": done == len(step.blocks),
                "seconds": _beside(seconds, fact["seconds"]),
                "stored": _beside(was["stored"], found.bytes),
                "memory": _beside(was["memory"], fact["peak_memory"]),
                "objects": _beside(was["objects"], found.objects),
                "sampled": found.sampled,
            }
        )
    if not any(row["done"] for row in rows):
        raise UsageError(f"{run.url}: nothing to compare, no block is done yet; run it first")
    finished = [row for row in rows if row["finished"]]
    # sums of the ends of ranges would be too wide: chance does not go one way in all steps
    whole = told["totals"] if len(finished) == len(rows) else None
    totals = {
        what: _beside(
            whole[what] if whole else _summed([row[what]["estimate"] for row in finished]),
            sum(row[what]["fact"] for row in finished),
        )
        for what in ("seconds", "stored")
    }
    totals["objects"] = _beside(*(sum(row["objects"][which] for row in finished) for which in ("estimate", "fact")))
    if whole:
        apart = elsewhere(run.plan, run.url)
        everything = run.store.keys("") + [key for name in apart for key in run.at(run.plan.stage(name)).keys("")]
        beside = len(everything) - everything.count(".lock") - totals["objects"]["fact"]
        totals["metadata and ledger"] = _beside(whole["objects"]["metadata"] + whole["objects"]["ledger"], beside)
    return {
        "run": run.url,
        "made": told["made"] if before else None,
        "basis": told["basis"],
        "finished": len(finished) == len(rows),
        "steps": rows,
        "totals": totals,
    }


def _beside(expected: Any, fact: float) -> dict[str, Any]:
    """Return an estimate, a number or a range, with the fact and their ratio; `within` says if a range holds it."""
    likely = expected[1] if isinstance(expected, list) else expected
    found = {"estimate": expected, "fact": fact, "ratio": round(fact / likely, 3) if likely else None}
    if isinstance(expected, list):
        found["within"] = expected[0] <= fact <= expected[2]
    return found


def _summed(ranges: list[Any]) -> list[float] | None:
    return None if any(r is None for r in ranges) else [sum(ends) for ends in zip(*ranges, strict=True)]
