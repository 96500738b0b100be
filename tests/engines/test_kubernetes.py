"""The Kubernetes engine, on a cluster in memory."""

import json
import os
import random
from collections import Counter
from contextlib import suppress
from itertools import islice
from uuid import uuid4

import pytest
from cluster import DONE, EVICTED, GONE, OOM, SILENT, Cluster, Fate
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.engines import Batch, InProcess
from neurokube.engines.cluster import Profile, Refused
from neurokube.engines.kubernetes import Kubernetes
from neurokube.errors import ConfigurationError, NeuroKubeError, TryAgainError
from neurokube.volumes import Store
from neurokube.workflow import Run, execute, load_workflow, work

STEP = "fragments/fragments"


def profile(**fields):
    return Profile.model_validate({"image": "neurokube:test", **fields})


def engine_on(cluster, **fields):
    return Kubernetes(profile(**fields), cluster, clock=lambda: cluster.now, sleep=cluster.sleep)


def blocks_of(cluster, url, job, index):
    name = job["metadata"]["name"]
    batch = Batch.parse(Store(url).read_json(f"fragments/jobs/{name}.json")["batches"][index])
    return range(batch.first, batch.last)


def run(cluster, url, blocks, attempts=3, **fields):
    """Work through blocks; return the outcomes that are no mere ticks."""
    with engine_on(cluster, **fields) as engine:
        outcomes = engine.execute(None, url, STEP, list(engine.batches(list(range(blocks)))), attempts)
        return [outcome for outcome in outcomes if outcome is not None]


def covered(outcomes):
    return sorted(b for o in outcomes if o.report for b in range(o.batch.first, o.batch.last))


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "run")


def test_all_blocks_are_in_the_indexes_of_one_job_which_is_gone_afterwards(url):
    cluster = Cluster()
    outcomes = run(cluster, url, 1000, indexes=64)
    assert covered(outcomes) == list(range(1000))
    assert [job["spec"]["completions"] for job in cluster.created] == [64]
    assert not cluster.held and not cluster.pod_list


def test_disruptions_cost_nothing_but_another_pod(url):
    kinds = [EVICTED, GONE, Fate(85)]
    cluster = Cluster(lambda job, index, attempt: kinds[(index + attempt) % 3] if attempt < 9 else DONE)
    outcomes = run(cluster, url, 50, parallelism=7)
    assert covered(outcomes) == list(range(50))
    assert len(cluster.created) == 1 and sum(cluster.attempts.values()) == 9 * 50


