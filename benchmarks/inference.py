"""The stage `semantics` beside its bare network and beside MONAI's sliding windows, in one process of one thread.

    python -m benchmarks.inference [--rounds 3] [--limits]

All see the same U-Net of random weights (`small`, for voxels of 40 x 8 x 8 nm, 7 labels) and 32 x 512 x 512 voxels.

- `network`: the windows that the volume has, each predicted once, nothing else.
- `neurokube`: the stage's compute: it reads, normalizes, predicts, blends, and writes 8-bit volumes.
- `monai, same windows`: `sliding_window_inference` with the same predictor, windows, stride and batch, gaussian
  weights, on an image that is in memory and normalized; what it returns is in memory too, and not written.
- `monai, same job`: the same, with what it takes to do the stage's job: it reads and normalizes the image first, and
  writes what it returns to the same 8-bit volumes.
- `monai, as documented`: the PyTorch network as it was trained, windows of 96 along each axis that has as many,
  overlap 0.25, gaussian weights, 4 windows at once.

Contestants take turns; peaks are of a process each.  `--limits` plans a larger volume for three limits of memory
and lets a worker do its first block.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from neurokube.allocator import peak_memory
from neurokube.blocks import Box, Vector
from neurokube.evaluation.curves import quantized
from neurokube.networks import Normalization, write_bundle
from neurokube.networks.bundle import Bundle, load_bundle
from neurokube.networks.predictor import open_predictor
from neurokube.networks.unet import SIZES, UNet, UNetConfig
from neurokube.stages import Block, Semantics, Step
from neurokube.volumes import VolumeSpec, create, open_volume
from neurokube.volumes.volume import Nanometres
from neurokube.workflow import Run, parse_workflow

from .measure import machine, ratio

VOXEL_SIZE: Nanometres = (40.0, 8.0, 8.0)
LABELS = tuple("abcdefg")
SHAPE: Vector = (32, 512, 512)
STEP = "semantics/semantics"


def model(folder: Path, features: tuple[int, ...] = SIZES["small"]) -> Bundle:
    """Write a U-Net of random weights."""
    torch.manual_seed(0)
    config = UNetConfig.fitting(VOXEL_SIZE, len(LABELS), features)
    card = {
        "name": "random",
        "architecture": {"kind": "unet", "levels": [level.model_dump() for level in config.levels]},
        "labels": LABELS,
        "voxel_size": VOXEL_SIZE,
        "window": (16, 160, 160),
        "multiple": config.factor,
        "halo": (1, 8, 8),
    }
    return write_bundle(folder, card, UNet(config).state_dict())


def image(path: Path, shape: Vector) -> None:
    """Write noise, of which the network makes noise: the hardest to encode."""
    volume = create(str(path), VolumeSpec(shape, "uint8", VOXEL_SIZE), attributes={"fingerprint": str(shape)})
    piece = np.random.default_rng(0).integers(1, 256, (16, *shape[1:])).astype(np.uint8)
    for z in range(0, shape[0], 16):
        volume.write(Box((z, 0, 0), (z + 16, *shape[1:])), piece)


def planned(folder: Path, **settings: Any) -> Run:
    """Plan a run on the image and the model in a folder; its outputs are made new."""
    stage = {"model": str(folder / "model"), **settings}
    run = Run.planned(
        parse_workflow(
            {
                "name": "run",
                "workspace": str(folder),
                "inputs": {"image": {"path": str(folder / "image.zarr")}},
                "stages": {"semantics": stage},
            }
        )
    )
    run.prepare()
    return run


class Contest:
    """What the contestants share: a run that was planned, its predictor, and the image in memory."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.run = planned(folder) if not (folder / "run").exists() else Run.open(str(folder / "run"))
        stage = self.run.plan.stages[0].stage
        assert isinstance(stage, Semantics)
        assert stage.settled is not None
        self.stage, self.settled = stage, stage.settled
        self.grid = stage.grid(self.run.plan.stages[0].sources["image"].spec)
        self.bundle = load_bundle(stage.model)
        self.predictor = open_predictor(stage.model, self.settled.sha256, self.settled.numerics)
        self.data = self.run.plan.stages[0].data()
        statistics = self._step("statistics")
        statistics.compute(Block(Box.of((1, 1, 1)), (0,)), self.data)

    def _step(self, name: str) -> Step:
        return self.run.plan.steps[f"semantics/{name}"].step

    def image(self) -> torch.Tensor:
        volume = open_volume(self.data.volume("image").url)
        mean, deviation = self.data.table("statistics", 0)
        normal = Normalization(mean=float(mean), deviation=float(deviation)).apply(volume.read(volume.spec.box))
        return torch.from_numpy(normal)[None, None]

    def network(self) -> None:
        numerics = self.settled.numerics
        images = np.random.default_rng(0).standard_normal((numerics.batch, *numerics.window), np.float32)
        for _ in range(-(-len(self.grid) // numerics.batch)):
            self.predictor(images)

    def neurokube(self) -> None:
        blocks = self.run.plan.steps[STEP].blocks
        for block in range(len(blocks)):
            members = tuple(blocks.members(block))
            self._step("semantics").compute(Block(blocks.box(block), members), self.data)

    def same_windows(self, images: torch.Tensor) -> torch.Tensor:
        numerics = self.settled.numerics
        found = sliding_window_inference(
            images,
            roi_size=numerics.window,
            sw_batch_size=numerics.batch,
            predictor=lambda x: torch.from_numpy(self.predictor(x[:, 0].numpy())),
            overlap=[1 - s / w + 1e-9 for s, w in zip(self.grid.stride, numerics.window, strict=True)],
            mode="gaussian",
        )
        assert isinstance(found, torch.Tensor)
        return found

    def same_job(self) -> None:
        found = quantized(self.same_windows(self.image())[0].numpy())
        for label, values in zip(LABELS, found, strict=True):
            self.data.write(label, Box.of(SHAPE), values)

    def as_documented(self, images: torch.Tensor, network: torch.nn.Module) -> None:
        with torch.inference_mode():
            sliding_window_inference(
                images,
                roi_size=[min(96, n) for n in SHAPE],
                sw_batch_size=4,
                predictor=lambda x: torch.sigmoid(network(x)),
                overlap=0.25,
                mode="gaussian",
            )

    def contestants(self) -> dict[str, Callable[[], None]]:
        """Return who competes, by name; what a name needs is made when it is called."""
        images = self.image()
        return {
            "network": self.network,
            "neurokube": self.neurokube,
            "monai, same windows": partial(self.same_windows, images),
            "monai, same job": self.same_job,
            "monai, as documented": partial(self.as_documented, images, self.bundle.network(fold=False)),
        }


def race(folder: Path, rounds: int) -> None:
    """Print rates and ratios of all, in turns."""
    started = time.perf_counter()
    contest = Contest(folder)
    print(f"planned and opened in {time.perf_counter() - started:.0f} s: {contest.settled.numerics}")
    blocks = contest.run.plan.steps[STEP].blocks
    spec = contest.run.plan.stages[0].sources["image"].spec
    again = contest.stage.recomputation(spec, blocks.box(0).shape)
    print(f"{len(contest.grid)} windows, stride {contest.grid.stride}, halo {contest.grid.halo}")
    print(f"{len(blocks)} blocks of {blocks.box(0).shape}; recomputation {again:.2f}")
    contestants = contest.contestants()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, compute in contestants.items():
            started = time.perf_counter()
            compute()
            seconds[name].append(time.perf_counter() - started)
    ours = seconds["neurokube"]
    for name, found in seconds.items():
        rate = np.prod(SHAPE) / median(found) / 1e6
        print(f"{name:22} {rate:5.3f} Mvoxel/s; neurokube's rate over it: {ratio(found, ours):.3f}")


def alone(folder: Path, name: str) -> None:
    """Let one contestant run in this process, and print its peak in MiB."""
    if name == "neurokube":
        Contest(folder).neurokube()
    else:
        Contest(folder).contestants()[name]()
    print(peak_memory() >> 20)


def peaks(folder: Path) -> None:
    """Print the most memory that each contestant holds, in a process each."""
    for name in ("neurokube", "monai, same windows", "monai, same job", "monai, as documented"):
        command = [sys.executable, "-m", "benchmarks.inference", "--alone", name, "--folder", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        print(f"{name:22} peak {done.stdout.split()[-1]} MiB")


def limits(folder: Path) -> None:
    """Print, for three limits of memory, what was planned and what a worker took."""
    model(folder / "model", (4, 8, 16))
    image(folder / "image.zarr", (16, 3072, 3072))
    for limit in (1.0, 1.5, 3.0):
        run = planned(folder, memory=limit)
        for step, share in (("semantics/statistics", "0/1"), (STEP, f"0/{len(run.plan.steps[STEP].blocks)}")):
            command = [sys.executable, "-m", "neurokube", "work", run.url, step, "--batch", share]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        step = run.plan.steps[STEP]
        peak = max(record.peak_memory for _, record in run.ledger(step).records()) / 2**30
        stage = run.plan.stages[0].stage
        assert isinstance(stage, Semantics)
        assert stage.settled is not None
        print(
            f"limit {limit} GiB: windows of {stage.settled.numerics.window}, {stage.settled.peak / 2**30:.2f} GiB when "
            f"tried; blocks of {step.blocks.box(0).shape}; the worker took {peak:.2f} GiB"
            f"{'' if peak <= limit else ', TOO MUCH'}"
        )
        subprocess.run(["rm", "-r", str(folder / "run")], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limits", action="store_true", help="measure limits of memory instead")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    if options.alone:
        return alone(options.folder, options.alone)
    print(machine())
    with TemporaryDirectory(prefix="inference-") as name:
        folder = Path(name)
        if options.limits:
            return limits(folder)
        model(folder / "model")
        image(folder / "image.zarr", SHAPE)
        race(folder, options.rounds)
        peaks(folder)


if __name__ == "__main__":
    main()
