"""Parsl's providers of Slurm, LSF and PBS, made by a profile: what they submit, and what they are told.

This module imports Parsl: import it where jobs are about to be submitted.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from parsl import launchers
from parsl.providers import LSFProvider, PBSProProvider, SlurmProvider
from parsl.providers.cluster_provider import ClusterProvider

from .profile import KINDS, PREFIXES, Jobs

POLL = 15
"""Seconds between questions to the batch system about its jobs."""

_TIMEOUT = 30
_OVER = re.compile(r"Invalid job id specified|Unknown Job Id|Job has finished|is not found")
"""What batch systems say of jobs that were over so long ago that they have forgotten them."""

_ANSWERS = "Submitted batch job 0\nJob <0> is submitted to queue <none>.\n"
"""What batch systems say when they take a job, all of them."""

_LAUNCHERS = {
    "srun": launchers.SrunLauncher,
    "mpiexec": launchers.MpiExecLauncher,
    "mpirun": launchers.MpiRunLauncher,
    "aprun": launchers.AprunLauncher,
    "jsrun": launchers.JsrunLauncher,
}

_THREADS = "export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1"


class _Told(ClusterProvider):  # type: ignore[misc]
    """What of a provider talks to the batch system, which keeps what it was told last of its jobs."""

    dry = False
    accepted = 0
    refused = 0
    answer = ""

    def execute_wait(self, cmd: str, timeout: float | None = None) -> tuple[int, str, str]:
        """Run a command of the batch system.

        Parsl takes no failure for an answer: a job that nobody knows any more would be waited for, for ever.
        """
        if self.dry:
            return 0, _ANSWERS, ""
        try:
            code, out, err = super().execute_wait(cmd, timeout)
        except subprocess.TimeoutExpired:
            code, out, err = 1, "", f"{cmd.split()[0]} did not answer within {self.cmd_timeout} s"
        if cmd.split()[0] in KINDS.values():
            if code == 0:
                self.accepted, self.refused = self.accepted + 1, 0
            else:
                self.refused, self.answer = self.refused + 1, _line(err or out) or f"it ended with {code}"
        elif code and _OVER.search(err):
            code, out = 0, out or self.nothing
        return code, out, err

    nothing = ""
    """What asking for no job at all gives."""

    def waits(self) -> str:
        """Return why jobs that are queued do not start, where the batch system tells."""
        return ""

    def end(self) -> None:
        """Cancel what is not known to be over."""
        if left := [name for name, job in self.resources.items() if not job["status"].terminal]:
            self.cancel(left)


class Slurm(SlurmProvider, _Told):  # type: ignore[misc]
    """Jobs of Slurm."""

    status_polling_interval = POLL

    def waits(self) -> str:
        """Return the reason that squeue gives."""
        queued = ",".join(name for name, job in self.resources.items() if not job["status"].terminal)
        code, out, _ = self.execute_wait(f"squeue --noheader --states=PENDING --format=%r --job {queued or 0}")
        return out.split("\n")[0].strip() if code == 0 else ""


class Lsf(LSFProvider, _Told):  # type: ignore[misc]
    """Jobs of LSF."""

    status_polling_interval = POLL


class Pbs(PBSProProvider, _Told):  # type: ignore[misc]
    """Jobs of PBS Professional or OpenPBS."""

    status_polling_interval = POLL
    nothing = "{}"


def make_provider(kind: str, jobs: Jobs, folder: str) -> Any:
    """Return the provider of jobs whose workers use `folder`, which they must see."""
    common: dict[str, Any] = {
        "account": jobs.account,
        "nodes_per_block": jobs.nodes,
        "init_blocks": 0,
        "min_blocks": 0,
        "max_blocks": jobs.jobs,
        "walltime": _rounded(jobs.seconds),
        "worker_init": _preparation(kind, jobs, folder),
        "launcher": _launcher(kind, jobs),
        "cmd_timeout": _TIMEOUT,
    }
    options, cores = [_option(kind, line) for line in jobs.options], jobs.per_node * jobs.cores
    if kind == "slurm":
        if jobs.gigabytes:
            options.append(f"#SBATCH --mem={jobs.gigabytes}G")
        return Slurm(
            partition=jobs.queue,
            cores_per_node=cores,
            gpus_per_node=jobs.gpus or None,
            exclusive=jobs.exclusive,
            scheduler_options="\n".join(options),
            **common,
        )
    if kind == "lsf":
        if jobs.gigabytes:
            options.append(f'#BSUB -R "rusage[mem={jobs.gigabytes}GB/host]"')
        if jobs.gpus:
            options.append(f'#BSUB -gpu "num={jobs.gpus}/host"')
        if jobs.exclusive:
            options.append("#BSUB -x")
        return Lsf(
            queue=jobs.queue,
            project=common.pop("account"),
            request_by_nodes=False,
            cores_per_block=jobs.nodes * cores,
            cores_per_node=cores,
            bsub_redirection=True,
            scheduler_options="\n".join(options),
            **common,
        )
    memory = f":mem={jobs.gigabytes}gb" if jobs.gigabytes else ""
    gpus = f":ngpus={jobs.gpus}" if jobs.gpus else ""
    return Pbs(
        queue=jobs.queue,
        cpus_per_node=cores,
        select_options=f"{memory}{gpus}",
        scheduler_options="\n".join(options),
        **common,
    )


def render(kind: str, jobs: Jobs, folder: str) -> str:
    """Return the script that would be submitted; what connects to the driver is known when it runs."""
    with tempfile.TemporaryDirectory() as scripts:
        provider = make_provider(kind, jobs, folder)
        provider.script_dir, provider.dry = scripts, True
        provider.submit("process_worker_pool.py ...", 1, "parsl.neurokube.block-0")
        script = next(path for path in Path(scripts).iterdir() if not path.name.startswith("cmd_"))
        return script.read_text().replace(scripts, folder)


def _launcher(kind: str, jobs: Jobs) -> Any:
    several = "srun" if kind == "slurm" else "mpiexec"
    name = jobs.launcher or (several if jobs.nodes > 1 else "single")
    if name == "single":
        return launchers.SingleNodeLauncher()
    return _LAUNCHERS[name](overrides=jobs.launcher_options)


def _option(kind: str, line: str) -> str:
    return line if line.startswith("#") else f"{PREFIXES[kind]} {line}"


def _preparation(kind: str, jobs: Jobs, folder: str) -> str:
    """Return what a job does before its workers start: whatever fails here says so in one line."""
    seen = shlex.quote(f"{folder}/at-work")
    lines = [
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        jobs.worker_init,
        _THREADS,
        # from here on no worker starts a block, so that none is cut short by the end of the walltime
        f"export NEUROKUBE_DEADLINE=$(($(date +%s) + {jobs.seconds - jobs.grace}))",
        f'[ -d {seen} ] || {{ echo "neurokube: $(hostname) does not see {folder}; the run, or what the profile names '
        "as 'shared', must lie where all nodes see it\" >&2; exit 1; }",
        'command -v process_worker_pool.py >/dev/null || { echo "neurokube: $(hostname) does not find the program; let '
        "the profile's worker_init make it ready\" >&2; exit 1; }",
    ]
    if kind == "slurm":
        # since 22.05 srun takes one core for a task unless it is told otherwise
        lines.append("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK")
    return "\n".join(line for line in lines if line)


def _rounded(seconds: int) -> str:
    """Return a walltime as HH:MM:00, rounded up, as Slurm and LSF count minutes."""
    minutes = -(-seconds // 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:00"


def _line(text: str) -> str:
    """Return what a program said, as one line."""
    lines = [line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines()]
    return "; ".join(line for line in lines if line)[:500]
