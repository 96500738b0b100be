"""Trainings and sweeps by pods, on a cluster in memory whose pods train for real, in this process."""

import shlex
import signal
from pathlib import Path

import pytest
import torch
import yaml
from blobs import document
from cluster import DONE, EVICTED, OOM, Cluster, Fate
from kubernetes_validate import validate
from test_sweeps import InProcess, base_of, table, written

from neurokube import cli_training
from neurokube.engines.cluster import Profile
from neurokube.errors import ConfigurationError, DataError, Drained, NeuroKubeError, TryAgainError
from neurokube.sweeps import load_sweep, make_trial, sweep, trial_of
from neurokube.sweeps import remote as there
from neurokube.sweeps.cluster import sweep_there
from neurokube.training import load_training
from neurokube.training.trainer import train


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def profile(folder, **fields):
    given = {"image": "neurokube:test", "volumes": [{"path": str(folder), "claim": "tissue"}], **fields}
    return Profile.model_validate(given)


@pytest.fixture
def shared(tissue, tmp_path_factory):
    """The folder that pods and this machine share."""
    return Path(tissue["image"]).parent.parent


class Pods:
    """Pods that train; `mishaps` befall the pods of (index, attempt) before they do anything."""

    def __init__(self, monkeypatch, mishaps=None):
        self.monkeypatch, self.mishaps, self.began = monkeypatch, mishaps or {}, []

    def __call__(self, job, index, attempt):
        self.began.append((index, attempt))
        if (index, attempt) in self.mishaps:
            return self.mishaps[index, attempt]
        _, verb, *words = job["spec"]["template"]["spec"]["containers"][0]["command"]
        try:
            if verb == "train":
                file, *options = words
                assert "--go-on" in options
                start = options[options.index("--from") + 1] if "--from" in options else None
                train(load_training(file), resume=None, start=start, quiet=True)
            else:
                self.monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
                folder, _, name = words
                make_trial(folder, trial_of(folder, name), quiet=True)
        except NeuroKubeError as error:
            return Fate(error.exit_code, f"neurokube: {error}\n")
        return DONE


def at(cluster, told):
    return there.Cluster(told, cluster, lambda: cluster.now, cluster.sleep)


def training(tissue, folder, **fields):
    file = folder / "blobs.yaml"
    file.write_text(yaml.safe_dump(document(tissue, folder, validated=True, steps=8, **fields)))
    return load_training(str(file)), str(file)


# one training


def test_an_evicted_training_ends_with_the_model_of_an_undisturbed_one(tissue, tmp_path, shared, monkeypatch):
    cluster = Cluster(Pods(monkeypatch, {(0, 1): EVICTED, (0, 2): EVICTED}))
    settings, file = training(tissue, tmp_path)
    bundle = there.train_there(settings, file, at(cluster, profile(shared)))
    (job,) = cluster.created
    assert not cluster.held and not cluster.leases
    spec = job["spec"]["template"]["spec"]["containers"][0]
    assert spec["command"] == ["neurokube", "train", file, "--go-on"]
    (calm := tmp_path / "calm").mkdir()
    assert train(training(tissue, calm)[0], quiet=True).card.sha256 == bundle.card.sha256
    # again: nothing is left to learn
    assert there.train_there(settings, file, at(cluster, profile(shared))).card.sha256 == bundle.card.sha256


