"""Stand-ins for a kubelet's cAdvisor and for NVIDIA's DCGM exporter: their formats, names and labels, made-up values.

They speak of the pods that a driver names, so that what is tested is the path from those formats to the dashboards.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

BEGAN = time.time()

CADVISOR = """\
# HELP container_cpu_usage_seconds_total Cumulative cpu time consumed in seconds.
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{WORKER,cpu="total"} SECONDS NOW
container_cpu_usage_seconds_total{POD,cpu="total"} SECONDS NOW
# HELP container_cpu_cfs_periods_total Number of elapsed enforcement period intervals.
# TYPE container_cpu_cfs_periods_total counter
container_cpu_cfs_periods_total{WORKER} PERIODS NOW
# HELP container_cpu_cfs_throttled_periods_total Number of throttled period intervals.
# TYPE container_cpu_cfs_throttled_periods_total counter
container_cpu_cfs_throttled_periods_total{WORKER} SECONDS NOW
# HELP container_pressure_cpu_waiting_seconds_total Time tasks have waited due to CPU congestion.
# TYPE container_pressure_cpu_waiting_seconds_total counter
container_pressure_cpu_waiting_seconds_total{WORKER} SECONDS NOW
# HELP container_memory_working_set_bytes Current working set in bytes.
# TYPE container_memory_working_set_bytes gauge
container_memory_working_set_bytes{WORKER} 7.54974720e+08 NOW
container_memory_working_set_bytes{POD} 7.55507200e+08 NOW
# HELP container_spec_memory_limit_bytes Memory limit for the container.
# TYPE container_spec_memory_limit_bytes gauge
container_spec_memory_limit_bytes{WORKER} 2.147483648e+09 NOW
container_spec_memory_limit_bytes{POD} 0 NOW
# HELP container_network_receive_bytes_total Cumulative count of bytes received
# TYPE container_network_receive_bytes_total counter
container_network_receive_bytes_total{POD,interface="eth0"} PERIODS NOW
# HELP container_network_transmit_bytes_total Cumulative count of bytes transmitted
# TYPE container_network_transmit_bytes_total counter
container_network_transmit_bytes_total{POD,interface="eth0"} PERIODS NOW
"""

DCGM = {
    "DCGM_FI_DEV_GPU_UTIL": 87,
    "DCGM_FI_DEV_MEM_COPY_UTIL": 31,
    "DCGM_FI_DEV_FB_USED": 9120,
    "DCGM_FI_DEV_FB_FREE": 13610,
    "DCGM_FI_DEV_POWER_USAGE": 141.2,
    "DCGM_FI_DEV_GPU_TEMP": 61,
    "DCGM_FI_DEV_XID_ERRORS": 0,
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": 0.42,
}


def cadvisor(pods: list[tuple[str, str]]) -> str:
    now = time.time()
    lines = []
    for line in CADVISOR.splitlines():
        for pod, _ in pods if not line.startswith("#") else [("", "")]:
            path = f'id="/kubepods/burstable/pod{pod}'
            worker = f'container="worker",{path}/c0",image="neurokube:1",name="c0",namespace="lab",pod="{pod}"'
            lines.append(
                line.replace("WORKER", worker)
                .replace("POD", f'container="",{path}",image="",name="",namespace="lab",pod="{pod}"')
                .replace("SECONDS", f"{0.8 * (now - BEGAN):.6f}")
                .replace("PERIODS", str(int(10 * (now - BEGAN))))
                .replace("NOW", str(int(now * 1000)))
            )
    return "\n".join(lines) + "\n"


def dcgm(pods: list[tuple[str, str]]) -> str:
    lines = []
    for name, value in DCGM.items():
        lines += [f"# HELP {name} A field of DCGM.", f"# TYPE {name} gauge"]
        for k, (pod, node) in enumerate(pods):
            device = f'gpu="{k}",UUID="GPU-{node}-{k}",pci_bus_id="00000000:00:{k:02X}.0",device="nvidia{k}"'
            machine = f'modelName="NVIDIA A10",Hostname="{node}",DCGM_FI_DRIVER_VERSION="535.183.01"'
            lines.append(f'{name}{{{device},{machine},container="worker",namespace="lab",pod="{pod}"}} {value}')
    return "\n".join(lines) + "\n"


@contextmanager
def standins(driver: str) -> Iterator[str]:
    """Serve /cadvisor, and /dcgm/NODE for the pods of a node; yield HOST:PORT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, what, *node = self.path.split("?")[0].split("/")
            told: dict[str, Callable[[list[tuple[str, str]]], str]] = {"cadvisor": cadvisor, "dcgm": dcgm}
            pods = [pod for pod in pods_of(driver) if not node or pod[1] == node[0]]
            body = told[what](pods).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def pods_of(driver: str) -> list[tuple[str, str]]:
    """Return name and node of each pod that a driver names."""
    with urlopen(driver, timeout=5) as page:
        text = page.read().decode()
    return [
        (sample.labels["pod"], sample.labels["node"])
        for family in text_string_to_metric_families(text)
        if family.name == "neurokube_pod_info"
        for sample in family.samples
    ]
