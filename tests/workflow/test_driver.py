"""Which stages run at once, and what becomes of the others where one fails."""

import threading

import pytest
import yaml

from neurokube.engines import InProcess, Outcome
from neurokube.errors import NeuroKubeError
from neurokube.workflow import Run, execute, load_workflow

STAGES = {
    "one": {"stage": "synthesis", "shape": [8, 32, 32], "tile": [8, 32, 32], "write": ["boundaries"]},
    "other": {
        "stage": "synthesis",
        "shape": [8, 32, 32],
        "tile": [8, 32, 32],
        "write": ["boundaries"],
        "tissue": {"seed": 1},
    },
    "fragments": {"boundaries": "one.boundaries", "tile": [8, 32, 32]},
    "graph": {"boundaries": "one.boundaries"},
}


class Overlapping(InProcess):
    """An engine whose steps may be worked through at once; notes the order in which they begin."""

    overlaps = True

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.both, self.fails, self.begun = threading.Barrier(2, timeout=60), fails, []

    def execute(self, work, run_url, step_name, batches, attempts):
        self.begun.append(step_name)
        if step_name.split("/")[0] in ("one", "other"):
            self.both.wait()
        for batch in batches:
            if step_name.split("/")[0] == self.fails:
                yield Outcome(batch, None, "its pod died")
            else:
                yield Outcome(batch, work(run_url, step_name, batch, lambda: self._stop))


def planned(folder):
    document = {"name": "run", "workspace": str(folder), "stages": STAGES}
    file = folder / "workflow.yaml"
    file.write_text(yaml.safe_dump(document))
    return Run.planned(load_workflow(str(file)))


def done(run):
    return {name for name, step in run.plan.steps.items() if not run.ledger(step).remaining()}


def test_stages_that_do_not_need_each_other_run_at_once_and_others_wait(tmp_path):
    # each of the two waits for the other to begin
    engine, run = Overlapping(), planned(tmp_path)
    execute(run, engine, quiet=True)
    assert done(run) == set(run.plan.steps)
    names = [step.split("/")[0] for step in engine.begun]
    assert names.index("fragments") > names.index("one") and names.index("graph") > names.index("fragments")


def test_a_stage_that_fails_holds_back_only_what_reads_it(tmp_path):
    run = planned(tmp_path)
    with pytest.raises(NeuroKubeError, match="one/synthesis: 1 of 1 blocks failed"):
        execute(run, Overlapping(fails="one"), quiet=True)
    assert {step.split("/")[0] for step in done(run)} == {"other"}
    execute(run, InProcess(), quiet=True)
    assert done(run) == set(run.plan.steps)


def test_an_error_of_the_engine_ends_all_stages_and_is_told(tmp_path):
    class Broken(Overlapping):
        def execute(self, work, run_url, step_name, batches, attempts):
            if step_name.startswith("other"):
                self.both.wait()
                raise NeuroKubeError("the cluster is gone")
            yield from super().execute(work, run_url, step_name, batches, attempts)

    with pytest.raises(NeuroKubeError, match="the cluster is gone"):
        execute(planned(tmp_path), Broken(), quiet=True)
