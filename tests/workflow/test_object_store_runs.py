"""A whole workflow with its workspace on S3: killed, resumed, damaged, repaired, and that of a folder all the same.

NEUROKUBE_TEST_S3=s3://BUCKET/FOLDER names a real store to do it on too, NEUROKUBE_TEST_KILLS how often it is killed.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from s3_server import Bucket, serving
from tiny import STAGES, TILE, planned, records, results, write_image, write_workflow
from web_server import Ranged, web

from neurokube.engines import InProcess
from neurokube.errors import NeuroKubeError
from neurokube.volumes import Store
from neurokube.volumes import store as stores
from neurokube.workflow import Run, execute
from neurokube.workflow.integrity import check_run

CHAIN = {name: STAGES[name] for name in ("boundaries", "fragments", "graph", "segmentation")} | {
    "multicut": {"first_block": TILE}
}
KILLS = int(os.environ.get("NEUROKUBE_TEST_KILLS", "1"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    write_image(folder)
    run = planned(folder, stages=CHAIN)
    execute(run, InProcess(), quiet=True)
    return results(run)


@pytest.fixture(params=["create", "none", "real"])
def workspace(request, monkeypatch, tmp_path):
    monkeypatch.setattr(stores, "_HELD", {})
    if request.param == "real":
        where = os.environ.get("NEUROKUBE_TEST_S3")
        if not where:
            pytest.skip(
                "NEUROKUBE_TEST_S3=s3://BUCKET/FOLDER names no S3 store; give AWS_ENDPOINT_URL and keys as well"
            )
        url = f"{where}/{tmp_path.name}-{os.getpid()}"
        yield url
        Store(url).delete_all()
        return
    with serving(Bucket(holds=request.param)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield "s3://neurokube-test/runs"


def test_kills_and_damage_change_nothing(reference, workspace, tmp_path):
    write_image(tmp_path)
    workflow = write_workflow(tmp_path, stages=CHAIN, workspace=workspace)
    store = Store(f"{workspace}/run")
    command = [sys.executable, "-m", "neurokube", "run", str(workflow), "-q", "--workers", "0"]
    choice, kills, seen = random.Random(7), 0, {}
    while kills < KILLS:
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        target = len(store.keys()) + choice.randrange(1, 40)
        while process.poll() is None and len(store.keys()) < target:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        found = records(planned(tmp_path, stages=CHAIN, workspace=workspace))
        assert {key: found[key] for key in seen} == seen, "a block with a durable record was computed again"
        seen = found
    began = time.monotonic()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    run = Run.open(f"{workspace}/run")
    assert results(run) == reference
    print(f"{workspace}: {kills} kills, {len(store.keys())} objects, the rest in {time.monotonic() - began:.1f} s")
    stored = store.keys()
    for key in choice.sample([key for key in stored if "/c/" in key or key.endswith(".npy")], 6):
        store.write(key, (store.read(key) or b"")[:-5])
    python = [sys.executable, "-m", "neurokube"]
    assert len(check_run(run, quiet=True).damage) == 6
    assert subprocess.run([*python, "check", run.url, "-q"], stdout=subprocess.DEVNULL, check=False).returncode == 65
    assert subprocess.run([*python, "check", run.url, "--repair", "-q"], stdout=subprocess.DEVNULL).returncode == 0
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert results(Run.open(run.url)) == reference


def test_a_bucket_that_is_gone_midway_costs_nothing(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_HELD", {})
    bucket = Bucket()
    with serving(bucket) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        write_image(tmp_path)
        changes = {"stages": CHAIN, "workspace": "s3://neurokube-test/runs"}
        said = []
        for more in (60, 150, 400, 700):
            bucket.gone_after = bucket.requests + more
            try:
                execute(planned(tmp_path, **changes), InProcess(), quiet=True)
            except NeuroKubeError as error:
                said.append(str(error))
            finally:
                bucket.gone_after = None
        assert said and not [line for line in said if "\n" in line or "bucket" not in line]
        run = planned(tmp_path, **changes)
        execute(run, InProcess(), quiet=True)
        assert results(run) == reference
        assert check_run(run, quiet=True).damage == ()


def test_an_image_on_a_web_server_is_as_good_as_one_in_a_folder(reference, tmp_path, command):
    (tmp_path / "served").mkdir()
    image = write_image(tmp_path / "served")
    with web(tmp_path / "served") as serve:
        address = f"{serve(Ranged)}/image.zarr"
        for stranger in (False, True):
            if stranger:
                # one that left no digest of the content
                metadata = image / "zarr.json"
                metadata.write_text(metadata.read_text().replace("fingerprint", "other"))
            workflow = write_workflow(
                tmp_path, name=f"run{stranger}", stages=CHAIN, inputs={"image": {"path": address}}
            )
            code, _, err = command("run", workflow, "-q", "-w", "0")
            assert code == 0, err
            assert results(Run.open(str(tmp_path / f"runs/run{stranger}"))) == reference


def test_volumes_on_a_web_server_are_scored(reference, tmp_path, command):
    write_image(tmp_path)
    run = planned(tmp_path, stages=CHAIN)
    execute(run, InProcess(), quiet=True)
    with web(tmp_path) as serve:
        where = f"{serve(Ranged)}/runs/run/segmentation/segmentation"
        code, out, err = command("evaluate", where, where, "-q", "--json")
    assert code == 0 and out.startswith("{"), err
    assert "a web server lists nothing" in err
