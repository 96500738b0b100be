"""The laws of the design: partition, engine and resume invariance, no stale result, no silent failure."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import (
    CELLS,
    SHAPE,
    STAGES,
    document,
    planned,
    records,
    results,
    tissue,
    write_image,
    write_workflow,
)

from neurokube.blocks import Box
from neurokube.engines import Batch, InProcess, Report
from neurokube.engines.local import Local
from neurokube.errors import ConfigurationError, NeuroKubeError, TryAgainError
from neurokube.stages import Fragments
from neurokube.volumes import open_volume
from neurokube.workflow import Run, execute, parse_workflow, work
from neurokube.workflow.status import read_status


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run of one process and the smallest blocks, and what it wrote."""
    folder = tmp_path_factory.mktemp("reference")
    write_image(folder)
    run = planned(folder)
    execute(run, InProcess(), quiet=True)
    return run, results(run)


def run_here(run):
    return execute(run, InProcess(), quiet=True)


def renewed(summary):
    return {name.split("/")[0] for name, count in summary.computed.items() if count}


# partition and engine invariance

block_shapes = st.tuples(*(st.integers(1, n + 40) for n in SHAPE)).map(list)


@settings(max_examples=4, deadline=None)
@given(block=block_shapes, seed=st.integers(0, 2**32), shares=st.integers(1, 5))
def test_output_does_not_depend_on_block_shape_order_or_number_of_workers(
    reference, tmp_path_factory, block, seed, shares
):
    folder = tmp_path_factory.mktemp("run")
    write_image(folder)
    run = planned(folder, block=block)
    run.prepare()
    for name, step in run.plan.steps.items():
        batches = [Batch.share(k, shares, len(step.blocks)) for k in range(shares)]
        for batch in random.Random(seed).sample(batches, shares):
            assert not work(run.url, name, batch).failed
    assert results(run) == reference[1]


def test_output_of_worker_processes_is_that_of_one_process(reference, tmp_path):
    write_image(tmp_path)
    run = planned(tmp_path)
    execute(run, Local(3), quiet=True)
    assert results(run) == reference[1]


def test_synthetic_tissue_does_not_depend_on_the_blocks(tmp_path):
    stages = {"synthesis": {"shape": [16, 96, 96], "voxel_size": [40, 16, 16], "tile": [8, 32, 32]}}
    fine = planned(tmp_path, name="fine", inputs={}, stages=stages)
    coarse = planned(tmp_path, name="coarse", inputs={}, stages=stages, block=[16, 64, 96])
    run_here(fine)
    run_here(coarse)
    assert results(fine) == results(coarse)


# resume invariance


def test_a_second_run_computes_nothing(tmp_path):
    write_image(tmp_path)
    first = run_here(planned(tmp_path))
    before = records(planned(tmp_path))
    second = run_here(planned(tmp_path))
    assert sum(first.computed.values()) == sum(second.found.values()) > 0
    assert sum(second.computed.values()) == 0
    assert records(planned(tmp_path)) == before


