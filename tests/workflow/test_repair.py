"""A run is checked against its ledger, and what is damaged of it is computed again, nothing else."""

import json
import random
import shutil
from pathlib import Path

import pytest
from tiny import STAGES, planned, records, results, write_image, write_workflow

from neurokube.engines import InProcess
from neurokube.workflow import Run, execute
from neurokube.workflow.integrity import by_step, check_run, repair

NAMES = ("boundaries", "fragments", "graph", "segmentation", "objects", "measurements")
CHAIN = {name: STAGES[name] for name in NAMES} | {"multicut": {"first_block": STAGES["multicut"]["first_block"]}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_image(folder)
    run = planned(folder, stages=CHAIN)
    execute(run, InProcess(), quiet=True)
    return run, results(run), folder


@pytest.fixture
def folder(whole):
    """The finished run, put back as it was afterwards: its paths are absolute."""
    run, _, folder = whole
    kept = folder / "kept"
    shutil.copytree(run.url, kept)
    yield folder
    shutil.rmtree(run.url)
    kept.rename(run.url)


def data_objects(run):
    return sorted(
        str(path.relative_to(run.url))
        for planned_stage in run.plan.stages
        for step in planned_stage.steps
        for target in step.targets
        for path in [*Path(planned_stage.url).rglob("*")]
        if path.is_file() and str(path.relative_to(planned_stage.url)).startswith(target.prefix)
    )


def test_a_whole_run_is_whole(whole):
    checked = check_run(whole[0], quiet=True)
    assert checked.damage == () and checked.unfinished == 0 and checked.objects >= len(set(data_objects(whole[0])))


def test_damage_of_every_kind_is_found_and_the_next_run_computes_just_those_blocks(whole, folder):
    run, reference, _ = whole
    choice = random.Random(11)
    chosen = choice.sample(sorted(set(data_objects(run))), 24)
    for number, name in enumerate(chosen):
        path = Path(run.url) / name
        content = bytearray(path.read_bytes())
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_bytes(content[: len(content) // 2])
        else:
            content[choice.randrange(len(content))] ^= 1 << choice.randrange(8)
            path.write_bytes(content)
    checked = check_run(run, quiet=True)
    said = {f"{each.step.partition('/')[0]}/{each.key}" for each in checked.damage}
    assert said == set(chosen)
    before = records(run)
    count = repair(run, checked.damage)
    again = by_step(checked.damage)
    assert count == sum(len(blocks) for blocks in again.values())
    assert len(before) - len(records(run)) == count
    summary = execute(planned(folder, stages=CHAIN), InProcess(), quiet=True)
    assert {step: n for step, n in summary.computed.items() if n} == {step: len(b) for step, b in again.items()}
    assert results(Run.open(run.url)) == reference
    assert check_run(run, quiet=True).damage == ()


def test_voxels_that_nobody_wrote_are_found_though_their_chunks_are_sound(whole, folder):
    run, _, _ = whole
    stage = run.plan.stage("segmentation")
    volume = stage.data().volume("segmentation")
    box = stage.own.volume.grid().box(4)
    volume.write(box, volume.read(box) + 1)
    checked = check_run(run, quiet=True)
    assert [(each.step, each.what) for each in checked.damage] == [
        ("segmentation/segmentation", "holds other voxels than were written")
    ]


def test_check_and_run_on_the_command_line(whole, folder, command):
    run, reference, _ = whole
    workflow = write_workflow(folder, stages=CHAIN)
    assert command("check", run.url, "-q")[0] == 0
    (Path(run.url) / "boundaries/boundaries/0/c/1/2/0").unlink()
    code, out, err = command("check", run.url, "-q")
    assert code == 65 and "boundaries/boundaries: 1 block to compute again: 15" in out and "--repair" in err
    code, _, err = command("check", f"{run.url}/boundaries/boundaries", "-q")
    assert code == 0 or "tells which blocks" in err
    code, out, _ = command("check", run.url, "-q", "--repair", "--json")
    assert code == 0 and json.loads(out)["compute_again"] == {"boundaries/boundaries": [15]}
    code, out, _ = command("run", workflow, "-q", "-w", "0")
    assert code == 0 and "1 block computed" in out
    assert results(Run.open(run.url)) == reference
    assert command("check", run.url, "-q")[0] == 0


def test_an_unfinished_run_is_whole_as_far_as_it_goes(tmp_path, command):
    write_image(tmp_path)
    run = planned(tmp_path, stages=CHAIN)
    run.prepare()
    code, out, _ = command("check", run.url, "-q")
    assert code == 0 and "have no record" in out
