"""Pods near their data, volumes that one node has, and secrets that nobody but pods sees."""

import kubernetes_validate
import pytest

from neurokube.engines.base import Place
from neurokube.engines.cluster import Profile, Request, job_manifest
from neurokube.engines.cluster.manifest import RUN, driver_manifest
from neurokube.engines.cluster.placement import below
from neurokube.engines.kubernetes import Kubernetes

WEST, EAST = {"topology.kubernetes.io/zone": "west"}, {"topology.kubernetes.io/zone": "east"}
NEAR = {"s3://lab": WEST, "s3://lab/cold": EAST, "/data": EAST}
VERSIONS = ["1.33", "1.34", "1.35", "1.36"]


def job(data, **fields):
    profile = Profile.model_validate({"image": "neurokube:1", **fields})
    request = Request("nk-1", "s3://lab/run", "a/b", {RUN: "1"}, {}, 4, profile.resources, data=data)
    manifest = job_manifest(profile, request)
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)
    return manifest["spec"]["template"]["spec"]


def preferred(pod):
    terms = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    return {t["preference"]["matchExpressions"][0]["values"][0]: t["weight"] for t in terms}


def test_a_store_is_what_lies_in_it_and_not_what_its_name_begins():
    assert below("s3://lab", "s3://lab/run") and below("/data/", "/data")
    assert not below("s3://lab", "s3://lab2/run") and not below("/data", "/database/x")


def test_pods_prefer_the_nodes_near_their_data_by_its_bytes():
    assert preferred(job({"s3://lab/run/a": 300, "/data/image.zarr": 100}, near=NEAR)) == {"west": 75, "east": 25}
    # the innermost store counts, and what is little still does
    assert preferred(job({"s3://lab/cold/run/a": 10**9, "s3://lab/x": 1}, near=NEAR)) == {"east": 100, "west": 1}
    assert preferred(job({"s3://lab/cold/run/a": 3, "/data/x": 1}, near=NEAR)) == {"east": 100}


def test_pods_run_anywhere_where_nobody_says_what_is_near():
    assert job({"s3://other/run": 3}, near=NEAR)["affinity"] == {}
    assert job(None, near=NEAR)["affinity"] == job({"s3://lab/run": 3})["affinity"] == {}


def test_pods_must_be_near_one_of_their_stores_where_it_is_required():
    found = job({"s3://lab/run/a": 3, "/data/x": 1}, near=NEAR, near_required=True)["affinity"]["nodeAffinity"]
    terms = found["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [t["matchExpressions"][0]["values"] for t in terms] == [["west"], ["east"]]
    assert len(found["preferredDuringSchedulingIgnoredDuringExecution"]) == 2


RBD = [{"path": "/data", "claim": "shared"}, {"path": "/block", "claim": "rbd", "shared": False}]


def test_a_volume_of_one_node_is_mounted_where_it_is_needed_and_draws_its_pods_and_the_driver_to_one_node():
    pod = job({"/block/run/a": 1, "/data/x": 1}, volumes=RBD)
    assert [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"][1:]] == ["shared", "rbd"]
    term = pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert term == {"labelSelector": {"matchLabels": {RUN: "1"}}, "topologyKey": "kubernetes.io/hostname"}
    pod = job({"/data/x": 1}, volumes=RBD)
    assert [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"][1:]] == ["shared"]
    assert pod["affinity"] == {}
    # what nobody has said anything of may need it
    assert "podAffinity" in job(None, volumes=RBD)["affinity"]
    driver = driver_manifest(Profile.model_validate({"image": "a", "volumes": RBD}), "nk-driver", "/block/run")
    for version in VERSIONS:
        kubernetes_validate.validate(driver, version, strict=True)
    spec = driver["spec"]["template"]
    term = spec["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert term["labelSelector"]["matchLabels"].items() <= spec["metadata"]["labels"].items()


def test_the_engine_places_the_pods_of_a_step_by_where_its_stage_lies():
    engine = Kubernetes(Profile.model_validate({"image": "a", "near": NEAR}))
    engine.places = {"a": Place("s3://lab/cold/run/a", {"s3://lab/cold/run/a": 5})}
    assert "values:\n                - east" in engine.manifest("/runs/run", "a/b", 8)
    assert "affinity: {}" in engine.manifest("/runs/run", "other/b", 8)


@pytest.mark.parametrize(
    ("fields", "size"),
    [({}, 64 * 2**20), ({"resources": {"memory": "512Mi"}}, 32 * 2**20), ({"cache": "100Mi"}, 100 * 2**20)],
)
def test_pods_keep_what_they_read_in_a_part_of_their_memory(fields, size):
    env = {e["name"]: e["value"] for e in job(None, **fields)["containers"][0]["env"]}
    assert env["NEUROKUBE_CACHE"] == str(size)


def test_pods_stage_within_what_does_not_get_them_evicted():
    def told(**fields):
        pod = job(None, scratch="8Gi", **fields)
        env = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
        return env.get("NEUROKUBE_SCRATCH"), int(env.get("NEUROKUBE_SCRATCH_BYTES", 0)) / 2**30

    assert told() == (None, 0)
    assert told(staging=True, resources={"storage": "20Gi"}) == ("/scratch", 7.5)
    # what is on the node's disk counts as storage, what is in memory as memory
    assert told(staging=True, resources={"storage": "2Gi"}) == ("/scratch", 1.5)
    assert told(staging=True, scratch_medium="Memory", resources={"memory": "4Gi"}) == ("/scratch", 1.0)
    with pytest.raises(ValueError, match="give 'scratch' its size"):
        Profile.model_validate({"image": "neurokube:1", "staging": True})
