"""A real Prometheus fetches the metrics of a real driver; every query of the dashboards and alerts returns data.

Where no kubelet and no GPU are, stand-ins say what cAdvisor and the DCGM exporter would (`standins`).
"""

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from standins import standins

HERE = Path(__file__).parent
DEPLOY = HERE.parents[1] / "deploy"
DASHBOARDS = ["neurokube-cpu.json", "neurokube-gpu.json"]
WORKFLOW = """
name: tissue
workspace: runs
stages:
  synthesis: {shape: [64, 512, 512], tile: [8, 32, 32], write: [boundaries]}
  fragments: {boundaries: synthesis.boundaries, tile: [8, 32, 32]}
"""
PATIENCE = 120
"""Seconds after which what has not come does not come any more."""

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no 'prometheus' here; Debian and Ubuntu have it: apt install prometheus"
)
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no 'promtool' here; it comes with Prometheus: apt install prometheus"
)


def panels(name):
    return [panel for panel in json.loads((DEPLOY / "grafana" / name).read_text())["panels"] if panel["type"] != "row"]


def expressions(name):
    """Return the queries of a dashboard as Grafana would send them, for all runs and stages."""
    told = {"$run": ".*", "$stage": ".*", "$__rate_interval": "10s"}
    found = []
    for panel in panels(name):
        for target in panel["targets"]:
            text = target["expr"]
            for variable, value in told.items():
                text = text.replace(variable, value)
            assert "$" not in text.replace('"$1"', ""), text
            found.append(text)
    return found


def alerts():
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def ended(process):
    """See to it that a process has ended."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(what, seen):
    """Return what `seen` returns once it is something."""
    end = time.monotonic() + PATIENCE
    while not (found := seen()):
        assert time.monotonic() < end, what()
        time.sleep(0.1)
    return found


def configuration(folder, driver, exporters):
    """Write prometheus.yml: the driver's job as in scrape.yaml, which has Kubernetes' discovery beside it.

    One node's GPUs are fetched as by those who let the exporter speak of pods, the other's as by those who do not.
    """
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "scrape.yaml").read_text())["scrape_configs"]
    job = next(job for job in jobs if "kubernetes_sd_configs" not in job)
    job["static_configs"][0]["targets"] = [driver]
    target = [{"targets": [exporters], "labels": {"pod": "dcgm-exporter-x2vbk", "namespace": "gpu-operator"}}]
    gpus = [
        {"job_name": "dcgm-0", "metrics_path": "/dcgm/node-0", "static_configs": target, "honor_labels": True},
        {"job_name": "dcgm-1", "metrics_path": "/dcgm/node-1", "static_configs": target},
    ]
    cpus = {"job_name": "cadvisor", "metrics_path": "/cadvisor", "static_configs": [{"targets": [exporters]}]}
    document = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(DEPLOY / "prometheus" / "rules.yaml")],
        "scrape_configs": [job, cpus, *gpus],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(document))


class Prometheus:
    """The API of one that runs."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path, **query):
        with urlopen(f"{self.url}/{path}?{urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def ready(self):
        try:
            return self.get("status/runtimeinfo")
        except (URLError, ConnectionError):
            return None

    def data(self, expression):
        """Return the samples of an expression that are numbers."""
        rows = self.get("query", query=expression)["result"]
        return [row for row in rows if not math.isnan(float(row["value"][1]))]


@contextmanager
def driving(folder):
    """Start a driver; yield its process and its address."""
    (folder / "workflow.yaml").write_text(WORKFLOW)
    command = [sys.executable, str(HERE / "driver.py"), "run", "workflow.yaml", "--engine", "kubernetes"]
    log = folder / "log"
    with log.open("w") as said:
        # as a driver in a cluster is told
        where = {"NEUROKUBE_METRICS": "127.0.0.1:0"}
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said, env=os.environ | where)
    with ended(process):
        told = until(log.read_text, lambda: re.search(r"metrics at http://(\S+)/metrics", log.read_text()))
        yield process, told[1]


