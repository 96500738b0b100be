"""Stages in stores of their own: the same bits, the same resuming, nothing removed that is somebody else's."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tensorstore as ts
from tiny import STAGES, TILE, document, planned, records, results, write_image, write_workflow

from neurokube.blocks import Box
from neurokube.engines import InProcess
from neurokube.errors import ConfigurationError, DataError, NeuroKubeError, TryAgainError
from neurokube.viewer.runs import layers_of
from neurokube.volumes import Store, open_volume
from neurokube.workflow import Run, execute, load_workflow, parse_workflow
from neurokube.workflow.calibration import _planned as trial
from neurokube.workflow.comparison import compare
from neurokube.workflow.editor import Editor
from neurokube.workflow.pod import share_of
from neurokube.workflow.status import check_finished, read_status
from neurokube.workflow.stores import place_of, places

CHAIN = {name: STAGES[name] for name in ("boundaries", "fragments", "graph", "segmentation")} | {
    "multicut": {"first_block": TILE}
}
IN = {"boundaries": "fast", "graph": "cold", "multicut": "fast", "segmentation": "cold"}


def stored(stages, where=IN):
    return {
        name: {**settings, **({"store": where[name]} if name in where else {})} for name, settings in stages.items()
    }


def apart(folder, where=IN, fast=None, **changes):
    """Plan a run whose stages lie in several stores."""
    stores = {"fast": fast or str(folder / "fast"), "cold": str(folder / "cold")}
    return planned(folder, **({"stages": stored(CHAIN, where), "stores": stores} | changes))


def run_here(run):
    return execute(run, InProcess(), quiet=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    write_image(folder)
    run = planned(folder, stages=CHAIN)
    run_here(run)
    return run, results(run)


def keys(run):
    return {stage.name: stage.key for stage in run.plan.stages}


@pytest.mark.parametrize("fast", [None, "memory://stores/fast"])
def test_a_run_in_several_stores_is_bit_for_bit_the_one_in_a_folder(reference, tmp_path, fast):
    write_image(tmp_path)
    run = apart(tmp_path, fast=fast)
    run_here(run)
    assert results(run) == reference[1] and keys(run) == keys(reference[0])
    # nothing of a stage lies anywhere but in its store
    assert sorted(p.name for p in Path(run.url).iterdir() if p.is_dir()) == ["fragments"]
    assert sorted(p.name for p in (tmp_path / "cold" / "run").iterdir() if p.is_dir()) == ["graph", "segmentation"]
    assert Store(run.plan.stage("boundaries").url).keys("ledger/")
    assert read_status(apart(tmp_path, fast=fast))["state"] == "done"
    assert sum(run_here(apart(tmp_path, fast=fast)).computed.values()) == 0
    assert results(Run.open(run.url)) == reference[1]
    layer = next(layer for layer in layers_of(run.url) if layer.name == "segmentation")
    assert layer.url == str(tmp_path / "cold/run/segmentation/segmentation")
    if fast:
        Store(fast).delete_all()


def test_what_lost_objects_of_a_store_held_is_computed_again(reference, tmp_path):
    write_image(tmp_path)
    run_here(apart(tmp_path))
    (tmp_path / "cold/run/graph/edges/0.1.1.npy").unlink()
    summary = run_here(apart(tmp_path))
    assert sum(summary.computed.values()) == summary.computed["graph/edges"] == 1
    assert results(apart(tmp_path)) == reference[1]


def test_nothing_is_lost_or_done_twice_by_kills(reference, tmp_path):
    write_image(tmp_path)
    stores = {"fast": str(tmp_path / "fast"), "cold": str(tmp_path / "cold")}
    workflow = write_workflow(tmp_path, stages=stored(CHAIN), stores=stores)
    choice, seen, kills = random.Random(7), {}, 0
    command = [sys.executable, "-m", "neurokube", "run", str(workflow), "-q", "--workers", "0"]
    while kills < 5:
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        run = apart(tmp_path)
        target = len(seen) + choice.randrange(20)
        while process.poll() is None and len(records(run)) <= target:
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        found = records(run)
        assert {key: found[key] for key in seen} == seen, "a block with a durable record was computed again"
        seen = found
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert results(apart(tmp_path)) == reference[1]


def test_edits_are_those_of_a_run_in_one_folder_and_follow_to_another_store(reference, tmp_path):
    (tmp_path / "one").mkdir()
    runs = []
    for folder, plan in ((tmp_path, apart), (tmp_path / "one", lambda f: planned(f, stages=CHAIN))):
        write_image(folder)
        run_here(plan(folder))
        with Editor(plan(folder).url, author="Ada") as editor:
            editor.merge([1, 2])
            editor.undo()
            editor.merge([2, 3])
        runs.append(plan(folder))
    assert results(runs[0]) == results(runs[1]) != reference[1]
    moved = apart(tmp_path, IN | {"segmentation": "fast"})
    summary = run_here(moved)
    assert {name.split("/")[0] for name, count in summary.computed.items() if count} == {"segmentation"}
    assert results(moved) == results(runs[1])


def test_a_stage_that_moves_is_computed_anew_there_and_both_are_told(reference, tmp_path):
    write_image(tmp_path)
    run_here(apart(tmp_path))
    moved = apart(tmp_path, IN | {"graph": "fast"})
    was, now = tmp_path / "cold/run/graph", tmp_path / "fast/run/graph"
    assert moved.remarks == [
        f"graph: lies in {now} from now on, and is computed anew; what is in {was} stays until you remove it"
    ]
    summary = run_here(moved)
    assert {name.split("/")[0] for name, count in summary.computed.items() if count} == {"graph"}
    assert results(moved) == reference[1] and (was / "stage.json").exists()
    back = apart(tmp_path)
    assert f"lies in {was} from now on, where it goes on with what is there" in back.remarks[0]
    assert sum(run_here(back).computed.values()) == 0
    assert apart(tmp_path).remarks == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stages": {"boundaries": {"store": "fats"}}}, "there is no store 'fats'; did you mean 'fast'?"),
        ({"stages": {"boundaries": {"store": "fast"}}, "stores": {}}, "no store 'fast'; add it below 'stores'"),
        ({"stores": {"fast": "/x/y", "cold": "/x/z/../y/"}}, "stores.cold: is the same place as stores.fast"),
        ({"stores": {"fast": "s3://b/p", "cold": "s3://b/p/"}}, "stores.cold: is the same place as stores.fast"),
        ({"stores": {"a b": "/x"}}, "stores.a b"),
    ],
)
def test_stores_that_make_no_sense_are_refused_in_one_line(tmp_path, change, words):
    with pytest.raises(ConfigurationError) as refusal:
        parse_workflow(document(tmp_path) | {"stores": {"fast": "/f", "cold": "/c"}} | change)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_paths_of_stores_count_from_the_folder_of_the_workflow_file(tmp_path):
    file = write_workflow(tmp_path, stores={"fast": "f", "cloud": "s3://b/p"})
    assert load_workflow(str(file)).stores == {"fast": str(tmp_path / "f"), "cloud": "s3://b/p"}


def test_a_store_that_cannot_be_written_ends_a_run_before_it_begins(tmp_path):
    write_image(tmp_path)
    (tmp_path / "cold").write_text("a file")
    with pytest.raises(TryAgainError, match=r"cold.*a file is where a folder is needed"):
        run_here(apart(tmp_path))
    assert not (tmp_path / "fast/run/boundaries").exists() and not (tmp_path / "runs/run/fragments").exists()


def test_what_another_run_or_nobody_left_in_a_store_is_never_removed(tmp_path):
    write_image(tmp_path)
    run_here(apart(tmp_path))
    other = {
        "workspace": str(tmp_path / "others"),
        "stages": stored(CHAIN | {"graph": {"channels": {"grey": "image"}}}),
    }
    with pytest.raises(ConfigurationError, match=r"cold/run/graph: holds results of another run, .*/runs/run; give"):
        apart(tmp_path, **other)
    kept = tmp_path / "cold/mine/graph/thesis.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("irreplaceable")
    with pytest.raises(ConfigurationError, match=r"thesis.txt: no run has put it there; give the run another name"):
        apart(tmp_path, name="mine")
    assert kept.exists()


def test_estimate_and_fact_count_what_lies_in_stores(reference, tmp_path):
    write_image(tmp_path)
    run = apart(tmp_path)
    run_here(run)
    facts = [
        {(row["step"], row["objects"]["fact"], row["stored"]["fact"]) for row in compare(each)["steps"]}
        for each in (run, reference[0])
    ]
    assert facts[0] == facts[1]
    beside = [compare(each)["totals"]["metadata and ledger"]["fact"] for each in (run, reference[0])]
    assert beside[0] == beside[1]


def test_a_calibration_writes_nothing_into_stores(tmp_path):
    write_image(tmp_path)
    scratch = trial(apart(tmp_path), str(tmp_path / "scratch"), "trial", Box.of((16, 32, 32)), 0)
    assert all(stage.url.startswith(scratch.url) for stage in scratch.plan.stages)


def test_an_unfinished_volume_in_a_store_is_known_as_such(tmp_path):
    write_image(tmp_path)
    run = apart(tmp_path)
    run.prepare()
    with pytest.raises(DataError, match="lacks 18 of 18 blocks"):
        check_finished(open_volume(str(tmp_path / "cold/run/segmentation/segmentation")))


def test_who_does_not_plan_finds_every_stage_where_the_plan_has_it(tmp_path):
    write_image(tmp_path)
    run = apart(tmp_path)
    told = places(run.plan)
    for planned_stage in run.plan.stages:
        assert place_of(run.document, run.url, planned_stage.name) == planned_stage.url == told[planned_stage.name].url
    graph = told["graph"]
    assert graph.data[str(tmp_path / "runs/run/fragments/fragments")] == 32 * 96 * 96 * 8
    assert set(graph.marks) == {
        str(tmp_path / "runs/run/fragments/stage.json"),
        str(tmp_path / "fast/run/boundaries/stage.json"),
    }


def test_a_pod_that_does_not_find_what_the_driver_sees_says_so_and_what_to_do(tmp_path, monkeypatch):
    write_image(tmp_path)
    run = apart(tmp_path)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    remedy = "pods must reach it as the driver does: see 'volumes' in the profile"
    with pytest.raises(ConfigurationError, match=f"runs/run: no run.json that this pod could find; {remedy}"):
        share_of(run.url, "graph/edges", "nk-1")
    run.prepare()
    with pytest.raises(ConfigurationError, match=f"cold/run/graph: nothing of Job 'nk-1' that this pod.*{remedy}"):
        share_of(run.url, "graph/edges", "nk-1")
    told = {"step": "graph/edges", "batches": ["00000000-00000018"], "marks": places(run.plan)["graph"].marks}
    Store(run.plan.stage("graph").url).write_json("jobs/nk-1.json", told)
    assert share_of(run.url, "graph/edges", "nk-1")[1].last == 18
    (tmp_path / "fast").rename(tmp_path / "away")
    with pytest.raises(
        ConfigurationError, match=f"fast/run/boundaries: nothing that this pod.*graph/edges reads.*{remedy}"
    ):
        share_of(run.url, "graph/edges", "nk-1")
    monkeypatch.delenv("JOB_COMPLETION_INDEX")
    with pytest.raises(ConfigurationError, match="leave --job to pods"):
        share_of(run.url, "graph/edges", "nk-1")


def test_chunks_that_were_read_are_read_from_the_store_once(tmp_path):
    """What a still volume gave once comes from memory; the other kind sees what others write."""
    image = write_image(tmp_path)
    still, lively = open_volume(str(image), still=True), open_volume(str(image))
    box = still.spec.box
    still.read(box)
    before = bytes_read()
    still.read(box)
    assert bytes_read() == before
    lively.write(box, lively.read(box) // 2)
    assert (lively.read(box) == open_volume(str(image)).read(box)).all()
    # opened anew, as the next step does, it is asked after again
    assert (open_volume(str(image), still=True).read(box) == lively.read(box)).all()


def bytes_read():
    found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return found[0]["values"][0]["value"]


def test_a_failed_block_is_noted_in_the_store_of_its_stage(tmp_path):
    image = write_image(tmp_path)
    shard = image / "0/c/1/2/2"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(NeuroKubeError) as failure:
        run_here(apart(tmp_path))
    file = str(failure.value).partition("log in ")[2].partition(";")[0]
    assert file.startswith(str(tmp_path / "fast/run/boundaries/quarantine")) and json.loads(Path(file).read_text())


def test_a_run_on_s3_is_that_of_a_folder_and_the_keys_are_nowhere(reference, tmp_path, command):
    """In no object of the run, in nothing printed, in no Job."""
    where = os.environ.get("NEUROKUBE_TEST_S3")
    if not where:
        pytest.skip("NEUROKUBE_TEST_S3=s3://BUCKET/FOLDER names no S3 store; give AWS_ENDPOINT_URL and keys as well")
    secrets = [os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    write_image(tmp_path)
    store = Store(f"{where}/{tmp_path.name}-{os.getpid()}")
    changes = {"stages": stored(CHAIN), "stores": {"fast": f"{store.url}/fast", "cold": str(tmp_path / "cold")}}
    workflow = write_workflow(tmp_path, **changes, workspace=f"{store.url}/runs")
    (tmp_path / "cluster.yaml").write_text("profiles: {lab: {image: a, secrets: [s3-keys]}}")
    try:
        said = [command("run", workflow, "-w", "2")]
        assert said[0][0] == 0
        run = Run.open(f"{store.url}/runs/run")
        assert results(run) == reference[1]
        cluster = ("--engine", "kubernetes", "--profile", "lab", "--profiles", tmp_path / "cluster.yaml", "--dry-run")
        said += [command("status", run.url), command("plan", workflow), command("run", workflow, *cluster)]
        assert "s3-keys" in said[-1][1]
        # what the store itself says of a bucket that is not there
        said.append(command("status", "s3://not-a-bucket-of-ours/run"))
        printed = [text for _, *texts in said for text in texts] + [str(p.read_bytes()) for p in files(tmp_path)]
        kept = [str(store.read(key)) for key in store.keys("")]
        assert len(kept) > 50
        assert not [text for text in kept + printed if any(secret in text for secret in secrets)]
    finally:
        store.delete_all()


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]
