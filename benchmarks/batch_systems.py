"""What a batch costs through a batch system, beside worker processes of this machine.

    python -m benchmarks.batch_systems PROFILES NAME [--batches 1000] [--rounds 3]

Batches of one block that does nothing go through the local engine and through jobs by the profile NAME of the file
PROFILES, each with as many workers as the profile has.  A batch's cost is the time from the first to the last that came
back over their number; the start is the time until the first came back, the wait in the queue included.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from neurokube.engines import Batch, Engine
from neurokube.engines.hpc import Hpc, load_job_profile
from neurokube.engines.local import Local

from .measure import machine, ratio
from .noop import nothing

ROOT = str(Path(__file__).parents[1])


def timed(engine: Engine, folder: str, batches: int) -> tuple[float, float, float]:
    """Return seconds until the first batch came back, a batch after it, and until all workers were gone."""
    began = time.monotonic()
    with engine:
        work = (Batch(k, k + 1) for k in range(batches))
        ended = [time.monotonic() for outcome in engine.execute(nothing, folder, "s/s", work, 1) if outcome]
        done = time.monotonic()
    return ended[0] - began, (ended[-1] - ended[0]) / (batches - 1), time.monotonic() - done


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("profiles")
    parser.add_argument("name")
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")])
    profile = load_job_profile(options.name, options.profiles)
    engines: dict[str, Callable[[], Engine]] = {
        "local": lambda: Local(profile.slots),
        profile.kind: lambda: Hpc(profile),
    }
    print(machine())
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in engines}
    for _ in range(options.rounds):
        for name, engine in engines.items():
            with tempfile.TemporaryDirectory(prefix="batch-systems-", dir=".") as folder:
                found[name].append(timed(engine(), str(Path(folder).absolute()), options.batches))
    for name, timings in found.items():
        first, batch, gone = (median(column) for column in zip(*timings, strict=True))
        print(
            f"{name:6} {profile.slots} workers: first after {first:5.2f} s, {batch * 1e3:6.2f} ms a batch, "
            f"workers gone after {gone:5.2f} s; a batch {name} / local: "
            f"{ratio([t[1] for t in timings], [t[1] for t in found['local']]):.2f}"
        )


if __name__ == "__main__":
    main()
