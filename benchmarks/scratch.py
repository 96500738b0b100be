"""What does scratch spare where a store is slow: requests, and time?

    python -m benchmarks.scratch FOLDER [--shape 64,384,384] [--delay 50] [--steps fragments/fragments,graph/edges]

A small S3 server in a process of its own answers each request after `delay` milliseconds and counts them.  One worker
works through all blocks of a step in order, as a pod does through its batch, in a process of its own with the cache of
a pod, 64 MiB, in turn: straight from the store; with NEUROKUBE_SCRATCH, which is in FOLDER, but waiting for each object
that is written ("read"); and writing behind as well ("read, written").  `bytes` are those that came from the store.  Of
semantics the network is left out, see `benchmarks.staging`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from neurokube.volumes.scratch import Scratch

from .staging import STEPS, measured, prepared

WAYS = ("straight", "read", "read, written")
URL = "s3://neurokube-test/benchmark"


def main() -> None:
    """Prepare without delay, then measure every step both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the scratch")
    parser.add_argument("--shape", default="64,384,384", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--delay", default=50.0, type=float, help="milliseconds")
    parser.add_argument("--rounds", default=2, type=int)
    parser.add_argument("--steps", default=",".join(STEPS), type=lambda text: text.split(","))
    parser.add_argument("--one", nargs=3, metavar=("WAY", "STEP", "RUN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        way, step, url = options.one
        with mock.patch.object(Scratch, "write", at_once) if way == "read" else nullcontext():
            print(json.dumps(measured(step, url)))
        return
    with served() as server:
        run = prepared(URL, options.shape)
        server.send(options.delay / 1000)
        server.recv()
        print("| step | | requests | bytes, MB | reading, s | all, s | peak memory, MB |")
        print("|---|---|---|---|---|---|---|")
        for step in options.steps:
            for _ in range(options.rounds):
                for way in WAYS:
                    cells = row(server, run.url, step, way, options.folder)
                    print(f"| {step} | {way} | {' | '.join(cells)} |", flush=True)


def at_once(scratch: Scratch, size: int, begin: Callable[[], Callable[[], object]]) -> None:
    """Write as without scratch, in place of `Scratch.write`."""
    begin()()


def row(server: Connection, run: str, step: str, way: str, scratch: Path) -> list[str]:
    """Return the cells of a row, measured in a process of its own."""
    environment = os.environ | {"NEUROKUBE_CACHE": str(64 << 20)}
    if way != "straight":
        environment["NEUROKUBE_SCRATCH"] = str(scratch)
    command = [sys.executable, "-m", "benchmarks.scratch", str(scratch), "--one", way, step, run]
    before = asked(server)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    after = asked(server)
    told = json.loads(done.stdout.splitlines()[-1])
    return [
        str(after[0] - before[0]),
        f"{(after[1] - before[1]) / 1e6:.1f}",
        *(f"{told[k]:.1f}" for k in ("reading", "seconds")),
        f"{told['peak']:.0f}",
    ]


def asked(server: Connection) -> tuple[int, int]:
    """Return how many requests the server has answered, and the bytes that it gave."""
    server.send(None)
    requests, given = server.recv()
    return requests, given


@contextmanager
def served() -> Iterator[Connection]:
    """Serve an empty bucket, and yield what takes its delay in seconds, or None, and tells what was asked of it."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    process.start()
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    os.environ.update(keys, AWS_ENDPOINT_URL=here.recv())
    try:
        yield here
    finally:
        process.terminate()
        process.join()


def serve(connection: Any) -> None:
    """Be the server."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from s3_server import Bucket, serving  # type: ignore[import-not-found, unused-ignore]

    bucket = Bucket()
    with serving(bucket) as endpoint:
        connection.send(endpoint)
        while True:
            if (delay := connection.recv()) is not None:
                bucket.delay = delay
            connection.send((bucket.requests, bucket.given))


if __name__ == "__main__":
    main()
