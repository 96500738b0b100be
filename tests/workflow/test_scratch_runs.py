"""Runs by way of scratch: the same results in fewer requests, and records only of what is durable and was there."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import STAGES, TILE, planned, records, results, write_image, write_workflow

from neurokube.engines import Batch, InProcess
from neurokube.errors import TryAgainError
from neurokube.volumes import Store
from neurokube.workflow import Run, execute, work
from neurokube.workflow.integrity import check_run

CHAIN = {name: STAGES[name] for name in ("boundaries", "fragments", "graph")}


@pytest.fixture
def workspace(s3, tmp_path):
    """One that no other test has: what a process has open it knows by its name."""
    return f"s3://neurokube-test/{tmp_path.name}"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    write_image(folder)
    run = planned(folder, stages=CHAIN)
    execute(run, InProcess(), quiet=True)
    return results(run)


def image_of(tmp_path, bucket):
    write_image(tmp_path)
    for path in (tmp_path / "image.zarr").rglob("*"):
        if path.is_file():
            bucket.objects[f"{path.relative_to(tmp_path)}"] = path.read_bytes()
    return {"image": {"path": "s3://neurokube-test/image.zarr"}}


def test_a_run_gives_the_same_by_way_of_scratch(reference, s3, tmp_path, workspace, monkeypatch):
    inputs = image_of(tmp_path, s3)
    monkeypatch.setenv("NEUROKUBE_SCRATCH", str(tmp_path / "scratch"))
    run = planned(tmp_path, stages=CHAIN, workspace=workspace, inputs=inputs)
    execute(run, InProcess(), quiet=True)
    assert results(run) == reference
    assert check_run(run, quiet=True).damage == ()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_kill_costs_nothing_and_leaves_nothing(reference, s3, tmp_path, workspace):
    inputs = image_of(tmp_path, s3)
    workflow = write_workflow(tmp_path, stages=CHAIN, workspace=workspace, inputs=inputs)
    command = [sys.executable, "-m", "neurokube", "run", str(workflow), "-q", "--workers", "0"]
    scratch = tmp_path / "scratch"
    environment = os.environ | {"NEUROKUBE_SCRATCH": str(scratch), "NEUROKUBE_SCRATCH_BYTES": "100000"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None and len(Store(f"{workspace}/run").keys("fragments/fragments/0/c/")) < 5:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    seen = records(planned(tmp_path, stages=CHAIN, workspace=workspace, inputs=inputs))
    assert process.returncode == -signal.SIGKILL and any(scratch.iterdir()) and seen
    assert subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode == 0
    run = Run.open(f"{workspace}/run")
    assert results(run) == reference
    found = records(run)
    assert {key: found[key] for key in seen} == seen, "a block with a durable record was computed again"
    assert check_run(run, quiet=True).damage == ()
    assert list(scratch.iterdir()) == []


def test_no_block_is_recorded_whose_output_could_not_be_written(s3, tmp_path, workspace, monkeypatch):
    inputs = image_of(tmp_path, s3)
    monkeypatch.setenv("NEUROKUBE_SCRATCH", str(tmp_path / "scratch"))
    run = planned(tmp_path, stages={"boundaries": {"tile": TILE, "block": TILE}}, workspace=workspace, inputs=inputs)
    run.prepare()
    step = run.plan.step("boundaries/boundaries")
    s3.unwritable = "boundaries/0/c/1/1/"
    with pytest.raises(TryAgainError, match="access denied"):
        work(run.url, "boundaries/boundaries", Batch(0, len(step.blocks)))
    assert list(run.ledger(step).records()) == []
    s3.unwritable = "\0"
    assert work(run.url, "boundaries/boundaries", Batch(0, len(step.blocks))).done == len(step.blocks)


@pytest.mark.parametrize("staging", [False, True])
def test_blocks_of_zeros_cost_one_look_at_the_store_a_record(s3, tmp_path, workspace, monkeypatch, staging):
    write_image(tmp_path, np.zeros((32, 96, 96), np.uint8))
    inputs = {"image": {"path": "s3://neurokube-test/image.zarr"}}
    for path in (tmp_path / "image.zarr").rglob("*.json"):
        s3.objects[f"{path.relative_to(tmp_path)}"] = path.read_bytes()
    if staging:
        monkeypatch.setenv("NEUROKUBE_SCRATCH", str(tmp_path / "scratch"))
    looks = []
    monkeypatch.setattr("neurokube.volumes.volume.is_there", lambda array: looks.append(array) or True)
    run = planned(tmp_path, stages={"boundaries": {"tile": TILE, "block": TILE}}, workspace=workspace, inputs=inputs)
    run.prepare()
    looks.clear()
    blocks = len(run.plan.step("boundaries/boundaries").blocks)
    assert work(run.url, "boundaries/boundaries", Batch(0, blocks)).done == blocks == 18
    assert len(looks) == 1


@pytest.mark.parametrize("staging", [False, True])
def test_an_input_that_is_gone_midway_is_never_taken_for_zeros(s3, tmp_path, workspace, monkeypatch, staging):
    """The image's bucket goes, the workspace stays: nothing that was computed since then is recorded."""
    if staging:
        monkeypatch.setenv("NEUROKUBE_SCRATCH", str(tmp_path / "scratch"))
    inputs = image_of(tmp_path, s3)
    image = {key: value for key, value in s3.objects.items() if key.startswith("image.zarr")}
    run = planned(tmp_path, stages={"boundaries": {"tile": TILE, "block": TILE}}, inputs=inputs)
    run.prepare()
    step = run.plan.step("boundaries/boundaries")
    blocks = len(step.blocks)
    stops = iter(range(blocks))

    def gone() -> bool:
        if next(stops) == 3:
            for key in image:
                del s3.objects[key]
        return False

    with pytest.raises(TryAgainError, match="is gone"):
        work(run.url, "boundaries/boundaries", Batch(0, blocks), gone)
    before = [record.block for _, record in run.ledger(step).records()]
    # those before it went may stand, if they were recorded by then
    assert set(before) <= {0, 1, 2} and not list(Store(run.url).keys("boundaries/quarantine"))
    s3.objects |= image
    assert work(run.url, "boundaries/boundaries", Batch(0, blocks)).done == blocks - len(before)
    execute(run, InProcess(), quiet=True)
    found = results(run)
    whole = planned(tmp_path, name="whole", stages={"boundaries": {"tile": TILE}})
    execute(whole, InProcess(), quiet=True)
    assert found == results(whole)
