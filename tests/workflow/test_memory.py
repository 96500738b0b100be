"""A worker's memory does not grow with the volume."""

from multiprocessing import get_context

import numpy as np
from tiny import planned, tissue, write_image

from neurokube.engines import Batch
from neurokube.workflow import work

TILE = [16, 96, 96]
STAGES = {
    "boundaries": {"tile": TILE, "sections": "one by one"},
    "fragments": {"tile": TILE, "sections": "one by one"},
    "graph": {},
    "multicut": {"first_block": TILE, "levels": 1},
    "segmentation": {},
    "objects": {"semantics": "boundaries", "threshold": 0.3, "core": 0.7, "reach": 60, "tile": TILE},
    "measurements": {"cells": "segmentation", "semantics": "boundaries"},
}


def peak_by_step(folder, shape):
    """Run every step in a worker process of its own; return its peak memory in bytes, by step."""
    folder.mkdir()
    z, y, x = shape
    write_image(folder, np.tile(tissue(), (1, y // 96, x // 96))[:z])
    run = planned(folder, stages=STAGES)
    run.prepare()
    # each is forked from a process that has done nothing but import the program
    context = get_context("forkserver")
    context.set_forkserver_preload(["neurokube.workflow"])
    peaks = {}
    for name, step in run.plan.steps.items():
        process = context.Process(target=work, args=(run.url, name, Batch(0, len(step.blocks))))
        process.start()
        process.join()
        assert process.exitcode == 0
        peaks[name] = max(record.peak_memory for _, record in run.ledger(step).records())
    return peaks


def test_the_peak_of_a_worker_does_not_grow_with_a_volume_8_times_as_large(tmp_path):
    # the small one is wide enough to have a tile with its halo on every side
    small = peak_by_step(tmp_path / "small", (16, 288, 288))
    large = peak_by_step(tmp_path / "large", (32, 576, 576))
    # the last solution alone may grow, with the reduced graph
    del small["multicut/last"], large["multicut/last"]
    # With tiles this small most of it is Python itself, and what the allocator keeps over the first dozens of
    # blocks is more than a tenth. The larger segmentation has 85 MB: holding on to it would show.
    noise = 48 << 20
    growth = {
        name: (small[name], large[name]) for name in small if large[name] > max(1.1 * small[name], small[name] + noise)
    }
    assert not growth
