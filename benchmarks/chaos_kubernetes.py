"""Does a run on a real Kubernetes survive hundreds of disruptions of every kind, bit for bit, without help?

    python -m benchmarks.chaos_kubernetes --image IMAGE --claim CLAIM --folder FOLDER --admin KUBECONFIG
        [--disruptions 200] [--indexes 512] [--parallelism 16] [--namespace NAME] [--pythonpath FOLDER]
        [--kubelet-stop COMMAND --kubelet-start COMMAND] [--report docs/chaos.md]

KUBECONFIG names the driver's rights, `--admin` those of who disrupts; FOLDER is where the claim is mounted here, and
pods see it at the same path.  A stage of so many indexes, two blocks each, is run by an ordinary `neurokube run`, while
at random moments

    evicted     a pod, by the eviction API             deleted    a pod, as by kubectl delete
    killed      a worker, by SIGKILL                   drained    all pods of the node, which is cordoned for a while
    driver      the driver, by SIGKILL; another starts at once
    kubelet     the node's kubelet, stopped and started again, where commands are given for it

and some blocks need more memory or disk than their pod has, or end their process.  SIGKILL reaches workers only where
this machine is the node.  It is a failure when

- the run does not end by itself with exit code 0, or a block is in quarantine or has no record;
- a stored object differs in one byte from that of an undisturbed run in one process;
- a block is begun by a pod that began after its record was seen here;
- a Job or a Lease is left behind.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import yaml

from neurokube.engines import InProcess
from neurokube.engines.cluster import Profile, RealApi, Refused
from neurokube.workflow import Run, execute, load_workflow

STEP = "synthesis/synthesis"
BLOCKS = 2
"""Blocks an index."""

WEIGHTS = {"evicted": 30, "deleted": 30, "killed": 25, "drained": 2, "driver": 3, "kubelet": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("image", "claim", "folder", "admin"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--disruptions", type=int, default=200)
    parser.add_argument("--indexes", type=int, default=512)
    parser.add_argument("--parallelism", type=int, default=16)
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--pythonpath", default="", help="a folder with the program, in place of the image's own")
    parser.add_argument("--kubelet-stop", default="")
    parser.add_argument("--kubelet-start", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", default="")
    options = parser.parse_args()
    # pods are another user than whoever runs this
    os.umask(0)
    chaos = Chaos(options)
    chaos.run()
    failures = chaos.failures()
    page = chaos.report(failures)
    print(page)
    if options.report:
        Path(options.report).write_text(page)
        if _draws():
            _picture(chaos, Path(options.report).parent / "images" / "chaos.png")
    sys.exit(bool(failures))


@dataclass
class Chaos:
    """A run and what befell it."""

    options: argparse.Namespace
    befallen: list[tuple[float, str, int]] = field(default_factory=list)
    """Seconds since the beginning, what, and how many pods of it."""
    progress: list[tuple[float, int]] = field(default_factory=list)
    recorded: dict[int, float] = field(default_factory=dict)
    """When each block's record was seen first."""
    drivers: int = 0
    code: int | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.folder = Path(self.options.folder, f"chaos-{self.options.seed}-{int(time.time())}")
        self.unruly = self.folder / "unruly"
        (self.unruly / "begun").mkdir(parents=True)
        shutil.copy(Path(__file__).parents[1] / "tests/engines/unruly/sitecustomize.py", self.unruly)
        self.random = random.Random(self.options.seed)
        self.blocks = BLOCKS * self.options.indexes
        self.planned_mishaps = self._mishaps()
        (self.unruly / "mishaps.json").write_text(json.dumps(self.planned_mishaps))
        self.workflow, self.run_folder = self._workflow(self.folder / "run")
        os.environ["KUBECONFIG_DRIVER"] = os.environ["KUBECONFIG"]
        self.api = _admin(self.options)
        self._lock = threading.Lock()

    def _mishaps(self) -> dict[str, Any]:
        """Return what befalls blocks by themselves: each an index of its own."""
        count = max(1, self.options.disruptions // 20)
        chosen = iter(self.random.sample(range(self.options.indexes), 3 * count))
        told: dict[str, Any] = {f"{STEP} *": {"do": "wait", "seconds": 1.5}}
        for do in (
            {"do": "memory", "megabytes": 350},
            {"do": "disk", "megabytes": 150, "seconds": 25.0},
            {"do": "exit", "times": 1},
        ):
            told |= {f"{STEP} {BLOCKS * next(chosen)}": do for _ in range(count)}
        return told

    def _workflow(self, folder: Path) -> tuple[Path, Path]:
        folder.mkdir()
        wide = 32
        high = self.blocks // wide
        synthesis = {
            "shape": [8, 32 * high, 32 * wide],
            "voxel_size": [40, 8, 8],
            "tile": [8, 32, 32],
            "block": [8, 32, 32],
            "write": ["boundaries"],
        }
        document = {"name": "tissue", "workspace": str(folder), "stages": {"synthesis": synthesis}}
        (folder / "workflow.yaml").write_text(yaml.safe_dump(document))
        profile = {
            "namespace": self.options.namespace,
            "image": self.options.image,
            "resources": {"cpu": "20m", "memory": "300Mi", "storage": "100Mi"},
            "ceiling": {"memory": "2Gi", "storage": "1Gi"},
            "parallelism": self.options.parallelism,
            "indexes": self.options.indexes,
            "grace": 20,
            "volumes": [{"path": self.options.folder, "claim": self.options.claim}],
            "env": {"PYTHONPATH": ":".join(filter(None, [str(self.unruly), self.options.pythonpath]))},
        }
        (folder / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"chaos": profile}}))
        return folder / "workflow.yaml", folder / "tissue"

    # what happens

    def run(self) -> None:
        began = self.began = time.time()
        driver = self._driver()
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        kinds = [kind for kind in WEIGHTS if kind != "kubelet" or self.options.kubelet_stop]
        # the rarest surely come, the others by their weights
        due = [kind for kind in kinds if WEIGHTS[kind] <= 3 for _ in range(2)]
        while driver.poll() is None:
            time.sleep(self.random.uniform(0.2, 1.0))
            if self.disrupted >= self.options.disruptions or not self.progress or self.progress[-1][1] < 8:
                continue
            early = self.progress[-1][1] < self.blocks * 0.85
            kind = self.random.choices(kinds, [WEIGHTS[kind] for kind in kinds])[0]
            if due and early and self.random.random() < 0.03:
                kind = due.pop(self.random.randrange(len(due)))
            elif WEIGHTS[kind] <= 3:
                continue
            if kind == "driver":
                driver.send_signal(signal.SIGKILL)
                driver.wait()
                self._note(kind, 1)
                driver = self._driver()
            else:
                self._disrupt(kind)
        self.code, self.seconds = driver.returncode, time.time() - began
        self._look()

    @property
    def disrupted(self) -> int:
        """How many disruptions there were from outside."""
        return sum(count for _, _, count in self.befallen)

    def _driver(self) -> "subprocess.Popen[bytes]":
        self.drivers += 1
        command = [sys.executable, "-m", "neurokube", "run", str(self.workflow), "--engine", "kubernetes"]
        command += ["--profile", "chaos", "--profiles", str(self.workflow.with_name("profiles.yaml")), "--quiet"]
        with (self.folder / "driver.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def _disrupt(self, kind: str) -> None:
        running = self._running()
        if not running:
            return
        pod = self.random.choice(running)
        pods = f"/api/v1/namespaces/{self.options.namespace}/pods"
        try:
            match kind:
                case "evicted":
                    self._evict(pod)
                    self._note(kind, 1)
                case "deleted":
                    self.api._call("DELETE", f"{pods}/{pod}")
                    self._note(kind, 1)
                case "killed":
                    workers = [p for p in psutil.process_iter(["cmdline"]) if self._is_worker(p)]
                    if workers:
                        self.random.choice(workers).kill()
                        self._note(kind, 1)
                case "drained":
                    node = self.api._call("GET", f"{pods}/{pod}")["spec"]["nodeName"]
                    self._cordon(node, True)
                    here = [name for name in running if self._node(name) == node]
                    for name in here:
                        self._evict(name)
                    self._note(kind, len(here))
                    time.sleep(5)
                    self._cordon(node, False)
                case "kubelet":
                    subprocess.run(self.options.kubelet_stop, shell=True, check=True)
                    self._note(kind, 1)
                    # long enough for the node to be taken for lost
                    time.sleep(60)
                    subprocess.run(self.options.kubelet_start, shell=True, check=True)
        except (Refused, psutil.NoSuchProcess):
            # it ended meanwhile
            return

    def _is_worker(self, process: psutil.Process) -> bool:
        command = process.info["cmdline"] or []
        return "work" in command and str(self.run_folder) in command and "--job" in command

    def _running(self) -> list[str]:
        try:
            pods = self.api.pods("app.kubernetes.io/component=worker")
        except Refused:
            return []
        return [
            pod["metadata"]["name"]
            for pod in pods
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    def _node(self, pod: str) -> str:
        path = f"/api/v1/namespaces/{self.options.namespace}/pods/{pod}"
        found = self.api._found("GET", path)
        return "" if found is None else str(found["spec"].get("nodeName", ""))

    def _evict(self, pod: str) -> None:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        self.api._found("POST", f"/api/v1/namespaces/{self.options.namespace}/pods/{pod}/eviction", body=body)

    def _cordon(self, node: str, cordoned: bool) -> None:
        self.api._call("PATCH", f"/api/v1/nodes/{node}", body={"spec": {"unschedulable": cordoned}})

    def _note(self, kind: str, count: int) -> None:
        self.befallen.append((time.time() - self.began, kind, count))
        self._look()

    def _watch(self) -> None:
        while self.code is None:
            self._look()
            time.sleep(2)

    def _look(self) -> None:
        """Note which blocks have a record now."""
        if not (self.run_folder / "run.json").exists():
            return
        with self._lock:
            run = Run.open(str(self.run_folder))
            left = set(run.ledger(run.plan.step(STEP)).remaining())
            now = time.time()
            for block in set(range(self.blocks)) - left - self.recorded.keys():
                self.recorded[block] = now
            self.progress.append((now - self.began, self.blocks - len(left)))

    # what came of it

    def failures(self) -> list[str]:
        found = []
        if self.code != 0:
            tail = (self.folder / "driver.log").read_text().strip().splitlines()[-3:]
            found.append(f"the run ended with {self.code}: {' / '.join(tail)}")
        run = Run.open(str(self.run_folder))
        for name, step in run.plan.steps.items():
            if left := run.ledger(step).remaining():
                found.append(f"{name}: {len(left)} blocks have no record")
            if notes := run.quarantined(step):
                found.append(f"{name}: {len(notes)} blocks are in quarantine")
        again = [
            (block, began) for began, block in self._begun() if block in self.recorded and began > self.recorded[block]
        ]
        if again:
            found.append(f"{len(again)} blocks were begun by pods that began after their record: {again[:5]}")
        truth, _ = self._workflow(self.folder / "truth")
        undisturbed = Run.planned(load_workflow(str(truth)))
        execute(undisturbed, InProcess(), quiet=True)
        one, other = _digests(self.run_folder), _digests(Path(undisturbed.url))
        if one != other:
            differ = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
            found.append(f"{len(differ)} of {len(other)} stored objects differ: {differ[:5]}")
        self.objects = len(other)
        label = f"neurokube.io/run={_run_id(self.run_folder)}"
        if jobs := self.api.jobs(label):
            found.append(f"{len(jobs)} Jobs are left behind")
        if self.api.lease(f"nk-{_run_id(self.run_folder)}") is not None:
            found.append("a Lease is left behind")
        return found

    def _begun(self) -> list[tuple[float, int]]:
        """Return when each process that began a block had begun itself, and the block."""
        lines = [line.split() for file in (self.unruly / "begun").iterdir() for line in file.read_text().splitlines()]
        return [(float(began), int(block)) for began, step, block in lines if step == STEP]

    def report(self, failures: list[str]) -> str:
        """Return the page."""
        counts: Counter[str] = Counter()
        moments: Counter[str] = Counter()
        for _, kind, count in self.befallen:
            counts[kind] += count
            moments[kind] += 1
        tally = json.loads((self.run_folder / "synthesis/jobs/synthesis.tally.json").read_text())
        exits = sum(told["do"] == "exit" for told in self.planned_mishaps.values())
        begun = self._begun()
        rows = [
            ("evicted by the eviction API", counts["evicted"]),
            ("deleted, as by `kubectl delete`", counts["deleted"]),
            ("its worker killed by SIGKILL", counts["killed"]),
            (f"evicted as its node was drained and cordoned ({moments['drained']} times)", counts["drained"]),
            ("out of memory: its block needs more than the limit", tally.get("memory", 0)),
            ("over its ephemeral storage", tally.get("storage", 0)),
            ("its process ended by itself, exit code 137", exits),
            ("(the driver killed by SIGKILL, another started)", counts["driver"]),
            ("(the node's kubelet stopped for a minute)", counts["kubelet"]),
        ]
        total = sum(count for _, count in rows)
        jobs = len(list((self.run_folder / "synthesis/jobs").glob("nk-*.json")))
        verdict = "**All of it held.**" if not failures else "**It failed:** " + "; ".join(failures)
        lines = [
            "# Chaos",
            "",
            f"A stage of {self.options.indexes} indexes, {self.blocks:,} blocks, was run on a real Kubernetes while "
            f"{total} times something went wrong. {verdict}",
            "",
            *(["![Blocks done, and what went wrong when](images/chaos.png)", ""] if _draws() else []),
            "| a pod was | times |",
            "|---|---|",
            *(f"| {what} | {count} |" for what, count in rows),
            f"| **all** | **{total}** |",
            "",
            f"- `neurokube run` ended by itself with exit code {self.code} after {self.seconds / 60:.1f} minutes; no "
            "block was given up, each has its record.",
            f"- All {self.objects:,} stored objects are, bit for bit, those of an undisturbed run in one process.",
            f"- {len(begun):,} times a pod began a block, {len(begun) - self.blocks:,} more than there are: what was "
            "at work when its pod had to go. No block was begun by a pod that began after its record was seen.",
            f"- The driver made {jobs} Jobs: one for the stage, the others for indexes that needed more memory or disk "
            "or whose worker died. None of them, nor the Lease, is left behind.",
            f"- What the run itself counts: {_shown(tally)}. It is less than what was done to pods: one that is asked "
            "to go while it is at its last block ends that, and with it its index.",
            "",
            "Repeat it on any cluster where you may evict pods (what is a failure is said in the program):",
            "",
            "    python -m benchmarks.chaos_kubernetes --image IMAGE --claim CLAIM --folder FOLDER \\",
            f"        --admin KUBECONFIG --indexes {self.options.indexes} --disruptions {self.options.disruptions} "
            f"--parallelism {self.options.parallelism} --seed {self.options.seed} --report docs/chaos.md",
            "",
            f"This run: one node of {os.cpu_count()} cores, Kubernetes "
            f"{self.api._call('GET', '/version')['major']}.{self.api._call('GET', '/version')['minor']}, "
            f"{self.options.parallelism} pods at a time.",
        ]
        return "\n".join(lines) + "\n"


def _draws() -> bool:
    return find_spec("matplotlib") is not None


def _shown(tally: dict[str, int]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in sorted(tally.items()))


def _admin(options: argparse.Namespace) -> RealApi:
    from kubernetes.config import kube_config

    before = kube_config.KUBE_CONFIG_DEFAULT_LOCATION
    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = options.admin
    try:
        return RealApi(Profile(image="none", namespace=options.namespace))
    finally:
        kube_config.KUBE_CONFIG_DEFAULT_LOCATION = before


def _run_id(folder: Path) -> str:
    return hashlib.sha256(str(folder).encode()).hexdigest()[:12]


def _digests(run: Path) -> dict[str, str]:
    """Return a digest of every object that stages store."""
    apart = {"ledger", "jobs", "quarantine", "stage.json"}
    files = (file for file in run.glob("*/**/*") if file.is_file() and not apart & set(file.parts))
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _picture(chaos: Chaos, path: Path) -> None:
    """Draw blocks done over time, and what went wrong when."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([t / 60 for t, _ in chaos.progress], [n for _, n in chaos.progress], color="#1f6fa8", linewidth=2)
    kinds = list(dict.fromkeys(kind for _, kind, _ in chaos.befallen))
    for row, kind in enumerate(kinds):
        moments = [t / 60 for t, k, _ in chaos.befallen if k == kind]
        axes.plot(moments, [-(row + 1) * chaos.blocks * 0.06] * len(moments), "|", markersize=9, color="#c44e00")
        axes.text(
            -0.005,
            -(row + 1) * chaos.blocks * 0.06,
            kind,
            ha="right",
            va="center",
            fontsize=8,
            transform=axes.get_yaxis_transform(),
        )
    axes.set_yticks([0, chaos.blocks // 2, chaos.blocks])
    axes.set_xlabel("minutes")
    axes.set_title("blocks with a record; below, what befell pods from outside", fontsize=10, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
