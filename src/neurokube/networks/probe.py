"""Which window suits this machine: found by trying, in a process of its own so that memory can be told.

`python -m neurokube.networks.probe` reads {"model", "sha256", "candidates": [{"numerics", "useful"}...], "memory"}
from standard input and prints a line of JSON for each candidate that it tried: new voxels a second, timed once after
a warm-up, and the most memory held so far, in bytes.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..allocator import peak_memory
from ..blocks import Vector
from ..blocks.blending import Array
from ..errors import ConfigurationError
from .predictor import Numerics, open_predictor

_WORTH = 1.05
"""A larger window must be this much faster to be taken: it costs memory, and small volumes more waste."""
_WORSE = 0.9
"""Larger windows are not tried where one reaches less than this share of the best rate so far."""


@dataclass(frozen=True)
class Candidate:
    """Windows of a shape, of which `useful` voxels (z, y, x) are new in each."""

    numerics: Numerics
    useful: Vector


def choose(model: str, sha256: str, candidates: Sequence[Candidate], memory: float) -> tuple[Candidate, float]:
    """Return the candidate with the most new voxels a second whose process stays below `memory` bytes, and its peak.

    `candidates` come in ascending order of size.

    Raises:
        ConfigurationError: where not even the smallest fits, or the network does not run.
    """
    order = {
        "model": model,
        "sha256": sha256,
        "candidates": [{"numerics": c.numerics.model_dump(), "useful": c.useful} for c in candidates],
        "memory": memory,
    }
    done = subprocess.run(
        [sys.executable, "-m", "neurokube.networks.probe"], input=json.dumps(order), capture_output=True, text=True
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    fitting = [(c, f) for c, f in zip(candidates, found, strict=False) if f["peak"] <= memory]
    if not fitting:
        if found:
            window, peak = candidates[0].numerics.window, found[0]["peak"] / 2**30
            raise ConfigurationError(
                f"memory: the smallest window {window} already takes {peak:.2f} GiB, more than "
                f"{memory / 2**30:g}; allow more, or use a smaller model"
            )
        reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise ConfigurationError(f"model: it does not run here: {reason}")
    best, best_rate, peak = None, 0.0, 0.0
    for candidate, result in fitting:
        if best is None or result["rate"] > best_rate * _WORTH:
            best, best_rate, peak = candidate, result["rate"], result["peak"]
    assert best is not None
    return best, peak


def _main() -> None:
    order = json.load(sys.stdin)
    best = 0.0
    for entry in order["candidates"]:
        numerics = Numerics.model_validate(entry["numerics"])
        predictor = open_predictor(order["model"], order["sha256"], numerics)
        lead = (numerics.batch,) if predictor.card.channels == 1 else (numerics.batch, predictor.card.channels)
        images: Array = np.random.default_rng(0).standard_normal((*lead, *numerics.window), np.float32)
        if predictor.device is not None:
            # there they are in a run too
            images = _there(images, predictor.device)
        predictor(images)
        _wait(numerics)
        started = time.perf_counter()
        predictor(images)
        _wait(numerics)
        rate = prod(entry["useful"]) * numerics.batch / (time.perf_counter() - started)
        peak = _device_memory(numerics) or peak_memory()
        print(json.dumps({"rate": rate, "peak": peak}), flush=True)
        open_predictor.cache_clear()
        if peak > order["memory"] or rate < best * _WORSE:
            break
        best = max(best, rate)


def _there(images: NDArray[np.float32], device: Any) -> Array:
    import torch

    return torch.from_numpy(images).to(device)


def _wait(numerics: Numerics) -> None:
    if numerics.backend == "cuda":
        import torch

        torch.cuda.synchronize()


def _device_memory(numerics: Numerics) -> int:
    if numerics.backend != "cuda":
        return 0
    import torch

    return torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    _main()
