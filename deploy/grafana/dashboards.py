"""Writes the dashboards beside it: python deploy/grafana/dashboards.py

They are made of the metrics of drivers (docs/observation.md), of cAdvisor, which every kubelet serves, and of NVIDIA's
DCGM exporter.  What the latter two say of a pod is joined to its stage by `neurokube_pod_info`.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24

ON = '{run=~"$run",stage=~"$stage"}'
WORKER = '{container="worker"}'
RATE = "[$__rate_interval]"
PODS = f"max by (run, stage, pod) (neurokube_pod_info{ON})"


def by_stage(expression: str) -> str:
    """Return the sum of a driver's metric by stage."""
    return f"sum by (run, stage) ({expression})"


def of_pods(expression: str, how: str = "sum") -> str:
    """Return what is measured of pods, by stage."""
    return f"{how} by (run, stage) ({expression} * on (pod) group_left (run, stage) {PODS})"


def usage(name: str) -> str:
    """Return a gauge of cAdvisor, one a pod."""
    return f"max by (pod) ({name}{WORKER})"


def grown(name: str) -> str:
    """Return how fast a counter of cAdvisor grows, one a pod."""
    return f"max by (pod) (rate({name}{WORKER}{RATE}))"


def gpu(name: str) -> str:
    """Return a metric of GPUs by pod and device; where Prometheus renamed the pod's label, under its own name."""
    return f'label_replace({name}{{}}, "pod", "$1", "exported_pod", "(.+)")'


def of_gpus(expression: str, how: str = "avg") -> str:
    """Return what is measured of the GPUs that pods hold, by stage."""
    return of_pods(expression, how)


Target = tuple[str, str]
"""An expression, and what its curves are called."""


def panel(kind: str, title: str, *targets: Target, unit: str, what: str = "", width: int = 8, **more: Any) -> Any:
    """Return a panel of some expressions."""
    instant = kind in ("stat", "bargauge", "table")
    queries = [
        {
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": expression,
            "format": "heatmap" if kind == "heatmap" else "table" if kind == "table" else "time_series",
            "instant": instant,
            "range": not instant,
            "legendFormat": legend,
            "refId": chr(ord("A") + k),
        }
        for k, (expression, legend) in enumerate(targets)
    ]
    defaults: dict[str, Any] = {"unit": unit, "min": 0, **more.pop("defaults", {})}
    if kind == "timeseries":
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
    return {
        "type": kind,
        "title": title,
        "description": what,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {**OPTIONS[kind], **more.pop("options", {})},
        "targets": queries,
        "gridPos": {"w": width, "h": 8},
        **more,
    }


LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True}
LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {"legend": LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {"reduceOptions": LAST, "colorMode": "value", "graphMode": "none", "textMode": "auto"},
    "bargauge": {"reduceOptions": LAST, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": True},
    "table": {"showHeader": True},
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "yAxis": {"unit": "s"},
        "legend": {"show": True},
        "tooltip": {"mode": "single"},
    },
}
BAD_AT_1 = {
    "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}, {"color": "red", "value": 1}]}
}
BAD_NEAR_1 = {
    "max": 1,
    "thresholds": {
        "mode": "absolute",
        "steps": [
            {"color": "green", "value": None},
            {"color": "orange", "value": 0.8},
            {"color": "red", "value": 0.95},
        ],
    },
}
SHARE = {"max": 1, "color": {"mode": "continuous-BlPu"}}

DONE_PER_SECOND = f"rate(neurokube_block_seconds_count{ON}[15m])"


