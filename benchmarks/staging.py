"""What of its input does a worker read twice, what does that cost, and what is gained by keeping it?

    AWS_ENDPOINT_URL=... AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... \\
        python -m benchmarks.staging s3://BUCKET/FOLDER [--shape 128,768,768] [--cache 4,32,128,256]

One worker works through all blocks of a step in order, as a pod does through its batch, once for each size of the
cache, in a process of its own, and only that step: what it reads lies in the store already.  `read` counts the bytes
that came from the store and `requests` the requests for them, as tensorstore does.  `reading` is the time that
`Volume.read` takes, decoding included.  Of semantics the network is left out, which would take most of the time.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from neurokube.blocks import Box
from neurokube.engines import Batch, InProcess
from neurokube.networks.predictor import _Torch
from neurokube.synthesis import Neuropil, synthesize
from neurokube.volumes import Volume, VolumeSpec, create, exists, join
from neurokube.workflow import Run, execute, parse_workflow, work

STEPS = (
    "semantics/semantics",
    "boundaries/boundaries",
    "fragments/fragments",
    "graph/edges",
    "segmentation/segmentation",
)
VOXEL_SIZE = (10.0, 10.0, 10.0)


def main() -> None:
    """Prepare, then measure every step with every size of cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="folder or URL")
    parser.add_argument("--shape", default="128,768,768", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--cache", default="4,32,128,256", type=lambda text: list(map(int, text.split(","))))
    parser.add_argument("--steps", default=",".join(STEPS), type=lambda text: text.split(","))
    parser.add_argument("--one", nargs=2, metavar=("STEP", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*options.one)))
        return
    run = prepared(options.url, options.shape)
    print("| step | cache, MiB | read, MB | requests | reading, s | all, s | peak memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for step in options.steps:
        for size in options.cache:
            told = once(options.url, run.url, step, size)
            cells = [step, size, *(f"{told[k]:.1f}" for k in ("read", "requests", "reading", "seconds", "peak"))]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def once(url: str, run: str, step: str, size: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.staging", url, "--one", step, run]
    environment = os.environ | {"NEUROKUBE_CACHE": str(size << 20)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prepared(url: str, shape: tuple[int, int, int]) -> Run:
    """Return a finished run on a volume of synthetic tissue, made of one piece again and again."""
    image = join(url, "image.zarr")
    if not exists(image):
        piece = synthesize(Neuropil(seed=3), VOXEL_SIZE, Box.of((64, 128, 128)))["image"]
        counts = [-(-n // p) for n, p in zip(shape, piece.shape, strict=True)]
        voxels = np.tile(piece, counts)[: shape[0], : shape[1], : shape[2]]
        create(image, VolumeSpec(shape, "uint8", VOXEL_SIZE), attributes={"fingerprint": str(shape)}).write(
            Box.of(shape), voxels
        )
    stages = {
        "semantics": {"model": "fib25-10-10-10", "window": [64, 160, 160], "backend": "torch", "permutations": 1},
        "boundaries": {},
        "fragments": {"boundaries": "boundaries"},
        "graph": {"boundaries": "boundaries", "channels": {"grey": "image"}},
        "multicut": {},
        "segmentation": {},
    }
    document = {"name": "run", "workspace": url, "inputs": {"image": {"path": image}}, "stages": stages}
    with mock.patch.object(_Torch, "_run", blank):
        run = Run.planned(parse_workflow(document))
        execute(run, InProcess(), quiet=True)
    return run


def blank(network: _Torch, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stand in for the network, which would take minutes for what is read in seconds."""
    return np.full((len(images), len(network.card.labels), *images.shape[2:]), 0.5, np.float32)


def measured(step: str, url: str) -> dict[str, float]:
    """Work through all blocks of a step whose records are forgotten; return what it read."""
    run = Run.open(url)
    planned = run.plan.step(step)
    run.at(planned.planned).delete_all(f"ledger/{planned.planned.key}/{planned.step.name}/")
    taken = [0.0]
    plain = Volume.read

    def read(self: Volume, box: Box, level: int = 0) -> Any:
        began = time.monotonic()
        try:
            return plain(self, box, level)
        finally:
            taken[0] += time.monotonic() - began

    before = counted()
    began = time.monotonic()
    with mock.patch.object(Volume, "read", read), mock.patch.object(_Torch, "_run", blank):
        report = work(url, step, Batch(0, len(planned.blocks)))
    seconds = time.monotonic() - began
    assert report.done == len(planned.blocks)
    after = counted()
    peak = max(record.peak_memory for _, record in run.ledger(planned).records())
    return {
        "read": (after[0] - before[0]) / 1e6,
        "requests": after[1] - before[1],
        "reading": taken[0],
        "seconds": seconds,
        "peak": peak / 1e6,
    }


def counted() -> tuple[int, int]:
    """Return bytes and requests by which tensorstore has read so far."""
    import tensorstore as ts

    found = {
        metric["name"]: sum(value.get("value", 0) for value in metric["values"])
        for metric in ts.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    }
    kinds = [kind for kind in ("s3", "file") if f"/tensorstore/kvstore/{kind}/bytes_read" in found]
    return (
        sum(int(found[f"/tensorstore/kvstore/{kind}/bytes_read"]) for kind in kinds),
        sum(int(found.get(f"/tensorstore/kvstore/{kind}/batch_read", 0)) for kind in kinds),
    )


if __name__ == "__main__":
    main()
