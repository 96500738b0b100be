"""The Kubernetes engine on a real cluster, whichever one KUBECONFIG names.

    KUBECONFIG                    of a driver: bound to the Role of deploy/driver-role.yaml, and to no more
    NEUROKUBE_TEST_NAMESPACE      namespace, with the Pod Security Standard `restricted` enforced [default: default]
    NEUROKUBE_TEST_IMAGE          image that its nodes have or can pull, with this version of the program
    NEUROKUBE_TEST_CLAIM          claim (ReadWriteMany, or on the only node) that is mounted here as well, and
    NEUROKUBE_TEST_FOLDER         where, with room for some megabytes; pods see it at the same path
    NEUROKUBE_TEST_PYTHONPATH     a folder in it with the program, where the image's own is not the one to test
    NEUROKUBE_TEST_ADMIN          kubeconfig of somebody who may evict and delete pods, for the tests that do

Without these the tests are skipped.  They took five and a half minutes on one busy node of two cores.
"""

import hashlib
import json
import os
import shutil
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from neurokube.engines import InProcess
from neurokube.engines.cluster import Profile, RealApi, Refused, Request, job_manifest
from neurokube.engines.cluster.api import VERBS
from neurokube.engines.kubernetes import Kubernetes
from neurokube.errors import NeuroKubeError
from neurokube.workflow import Run, execute, load_workflow

NEEDED = ("KUBECONFIG", *(f"NEUROKUBE_TEST_{name}" for name in ("IMAGE", "CLAIM", "FOLDER")))
LACKING = [name for name in NEEDED if name not in os.environ]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"no cluster to test on: {', '.join(LACKING)} not set")

NAMESPACE = os.environ.get("NEUROKUBE_TEST_NAMESPACE", "default")
ADMIN = os.environ.get("NEUROKUBE_TEST_ADMIN")
needs_admin = pytest.mark.skipif(ADMIN is None, reason="NEUROKUBE_TEST_ADMIN is not set")

ONE_STEP = """
name: run
workspace: WORKSPACE
stages:
  synthesis: {shape: [8, 128, 128], voxel_size: [40, 8, 8], tile: [8, 32, 32], write: [image]}
"""
WHOLE = """
name: run
workspace: WORKSPACE
stages:
  synthesis: {shape: [16, 64, 64], tile: [8, 32, 32], write: [boundaries]}
  fragments: {boundaries: synthesis.boundaries, tile: [8, 32, 32]}
  graph: {boundaries: synthesis.boundaries}
  multicut: {first_block: [8, 32, 32], levels: 1}
  segmentation:
"""
STEP = "synthesis/synthesis"


@pytest.fixture
def folder():
    # pods are another user than whoever runs the tests
    before = os.umask(0)
    path = Path(os.environ["NEUROKUBE_TEST_FOLDER"], f"test-{uuid4().hex[:8]}")
    path.mkdir()
    yield path
    shutil.rmtree(path)
    os.umask(before)


def planned(folder, workflow):
    folder.mkdir(exist_ok=True)
    (folder / "workflow.yaml").write_text(workflow.replace("WORKSPACE", str(folder)))
    return Run.planned(load_workflow(str(folder / "workflow.yaml")))


def profile(folder, mishaps=None, **fields):
    """Return a profile whose pods are unruly, where mishaps are given, see unruly/sitecustomize.py."""
    path = os.environ.get("NEUROKUBE_TEST_PYTHONPATH", "")
    if mishaps:
        (folder / "unruly").mkdir()
        shutil.copy(Path(__file__).with_name("unruly") / "sitecustomize.py", folder / "unruly")
        (folder / "unruly" / "mishaps.json").write_text(json.dumps(mishaps))
        path = f"{folder / 'unruly'}:{path}"
    told = {
        "namespace": NAMESPACE,
        "image": os.environ["NEUROKUBE_TEST_IMAGE"],
        "resources": {"cpu": "100m", "memory": "512Mi", "storage": "100Mi"},
        "ceiling": {"memory": "2Gi"},
        "parallelism": 4,
        "indexes": 4,
        "grace": 20,
        "volumes": [{"path": os.environ["NEUROKUBE_TEST_FOLDER"], "claim": os.environ["NEUROKUBE_TEST_CLAIM"]}],
        "env": {"PYTHONPATH": path} if path else {},
    }
    return Profile.model_validate(told | fields)


def digests(run):
    """Return a digest of every object that stages store."""
    files = (file for file in Path(run.url).glob("*/**/*") if file.is_file())
    stored = (file for file in files if not {"ledger", "jobs", "quarantine", "stage.json"} & set(file.parts))
    return {str(f.relative_to(run.url)): hashlib.sha256(f.read_bytes()).hexdigest() for f in stored}


def jobs_of(run, stage="synthesis"):
    """Return what the driver wrote of the Jobs of a stage."""
    files = sorted(Path(run.url, stage, "jobs").glob("nk-*.json"), key=lambda file: file.stat().st_mtime)
    return [json.loads(file.read_text()) for file in files]


def records(run, step):
    return [record for _, record in run.ledger(run.plan.step(step)).records()]


def as_admin(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("KUBECONFIG", str(ADMIN))
        # the client reads the variable when it is imported
        patch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(ADMIN))
        return RealApi(Profile.model_validate({"image": "none", "namespace": NAMESPACE}))