def progress() -> list[Any]:
    """Return the row on what is done."""
    return [
        panel(
            "stat",
            "Done",
            (f"sum by (run) (neurokube_blocks_done{ON}) / sum by (run) (neurokube_blocks{ON})", "{{run}}"),
            unit="percentunit",
            width=4,
        ),
        panel(
            "stat",
            "Blocks failed",
            (f"sum by (run) (neurokube_blocks_failed{ON})", "{{run}}"),
            unit="short",
            what="Blocks in quarantine; `neurokube status` names them.",
            width=4,
            defaults=BAD_AT_1,
        ),
        panel(
            "bargauge",
            "Progress by step",
            (f"neurokube_blocks_done{ON} / neurokube_blocks{ON}", "{{stage}}/{{step}}"),
            unit="percentunit",
            defaults=SHARE,
        ),
        panel(
            "timeseries",
            "Time left of steps at work",
            (
                f"(neurokube_blocks{ON} - neurokube_blocks_done{ON}) / {DONE_PER_SECOND}"
                f" and on (run, stage, step) neurokube_step_active{ON} == 1",
                "{{stage}}/{{step}}",
            ),
            unit="s",
            what="At the rate of the last 15 minutes; steps that have not begun are not in it.",
        ),
        panel(
            "timeseries",
            "Blocks a second",
            (by_stage(f"rate(neurokube_block_seconds_count{ON}{RATE})"), "{{run}} {{stage}}"),
            unit="short",
        ),
        panel(
            "timeseries",
            "Voxels a second",
            (by_stage(f"rate(neurokube_voxels_done_total{ON}{RATE})"), "{{run}} {{stage}}"),
            unit="short",
        ),
        panel(
            "timeseries",
            "Bytes stored a second",
            (by_stage(f"rate(neurokube_written_bytes_total{ON}{RATE})"), "{{run}} {{stage}}"),
            unit="Bps",
        ),
        panel(
            "heatmap",
            "Seconds a block",
            (f"sum by (le) (increase(neurokube_block_seconds_bucket{ON}{RATE}))", "{{le}}"),
            unit="short",
            what="How many blocks took how long.",
        ),
        panel(
            "timeseries",
            "Seconds a block: median and 95th percentile",
            *(
                (
                    f"histogram_quantile({share}, sum by (run, stage, le)"
                    f" (rate(neurokube_block_seconds_bucket{ON}[5m])))",
                    "{{stage}} " + name,
                )
                for share, name in ((0.5, "median"), (0.95, "95%"))
            ),
            unit="s",
        ),
        panel(
            "timeseries",
            "Pods by stage",
            (f"sum by (run, stage, state) (neurokube_workers{ON})", "{{stage}} {{state}}"),
            unit="short",
            what="Pods, or on one machine processes, that run, and those that wait for a place.",
        ),
    ]


def trouble() -> list[Any]:
    """Return the row on what goes wrong."""
    return [
        panel(
            "timeseries",
            "Evictions an hour",
            (by_stage(f"rate(neurokube_evictions_total{ON}[15m])") + " * 3600", "{{run}} {{stage}}"),
            unit="short",
            what="They cost time and nothing else.",
        ),
        panel(
            "timeseries",
            "Deaths and escalations an hour",
            (by_stage(f"rate(neurokube_deaths_total{ON}[15m])") + " * 3600", "{{stage}} died"),
            (
                f"sum by (run, stage, resource) (rate(neurokube_escalations_total{ON}[15m])) * 3600",
                "{{stage}} more {{resource}}",
            ),
            unit="short",
        ),
        panel(
            "timeseries",
            "Attempts a block",
            (
                by_stage(f"neurokube_attempts_total{ON}")
                + " / ("
                + by_stage(f"neurokube_block_seconds_count{ON}")
                + " > 0)",
                "{{run}} {{stage}}",
            ),
            unit="short",
            what="1 where every block came out at its first attempt.",
        ),
    ]


