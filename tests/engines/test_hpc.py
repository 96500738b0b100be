"""Jobs of batch systems.

LSF and PBS are stood in for by `batch_system.py`, which runs the scripts that Parsl submits.  Slurm is a real one: the
tests of it run where `sinfo` answers (SLURM_CONF may name its configuration), in its default partition, with jobs of
2 cores, and skip elsewhere.  The driver must be reachable at 127.0.0.1 from the nodes, which see the same disks.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from neurokube.engines import Batch, Report
from neurokube.engines.hpc import Hpc, JobProfile, load_job_profile
from neurokube.engines.hpc import engine as hpc_engine
from neurokube.engines.hpc.engine import JobPool
from neurokube.engines.hpc.providers import Lsf, Pbs, Slurm, render
from neurokube.engines.local import Local
from neurokube.errors import ConfigurationError, NeuroKubeError
from neurokube.workflow import execute

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))
import tiny

ROOT = Path(__file__).parent
LOOPBACK = {"address": "127.0.0.1"}


def slurm_is_missing() -> str:
    """Return why there is no Slurm to test with."""
    if shutil.which("sinfo") is None:
        return "no Slurm here: there is no sinfo on PATH"
    asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=30)
    return "" if asked.returncode == 0 else f"no Slurm answers: {asked.stderr.strip().splitlines()[-1]}"


needs_slurm = pytest.mark.skipif(bool(why := slurm_is_missing()), reason=why)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Notice what happens to jobs within seconds, on an idle batch system of one's own."""
    monkeypatch.setattr(JobPool, "heartbeat", (1, 5))
    monkeypatch.setattr(JobPool, "period", 0.5)
    for provider in (Slurm, Lsf, Pbs):
        monkeypatch.setattr(provider, "status_polling_interval", 1)


@pytest.fixture
def batch_system(tmp_path, monkeypatch):
    """Return the folder of jobs of a batch system whose programs are on PATH."""
    programs, jobs = tmp_path / "bin", tmp_path / "jobs"
    programs.mkdir()
    jobs.mkdir()
    for name in ("bsub", "bjobs", "bkill", "qsub", "qstat", "qdel"):
        (programs / name).symlink_to(ROOT / "batch_system.py")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("BATCH_SYSTEM", str(jobs))
    return jobs


def profile(kind, **fields):
    ready = "\n".join(f"export {name}={os.environ.get(name, '')}" for name in ("PYTHONPATH", "TRACE"))
    return JobProfile.model_validate({"kind": kind, "worker_init": ready, **LOOPBACK, **fields})


def jobs_left(jobs):
    """Return the processes of jobs that do not end."""
    groups = {int(file.read_text()) for file in jobs.glob("*.pid")}
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return psutil.wait_procs(found, timeout=60)[1]


def count(run_url, step_name, batch, stop):
    """Stand in for the worker function; note which blocks were begun."""
    with Path(run_url, "begun").open("a") as file:
        for block in range(batch.first, batch.last):
            file.write(f"{block}\n")
    return Report(batch.last - batch.first)


def begun(folder):
    return [int(line) for line in Path(folder, "begun").read_text().split()]


