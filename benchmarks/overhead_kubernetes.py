"""What a pod of NeuroKube costs beside a pod that does nothing, and how often a driver asks the API server.

    python -m benchmarks.overhead_kubernetes --image IMAGE --claim CLAIM --folder FOLDER [--namespace NAME]
        [--indexes 512] [--parallelism 16] [--rounds 1] [--cgroups FOLDER ...]

A stage of as many empty blocks as indexes, run by the engine, beside a bare Indexed Job of as many `true`s: the same
image, requests and parallelism, nothing mounted.  This machine must be the cluster's only node and otherwise quiet:
what is compared are the processor seconds that all its processes used, less those of the idle cluster in that time; so
kubelet, container runtime, API server, controllers and driver count.  On a machine that others use too, name by
`--cgroups` the control groups (v1 cpuacct, or v2) that hold all of these and the pods: those are counted then.  FOLDER
is where the claim is mounted here, and pods see it at the same path.  Requests are counted for a quarter of the indexes
too, which tells whether they grow.
"""

import argparse
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from neurokube.engines.cluster import Profile, RealApi
from neurokube.engines.cluster.control import end_of
from neurokube.engines.kubernetes import Kubernetes
from neurokube.workflow import Run, execute, parse_workflow

from . import empty
from .measure import machine

IDLE = 30.0
"""Seconds for which the idle cluster is watched."""


@dataclass(frozen=True)
class Cost:
    """What one Job cost: processor seconds above idle, wall seconds, requests of the driver."""

    processor: float
    wall: float
    requests: int


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = Path(options.folder, f"overhead-{int(time.time())}")
        self.folder.mkdir(parents=True)
        shutil.copy(empty.__file__, self.folder / "sitecustomize.py")
        self.profile = Profile.model_validate(
            {
                "namespace": options.namespace,
                "image": options.image,
                "resources": {"cpu": "20m", "memory": "256Mi", "storage": "50Mi"},
                "parallelism": options.parallelism,
                "indexes": options.indexes,
                "volumes": [{"path": options.folder, "claim": options.claim}],
                "env": {"PYTHONPATH": str(self.folder)},
            }
        )
        self.api = RealApi(self.profile)
        self.idle = 0.0
        self._runs = 0

    def rest(self) -> None:
        """Measure how much the idle cluster uses, in processors."""
        before = self._busy()
        time.sleep(IDLE)
        self.idle = (self._busy() - before) / IDLE

    def cost(self, job: Callable[[], int]) -> Cost:
        began, before = time.time(), self._busy()
        requests = job()
        wall = time.time() - began
        return Cost(self._busy() - before - self.idle * wall, wall, requests)

    def _busy(self) -> float:
        """Return the processor seconds that were used so far."""
        if self.options.cgroups:
            return sum(map(_used, self.options.cgroups))
        times = psutil.cpu_times()
        return float(times.user + times.nice + times.system + times.irq + times.softirq)

    def neurokube(self, indexes: int) -> int:
        """Run a stage of empty blocks; return the requests of its driver."""
        self._runs += 1
        stages = {"note": {"blocks": indexes}}
        document = {"name": f"empty-{self._runs}", "workspace": str(self.folder), "stages": stages}
        api = RealApi(self.profile)
        execute(Run.planned(parse_workflow(document)), Kubernetes(self.profile, api), quiet=True)
        return api.requests

    def bare(self, indexes: int) -> int:
        """Run as many pods of `true`."""
        self._runs += 1
        name = f"bare-{os.getpid()}-{self._runs}"
        worker = {
            "name": "worker",
            "image": self.options.image,
            "command": ["true"],
            "resources": {"requests": {"cpu": "20m", "memory": "256Mi"}, "limits": {"memory": "256Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        job = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name},
            "spec": {
                "completionMode": "Indexed",
                "completions": indexes,
                "parallelism": self.options.parallelism,
                "template": {
                    "spec": {
                        "restartPolicy": "Never",
                        "automountServiceAccountToken": False,
                        "containers": [worker],
                    }
                },
            },
        }
        before = self.api.requests
        self.api.create_job(job)
        while (found := self.api.job(name)) is None or end_of(found) is None:
            time.sleep(5)
        self.api.delete_job(name)
        return self.api.requests - before


def _used(cgroup: str) -> float:
    """Return the processor seconds that a control group has used."""
    if (old := Path(cgroup, "cpuacct.usage")).exists():
        return int(old.read_text()) / 1e9
    return int(Path(cgroup, "cpu.stat").read_text().split()[1]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("image", "claim", "folder"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--indexes", type=int, default=512)
    parser.add_argument("--parallelism", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cgroups", nargs="*", default=[])
    options = parser.parse_args()
    # pods are another user than whoever runs this
    os.umask(0)
    bench = Bench(options)
    bench.rest()
    quarter = options.indexes // 4
    # whatever is made once, as the mounts of a node, is made before anything counts
    few = bench.cost(lambda: bench.neurokube(quarter))
    ours, theirs = [], []
    for _ in range(options.rounds):
        theirs.append(bench.cost(lambda: bench.bare(options.indexes)))
        ours.append(bench.cost(lambda: bench.neurokube(options.indexes)))
    print(machine())
    print(f"idle cluster: {bench.idle:.2f} processors; {options.parallelism} pods at a time")
    print("| a Job of | indexes | CPU s an index | wall s | driver's requests | an index |")
    print("|---|---|---|---|---|---|")
    for what, indexes, costs in (
        ("`true`", options.indexes, theirs),
        ("empty blocks", options.indexes, ours),
        ("empty blocks", quarter, [few]),
    ):
        requests = median(cost.requests for cost in costs)
        print(
            f"| {what} | {indexes} | {median(c.processor for c in costs) / indexes:.2f} | "
            f"{median(c.wall for c in costs):.0f} | {requests:.0f} | {requests / indexes:.2f} |"
        )
    more = median(o.processor - t.processor for o, t in zip(ours, theirs, strict=True)) / options.indexes
    print(f"An index of empty blocks costs {more:.2f} CPU s more than one of `true`.")


if __name__ == "__main__":
    main()