@contextmanager
def watching(folder, driver):
    """Start a Prometheus that fetches the metrics of a driver, and those of stand-ins; yield its API."""
    log = folder / "prometheus.log"
    with standins(f"http://{driver}/metrics") as exporters:
        configuration(folder, driver, exporters)
        port = free_port()
        command = [
            "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with log.open("w") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said)
        with ended(process):
            api = Prometheus(port)
            until(log.read_text, api.ready)
            yield api


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("observed")
    with driving(folder) as (_, address), watching(folder, address) as api:
        yield api


@needs_prometheus
@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_of_a_dashboard_returns_data(prometheus, name):
    missing = expressions(name)

    def all_there():
        missing[:] = [expression for expression in missing if not prometheus.data(expression)]
        return not missing

    until(lambda: f"no data: {missing}", all_there)


@needs_prometheus
def test_variables_of_the_dashboards_have_values(prometheus):
    until(lambda: "no runs", lambda: prometheus.get("label/run/values"))
    (run,) = prometheus.get("label/run/values", **{"match[]": "neurokube_blocks"})
    assert re.fullmatch("tissue-[0-9a-f]{6}", run)
    stages = prometheus.get("label/stage/values", **{"match[]": f'neurokube_blocks{{run=~"{run}"}}'})
    assert stages == ["fragments", "synthesis"]


@needs_prometheus
def test_what_is_measured_of_pods_has_their_stage(prometheus):
    for expression in (e for name in DASHBOARDS for e in expressions(name) if "group_left" in e):
        rows = until(lambda e=expression: e, lambda e=expression: prometheus.data(e))
        assert {row["metric"]["stage"] for row in rows} == {"synthesis"}
    # both ways in which an exporter's labels are taken are joined
    joined = next(e for e in expressions("neurokube-gpu.json") if "GPU_UTIL" in e)
    for job in ("dcgm-0", "dcgm-1"):
        expression = joined.replace("UTIL{", f'UTIL{{job="{job}"')
        assert until(lambda e=expression: e, lambda e=expression: prometheus.data(e))[0]["value"][1] == "87"


@needs_prometheus
def test_evictions_deaths_and_what_pods_hold_arrive(prometheus):
    for expression in (
        "sum(neurokube_evictions_total) > 0",
        "sum(neurokube_deaths_total) > 0",
        "sum(neurokube_requested_gpus) == 3",
        "sum(neurokube_blocks_done) > 0",
        "rate(neurokube_voxels_done_total[10s]) > 0",
    ):
        until(lambda e=expression: e, lambda e=expression: prometheus.data(e))


@needs_prometheus
def test_alerts_are_evaluated(prometheus):
    def evaluated():
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        return rules if rules and all(rule["health"] != "unknown" for rule in rules) else None

    rules = until(lambda: "rules", evaluated)
    assert {rule["name"]: rule["health"] for rule in rules} == dict.fromkeys(alerts(), "ok")


@needs_prometheus
def test_a_driver_that_ends_with_blocks_left_is_missed(tmp_path):
    gone = alerts()["NeuroKubeDriverGone"]["expr"]
    with driving(tmp_path) as (process, address), watching(tmp_path, address) as api:
        until(lambda: "no run", lambda: api.data("neurokube_run_info and on (run) neurokube_blocks_done"))
        assert api.data(gone) == []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE / 2)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGUSR1)
            # once more is at once
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 85, (tmp_path / "log").read_text()
        assert until(lambda: gone, lambda: api.data(gone))[0]["metric"]["run"].startswith("tissue-")


@needs_promtool
def test_alerts_are_well_formed_and_fire_when_they_should(tmp_path):
    rules = DEPLOY / "prometheus" / "rules.yaml"
    checked = subprocess.run(["promtool", "check", "rules", str(rules)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tests = yaml.safe_load((HERE / "alerts.yaml").read_text())
    assert {alert["alertname"] for test in tests["tests"] for alert in test["alert_rule_test"]} == set(alerts())
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests | {"rule_files": [str(rules)]}))
    tried = subprocess.run(["promtool", "test", "rules", "tests.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout + tried.stderr


def test_dashboards_are_what_their_program_writes():
    spec = importlib.util.spec_from_file_location("dashboards", DEPLOY / "grafana" / "dashboards.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    for name, document in program.dashboards().items():
        assert (DEPLOY / "grafana" / name).read_text() == program.text(document), "run deploy/grafana/dashboards.py"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_of_a_dashboard_have_a_title_a_unit_and_a_place_of_their_own(name):
    places = set()
    for panel in panels(name):
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        assert not cells & places and at["x"] + at["w"] <= 24
        places |= cells
    document = json.loads((DEPLOY / "grafana" / name).read_text())
    assert [v["name"] for v in document["templating"]["list"]] == ["datasource", "run", "stage"]
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