@pytest.fixture
def importable(monkeypatch):
    """Let workers import this module."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


# profiles


def test_a_stage_has_what_is_said_of_it_and_the_rest_as_all_have():
    told = profile(
        "slurm",
        partition="standard",
        account="lab",
        jobs=10,
        workers=32,
        memory="4Gi",
        walltime="04:00:00",
        stages={"semantics": {"partition": "gpu", "gpus": 4, "jobs": 2, "memory": "16Gi"}},
    )
    jobs = told.of("semantics")
    assert (jobs.queue, jobs.account, jobs.gpus, jobs.per_node, jobs.slots) == ("gpu", "lab", 4, 4, 8)
    assert (jobs.gigabytes, jobs.seconds) == (64, 4 * 3600)
    assert (told.of("graph").queue, told.of("graph").slots, told.of("graph").gigabytes) == ("standard", 320, 128)
    assert Hpc(told).workers == 320


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{kind: slurm, walltime: 10:00:00}", "walltime: a number (36000); write it in quotes, as '04:00:00'"),
        ("{kind: slurm, walltime: soon}", "walltime: 'soon' is no time; write it as '04:00:00'"),
        ("{kind: slurm, walltime: '00:00:00'}", "walltime: '00:00:00' is no time"),
        ("{kind: slurm, walltime: '00:00:30'}", "is over before the grace of 60 s; ask for more"),
        ("{kind: slurm, partitoin: a}", "profiles.lab.partitoin: Extra inputs"),
        ("{kind: slurm, memory: lots}", "'lots' is no quantity"),
        ("{kind: slurm, launcher: rocket}", "profiles.lab.launcher: must be 'single', 'srun'"),
        ("{kind: slurm, stages: {semantics: {gpu: 1}}}", "stages.semantics.gpu: Extra inputs"),
        ("{kind: slurm, stages: {semantics: {walltime: 5}}}", "stages.semantics.walltime: a number (5)"),
    ],
)
def test_profiles_that_say_nothing_sensible_are_refused_in_one_line(tmp_path, text, words):
    (tmp_path / "cluster.yaml").write_text(f"profiles: {{lab: {text}}}")
    with pytest.raises(ConfigurationError) as refusal:
        load_job_profile("lab", str(tmp_path / "cluster.yaml"))
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "options", "code", "words"),
    [
        ({"kind": "lsf"}, [], 78, "bsub is not on PATH; run where jobs of lsf are submitted"),
        ({"kind": "sge"}, [], 78, "profiles.lab.kind: choose kubernetes, slurm, lsf, pbs"),
        ({"kind": "pbs"}, ["--engine", "slurm"], 64, "--engine slurm: profile 'lab' is one of pbs; leave --engine out"),
        ({"kind": "slurm"}, ["--engine", "local", "--dry-run"], 64, "--dry-run: give it with a cluster's --profile"),
    ],
)
def test_a_command_line_that_fits_no_profile_is_refused(command, tmp_path, monkeypatch, fields, options, code, words):
    monkeypatch.setenv("PATH", "/nowhere")
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"profiles": {"lab": fields}}))
    tiny.write_image(tmp_path)
    how = ["--profile", "lab", "--profiles", tmp_path / "cluster.yaml", *options]
    ended = command("run", tiny.write_workflow(tmp_path), "--quiet", *how)
    assert (ended[0], ended[2].count("\n")) == (code, 1) and words in ended[2]


@pytest.mark.parametrize("fields", [{"address": "no-such-host.invalid"}, {"address": None, "interface": "ib77"}])
def test_a_network_that_is_not_there_is_named(batch_system, fields):
    with (
        pytest.raises(ConfigurationError, match=r"^(address|interface): .*(no-such-host|ib77)"),
        Hpc(profile("lsf", **fields)),
    ):
        pass


@pytest.mark.parametrize(
    ("shared", "run_url", "words"),
    [
        (None, "s3://bucket/run", "s3://bucket/run: name a folder that all nodes see as 'shared'"),
        (None, "{}/my runs/run", "jobs cannot be told such a path"),
        ("{}/file", "s3://bucket/run", "name a folder that all nodes see as 'shared'"),
    ],
)
def test_a_place_that_nodes_cannot_share_is_refused(batch_system, tmp_path, shared, run_url, words):
    (tmp_path / "file").touch()
    told = profile("lsf", shared=shared and shared.format(tmp_path))
    with pytest.raises(ConfigurationError) as refusal, Hpc(told) as engine:
        list(engine.execute(count, run_url.format(tmp_path), "s/s", [Batch(0, 1)], 1))
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


# what is submitted

EVERYTHING = {
    "queue": "long",
    "account": "lab",
    "walltime": "1-02:30:20",
    "nodes": 3,
    "workers": 4,
    "cores": 2,
    "memory": "1.5Gi",
    "exclusive": True,
    "worker_init": "module load python",
}


def lines(kind, **fields):
    script = render(kind, profile(kind, **EVERYTHING | fields).of(""), "/runs/run/.jobs")
    return [line for line in script.splitlines() if line.startswith("#")], script


def test_a_job_of_slurm_asks_for_what_the_profile_says():
    options, script = lines("slurm", options=["--constraint=haswell", "#SBATCH --qos=low"])
    assert {
        "#SBATCH --partition=long",
        "#SBATCH --account=lab",
        "#SBATCH --time=1591",
        "#SBATCH --nodes=3",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=6G",
        "#SBATCH --exclusive",
        "#SBATCH --constraint=haswell",
        "#SBATCH --qos=low",
    } <= set(options)
    assert script.index("module load python") < script.index("srun --ntasks 3")
    assert "#SBATCH --gpus-per-node=2" in lines("slurm", gpus=2)[0]


def test_a_job_of_lsf_asks_for_what_the_profile_says():
    options, script = lines("lsf", options=["-U reserved"])
    assert {
        "#BSUB -q long",
        "#BSUB -P lab",
        "#BSUB -W 1591",
        "#BSUB -n 24",
        '#BSUB -R "span[ptile=8]"',
        '#BSUB -R "rusage[mem=6GB/host]"',
        "#BSUB -x",
        "#BSUB -U reserved",
    } <= set(options)
    assert "mpiexec" in script and '#BSUB -gpu "num=2/host"' in lines("lsf", gpus=2)[0]


def test_a_job_of_pbs_asks_for_what_the_profile_says():
    options, script = lines("pbs", options=["-l place=excl"])
    assert {
        "#PBS -l select=3:ncpus=8:mem=6gb",
        "#PBS -l walltime=26:31:00",
        "#PBS -l place=excl",
    } <= set(options)
    assert "mpiexec" in script and "#PBS -l select=3:ncpus=4:mem=3gb:ngpus=2" in lines("pbs", gpus=2)[0]


def test_a_dry_run_prints_the_scripts_and_submits_nothing(command, batch_system, tmp_path):
    (tmp_path / "cluster.yaml").write_text(
        yaml.safe_dump({"profiles": {"lab": {"kind": "pbs", "stages": {"fusion": {"gpus": 2}}}}})
    )
    tiny.write_image(tmp_path)
    how = ["--profile", "lab", "--profiles", tmp_path / "cluster.yaml", "--dry-run"]
    code, output, _ = command("run", tiny.write_workflow(tmp_path), *how)
    assert code == 0 and output.count("#PBS -l select=1:ncpus=1\n") > 5
    assert output.count("#PBS -l select=1:ncpus=2:ngpus=2\n") == 2
    assert not (tmp_path / "runs").exists() and not list(batch_system.iterdir())


# jobs that run


def test_output_of_jobs_is_that_of_one_process(batch_system, tmp_path):
    tiny.write_image(tmp_path)
    here, there = tiny.planned(tmp_path, name="here"), tiny.planned(tmp_path, name="there")
    from neurokube.engines import InProcess

    execute(here, InProcess(), quiet=True)
    told = profile("pbs", jobs=2, queue="long", stages={"fusion": {"queue": "short", "jobs": 1}})
    execute(there, Hpc(told), quiet=True)
    assert tiny.results(there) == tiny.results(here)
    scripts = [file.read_text() for file in batch_system.glob("*.sh")]
    assert len(scripts) == 3 and not jobs_left(batch_system)
    assert not list(Path(there.url).glob(".jobs-*"))


def test_a_job_that_is_killed_is_replaced(importable, batch_system, tmp_path):
    with Hpc(profile("lsf")) as engine:
        outcomes = []
        for outcome in engine.execute(count, str(tmp_path), "s/s", [Batch(k, k + 1) for k in range(40)], 1):
            if outcome and len(outcomes) == 3:
                os.killpg(int((batch_system / "1.pid").read_text()), signal.SIGKILL)
            outcomes += [outcome] if outcome else []
    assert sorted(o.batch.first for o in outcomes) == list(range(40))
    assert all(o.report for o in outcomes)
    assert len(list(batch_system.glob("*.sh"))) == 2 and not jobs_left(batch_system)


@pytest.mark.parametrize(("kind", "words"), [("lsf", "bsub refuses jobs: nowhere: No such queue"), ("pbs", "qsub ref")])
def test_a_queue_that_is_not_there_ends_the_run_at_once(batch_system, tmp_path, kind, words):
    with pytest.raises(ConfigurationError) as refusal, Hpc(profile(kind, queue="nowhere")) as engine:
        list(engine.execute(count, str(tmp_path), "s/s", [Batch(0, 1)], 1))
    assert words in str(refusal.value) and str(refusal.value).endswith("; correct the profile")
    assert not list(batch_system.glob("*.sh"))


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("export PATH=/usr/bin:/bin", "does not find the program; let the profile's worker_init make it ready"),
        ("module-that-is-not-there || exit 3", "jobs end before their workers have come: "),
    ],
)
def test_jobs_whose_workers_never_come_end_the_run(batch_system, tmp_path, init, words):
    told = profile("lsf", worker_init=init)
    with pytest.raises(ConfigurationError) as refusal, Hpc(told) as engine:
        list(engine.execute(count, str(tmp_path / "run"), "s/s", [Batch(0, 1)], 1))
    assert words in str(refusal.value) and "\n" not in str(refusal.value)
    assert not jobs_left(batch_system)


def slow(run_url, step_name, batch, stop):
    """Stand in for the worker function: blocks of a tenth of a second, until it is asked to stop."""
    done = 0
    for block in range(batch.first, batch.last):
        if stop():
            return Report(done, drained=True)
        count(run_url, step_name, Batch(block, block + 1), stop)
        time.sleep(0.1)
        done += 1
    return Report(done)


@pytest.mark.parametrize("kind", ["slurm", "lsf", "pbs"])
def test_a_node_that_does_not_see_the_folder_says_so(tmp_path, kind):
    script = render(kind, profile(kind).of(""), str(tmp_path / "elsewhere"))
    ended = subprocess.run(["bash"], input=script, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("neurokube: ") and f"does not see {tmp_path}/elsewhere" in ended.stderr


@pytest.mark.parametrize(("left", "asked"), [(-1, True), (3600, False)])
def test_no_block_begins_in_the_grace_before_the_walltime_ends(tmp_path, monkeypatch, left, asked):
    monkeypatch.setattr(hpc_engine, "hold_on_to", lambda *processes: None)
    monkeypatch.setenv("NEUROKUBE_DEADLINE", str(time.time() + left))

    def work(run_url, step_name, batch, stop):
        return Report(0, drained=stop())

    report = hpc_engine._tended(str(tmp_path), work, "", "s/s", Batch(0, 1), str(tmp_path / "stop"))
    assert report.drained is asked
    assert "NEUROKUBE_DEADLINE=$(($(date +%s) + 3540))" in render("pbs", profile("pbs").of(""), "/x")


def in_two_goes(run_url, step_name, batch, stop):
    """Stand in for the worker function: the first time, the time is over when block 2 has failed."""
    if not Path(run_url, "begun").exists():
        count(run_url, step_name, Batch(0, 3), stop)
        return Report(2, failed=(2,), drained=True)
    return count(run_url, step_name, batch, stop)


def test_the_rest_of_a_batch_that_was_ended_early_is_run_again(importable, tmp_path):
    with Local(1) as engine:
        outcomes = [o for o in engine.execute(in_two_goes, str(tmp_path), "s/s", [Batch(0, 8)], 1) if o]
    early, *rest = [(o.batch, o.report.drained) for o in outcomes]
    assert early == (Batch(0, 8), True)
    # which of the two is heard of first is chance
    assert set(rest) == {(Batch(0, 2), False), (Batch(3, 8), False)} and len(rest) == 2


def test_jobs_that_come_and_go_and_get_nothing_done_end_the_run(importable, batch_system, tmp_path, monkeypatch):
    """As where the walltime is shorter than the start of a worker."""
    monkeypatch.setattr(JobPool, "fruitless", 2)
    words = "without having finished anything; ask for a longer walltime"
    with pytest.raises(ConfigurationError, match=words), Hpc(profile("lsf")) as engine:
        list(engine.execute(never, str(tmp_path), "s/s", [Batch(0, 1)], 10**6))
    assert not jobs_left(batch_system)


def never(run_url, step_name, batch, stop):
    """Stand in for the worker function: its job is gone before anything is done."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def test_a_run_that_is_asked_to_stop_ends_its_blocks_and_its_jobs(importable, batch_system, tmp_path):
    with Hpc(profile("lsf")) as engine:
        outcomes = []
        for outcome in engine.execute(slow, str(tmp_path), "s/s", [Batch(0, 10**6)], 1):
            if (tmp_path / "begun").exists():
                engine.drain()
            outcomes += [outcome] if outcome else []
        assert [o.report.drained for o in outcomes] == [True]
        assert list(engine.execute(slow, str(tmp_path), "t/t", [Batch(0, 1)], 1)) == []
    assert not jobs_left(batch_system)