def test_an_index_killed_for_memory_gets_twice_as_much_and_so_does_the_next_run(url):
    def needs_three(job, index, attempt):
        names = blocks_of(cluster, url, job, index)
        limit = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        return OOM if 3 in names and limit in ("1Gi", "2048Mi") else DONE

    cluster = Cluster(needs_three)
    outcomes = run(cluster, url, 8, resources={"memory": "1Gi"})
    assert covered(outcomes) == list(range(8))
    limits = [j["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] for j in cluster.created]
    assert limits == ["1Gi", "2048Mi", "4096Mi"]
    assert [job["spec"]["completions"] for job in cluster.created] == [8, 1, 1]
    cluster.created.clear()
    run(cluster, url, 8, resources={"memory": "1Gi"})
    assert len(cluster.created) == 1


def test_an_index_evicted_over_its_disk_gets_twice_as_much(url):
    def fate(job, index, attempt):
        limit = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["ephemeral-storage"]
        return Fate(evicted="Pod ephemeral local storage usage exceeds the total limit") if limit == "1Gi" else DONE

    cluster = Cluster(fate)
    assert covered(run(cluster, url, 2)) == [0, 1]
    assert len(cluster.created) == 2


def test_a_block_that_needs_more_memory_than_there_is_is_found_and_given_up(url):
    cluster = Cluster(lambda job, index, attempt: OOM if 5 in blocks_of(cluster, url, job, index) else DONE)
    outcomes = run(cluster, url, 8, attempts=2, indexes=2, ceiling={"memory": "3Gi"})
    lost = [o for o in outcomes if o.report is None]
    assert [o.batch for o in lost] == [Batch(5, 6)]
    assert "memory" in lost[0].lost
    assert covered(outcomes) == [0, 1, 2, 3, 4, 6, 7]


def test_a_poisoned_block_is_told_and_the_others_are_done(url):
    told = json.dumps({"done": 3, "failed": [6], "drained": False})
    poisoned = Fate(1, f"{told}\nneurokube: {STEP}: 1 block failed")
    cluster = Cluster(lambda job, index, attempt: poisoned if index == 1 else DONE)
    outcomes = run(cluster, url, 8, indexes=2)
    assert [o.report.failed for o in outcomes if o.report and o.report.failed] == [(6,)]
    assert len(cluster.created) == 1 and cluster.attempts[cluster.created[0]["metadata"]["name"], 1] == 1


def test_a_worker_that_is_misconfigured_ends_the_job_with_its_word(url):
    cluster = Cluster(lambda job, index, attempt: Fate(78, "neurokube: x: no run there (no run.json)"))
    with pytest.raises(ConfigurationError, match=r"fragments/fragments: x: no run there"):
        run(cluster, url, 8)
    assert not cluster.held


def test_a_new_driver_takes_up_the_job_of_one_that_was_killed(url):
    cluster = Cluster(slots=2)
    with engine_on(cluster) as engine:
        killed = engine.execute(None, url, STEP, list(engine.batches(list(range(10)))), 3)
        for _ in range(4):
            next(killed)
        assert len(cluster.held) == 1
        # a generator that is never closed stands for a driver that was killed
        outcomes = run(cluster, url, 10)
        assert len(cluster.created) == 1
        assert covered(outcomes) == list(range(10))
        cluster.faults.append(Refused(404, "gone with its driver"))
        with pytest.raises(NeuroKubeError):
            next(killed)


def test_what_a_deleted_job_had_not_done_is_done_by_another(url):
    cluster = Cluster(slots=1)
    with engine_on(cluster) as engine:
        outcomes = engine.execute(None, url, STEP, list(engine.batches(list(range(4)))), 3)
        first = [next(outcomes), next(outcomes)]
        cluster.delete_job(next(iter(cluster.held)))
        done = covered([o for o in [*first, *outcomes] if o])
    assert done == [0, 1, 2, 3] and len(cluster.created) == 2


def test_what_was_on_a_node_that_no_longer_answers_is_done_by_another_job(url):
    cluster = Cluster(lambda job, index, attempt: SILENT if index == 2 and len(cluster.created) == 1 else DONE)
    assert covered(run(cluster, url, 4)) == [0, 1, 2, 3]
    assert [job["spec"]["completions"] for job in cluster.created] == [4, 1]


def test_a_store_that_fails_ends_the_run_and_loses_no_block(url):
    cluster = Cluster(lambda job, index, attempt: Fate(75, "neurokube: /data: the disk is full") if index else DONE)
    with pytest.raises(TryAgainError, match=r"fragments/fragments: /data: the disk is full"):
        run(cluster, url, 3)
    assert not cluster.held


def test_a_cluster_that_does_not_answer_for_minutes_is_waited_for(url):
    cluster = Cluster(slots=1)
    with engine_on(cluster) as engine:
        outcomes = engine.execute(None, url, STEP, list(engine.batches(list(range(4)))), 3)
        first = [next(outcomes), next(outcomes)]
        cluster.faults += [Refused(0, "no answer"), Refused(503, "not yet"), Refused(429, "too many")] * 30
        assert covered([o for o in [*first, *outcomes] if o]) == [0, 1, 2, 3]
    assert len(cluster.created) == 1


def test_what_pods_wait_for_is_said(url, capsys):
    cluster = Cluster(waiting={"reason": "ContainerCreating"})
    with engine_on(cluster) as engine:
        outcomes = engine.execute(None, url, STEP, list(engine.batches(list(range(4)))), 3)
        message = "0/3 nodes are available: 3 Insufficient memory."
        cluster.unscheduled = message
        while cluster.now < 300:
            next(outcomes)
        cluster.waiting = None
        assert covered([o for o in outcomes if o]) == [0, 1, 2, 3]
    assert " ".join(capsys.readouterr().err.split()).count(f"{message[:-1]}; wait for room") == 1


def test_draining_deletes_the_job(url):
    cluster = Cluster(slots=1)
    with engine_on(cluster) as engine:
        outcomes = engine.execute(None, url, STEP, list(engine.batches(list(range(40)))), 3)
        next(outcomes)
        engine.drain()
        assert [o for o in outcomes if o and o.report is None] == []
    assert not cluster.held


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (Cluster(forbidden=frozenset({("create", "jobs")})), "you may not create jobs; ask for a Role"),
        (Cluster(forbidden=frozenset({("get", "pods/log")})), "you may not get pods/log"),
        (Cluster(faults=[Refused(0, "https://x does not answer")]), "does not answer; check the cluster"),
        (
            Cluster(waiting={"reason": "ImagePullBackOff", "message": "no such image"}),
            "pods cannot start: no such image; correct 'image'",
        ),
    ],
)
def test_what_no_waiting_helps_is_said_in_one_line(url, cluster, words):
    with pytest.raises(NeuroKubeError, match=words) as refusal:
        run(cluster, url, 4)
    assert "\n" not in str(refusal.value)
    assert not cluster.held
    assert cluster.now < 90


