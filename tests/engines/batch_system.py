#!/usr/bin/env python3
"""LSF and PBS for one user on one machine, as far as Parsl talks to them: a job is a process group that runs at once.

It goes by the names bsub, bjobs, bkill, qsub, qstat and qdel; BATCH_SYSTEM names the folder where it keeps script and
process of each job.  A queue of any name but `nowhere` is there.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

NAMES = ("bsub", "bjobs", "bkill", "qsub", "qstat", "qdel")


def main() -> int:
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    jobs = Path(os.environ["BATCH_SYSTEM"])
    if name in ("bsub", "qsub"):
        lsf = name == "bsub"
        script = sys.stdin.read() if lsf else Path(arguments[-1]).read_text()
        if "#BSUB -q nowhere" in script or "nowhere" in arguments:
            print("nowhere: No such queue. Job not submitted." if lsf else "qsub: Unknown queue", file=sys.stderr)
            return 1
        number = 1 + len(list(jobs.glob("*.sh")))
        file = jobs / f"{number}.sh"
        file.write_text(script)
        flags = ("#BSUB -o ", "#BSUB -e ") if lsf else ("#PBS -o ", "#PBS -e ")
        out, err = (next(line.removeprefix(f) for line in script.splitlines() if line.startswith(f)) for f in flags)
        # PBS gives jobs nothing of the environment that they were submitted from
        kept = dict(os.environ) if lsf else {k: os.environ[k] for k in ("HOME", "BATCH_SYSTEM")} | {"PATH": os.defpath}
        with Path(out).open("w") as stdout, Path(err).open("w") as stderr:
            process = subprocess.Popen(
                ["/bin/bash", str(file)],
                env=kept,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        (jobs / f"{number}.pid").write_text(str(process.pid))
        print(f"Job <{number}> is submitted to queue <{arguments}>." if lsf else f"{number}.here")
        return 0
    numbers = [a.partition(".")[0] for a in arguments if a.partition(".")[0].isdecimal()]
    pids = {number: int((jobs / f"{number}.pid").read_text()) for number in numbers}
    if name in ("bkill", "qdel"):
        for pid in pids.values():
            if running(pid):
                os.killpg(pid, signal.SIGKILL)
    elif name == "bjobs":
        for number, pid in pids.items():
            print(number, "RUN" if running(pid) else "EXIT")
    else:
        found = {f"{n}.here": {"job_state": "R"} for n, pid in pids.items() if running(pid)}
        gone = [number for number, pid in pids.items() if not running(pid)]
        if found:
            print(json.dumps({"Jobs": found}))
        for number in gone:
            print(f"qstat: Unknown Job Id {number}.here", file=sys.stderr)
        return 153 if gone else 0
    return 0


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