def test_a_driver_that_is_killed_takes_its_workers_along(batch_system, tmp_path, monkeypatch):
    tiny.write_image(tmp_path)
    fields = {"kind": "lsf", "worker_init": f"export PYTHONPATH={os.environ.get('PYTHONPATH', '')}", **LOOPBACK}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"profiles": {"lab": fields}}))
    code = (
        "import sys; from neurokube.engines.hpc.engine import JobPool; JobPool.heartbeat = (1, 5);"
        "from neurokube.cli import main; sys.argv[0] = 'neurokube'; main()"
    )
    how = ["--profile", "lab", "--profiles", str(tmp_path / "cluster.yaml"), "-q"]
    driver = subprocess.Popen([sys.executable, "-c", code, "run", str(tiny.write_workflow(tmp_path)), *how])
    run = tiny.planned(tmp_path)
    while not tiny.records(run):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert not jobs_left(batch_system)


# a real Slurm


def in_slurm(*arguments):
    return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=30).stdout


def of_slurm(engine):
    return [job for pool in engine._pools.values() for job in pool._htex.provider.resources]


def undisturbed(folder):
    from neurokube.engines import InProcess

    run = tiny.planned(folder, name="here")
    execute(run, InProcess(), quiet=True)
    return tiny.results(run)


