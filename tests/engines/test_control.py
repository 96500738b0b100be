"""One driver a run, drivers in the cluster, and what is asked of it from outside: on a cluster in memory."""

import json
import os
import socket
import sys
from itertools import groupby

import pytest
from cluster import DONE, OOM, Cluster, Fate
from kubernetes_validate import validate
from typer.testing import CliRunner

from neurokube.cli import app
from neurokube.engines import Batch
from neurokube.engines.cluster import Lease, Profile, Refused, driver_manifest
from neurokube.engines.cluster.control import cancel, detach, logs, overview
from neurokube.engines.kubernetes import Kubernetes
from neurokube.errors import ConfigurationError, TryAgainError
from neurokube.volumes import Store, VolumeSpec, create
from neurokube.workflow import Run, parse_workflow

STEP = "fragments/fragments"
PROFILE = Profile(image="neurokube:test", secrets=["keys"], volumes=[{"path": "/data", "claim": "tissue"}])


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "run")


def lease(cluster, holder, sleep=None):
    return Lease(cluster, "nk-run", {}, holder=holder, sleep=sleep or cluster.sleep)


# one driver a run


def test_a_second_driver_is_refused_while_the_first_renews():
    cluster = Cluster()
    with lease(cluster, "one") as first:

        def later(seconds):
            first.check()

        with pytest.raises(TryAgainError, match=r"in use by another driver \(one\); wait for it, end it by"):
            lease(cluster, "two", later).__enter__()
    assert not cluster.leases
    with lease(cluster, "two"):
        assert cluster.leases["nk-run"]["spec"]["holderIdentity"] == "two"


def test_a_lease_that_nobody_renews_is_taken_over_after_its_duration_and_the_first_notices():
    cluster = Cluster()
    first = lease(cluster, "one")
    first.__enter__()
    with lease(cluster, "two"):
        assert 40 <= cluster.now < 60
        with pytest.raises(TryAgainError, match="taken over by another driver"):
            first.check()
        assert first.lost()
        first.__exit__(None, None, None)
        # what is another's is not let go
        assert cluster.leases["nk-run"]["spec"]["holderIdentity"] == "two"


def test_the_lease_of_a_process_that_died_here_and_ones_own_are_free_at_once():
    cluster = Cluster()
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    lease(cluster, f"{socket.gethostname()}/{child}").__enter__()
    lease(cluster, "job-of-a-driver").__enter__()
    with lease(cluster, "job-of-a-driver"):
        assert cluster.now == 0


def test_a_driver_whose_run_was_cancelled_makes_no_further_job(url):
    cluster = Cluster(slots=1)
    engine = Kubernetes(PROFILE, cluster, clock=lambda: cluster.now, sleep=cluster.sleep)
    with engine, engine.hold(url):
        outcomes = engine.execute(None, url, STEP, list(engine.batches(list(range(9)))), 3)
        next(outcomes)
        assert len(cancel(cluster, url)) == 1
        with pytest.raises(TryAgainError, match="cancelled, or taken over"):
            list(outcomes)
    assert not cluster.held and len(cluster.created) == 1


def test_a_driver_that_lost_its_run_leaves_the_jobs_to_the_next(url):
    cluster = Cluster(slots=1)
    first, second = (Kubernetes(PROFILE, cluster, clock=lambda: cluster.now, sleep=cluster.sleep) for _ in range(2))
    with first, first.hold(url):
        outcomes = first.execute(None, url, STEP, list(first.batches(list(range(9)))), 3)
        next(outcomes)
        first.lease.holder = "a machine that was asleep"
        cluster.leases.clear()
        with second, second.hold(url):
            first.lease._lost.set()
            with pytest.raises(TryAgainError):
                list(outcomes)
            assert len(cluster.held) == 1
            done = [o for o in second.execute(None, url, STEP, list(second.batches(list(range(9)))), 3) if o]
    assert sorted(b for o in done for b in range(o.batch.first, o.batch.last)) == list(range(9))
    assert len(cluster.created) == 1


# drivers in the cluster


