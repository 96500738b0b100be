"""Cluster profiles, and the Jobs that are made of them."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from neurokube.engines.cluster import Profile, Request, Resources, job_manifest, load_profile
from neurokube.engines.cluster.api import VERBS
from neurokube.engines.cluster.profile import amount
from neurokube.errors import ConfigurationError, NeuroKubeError

DEPLOY = Path(__file__).parents[2] / "deploy"
FULL = {
    "namespace": "my-lab",
    "image": "registry.example.org/neurokube:1",
    "pull_secrets": ["registry"],
    "service_account": "worker",
    "resources": {"cpu": 2, "memory": "4Gi", "storage": "2Gi"},
    "volumes": [{"path": "/data", "claim": "tissue"}, {"path": "/raw", "claim": "raw", "read_only": True}],
    "secrets": ["s3"],
    "env": {"AWS_ENDPOINT_URL": "http://rgw:7480"},
    "scratch": "20Gi",
    "scratch_medium": "Memory",
    "node_selector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "priority_class": "low",
    "labels": {"lab": "ours"},
    "annotations": {"note": 'quotes " and: colons'},
    "queue": "teams",
    "stages": {"semantics": {"resources": {"gpu": 1, "memory": "16Gi"}, "parallelism": 4}},
}
REQUEST = Request("nk-1", "/data/runs/run", "semantics/semantics", {"neurokube.io/run": "1"}, {}, 12, Resources())


@pytest.mark.parametrize("version", ["1.33", "1.34", "1.35", "1.36"])
@pytest.mark.parametrize("fields", [{"image": "neurokube:1"}, FULL])
def test_jobs_are_what_kubernetes_takes(fields, version):
    job = job_manifest(Profile.model_validate(fields), REQUEST)
    kubernetes_validate.validate(job, version, strict=True)


def test_workers_have_no_token_and_pass_the_restricted_standard():
    pod = job_manifest(Profile.model_validate(FULL), REQUEST)["spec"]["template"]["spec"]
    worker = pod["containers"][0]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert worker["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert worker["securityContext"]["allowPrivilegeEscalation"] is False
    assert worker["securityContext"]["readOnlyRootFilesystem"] is True
    # SIGTERM reaches a program that no shell has started
    assert worker["command"][:2] == ["neurokube", "work"] and "args" not in worker


def test_a_stage_has_what_is_said_of_it_and_the_rest_as_all_have():
    profile = Profile.model_validate(FULL).of("semantics")
    assert profile.resources == Resources(cpu="2", memory="16Gi", storage="2Gi", gpu=1)
    assert (profile.parallelism, profile.priority_class) == (4, "low")
    assert Profile.model_validate(FULL).of("fragments") == Profile.model_validate(FULL)
    job = job_manifest(profile, Request("n", "/r", "s/s", {}, {}, 12, profile.resources))
    assert job["spec"]["parallelism"] == 4
    worker = job["spec"]["template"]["spec"]["containers"][0]
    assert worker["resources"]["limits"] == {"memory": "16Gi", "ephemeral-storage": "2Gi", "nvidia.com/gpu": "1"}


def test_quantities_are_those_of_kubernetes():
    assert [amount(q) for q in ("500m", "2", "1.5Gi", "3M")] == [0.5, 2, 1.5 * 2**30, 3e6]
    resources = Resources(memory="3Gi")
    assert resources.doubled("memory", "5Gi").memory == "5120Mi"
    assert Resources(memory="5Gi").doubled("memory", "5Gi") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("profiles: [", "cannot be read"),
        (
            "profiles: {other: {image: a}}",
            "no profile 'lab' below 'profiles'; name one with --profile, there are: other",
        ),
        ("nothing: 1", "no profile 'lab' below 'profiles'; name one with --profile, there are: none"),
        (
            "profiles: {lab: {image: a, resources: {memory: 900Gi}}}",
            "profiles.lab.resources.memory: 900Gi is more than the ceiling, 64Gi; lower it or raise 'ceiling'",
        ),
        (
            "profiles: {lab: {image: a, stages: {graph: {resources: {cpu: 9}}}}}",
            "profiles.lab.stages.graph.resources.cpu: 9 is more than the ceiling, 8",
        ),
        ("profiles: {lab: {}}", "profiles.lab.image: is missing"),
        ("profiles: {lab: {image: a, resources: {memory: lots}}}", "'lots' is no quantity; write it as 500m, 2, 4Gi"),
        ("profiles: {lab: {image: a, volumes: [{path: /x}]}}", "give either 'claim' or 'host_path'"),
        ("profiles: {lab: {image: a, imagge: b}}", "profiles.lab.imagge: no such field"),
    ],
)
def test_profiles_that_say_nothing_sensible_are_refused_in_one_line(tmp_path, text, words):
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as refusal:
        load_profile("lab", str(tmp_path / "cluster.yaml"))
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_missing_file_of_profiles_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NEUROKUBE_CLUSTER", raising=False)
    with pytest.raises(ConfigurationError, match=r"no cluster profiles \(neurokube-cluster\.yaml or"):
        load_profile("lab")
    with pytest.raises(ConfigurationError, match=r"none\.yaml: there is no such file"):
        load_profile("lab", "none.yaml")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ nothing }}", "'nothing' is undefined"),
        ("kind: [", "no Job comes of it"),
        ("kind: Pod", "the Job lacks 'spec'"),
        ("{kind: Job, metadata: {name: x, labels: {}}, spec: {}}", "the Job lacks 'completionMode'"),
    ],
)
def test_a_template_that_renders_to_no_job_is_refused_in_one_line(template, words):
    profile = Profile.model_validate({"image": "a", "template": template})
    with pytest.raises(NeuroKubeError) as refusal:
        job_manifest(profile, REQUEST)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_dry_run_prints_the_jobs_and_writes_nothing(command, tmp_path):
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"profiles": {"lab": FULL}}))
    (tmp_path / "workflow.yaml").write_text(
        "{name: run, workspace: runs, stages: {synthesis: {shape: [16, 64, 64], tile: [8, 32, 32]}}}"
    )
    how = ["--engine", "kubernetes", "--profile", "lab", "--profiles", tmp_path / "cluster.yaml", "--dry-run"]
    code, output, _ = command("run", tmp_path / "workflow.yaml", *how)
    jobs = list(yaml.safe_load_all(output))
    assert code == 0 and jobs[0]["spec"]["completions"] == 8
    assert all(job["kind"] == "Job" and job["metadata"]["namespace"] == "my-lab" for job in jobs)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("version", ["1.33", "1.34", "1.35", "1.36"])
def test_what_is_applied_by_hand_is_what_kubernetes_takes(version):
    for file in DEPLOY.glob("*.yaml"):
        for document in yaml.safe_load_all(file.read_text()):
            kubernetes_validate.validate(document, version, strict=True)


def test_the_role_of_a_driver_is_what_it_does():
    role = next(yaml.safe_load_all((DEPLOY / "driver-role.yaml").read_text()))
    granted = {
        (v, g, r) for rule in role["rules"] for v in rule["verbs"] for g in rule["apiGroups"] for r in rule["resources"]
    }
    assert granted == set(VERBS)