def processors() -> list[Any]:
    """Return the row on CPU and memory."""
    limit = usage("container_spec_memory_limit_bytes")
    return [
        panel(
            "timeseries",
            "CPU: used and asked for",
            (of_pods(grown("container_cpu_usage_seconds_total")), "{{stage}} used"),
            (by_stage(f"neurokube_requested_cpu_cores{ON}"), "{{stage}} asked for"),
            unit="short",
            what="Cores.",
        ),
        panel(
            "timeseries",
            "CPU: used of what was asked for",
            (
                of_pods(grown("container_cpu_usage_seconds_total"))
                + f" / ({by_stage(f'neurokube_requested_cpu_cores{ON}')} > 0)",
                "{{run}} {{stage}}",
            ),
            unit="percentunit",
        ),
        panel(
            "timeseries",
            "CPU: throttled, or waiting",
            (
                of_pods(
                    f"({grown('container_cpu_cfs_throttled_periods_total')}"
                    f" / {grown('container_cpu_cfs_periods_total')})",
                    "avg",
                ),
                "{{stage}} throttled",
            ),
            (of_pods(grown("container_pressure_cpu_waiting_seconds_total"), "avg"), "{{stage}} waiting"),
            unit="percentunit",
            what="Share of periods in which a limit held pods back (pods without a CPU limit have none), and share of "
            "time in which threads waited for a CPU (from Kubernetes 1.34 on, on nodes with cgroup v2).",
        ),
        panel(
            "timeseries",
            "Memory: used and limit of the fullest pod",
            (of_pods(usage("container_memory_working_set_bytes"), "max"), "{{stage}} used"),
            (of_pods(limit, "max"), "{{stage}} limit"),
            unit="bytes",
        ),
        panel(
            "timeseries",
            "Memory: share of the limit, fullest pod",
            (
                of_pods(f"({usage('container_memory_working_set_bytes')} / ({limit} > 0))", "max"),
                "{{run}} {{stage}}",
            ),
            unit="percentunit",
            what="At 1 the pod is killed, and its index runs again with twice as much.",
            defaults=BAD_NEAR_1,
        ),
        panel(
            "timeseries",
            "Memory: peak of workers",
            (f"max by (run, stage) (neurokube_peak_memory_bytes{ON})", "{{run}} {{stage}}"),
            unit="bytes",
            what="As the workers themselves recorded it.",
        ),
        panel(
            "timeseries",
            "Network: read and written",
            (
                of_pods(f"sum by (pod) (rate(container_network_receive_bytes_total{{}}{RATE}))"),
                "{{stage}} read",
            ),
            (
                of_pods(f"sum by (pod) (rate(container_network_transmit_bytes_total{{}}{RATE}))"),
                "{{stage}} written",
            ),
            unit="Bps",
            width=12,
        ),
        panel(
            "timeseries",
            "Pods by node",
            (f"count by (run, stage, node) (neurokube_pod_info{ON})", "{{stage}} {{node}}"),
            unit="short",
            width=12,
        ),
    ]