@pytest.mark.parametrize("version", ["1.33", "1.34", "1.35", "1.36"])
def test_the_job_of_a_driver_is_valid(version):
    job = driver_manifest(PROFILE, "nk-driver", "s3://bucket/run")
    validate(job, version, strict=True)
    pod = job["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "neurokube-driver" and pod["securityContext"]["runAsNonRoot"]
    assert pod["containers"][0]["command"] == ["neurokube", "resume", "s3://bucket/run"]
    assert {"name": "NEUROKUBE_DRIVER", "value": "nk-driver"} in pod["containers"][0]["env"]


def pod_of(cluster, phase, **status):
    """Give the Job made last a pod."""
    job = cluster.created[-1]
    labels = job["metadata"]["labels"] | {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    cluster.pod_list.append(
        {"metadata": {"name": "pod", "labels": labels}, "status": {"phase": phase, "conditions": [], **status}}
    )


class Detaching(Cluster):
    """A cluster that gives a driver a pod when its Job is made."""

    pod = ("Running", {})

    def create_job(self, job):
        super().create_job(job)
        self.held[job["metadata"]["name"]]["spec"] = {"completions": 0, "parallelism": 0}
        pod_of(self, self.pod[0], **self.pod[1])


def detached(cluster, url):
    return detach(cluster, PROFILE, url, clock=lambda: cluster.now, sleep=cluster.sleep)


def test_a_driver_is_put_into_the_cluster_once(url):
    cluster = Detaching()
    name, waits = detached(cluster, url)
    assert list(cluster.held) == [name] and not waits
    with pytest.raises(TryAgainError, match=f"a driver is at work in the cluster already .{name}"):
        detached(cluster, url)
    cluster.held[name]["status"] = {"conditions": [{"type": "Failed", "status": "True"}]}
    again, _ = detached(cluster, url)
    assert list(cluster.held) == [again] != [name]


def test_a_driver_that_cannot_start_is_told_and_not_left(url):
    cluster = Detaching()
    waiting = {"reason": "ErrImagePull", "message": "no such image"}
    cluster.pod = ("Pending", {"containerStatuses": [{"name": "driver", "state": {"waiting": waiting}}]})
    with pytest.raises(ConfigurationError, match="the driver: pods cannot start: no such image; correct 'image'"):
        detached(cluster, url)
    assert not cluster.held


def test_a_driver_that_has_to_wait_is_left_with_the_reason(url):
    cluster = Detaching()
    unschedulable = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "1 Insufficient cpu.",
    }
    cluster.pod = ("Pending", {"conditions": [unschedulable]})
    name, waits = detached(cluster, url)
    why = "1 Insufficient cpu; wait for room, or lower 'resources' in the profile"
    assert waits == why and list(cluster.held) == [name]
    assert overview(cluster, url).waiting == {why: 1}
    assert cancel(cluster, url) == [name] and not cluster.held


def test_a_driver_in_the_cluster_that_is_evicted_leaves_its_jobs_to_the_next(url, monkeypatch):
    monkeypatch.setenv("NEUROKUBE_DRIVER", "nk-driver")
    cluster = Cluster(slots=1)
    for _ in range(3):
        engine = Kubernetes(PROFILE, cluster, clock=lambda: cluster.now, sleep=cluster.sleep)
        with engine, engine.hold(url):
            outcomes = engine.execute(None, url, STEP, list(engine.batches(list(range(6)))), 3)
            next(outcomes)
            engine.drain()
            list(outcomes)
        assert len(cluster.held) == 1
    assert len(cluster.created) == 1


# looking


def test_what_befell_pods_and_what_failed_ones_said_is_kept(url):
    fates = {0: Fate(85, disrupted=True), 1: OOM, 2: Fate(1, json.dumps({"done": 0, "failed": [2]}))}
    cluster = Cluster(lambda job, index, attempt: fates.pop(index, DONE))
    cluster.log = lambda pod, lines: f"what {pod} said"
    engine = Kubernetes(PROFILE, cluster, clock=lambda: cluster.now, sleep=cluster.sleep)
    with engine, engine.hold(url):
        outcomes = engine.execute(None, url, STEP, [Batch(k, k + 1) for k in range(4)], 3)
        next(outcomes)
        next(outcomes)
        seen = overview(cluster, url)
        assert seen.driver == engine.lease.holder and seen.jobs == {STEP: 1}
        assert seen.pods[STEP]["Failed"] == 3
        list(outcomes)
    told = Store(url).read_json("fragments/jobs/fragments.tally.json")
    assert told == {"memory": 1, "blocks": 1} | ({"disrupted": 1} if "disrupted" in told else {})
    kept = list(logs(None, url, {"fragments": f"{url}/fragments"}, STEP))
    assert len(kept) == 2 and all("said" in text for _, text in kept)
    assert {whose.split(" of ")[0] for whose, _ in kept} == {f"{STEP}, index 1", f"{STEP}, index 2"}


def test_parallelism_follows_what_the_cluster_grants(url):
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}

    class Full(Cluster):
        """A cluster with room for two pods at a time, and later for all."""

        def pods(self, selector):
            job = next(iter(self.held.values()))
            labels = job["metadata"]["labels"] | {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
            asked = job["spec"]["parallelism"]
            self.asked.append(asked)
            there = [("Running", [])] * min(asked, self.slots) + [("Pending", [unschedulable])] * (asked - self.slots)
            return [
                {"metadata": {"labels": labels}, "status": {"phase": phase, "conditions": conditions}}
                for phase, conditions in there
            ]

    cluster = Full(lambda job, index, attempt: DONE if cluster.now > 500 else Fate(85), slots=2)
    cluster.asked = []
    engine = Kubernetes(PROFILE, cluster, clock=lambda: cluster.now, sleep=cluster.sleep)
    with engine:
        for _ in engine.execute(None, url, STEP, list(engine.batches(list(range(64)))), 3):
            if cluster.now > 250:
                cluster.slots = 100
    # from what was asked for to what is there and one that waits; once there is room, ever more
    assert [asked for asked, _ in groupby(cluster.asked)] == [64, 3, 6, 12, 24, 48, 64]


def test_a_run_is_known_by_one_name_wherever_one_stands(tmp_path, monkeypatch):
    """Jobs, Leases and pods are found by it."""
    (tmp_path / "runs" / "image").mkdir(parents=True)
    asked = []
    monkeypatch.setattr("neurokube.workflow.Run.open", lambda url: asked.append(url) or sys.exit(0))
    monkeypatch.chdir(tmp_path / "runs")
    for command in ("status", "logs", "cancel", "resume"):
        for run in ("image", "../runs/image/", str(tmp_path / "runs" / "image"), "s3://bucket/runs/image"):
            CliRunner().invoke(app, [command, run])
    assert asked == [*[str(tmp_path / "runs" / "image")] * 3, "s3://bucket/runs/image"] * 4


def test_a_lease_that_another_takes_first_is_waited_for():
    cluster = Cluster()
    real, raced = cluster.put_lease, []

    def put(given):
        if not raced:
            raced.append(1)
            real({**given, "spec": {**given["spec"], "holderIdentity": "faster"}})
            raise Refused(409, "changed")
        return real(given)

    cluster.put_lease = put
    with lease(cluster, "slower"):
        assert cluster.now >= 40


# planning


def test_a_network_is_settled_by_a_pod_and_kept_till_something_changes(tmp_path, command):
    """The pod's word counts, whatever this machine would choose."""
    create(str(tmp_path / "image.zarr"), VolumeSpec((8, 64, 64), "uint8", (40.0, 8.0, 8.0)))
    semantics = {"stage": "semantics", "model": "synthetic-40-8-8", "window": [8, 64, 64]}
    document = {
        "name": "run",
        "workspace": str(tmp_path),
        "inputs": {"image": {"path": str(tmp_path / "image.zarr")}},
        "stages": {"first": semantics, "second": {**semantics, "image": "image", "mask": "first.membranes"}},
    }
    asked = []

    def fate(job, index, attempt):
        told = job["spec"]["template"]["spec"]["containers"][0]["command"]
        asked.append(told[3])
        assert command(*told[1:])[0] == 0
        answer = f".planning/{told[-1]}.answer.json"
        settled = Store(told[2]).read_json(answer)
        settled["settled"]["numerics"]["threads"] = 7
        Store(told[2]).write_json(answer, settled)
        return DONE

    cluster = Cluster(fate)
    with Kubernetes(PROFILE, cluster, clock=lambda: cluster.now, sleep=cluster.sleep) as engine:
        run = Run.planned(parse_workflow(document), errand=engine.settle)
        assert asked == ["first", "second"]
        assert run.plan.stage("second").stage.settled.numerics.threads == 7
        run.prepare()
        assert not Store(run.url).keys(".planning/") and not cluster.held
        again = Run.planned(parse_workflow(document), errand=engine.settle)
        assert len(asked) == 2 and again.document["keys"] == run.document["keys"]
        document["stages"]["second"] = {**document["stages"]["second"], "overlap": [0, 8, 8]}
        Run.planned(parse_workflow(document), errand=engine.settle)
        assert asked == ["first", "second", "second"]


@pytest.mark.parametrize(
    ("fate", "words"),
    [
        (Fate(78, "neurokube: no such model here"), "semantics/settle: no such model here"),
        (Fate(137, reason="OOMKilled"), "killed for memory; give 'resources' more"),
        (DONE, "its pod left nothing in .*; see 'volumes' in the profile"),
    ],
)
def test_a_pod_that_cannot_settle_is_told_in_one_line(url, fate, words):
    cluster = Cluster(lambda job, index, attempt: fate)
    engine = Kubernetes(PROFILE, cluster, clock=lambda: cluster.now, sleep=cluster.sleep)
    with engine, pytest.raises(ConfigurationError, match=words):
        engine.settle(url, "semantics", {})
    assert not cluster.held and not Store(url).keys(".planning/")
