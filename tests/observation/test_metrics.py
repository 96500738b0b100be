"""What is counted of a run, and where it is served."""

import os
import re
import socket
import threading
from math import prod
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
from dying import dies
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from seen import Noting, Seen, computed, mishaps

from neurokube.engines import Batch, InProcess, Observer
from neurokube.engines.base import run_id
from neurokube.engines.cluster import Profile
from neurokube.engines.kubernetes import Kubernetes
from neurokube.engines.local import Local
from neurokube.errors import Drained, UsageError
from neurokube.workflow import Run, execute, load_workflow
from neurokube.workflow.exporter import exported
from neurokube.workflow.ledger import Record
from neurokube.workflow.metrics import SECONDS, Metrics

WORKFLOW = """
name: tissue
workspace: runs
stages:
  synthesis: {shape: [16, 64, 64], tile: [8, 32, 32], write: [boundaries]}
  fragments: {boundaries: synthesis.boundaries, tile: [8, 32, 32]}
"""
STEP = "synthesis/synthesis"
BLOCKS = 8


@pytest.fixture
def run(tmp_path):
    (tmp_path / "workflow.yaml").write_text(WORKFLOW)
    return Run.planned(load_workflow(str(tmp_path / "workflow.yaml")))


def values(metrics, step=STEP):
    """Return the samples of a step, by name and by the labels that not all have."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = dict(sample.labels)
            if f"{labels.pop('stage', '')}/{labels.pop('step', '')}" == step:
                assert labels.pop("run") == metrics.name
                found[(sample.name.removeprefix("neurokube_"), *labels.values())] = sample.value
    return found


def looked(run):
    """Return the metrics that a driver has of a run which it finds there."""
    metrics = Metrics(run, "local")
    for step in run.plan.steps:
        with metrics.at_work(step):
            pass
    return metrics


def test_totals_are_those_of_the_ledger_and_a_driver_that_starts_again_has_them(run):
    with Metrics(run, "local") as metrics:
        execute(run, InProcess(), observer=metrics, quiet=True)
    told = values(metrics)
    records = [record for _, record in run.ledger(run.plan.step(STEP)).records()]
    assert told["blocks",] == told["blocks_done",] == told["attempts_total",] == len(records) == BLOCKS
    assert told["voxels_done_total",] == prod((16, 64, 64))
    assert told["written_bytes_total",] == sum(record.bytes for record in records) > 0
    assert told["peak_memory_bytes",] == max(record.peak_memory for record in records) > 0
    assert told["block_seconds_count",] == told["block_seconds_bucket", "+Inf"] == BLOCKS
    assert told["block_seconds_sum",] == pytest.approx(sum(record.seconds for record in records))
    for bound in SECONDS:
        assert told["block_seconds_bucket", str(bound)] == sum(record.seconds <= bound for record in records)
    assert told["step_active",] == told["blocks_failed",] == told["workers", "running"] == 0
    assert values(looked(Run.open(run.url))) == told


def test_a_block_counts_once_in_however_many_objects_its_record_is(run):
    run.prepare()
    step = run.plan.step(STEP)
    metrics = looked(run)
    writer = run.ledger(step).writer(Batch(0, 3), interval=0)
    for block in range(3):
        writer.add(Record(block, 2.0**block, "here", block + 1, 100, 7 + block, [None]))
        with metrics.at_work(STEP):
            pass
        assert values(metrics)["blocks_done",] == block + 1
    writer.close()
    with metrics.at_work(STEP):
        pass
    told = values(metrics)
    assert (told["block_seconds_sum",], told["attempts_total",], told["written_bytes_total",]) == (7, 6, 300)
    # what was lost is no longer done, and done again it is no other block
    run.ledger(step).forget([1])
    with metrics.at_work(STEP):
        pass
    told = values(metrics)
    assert (told["blocks_done",], told["block_seconds_count",]) == (2, 3)


def test_nothing_is_said_of_totals_before_the_ledger_is_read(run):
    """Else the totals of a driver that starts again would seem to grow from nothing."""
    told = values(Metrics(run, "local"))
    assert told["blocks",] == BLOCKS
    assert not any(name[0].startswith(("blocks_done", "block_seconds", "voxels")) for name in told)


def test_blocks_in_quarantine_are_failed(run):
    run.prepare()
    run.quarantine(run.plan.step(STEP), 5, "damaged", "", 3)
    assert values(looked(run))["blocks_failed",] == 1


def test_steps_at_work_are_told_by_several_threads_and_read_by_another(run):
    metrics = Metrics(run, "local")
    steps, over, most = list(run.plan.steps), threading.Event(), []

    def work(step):
        with metrics.at_work(step):
            for _ in range(200):
                metrics.working(step, 3, 1)
                metrics.happened(step, "eviction")
                metrics.happened(step, "memory", 2)

    def read():
        while not over.is_set():
            most.append(max(values(metrics, step)["step_active",] for step in steps))

    threads = [threading.Thread(target=work, args=[step]) for step in steps for _ in range(3)]
    reader = threading.Thread(target=read)
    for thread in [reader, *threads]:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    reader.join()
    for step in steps:
        told = values(metrics, step)
        assert told["evictions_total",] == 600 and told["escalations_total", "memory"] == 1200
        assert told["workers", "running"] == 0


def test_pods_are_counted_with_their_fates_and_what_they_hold(run):
    cluster = Seen(lambda job, index, attempt: mishaps(index, attempt) or computed(job, index, attempt), slots=3)
    profile = Profile.model_validate({"image": "a", "resources": {"gpu": 1, "cpu": "500m", "memory": "1Gi"}})
    noting = Noting()
    engine = Kubernetes(profile, cluster, clock=lambda: cluster.now, sleep=cluster.sleep)
    execute(run, engine, observer=noting, quiet=True)
    told = [what for what, *step in noting.told if step[0] == STEP]
    # of 8 indexes number 1 is evicted twice, 2 loses its node; 3 dies of its memory, then runs again with more
    assert (told.count("eviction"), told.count("death"), told.count("memory")) == (3, 1, 1)
    pods = [pod for what, step, *told in noting.told if what == "pods" and step == STEP for pod in told[0]]
    assert {(pod.cpu, pod.gpus, pod.running) for pod in pods} == {(0.5, 1, True)}
    assert {pod.node for pod in pods} == {"node-0", "node-1"} and {pod.memory for pod in pods} <= {2**30, 2**31}
    assert max(told[0] for what, step, *told in noting.told if what == "working") == 3
    # nobody is left at the end
    assert noting.told[-1][0] == "pods" and noting.told[-1][2] == ()


def test_who_does_not_listen_costs_the_cluster_one_request_a_job(run):
    cluster = Seen(computed)
    asked = []
    listed = cluster.pods
    cluster.pods = lambda selector: asked.append(selector) or listed(selector)
    execute(run, Kubernetes(Profile(image="a"), cluster, clock=lambda: cluster.now, sleep=cluster.sleep), quiet=True)
    assert len(asked) == len(cluster.created)


def test_processes_that_die_are_counted(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    noting = Noting()
    with Local(1) as engine:
        engine.observer = noting
        outcomes = [o for o in engine.execute(dies, "", STEP, [Batch(0, 1)], 1) if o]
    assert [o.report for o in outcomes] == [None]
    assert noting.told.count(("death", STEP)) == 1 and ("working", STEP, 1, 0) in noting.told


def page(url):
    with urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def metric(text, name):
    families = {family.name: family for family in text_string_to_metric_families(text)}
    return sum(sample.value for sample in families[name].samples)


def urls(monkeypatch):
    """Return the list of addresses that are printed."""
    from neurokube.workflow import exporter

    said = []
    monkeypatch.setattr(exporter.console, "print", lambda text, **_: said.append(text))
    return said


def test_metrics_are_served_while_a_run_goes_on(run, monkeypatch):
    said = urls(monkeypatch)
    with exported(run, "local", "0") as observer:
        url = said[0].removeprefix("metrics at ")
        assert url.startswith("http://127.0.0.1:")
        text = page(url)
        assert metric(text, "neurokube_blocks") == sum(len(step.blocks) for step in run.plan.steps.values())
        assert f'id="{run_id(run.url)}"' in text and observer.name == f"tissue-{run_id(run.url)[:6]}"
        with pytest.raises(HTTPError, match="404"):
            urlopen(url.replace("/metrics", "/other"), timeout=10)
    with pytest.raises(URLError):
        urlopen(url, timeout=10)


def test_who_fetches_again_and_again_sees_the_end(run, monkeypatch):
    said, pages = urls(monkeypatch), []

    def fetch(url):
        try:
            while True:
                pages.append(page(url))
        except OSError:
            return

    with exported(run, "local", "0") as observer:
        reader = threading.Thread(target=fetch, args=[said[0].removeprefix("metrics at ")])
        reader.start()
        execute(run, InProcess(), observer=observer, quiet=True)
        while len(pages) < 2:
            reader.join(0.01)
    reader.join()
    assert metric(pages[-1], "neurokube_blocks_done") == metric(pages[-1], "neurokube_blocks") > 0


def test_who_stopped_it_does_not_wait_for_them_to_be_fetched(run, monkeypatch):
    said = urls(monkeypatch)
    with pytest.raises(Drained), exported(run, "local", "0"):
        for _ in range(2):
            page(said[0].removeprefix("metrics at "))
        raise Drained("asked")
    assert len(said) == 1


def test_in_a_pod_whoever_reaches_it_may_fetch(run, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    said = urls(monkeypatch)
    with exported(run, "kubernetes", "0"), exported(run, "kubernetes", "127.0.0.1:0"):
        pass
    assert said[0].startswith("metrics at http://0.0.0.0:") and said[1].startswith("metrics at http://127.0.0.1:")


def test_nothing_is_served_where_nobody_asks(run):
    with exported(run, "local", None) as observer:
        assert type(observer) is Observer


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("nine", "write it as PORT or ADDRESS:PORT"),
        ("127.0.0.1:99999", "write it as PORT or ADDRESS:PORT"),
        ("203.0.113.7:9464", "cannot be had"),
    ],
)
def test_a_place_that_cannot_be_had_is_one_line(run, where, words):
    with pytest.raises(UsageError) as refusal, exported(run, "local", where):
        pass
    assert words in str(refusal.value) and where in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_port_in_use_is_one_line_and_nothing_has_begun(command, run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = command("run", tmp_path / "workflow.yaml", "--workers", "0", "--metrics", port)
    assert code == 64 and len(error.splitlines()) == 1
    assert f"--metrics {port}: the port is in use; choose another, or 0 for any that is free" in error
    assert not (tmp_path / "runs").exists()


def test_every_metric_is_in_the_documentation_and_no_other(run):
    text = (Path(__file__).parents[2] / "docs" / "observation.md").read_text()
    told = set(re.findall(r"^\| `(neurokube_\w+)` \|", text, re.MULTILINE))
    families = {f"{f.name}_total" if f.type == "counter" else f.name for f in looked(run).collect()}
    assert told == families