def test_the_rights_of_a_driver_are_those_it_uses_and_no_more():
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": NAMESPACE},
    }
    api = RealApi(Profile.model_validate({"image": "none", "namespace": NAMESPACE}))
    rules = api._call("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body=body)["status"]
    # everybody may ask who he is and what he may do
    own = {"authentication.k8s.io", "authorization.k8s.io"}
    granted = {
        (verb, group, resource)
        for rule in rules["resourceRules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if group not in own
    }
    assert granted == set(VERBS)


@needs_admin
def test_pods_are_admitted_where_restricted_is_enforced(monkeypatch, folder):
    api = as_admin(monkeypatch)
    labels = api._call("GET", f"/api/v1/namespaces/{NAMESPACE}")["metadata"].get("labels", {})
    assert labels.get("pod-security.kubernetes.io/enforce") == "restricted"
    chosen = profile(folder, scratch="1Gi")
    job = job_manifest(chosen, Request("nk-test", "/run", STEP, {}, {}, 1, chosen.resources))
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "nk-test"}, "spec": job["spec"]["template"]["spec"]}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    api._call("POST", path, query=[("dryRun", "All")], body=pod)
    pod["spec"]["securityContext"]["runAsNonRoot"] = False
    with pytest.raises(Refused, match="violates PodSecurity"):
        api._call("POST", path, query=[("dryRun", "All")], body=pod)


def test_an_index_that_needs_three_times_its_memory_finishes(folder):
    run = planned(folder, ONE_STEP)
    low = {"cpu": "100m", "memory": "100Mi", "storage": "100Mi"}
    hungry = {f"{STEP} 5": {"do": "memory", "megabytes": 210}}
    execute(run, Kubernetes(profile(folder, hungry, resources=low, indexes=2)), quiet=True)
    given = [job["resources"]["memory"] for job in jobs_of(run) if job["step"] == STEP]
    assert given == ["100Mi", "200Mi", "400Mi"]
    assert len(records(run, STEP)) == 16


def test_a_poisoned_block_is_named_and_all_others_are_done(folder):
    run = planned(folder, ONE_STEP)
    engine = Kubernetes(profile(folder, {f"{STEP} 5": {"do": "raise"}}))
    with pytest.raises(NeuroKubeError, match=r"1 of 16 blocks failed \(block 5\).*poisoned") as failure:
        execute(run, engine, quiet=True)
    assert failure.value.exit_code == 1
    assert sorted(r.block for r in records(run, STEP)) == [block for block in range(16) if block != 5]
    assert len(jobs_of(run)) == 1


def test_a_block_that_kills_its_pod_is_found_and_costs_no_other(folder):
    run = planned(folder, ONE_STEP)
    engine = Kubernetes(profile(folder, {f"{STEP} 5": {"do": "exit"}}, indexes=2))
    with pytest.raises(NeuroKubeError, match=r"1 of 16 blocks failed \(block 5\).*its pod died 3 times: exit code 137"):
        execute(run, engine, quiet=True)
    assert len(records(run, STEP)) == 15


@needs_admin
def test_a_whole_run_of_pods_that_die_is_bit_for_bit_that_of_one_process(monkeypatch, folder, tmp_path):
    api = as_admin(monkeypatch)
    slow, once = {"do": "wait", "seconds": 1.0}, {"do": "exit", "times": 1}
    mishaps = {f"{STEP} *": slow, f"{STEP} 6": once, "fragments/fragments 3": once, "segmentation/segmentation 1": once}
    run, truth = planned(folder, WHOLE), planned(tmp_path, WHOLE)
    done = threading.Event()
    befallen = []
    thread = threading.Thread(target=_be_unkind, args=(api, done, befallen))
    thread.start()
    try:
        execute(run, Kubernetes(profile(folder, mishaps)), quiet=True)
    finally:
        done.set()
        thread.join()
    execute(truth, InProcess(), quiet=True)
    assert befallen == ["evicted", "deleted"]
    assert sum(1 for _ in (folder / "unruly").glob("* 0")) >= 3
    assert digests(run) == digests(truth)


def _be_unkind(api, done, befallen):
    """Evict one running pod and delete another, of the first Job."""
    selector, path = "app.kubernetes.io/managed-by=neurokube", f"/api/v1/namespaces/{NAMESPACE}/pods"
    while not done.wait(0.5):
        running = [pod["metadata"]["name"] for pod in api.pods(selector) if pod["status"]["phase"] == "Running"]
        if len(running) >= 2:
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": running[0]}}
            api._call("POST", f"{path}/{running[0]}/eviction", body=eviction)
            befallen.append("evicted")
            api._call("DELETE", f"{path}/{running[1]}")
            befallen.append("deleted")
            return


def test_an_index_costs_a_few_seconds(folder, record_property):
    run = planned(folder, ONE_STEP)
    began = time.monotonic()
    execute(run, Kubernetes(profile(folder, indexes=8)), quiet=True)
    seconds = time.monotonic() - began
    jobs = [len(job["batches"]) for job in jobs_of(run)]
    computing = sum(r.seconds for name in run.plan.steps for r in records(run, name))
    overhead = (seconds * 4 - computing) / sum(jobs)
    record_property("seconds_an_index", round(overhead, 2))
    print(f"{sum(jobs)} indexes of {len(jobs)} Jobs, 4 at a time, in {seconds:.0f} s: {overhead:.1f} s an index")
    assert overhead < 30