def test_a_run_goes_on_with_another_block_shape(reference, tmp_path):
    write_image(tmp_path)
    run = planned(tmp_path)
    run.prepare()
    work(run.url, "boundaries/boundaries", Batch(0, CELLS // 2))
    # the lower half of the tiles is done: of two blocks, one above the other, the lower one
    summary = run_here(coarser := planned(tmp_path, block=[16, 96, 96]))
    assert summary.found["boundaries/boundaries"] == summary.computed["boundaries/boundaries"] == 1
    assert sum(run_here(planned(tmp_path)).computed.values()) == 0
    assert results(coarser) == reference[1]


@pytest.mark.parametrize(("workers", "kills"), [(0, 6), (2, 1)])
def test_nothing_is_lost_or_done_twice_by_kills(reference, tmp_path, workers, kills):
    """kill -9 on driver and workers at once, at random moments of the work; many more: see `benchmarks.kills`."""
    write_image(tmp_path)
    workflow = write_workflow(tmp_path)
    choice = random.Random(workers)
    command = [sys.executable, "-m", "neurokube", "run", str(workflow), "-q", "--workers", str(workers)]
    seen: dict = {}
    while kills:
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        run = planned(tmp_path)
        target = len(seen) + choice.randrange(6)
        # it is progress that is waited for, not time: a fast machine is killed as often as a slow one
        while process.poll() is None and len(records(run)) <= target:
            time.sleep(0.01)
        time.sleep(choice.random() * 0.05)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills -= 1
        # until it is gone, what it was doing may still come to pass
        process.wait()
        found = records(run)
        assert {key: found[key] for key in seen} == seen, "a block with a durable record was computed again"
        seen = found
        if process.returncode == 0:
            assert results(run) == reference[1]
            shutil.rmtree(run.url)
            seen = {}
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert results(planned(tmp_path)) == reference[1]


def worker_processes(engine):
    """Return the processes that compute for an engine: the last children of its pool."""
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if "process_worker_pool.py" in words and engine._folder.name in words and "bash" not in words:
            return process.children()[-engine.workers :]
    return []


def test_a_killed_worker_costs_only_an_attempt(reference, tmp_path):
    write_image(tmp_path)
    run = planned(tmp_path)

    class Murderous(Local):
        victims = 0

        def execute(self, *arguments):
            for outcome in super().execute(*arguments):
                if outcome is not None and self.victims < 3:
                    random.Random(self.victims).choice(worker_processes(self)).kill()
                    self.victims += 1
                yield outcome

    engine = Murderous(2)
    execute(run, engine, quiet=True)
    assert engine.victims == 3
    assert results(run) == reference[1]


def die_on_block_5(run_url, step_name, batch, stop):
    """Stand in for the worker function: a block that kills whoever works on it."""
    if batch.first <= 5 < batch.last:
        os.kill(os.getpid(), signal.SIGKILL)
    return Report(batch.last - batch.first)


def test_a_block_that_kills_its_worker_is_found_and_given_up(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with Local(2) as engine:
        outcomes = [o for o in engine.execute(die_on_block_5, "", "", [Batch(0, 4), Batch(4, 8)], 2) if o]
    lost = [o for o in outcomes if o.report is None]
    assert [o.batch for o in lost] == [Batch(5, 6)]
    assert "died 2 times" in lost[0].lost
    done = sorted(b for o in outcomes if o.report for b in range(o.batch.first, o.batch.last))
    assert done == [0, 1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGINT, 2)])
def test_a_signal_ends_a_run_with_85_and_all_recorded(reference, tmp_path, number, workers):
    write_image(tmp_path)
    command = [sys.executable, "-m", "neurokube", "run", str(write_workflow(tmp_path)), "-q", "-w", str(workers)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    run = planned(tmp_path)
    while not records(run):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate()
    # a run that has just finished when the signal comes has nothing to stop
    assert process.returncode in (85, 0), errors
    assert "Traceback" not in errors
    before = records(run)
    run_here(planned(tmp_path))
    after = records(run)
    assert {key: after[key] for key in before} == before
    assert results(run) == reference[1]


def test_draining_stops_after_the_block_at_hand(tmp_path):
    write_image(tmp_path)
    run = planned(tmp_path)
    run.prepare()
    asked = iter([False, False, True])
    report = work(run.url, "boundaries/boundaries", Batch(0, CELLS), lambda: next(asked))
    assert report.drained
    assert report.done == len(records(run)) == 2


# no stale result


def test_a_changed_setting_renews_its_stage_and_what_depends_on_it_only(tmp_path):
    write_image(tmp_path)
    run_here(planned(tmp_path))
    stages = STAGES | {"multicut": {"bias": 0.95}}
    changed = planned(tmp_path, stages=stages)
    assert renewed(run_here(changed)) == {"multicut", "segmentation", "measurements"}
    fresh = planned(tmp_path, stages=stages, name="fresh")
    run_here(fresh)
    assert results(changed) == results(fresh)


def test_going_back_to_an_earlier_setting_finds_none_of_its_old_records(reference, tmp_path):
    write_image(tmp_path)
    few = {name: STAGES[name] for name in ("boundaries", "fragments")}
    run_here(planned(tmp_path, stages=few))
    run_here(planned(tmp_path, stages=few | {"boundaries": {**few["boundaries"], "contrast": 0.5}}))
    back = planned(tmp_path, stages=few)
    assert run_here(back).found["boundaries/boundaries"] == 0
    assert results(back).items() <= reference[1].items()


def test_a_raised_stage_version_renews_it(tmp_path, monkeypatch):
    write_image(tmp_path)
    run_here(planned(tmp_path))
    monkeypatch.setattr(Fragments, "version", Fragments.version + 1)
    assert renewed(run_here(planned(tmp_path))) == set(STAGES) - {"boundaries", "objects", "fusion"}


def test_a_changed_input_renews_everything(tmp_path):
    write_image(tmp_path)
    run_here(planned(tmp_path))
    write_image(tmp_path, 255 - tissue())
    assert not any(run_here(planned(tmp_path)).found.values())


def test_a_changed_input_without_a_fingerprint_renews_everything(tmp_path):
    path = write_image(tmp_path)
    group = json.loads((path / "zarr.json").read_text())
    del group["attributes"]["neurokube"]["fingerprint"]
    (path / "zarr.json").write_text(json.dumps(group))
    run_here(planned(tmp_path))
    open_volume(str(path)).write(Box((0, 0, 0), (16, 32, 32)), np.full((16, 32, 32), 7, np.uint8))
    assert not any(run_here(planned(tmp_path)).found.values())


def test_a_worker_refuses_a_run_that_was_planned_with_other_software(tmp_path):
    write_image(tmp_path)
    run = planned(tmp_path)
    run.document["numerics"] = {"machine": "pdp11"}
    run.prepare()
    with pytest.raises(ConfigurationError, match="pdp11"):
        work(run.url, "boundaries/boundaries", Batch(0, 1))


GOLDEN = Path(__file__).with_name("golden.json")


def test_outputs_are_those_of_this_stage_version(reference):
    """A changed output under an unchanged version would leave stale results in users' runs.

    After a wanted change raise the stage's `version`, then `python tests/workflow/test_laws.py` writes
    the new digests.
    """
    run, found = reference
    golden = json.loads(GOLDEN.read_text())
    assert {stage.name: stage.stage.version for stage in run.plan.stages} == golden["versions"]
    if golden["numerics"] != run.document["numerics"]:
        pytest.skip(f"the digests were written with {golden['numerics']}")
    assert found == golden["outputs"]


# a failure is never a success, and an empty shard is not a lost one


def break_shard(image, z, y, x):
    path = image / "0" / "c" / str(z) / str(y) / str(x)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return lambda: path.write_bytes(whole)


def test_a_block_that_always_fails_is_quarantined_and_named_while_the_others_go_on(reference, tmp_path):
    mend = break_shard(write_image(tmp_path), 1, 2, 2)
    with pytest.raises(NeuroKubeError) as failure:
        run_here(planned(tmp_path))
    assert failure.value.exit_code == 1
    message = str(failure.value)
    assert "boundaries/boundaries" in message and "log in" in message and "\n" not in message
    run = planned(tmp_path)
    state = read_status(run)
    assert state["state"] == "failed"
    failed = {note["block"] for note in state["quarantined"]}
    # the last tile, and those whose halo reaches into it
    assert CELLS - 1 in failed
    assert state["steps"]["boundaries/boundaries"]["done"] == CELLS - len(failed) > 0
    assert state["steps"]["fragments/fragments"]["done"] == 0
    note = run.quarantined(run.plan.step("boundaries/boundaries"))[0]
    assert note["attempts"] == 3 and "Traceback" in note["log"]
    mend()
    run_here(planned(tmp_path))
    assert results(run) == reference[1]
    assert read_status(run)["quarantined"] == []


def test_what_came_out_is_told_once(tmp_path, capsys):
    write_image(tmp_path)
    (tmp_path / "pairs.csv").write_text("z1,y1,x1,z2,y2,x2,cost\n50,50,50,50,50,50,-1\n")
    stages = {"lifted": {"priors": {"mine": {"pairs": str(tmp_path / "pairs.csv")}}}}
    stages = {name: STAGES[name] for name in ("boundaries", "fragments", "graph")} | stages
    run_here(planned(tmp_path, stages=stages))
    said = "lifted: mine: of 1 pair of points are left out: 1 with both ends in one fragment"
    assert capsys.readouterr().err.count(said) == 1
    run_here(planned(tmp_path, stages=stages))
    assert said not in capsys.readouterr().err


def test_too_many_failures_end_a_stage_early(tmp_path):
    image = write_image(tmp_path)
    for z, y, x in product(range(2), range(3), range(3)):
        break_shard(image, z, y, x)
    with pytest.raises(NeuroKubeError, match=r"failures\.limit is 2"):
        run_here(planned(tmp_path, failures={"limit": 2, "attempts": 1}))
    assert len(read_status(planned(tmp_path))["quarantined"]) < CELLS


def test_a_lost_shard_is_computed_again_and_an_empty_one_is_not(tmp_path):
    voxels = tissue().copy()
    voxels[:, :, 40:] = 0
    write_image(tmp_path, voxels)
    few = {"boundaries": STAGES["boundaries"]}
    run = planned(tmp_path, stages=few)
    run_here(run)
    before = results(run)
    shards = Path(run.url, "boundaries", "boundaries", "0", "c")
    stored = sorted(p for p in shards.rglob("*") if p.is_file())
    assert 0 < len(stored) < CELLS, "some shards must be empty, and so absent, for this test to tell them apart"
    stored[1].unlink()
    summary = run_here(planned(tmp_path, stages=few))
    assert summary.computed["boundaries/boundaries"] == 1
    assert results(run) == before
    assert sorted(p for p in shards.rglob("*") if p.is_file()) == stored


def test_a_lost_table_is_computed_again(reference, tmp_path):
    write_image(tmp_path)
    run = planned(tmp_path)
    run_here(run)
    Path(run.url, "graph", "edges", "0.1.1.npy").unlink()
    Path(run.url, "multicut", "segments", "1.2.2.npy").unlink()
    Path(run.url, "measurements", "table.csv").unlink()
    summary = run_here(planned(tmp_path))
    assert summary.computed["graph/edges"] == summary.computed["multicut/segments"] == 1
    assert summary.computed["measurements/table"] == 1
    assert sum(summary.computed.values()) == 3
    assert results(run) == reference[1]


def test_a_full_disk_ends_a_run_with_75_and_loses_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        write_image(tmp_path)
        run = planned(tmp_path, workspace=str(disk))
        with pytest.raises(TryAgainError, match="disk is full"):
            run_here(run)
        assert not list(Path(run.url).rglob("quarantine"))
        before = records(run)
        subprocess.run(["mount", "-o", "remount,size=100M", disk], check=True)
        run_here(planned(tmp_path, workspace=str(disk)))
        after = records(run)
        assert {key: after[key] for key in before} == before
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


# what a run leaves


def test_a_region_is_a_run_of_its_own_at_its_place(tmp_path):
    write_image(tmp_path)
    workflow = parse_workflow(document(tmp_path))
    region = Box((4, 10, 20), (28, 74, 84))
    run = Run.planned(workflow, region)
    run_here(run)
    assert run.url != Run.planned(workflow).url
    volume = open_volume(f"{run.url}/segmentation/segmentation")
    assert volume.spec.shape == (24, 64, 64)
    assert volume.spec.offset == (40.0, 100.0, 200.0)
    data = run.plan.stages[0].data()
    assert np.array_equal(data.volume("image").read(volume.spec.box), tissue()[region.slices])


def test_segments_are_consecutive_and_the_table_says_which_fragment_is_which(reference):
    run, _ = reference
    segmentation = open_volume(f"{run.url}/segmentation/segmentation")
    fragments = open_volume(f"{run.url}/fragments/fragments")
    labels, ids = segmentation.read(segmentation.spec.box), fragments.read(fragments.spec.box)
    assert labels.dtype == np.uint64
    assert np.array_equal(np.unique(labels), np.arange(1, labels.max() + 1))
    data = next(stage for stage in run.plan.stages if stage.name == "segmentation").data()
    table = np.concatenate([data.table("fragment-segment", cell) for cell in range(CELLS)])
    pairs = np.unique(np.stack([ids.ravel(), labels.ravel()], axis=1), axis=0)
    assert np.array_equal(pairs, table[np.argsort(table[:, 0])])


def test_run_json_tells_where_a_result_comes_from(reference):
    run, _ = reference
    found = json.loads(Path(run.url, "run.json").read_text())
    assert found["numerics"]["bioimage-cpp"]
    assert set(found["keys"]) == set(STAGES)
    assert found["workflow"]["stages"]["fragments"]["reach"] == 60
    assert found["inputs"]["image"]["voxel_size"] == [10.0, 10.0, 10.0]
    assert {"neurokube", "python", "started", "steps"} <= found.keys()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder))
        made = planned(Path(folder))
        run_here(made)
        text = {
            "numerics": made.document["numerics"],
            "versions": {stage.name: stage.stage.version for stage in made.plan.stages},
            "outputs": results(made),
        }
        GOLDEN.write_text(json.dumps(text, indent=2) + "\n")