class Disturbed(Hpc):
    """An engine to whose jobs something happens, and which looks at what is recorded before and after."""

    def __init__(self, told, run, disturb, times):
        super().__init__(told)
        self.run, self.disturb, self.times = run, disturb, times
        self.before, self.jobs = {}, []

    def execute(self, *arguments):
        for outcome in super().execute(*arguments):
            self.jobs = of_slurm(self) or self.jobs
            if self.times and self.disturb(self):
                self.times -= 1
                self.before |= tiny.records(self.run)
            yield outcome


def kill_a_worker(engine):
    """Kill -9 what works on a batch."""
    for pool in engine._pools.values():
        for mark in pool._marks.iterdir():
            os.kill(int(mark.name.rpartition(".")[2]), signal.SIGKILL)
            return True
    return False


def cancel_a_job(engine):
    """Cancel a job at work."""
    for pool in engine._pools.values():
        if any(pool._marks.iterdir()):
            in_slurm("scancel", next(iter(pool._htex.provider.resources)))
            return True
    return False


@needs_slurm
@pytest.mark.parametrize(("disturb", "times"), [(kill_a_worker, 0), (kill_a_worker, 2), (cancel_a_job, 1)])
def test_jobs_of_slurm_make_the_same_whatever_happens_to_them(tmp_path, disturb, times):
    tiny.write_image(tmp_path)
    run = tiny.planned(tmp_path)
    engine = Disturbed(profile("slurm", jobs=2), run, disturb, times)
    execute(run, engine, quiet=True)
    assert engine.times == 0
    assert tiny.results(run) == undisturbed(tmp_path)
    after = tiny.records(run)
    # what was recorded when it happened was not computed again
    assert all(after[key] == record for key, record in engine.before.items())
    assert not set(engine.jobs) & set(in_slurm("squeue", "-h", "-o", "%A").split())