def test_what_pods_of_a_training_get(tissue, tmp_path, shared):
    settings, file = training(tissue, tmp_path, loaders=2)
    told = profile(shared, stages={"train": {"resources": {"gpu": 2, "cpu": 6, "memory": "32Gi"}}}).of("train")
    cluster = Cluster(lambda job, index, attempt: Fate(1, "neurokube: no luck"))
    with pytest.raises(NeuroKubeError, match=r"^train: no luck$"):
        there.train_there(settings, file, at(cluster, told), start="synthetic-40-8-8")
    (job,) = cluster.created
    validate(job, "1.33", strict=True)
    pod = job["spec"]["template"]["spec"]
    (worker,) = pod["containers"]
    assert worker["resources"]["limits"] == {"memory": "32Gi", "ephemeral-storage": "1Gi", "nvidia.com/gpu": "2"}
    assert {"name": "OMP_NUM_THREADS", "value": "6"} in worker["env"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in worker["volumeMounts"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    assert shlex.join(worker["command"]).endswith("--go-on --from synthetic-40-8-8")


def test_a_pod_with_one_device_and_no_loaders_needs_no_shared_memory(tissue, tmp_path, shared):
    settings, file = training(tissue, tmp_path)
    cluster = Cluster(lambda job, index, attempt: Fate(1, "no"))
    with pytest.raises(NeuroKubeError):
        there.train_there(settings, file, at(cluster, profile(shared)))
    assert "shm" not in str(cluster.created)


@pytest.mark.parametrize(
    "fate, kind, said",
    [
        (Fate(65, "neurokube: image.zarr: damaged"), DataError, "train: image.zarr: damaged"),
        (Fate(78, "neurokube: loggers: mlflow is not installed"), ConfigurationError, "mlflow is not installed"),
        (Fate(75, "neurokube: the disk is full"), TryAgainError, "the disk is full"),
        (OOM, ConfigurationError, "killed for memory; give 'resources' more"),
    ],
)
def test_a_training_that_fails_ends_with_its_word_and_code(tissue, tmp_path, shared, fate, kind, said):
    settings, file = training(tissue, tmp_path)
    cluster = Cluster(lambda job, index, attempt: fate)
    with pytest.raises(kind, match=said):
        there.train_there(settings, file, at(cluster, profile(shared)))
    assert not cluster.held


def test_a_training_whose_pod_is_killed_goes_on_in_another_job(tissue, tmp_path, shared, monkeypatch):
    pods = Pods(monkeypatch)
    cluster = Cluster()
    cluster.fate = lambda job, *which: Fate(137) if len(cluster.created) < 3 else pods(job, *which)
    settings, file = training(tissue, tmp_path)
    said = []
    bundle = there.train_there(settings, file, at(cluster, profile(shared)), told=said.append)
    assert bundle.card.name == "blobs" and len({job["metadata"]["name"] for job in cluster.created}) == 3
    assert said == ["train: its pod was killed; another goes on"] * 2


def test_a_training_whose_pod_is_killed_at_one_place_ends(tissue, tmp_path, shared):
    cluster = Cluster(lambda job, index, attempt: Fate(139, "neurokube: crashed"))
    settings, file = training(tissue, tmp_path)
    with pytest.raises(NeuroKubeError, match=r"^train: crashed$"):
        there.train_there(settings, file, at(cluster, profile(shared)), told=lambda line: None)
    assert len(cluster.created) == 3 and not cluster.held


def test_ctrl_c_ends_the_pod_and_the_command_goes_on(tissue, tmp_path, shared, monkeypatch):
    pods = Pods(monkeypatch)

    def fate(job, index, attempt):
        signal.raise_signal(signal.SIGINT)
        return EVICTED

    cluster = Cluster(fate)
    settings, file = training(tissue, tmp_path)
    with pytest.raises(Drained, match="stopped, with a checkpoint; the same command goes on from there"):
        there.train_there(settings, file, at(cluster, profile(shared)))
    assert not cluster.held and not cluster.leases
    cluster.fate = pods
    assert there.train_there(settings, file, at(cluster, profile(shared))).card.name == "blobs"


def test_a_detached_training_is_followed_by_the_same_command(tissue, tmp_path, shared, monkeypatch):
    cluster = Cluster(Pods(monkeypatch, {(0, 1): EVICTED, (0, 2): EVICTED, (0, 3): EVICTED}))
    settings, file = training(tissue, tmp_path)
    assert there.train_there(settings, file, at(cluster, profile(shared)), detach=True) is None
    assert len(cluster.held) == 1
    assert there.train_there(settings, file, at(cluster, profile(shared))).card.name == "blobs"
    assert len(cluster.created) == 1 and not cluster.held


@pytest.mark.parametrize("what", ["config", "output", "image", "model"])
def test_what_lies_where_pods_do_not_see_it_is_refused(tissue, tmp_path, shared, what):
    seen = {
        "config": [Path(tissue["image"]).parent, tmp_path / "models"],
        "output": [Path(tissue["image"]).parent, tmp_path / "blobs.yaml"],
        "image": [tmp_path],
        "model": [Path(tissue["image"]).parent, tmp_path / "blobs.yaml", tmp_path / "models"],
    }[what]
    settings, file = training(tissue, tmp_path)
    model = None
    if what == "model":
        (other := tmp_path / "other").mkdir()
        model = str(train(training(tissue, other)[0], quiet=True).folder)
    told = Profile(image="i", volumes=[{"path": str(path), "claim": "c"} for path in seen])
    cluster = Cluster()
    with pytest.raises(ConfigurationError, match="lies on no volume that pods see") as error:
        there.train_there(settings, file, at(cluster, told), start=model)
    names = {"config": "the training file", "output": "workspace", "image": "volumes.0.image", "model": "--from"}
    assert str(error.value).startswith(names[what]) and not cluster.created


def test_a_missing_volume_is_noticed_here(tissue, tmp_path, shared):
    volumes = [{"image": str(tmp_path / "nothing.zarr"), "truth": {"blob": tissue["blob"]}}]
    settings, file = training(tissue, tmp_path, volumes=volumes)
    cluster = Cluster()
    with pytest.raises(DataError, match=r"nothing\.zarr"):
        there.train_there(settings, file, at(cluster, profile(shared)))
    assert not cluster.created


@pytest.mark.parametrize(
    "options, said",
    [
        (["--engine", "slurm"], "choose local or kubernetes"),
        (["--detach"], "give it with --engine kubernetes"),
        (["--go-on", "--overwrite"], "give it without"),
        (["--engine", "kubernetes", "--profiles", "nothing.yaml"], "nothing.yaml"),
    ],
)
def test_options_that_do_not_fit_are_refused(tissue, tmp_path, command, options, said):
    _, file = training(tissue, tmp_path)
    code, out, complaint = command("train", file, *options)
    assert code in (64, 78) and out == "" and complaint.count("\n") == 1 and said in complaint


def test_the_command_line_trains_in_a_pod(tissue, tmp_path, shared, command, monkeypatch):
    cluster = Cluster(Pods(monkeypatch))
    _, file = training(tissue, tmp_path)
    monkeypatch.setattr(cli_training, "cluster", lambda *names: at(cluster, profile(shared)))
    code, out, complaint = command("train", file, "--engine", "kubernetes")
    assert (code, complaint) == (0, "")
    assert out == f"use it in a workflow as 'model: {tmp_path / 'models' / 'blobs' / 'model'}'\n"


# sweeps


def test_a_sweep_by_pods_that_come_and_go_has_the_table_of_a_calm_one(tissue, tmp_path, shared, monkeypatch):
    (calm := tmp_path / "calm").mkdir()
    (wild := tmp_path / "wild").mkdir()
    expected = sweep(load_sweep(str(written(tissue, calm, trials=4))), InProcess(), quiet=True)
    mishaps = {(0, 1): EVICTED, (1, 1): Fate(137, "", "Error"), (1, 2): EVICTED}
    pods = Pods(monkeypatch, mishaps)
    cluster = Cluster(pods)
    request = load_sweep(str(written(tissue, wild, trials=4)))
    swept = sweep_there(request, at(cluster, profile(shared, parallelism=2)), quiet=True)
    assert table(swept) == table(expected)
    assert [t.settings for t in swept.trials] == [t.settings for t in expected.trials]
    # each round a Job, and another for the index whose pod was killed
    assert cluster.created[0]["spec"]["completions"] == 2
    assert not cluster.held and not cluster.leases
    for job in cluster.created:
        validate(job, "1.33", strict=True)


def test_a_trial_that_lacks_memory_gets_more_to_the_ceiling(tissue, tmp_path, shared, monkeypatch):
    pods = Pods(monkeypatch)

    def fate(job, index, attempt):
        memory = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        return OOM if memory in ("2Gi", "4096Mi") else pods(job, index, attempt)

    request = load_sweep(str(written(tissue, tmp_path, trials=1)))
    swept = sweep_there(request, at(Cluster(fate), profile(shared)), quiet=True)
    assert swept.trials[0].scores
    request = load_sweep(str(written(tissue, tmp_path, name="other", trials=1)))
    with pytest.raises(NeuroKubeError, match=r"no trial succeeded; trial 0: its pod was killed for memory \(4096Mi\)"):
        sweep_there(request, at(Cluster(fate), profile(shared, ceiling={"memory": "4Gi"})), quiet=True)


def test_a_trial_whose_pod_keeps_dying_is_a_row(tissue, tmp_path, shared, monkeypatch):
    pods = Pods(monkeypatch)

    def fate(job, index, attempt):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        folder, _, name = job["spec"]["template"]["spec"]["containers"][0]["command"][2:]
        dies = trial_of(folder, name) == 1
        return Fate(137, "neurokube: killed by a bad driver") if dies else pods(job, index, attempt)

    request = load_sweep(str(written(tissue, tmp_path, trials=2)))
    swept = sweep_there(request, at(Cluster(fate), profile(shared)), quiet=True)
    assert swept.trials[0].scores
    assert swept.trials[1].error == "its pod died 3 times: sweep: killed by a bad driver"


def test_another_driver_takes_up_the_job_that_a_killed_one_left(tissue, tmp_path, shared, monkeypatch):
    class Killed(BaseException):
        pass

    pods = Pods(monkeypatch)
    cluster = Cluster(lambda job, index, attempt: EVICTED)
    request = load_sweep(str(written(tissue, tmp_path, trials=2)))
    delete = cluster.delete_job

    def killed():
        if cluster.created and cluster.now > 10:
            # as by kill -9: nothing is cleaned up
            cluster.delete_job = lambda name: None
            raise Killed

    with pytest.raises(Killed):
        sweep_there(request, at(cluster, profile(shared)), stop=killed, quiet=True)
    cluster.delete_job, cluster.fate = delete, pods
    assert len(cluster.held) == 1
    swept = sweep_there(request, at(cluster, profile(shared)), quiet=True)
    assert len(cluster.created) == 1 and not cluster.held
    assert all(trial.scores for trial in swept.trials)


def test_a_full_disk_ends_the_sweep_and_it_goes_on(tissue, tmp_path, shared, monkeypatch):
    cluster = Cluster(lambda job, index, attempt: Fate(75, "neurokube: the disk is full"))
    request = load_sweep(str(written(tissue, tmp_path, trials=2)))
    with pytest.raises(TryAgainError, match="the disk is full"):
        sweep_there(request, at(cluster, profile(shared)), quiet=True)
    assert not cluster.held
    cluster.fate = Pods(monkeypatch)
    assert len(sweep_there(request, at(cluster, profile(shared)), quiet=True).trials) == 2


def test_a_sweep_that_pods_do_not_see_is_refused(tissue, tmp_path):
    cluster = Cluster()
    request = load_sweep(str(base_of(written(tissue, tmp_path))))
    with pytest.raises(ConfigurationError, match=r"^workspace: .* lies on no volume that pods see"):
        sweep_there(request, at(cluster, profile("/data")), quiet=True)
    assert not cluster.created and not (tmp_path / "sweeps").exists()