def test_a_namespace_without_quota_is_named(url):
    message = 'pods "x" is forbidden: exceeded quota: compute'
    cluster = Cluster(slots=0, event_list=[{"reason": "FailedCreate", "message": message}])
    with pytest.raises(NeuroKubeError, match=r"no pod is admitted: .* exceeded quota"):
        run(cluster, url, 4)


WORKFLOW = """
name: run
workspace: WORKSPACE
stages:
  synthesis: {shape: [16, 64, 64], tile: [8, 32, 32], write: [boundaries]}
  fragments: {boundaries: synthesis.boundaries, tile: [8, 32, 32]}
  graph: {boundaries: synthesis.boundaries}
  multicut: {first_block: [8, 32, 32], levels: 1}
  segmentation:
"""


@pytest.mark.parametrize("mishaps", [0, 40])
def test_a_whole_run_of_pods_that_come_and_go_has_the_bits_of_one_process(tmp_path, mishaps):
    choice = random.Random(mishaps)
    left = [mishaps]

    def fate(job, index, attempt):
        command = job["spec"]["template"]["spec"]["containers"][0]["command"]
        assert command[:2] == ["neurokube", "work"]
        _, _, run_url, step, _, name = command
        stage = step.split("/")[0]
        batch = Batch.parse(Store(run_url).read_json(f"{stage}/jobs/{name}.json")["batches"][index])
        mishap = choice.random() < 0.5 and left[0] > 0
        left[0] -= mishap
        stop_after = choice.randrange(3) if mishap else 10**6
        asked = iter(range(10**6))
        report = work(run_url, step, batch, lambda: next(asked) >= stop_after)
        return choice.choice([EVICTED, GONE, OOM, Fate(137)]) if mishap else DONE if not report.drained else Fate(85)

    cluster = Cluster(fate)
    runs = {}
    for name, engine in (("local", InProcess()), ("pods", engine_on(cluster, indexes=5))):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "workflow.yaml"
        file.write_text(WORKFLOW.replace("WORKSPACE", str(tmp_path / name)))
        runs[name] = Run.planned(load_workflow(str(file)))
        execute(runs[name], engine, quiet=True)
    assert left[0] == 0
    for name, step in runs["local"].plan.steps.items():
        checksums = [
            {r.block: r.checksums for _, r in run.ledger(run.plan.step(name)).records()} for run in runs.values()
        ]
        assert checksums[0] == checksums[1], step.name


@settings(max_examples=int(os.environ.get("NEUROKUBE_TEST_HISTORIES", "40")), deadline=None)
@given(st.data())
def test_no_history_of_mishaps_loses_a_block(data):
    """Any mix of evictions, deaths, memory kills, killed drivers: every block is done or given up."""
    url = f"memory://{uuid4()}/run"
    blocks, hard = data.draw(st.integers(1, 30)), data.draw(st.sets(st.integers(0, 29), max_size=2))
    unkind = st.sampled_from([DONE, DONE, EVICTED, GONE, SILENT, Fate(85), OOM, Fate(137), Fate(1), Fate(75)])
    drawn: Counter[str] = Counter()

    def fate(job, index, attempt):
        if hard & set(blocks_of(cluster, url, job, index)):
            return Fate(139, "died")
        drawn["mishaps"] += 1
        return data.draw(unkind) if drawn["mishaps"] < 60 else DONE

    cluster = Cluster(fate, slots=data.draw(st.integers(1, 8)))
    fields = {"indexes": data.draw(st.integers(1, 12)), "ceiling": {"memory": "4Gi"}}
    done, given_up, killed = set(), set(), []
    for ticks in [*data.draw(st.lists(st.integers(1, 6), max_size=4)), *[10**6] * 60]:
        if done | given_up == set(range(blocks)) and ticks == 10**6 and not cluster.held:
            break
        with engine_on(cluster, **fields) as engine:
            remaining = [block for block in range(blocks) if block not in done | given_up]
            outcomes = engine.execute(None, url, STEP, list(engine.batches(remaining)), 2)
            # one that is never closed stands for a driver that was killed
            killed.append(outcomes)
            with suppress(TryAgainError):
                for outcome in islice(outcomes, ticks):
                    if outcome is not None:
                        told = done if outcome.report else given_up
                        told |= set(range(outcome.batch.first, outcome.batch.last))
    assert done | given_up == set(range(blocks))
    assert {block for block in hard if block < blocks} <= given_up
    assert not cluster.held