def endless_at_first(run_url, step_name, batch, stop):
    """Stand in for the worker function: the first time, block 1 takes longer than any job may last."""
    first = batch.first != 1 or 1 not in begun(run_url)
    report = count(run_url, step_name, batch, stop)
    if batch.first == 1 and first:
        time.sleep(600)
    return report


@needs_slurm
def test_a_job_of_slurm_that_is_killed_at_the_end_of_its_walltime_is_replaced(importable, tmp_path):
    (tmp_path / "begun").touch()
    with Hpc(profile("slurm", grace=1, walltime="00:01:00")) as engine:
        batches = [Batch(0, 1), Batch(1, 2), Batch(2, 3)]
        outcomes = [o for o in engine.execute(endless_at_first, str(tmp_path), "s/s", batches, 1) if o]
        jobs = of_slurm(engine)
    assert sorted(o.batch.first for o in outcomes) == [0, 1, 2] and all(o.report for o in outcomes)
    assert sorted(begun(tmp_path)) == [0, 1, 1, 2] and len(jobs) == 2


@needs_slurm
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"partition": "nowhere"}, r"sbatch refuses jobs: invalid partition specified: nowhere.*; correct the profile"),
        ({"cores": 10**4}, r"(would never start the jobs|sbatch refuses jobs).*"),
        (
            {"worker_init": "export PATH=/usr/bin:/bin"},
            "jobs end before their workers have come: .*worker_init make it",
        ),
    ],
)
def test_what_slurm_would_never_run_ends_the_run_within_a_minute(tmp_path, fields, words):
    began = time.monotonic()
    with pytest.raises(NeuroKubeError, match=words) as refusal, Hpc(profile("slurm", **fields)) as engine:
        list(engine.execute(count, str(tmp_path), "s/s", [Batch(0, 1)], 1))
    assert time.monotonic() - began < 60 and "\n" not in str(refusal.value)
    assert not in_slurm("squeue", "-h", "-n", "parsl.neurokube.block-0").strip()


@needs_slurm
def test_a_signal_ends_a_run_in_slurm_with_85_and_all_recorded(tmp_path):
    tiny.write_image(tmp_path)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"profiles": {"lab": {"kind": "slurm", **LOOPBACK}}}))
    how = ["--profile", "lab", "--profiles", str(tmp_path / "cluster.yaml"), "-q"]
    workflow = tiny.write_workflow(tmp_path)
    driver = subprocess.Popen([sys.executable, "-m", "neurokube", "run", str(workflow), *how])
    run = tiny.planned(tmp_path)
    while not tiny.records(run):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 85
    before = tiny.records(run)
    assert not list(Path(run.url).glob(".jobs-*"))
    from neurokube.engines import InProcess

    execute(tiny.planned(tmp_path), InProcess(), quiet=True)
    after = tiny.records(run)
    assert all(after[key] == record for key, record in before.items())
    assert json.loads(Path(run.url, "run.json").read_text())
