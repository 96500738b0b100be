"""What does scratch spare where a store is slow: requests, and time?

    python -m benchmarks.scratch FOLDER [--shape 64,384,384] [--delay 50] [--steps fragments/fragments,graph/edges]

A small S3 server in a process of its own answers each request after `delay` milliseconds and counts them.  One worker
works through all blocks of a step in order, as a pod does through its batch, in a process of its own with the cache of
a pod, 64 MiB: straight from the store and with NEUROKUBE_SCRATCH, which is in FOLDER, in turn.  `bytes` are those that
came from the store.  Of semantics the network is left out, see `benchmarks.staging`.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .staging import STEPS, once, prepared

CACHE = 64 << 20
URL = "s3://neurokube-test/benchmark"


def main() -> None:
    """Prepare without delay, then measure every step both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the scratch")
    parser.add_argument("--shape", default="64,384,384", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--delay", default=50.0, type=float, help="milliseconds")
    parser.add_argument("--rounds", default=2, type=int)
    parser.add_argument("--steps", default=",".join(STEPS), type=lambda text: text.split(","))
    options = parser.parse_args()
    with served() as server:
        run = prepared(URL, options.shape)
        server.send(options.delay / 1000)
        server.recv()
        print("| step | | requests | bytes, MB | reading, s | all, s | peak memory, MB |")
        print("|---|---|---|---|---|---|---|")
        for step in options.steps:
            for _ in range(options.rounds):
                for name, scratch in (("straight", None), ("scratch", options.folder)):
                    cells = measured(server, run.url, step, scratch)
                    print(f"| {step} | {name} | {' | '.join(cells)} |", flush=True)


def measured(server: Connection, run: str, step: str, scratch: Path | None) -> list[str]:
    """Return the cells of a row."""
    os.environ.pop("NEUROKUBE_SCRATCH", None)
    if scratch is not None:
        os.environ["NEUROKUBE_SCRATCH"] = str(scratch)
    before = asked(server)
    told = once(URL, run, step, CACHE)
    after = asked(server)
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