def devices() -> list[Any]:
    """Return the panels on GPUs."""
    used = gpu("DCGM_FI_DEV_FB_USED")
    return [
        panel(
            "timeseries",
            "GPUs that pods hold",
            (by_stage(f"neurokube_requested_gpus{ON}"), "{{run}} {{stage}}"),
            unit="short",
        ),
        panel(
            "timeseries",
            "GPU: at work",
            (of_gpus(gpu("DCGM_FI_DEV_GPU_UTIL")), "{{run}} {{stage}}"),
            unit="percent",
            what="Share of time in which any kernel ran, mean of the GPUs of a stage.",
            defaults={"max": 100},
        ),
        panel(
            "timeseries",
            "GPU: tensor cores at work",
            (of_gpus(gpu("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE")), "{{run}} {{stage}}"),
            unit="percentunit",
            what="Share of cycles; low where data come too slowly, or where a network is computed in float32.",
            defaults={"max": 1},
        ),
        panel(
            "timeseries",
            "GPU: memory used and free of the fullest",
            (of_gpus(used, "max") + " * 1048576", "{{stage}} used"),
            (of_gpus(gpu("DCGM_FI_DEV_FB_FREE"), "min") + " * 1048576", "{{stage}} free"),
            unit="bytes",
        ),
        panel(
            "timeseries",
            "GPU: memory's share in use",
            (of_gpus(f"({used} / ({used} + {gpu('DCGM_FI_DEV_FB_FREE')}))", "max"), "{{run}} {{stage}}"),
            unit="percentunit",
            defaults={"max": 1},
        ),
        panel(
            "timeseries",
            "GPU: copies at work",
            (of_gpus(gpu("DCGM_FI_DEV_MEM_COPY_UTIL")), "{{run}} {{stage}}"),
            unit="percent",
            defaults={"max": 100},
        ),
        panel(
            "timeseries",
            "GPU: power",
            (of_gpus(gpu("DCGM_FI_DEV_POWER_USAGE"), "sum"), "{{run}} {{stage}}"),
            unit="watt",
            what="Of all GPUs of a stage together.",
        ),
        panel(
            "timeseries",
            "GPU: temperature of the hottest",
            (of_gpus(gpu("DCGM_FI_DEV_GPU_TEMP"), "max"), "{{run}} {{stage}}"),
            unit="celsius",
        ),
        panel(
            "timeseries",
            "GPU: errors (XID)",
            (of_gpus(gpu("DCGM_FI_DEV_XID_ERRORS"), "max"), "{{run}} {{stage}}"),
            unit="short",
            what="Number of the last error, 0 for none.",
        ),
        panel(
            "timeseries",
            "Voxels a second and GPU",
            (
                by_stage(f"rate(neurokube_voxels_done_total{ON}{RATE})")
                + f" / ({by_stage(f'neurokube_requested_gpus{ON}')} > 0)",
                "{{run}} {{stage}}",
            ),
            unit="short",
            width=12,
        ),
        panel(
            "timeseries",
            "Pods by stage",
            (f"sum by (run, stage, state) (neurokube_workers{ON})", "{{stage}} {{state}}"),
            unit="short",
            width=12,
        ),
    ]


def variable(name: str, query: str) -> Any:
    """Return a variable whose values are those of a label."""
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard(uid: str, title: str, rows: dict[str, list[Any]]) -> Any:
    """Return a dashboard; its panels flow from left to right below the title of their row."""
    panels: list[Any] = []
    y = 0
    for name, members in rows.items():
        panels.append({"type": "row", "title": name, "collapsed": False, "panels": [], "gridPos": _at(0, y, WIDTH, 1)})
        x, y = 0, y + 1
        for member in members:
            width = member["gridPos"]["w"]
            if x + width > WIDTH:
                x, y = 0, y + 8
            panels.append({**member, "gridPos": _at(x, y, width, 8)})
            x += width
        y += 8
    return {
        "uid": uid,
        "title": title,
        "tags": ["neurokube"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "NeuroKube",
                "tags": ["neurokube"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "refresh": 1},
                variable("run", "label_values(neurokube_blocks, run)"),
                variable("stage", 'label_values(neurokube_blocks{run=~"$run"}, stage)'),
            ]
        },
        "panels": [{"id": number, **each} for number, each in enumerate(panels, 1)],
    }


def _at(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def dashboards() -> dict[str, Any]:
    """Return the dashboards by the names of their files."""
    return {
        "neurokube-cpu.json": dashboard(
            "neurokube-cpu",
            "NeuroKube: progress, CPU and memory",
            {"Progress": progress(), "Trouble": trouble(), "CPU, memory, network": processors()},
        ),
        "neurokube-gpu.json": dashboard("neurokube-gpu", "NeuroKube: GPUs", {"GPUs": devices()}),
    }


def text(document: Any) -> str:
    """Return a dashboard as its file has it."""
    return json.dumps(document, indent=2) + "\n"


if __name__ == "__main__":
    for name, document in dashboards().items():
        (HERE / name).write_text(text(document))
