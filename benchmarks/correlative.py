"""Cells that only light microscopy shows: F1 of a network that sees it beside the image, and of one that does not.

python -m benchmarks.correlative FOLDER [--steps 100] [--seed 0] [--threads 2] [--only image both tuned]

Synthetic tissue of 40 x 8 x 8 nm, of whose cells a quarter is marked, as by a transgene: nothing in the image tells
which.  Light microscopy of 200 x 100 x 100 nm shows them, blurred and with few photons, turned and shifted by an affine
of micrometers in x y z as BigWarp prints it.  A stage of kind resampling brings it onto the voxels of the image; two
networks of one size learn from one tissue with the same steps, thresholds come from a second, F1 from a third.  A
third network, tuned, sees both and starts from a shipped model of the image alone, which knows membranes.  Beside them:
the resampled light itself, at its best threshold.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from benchmarks.measure import machine
from neurokube.engines import InProcess
from neurokube.evaluation.curves import Curve
from neurokube.volumes import Volume, VolumeSpec, create, open_volume
from neurokube.workflow import Run, execute, parse_workflow

SHAPE, SIZE = (24, 512, 512), (40.0, 8.0, 8.0)
LIGHT = (200.0, 100.0, 100.0)
BLUR = (250.0, 110.0, 110.0)
"""Deviations (z, y, x) in nm of what a point looks like."""
MARKED = 0.25
PHOTONS, DARK = 60, 100
START = "synthetic-40-8-8"
VALIDATED = "6:18,128:384,128:384"
"""The part of the second tissue by which a training chooses its step; thresholds come from all of it."""
TISSUES = {"train": 501, "validation": 502, "test": 503}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=["image", "both", "tuned"])
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    entries = {name: tissue(folder, name, seed) for name, seed in TISSUES.items()}
    truth = {"test": [entries["test"]], "validation": [entries["validation"]]}
    (folder / "truth.yaml").write_text(yaml.safe_dump(truth, sort_keys=False))
    seconds = {name: train(folder, name, entries, options) for name in options.only}
    models = ",".join(str(folder / "models" / name / "model") for name in seconds)
    neurokube("evaluate", folder / "truth.yaml", "--models", models, "--output", folder / "evaluation", "--quiet")
    report = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    print(f"{machine()}; {options.steps} steps, seed {options.seed}")
    print("| | F1 | precision | recall | training, s |\n|---|---|---|---|---|")
    for model in report["models"]:
        found = model["labels"]["marked"]
        scores = " | ".join(f"{found[name]:.3f}" for name in ("f1", "precision", "recall"))
        print(f"| {model['name']} | {scores} | {seconds[model['name']]:.0f} |")
    print(f"| light alone | {light_alone(entries):.3f} | | | |")


def tissue(folder: Path, name: str, seed: int) -> dict:
    """Make a tissue, its truth and its light microscopy, brought onto the image; return it as a training file names it.

    What is there already is kept.
    """
    document = {
        "name": name,
        "workspace": str(folder / "tissue"),
        "stages": {"synthesis": {"shape": SHAPE, "voxel_size": SIZE, "write": ["image", "labels"]}},
    }
    document["stages"]["synthesis"]["tissue"] = {"seed": seed}  # type: ignore[index]
    run = Run.planned(parse_workflow(document))
    execute(run, InProcess(), quiet=True)
    image, cells = (f"{run.url}/synthesis/{each}" for each in ("image", "labels"))
    truth, light, place = (folder / f"{name}-{what}" for what in ("marked.zarr", "light.zarr", "affine.txt"))
    if not truth.exists():
        labels = open_volume(cells)
        marked = mark(whole(labels), seed)
        spec = VolumeSpec(SHAPE, "uint8", SIZE, labels.spec.offset, kind="labels")
        create(str(truth), spec).write(spec.box, marked)
        photograph(marked, labels.spec, light, place, seed)
    document = {
        "name": name,
        "workspace": str(folder / "aligned"),
        "inputs": {
            "image": {"path": image},
            "light": {"path": str(light), "affine": {"file": str(place), "axes": "xyz", "unit": "micrometer"}},
        },
        "stages": {"marker": {"stage": "resampling", "volume": "light"}},
    }
    aligned = Run.planned(parse_workflow(document, folder=folder))
    print(*aligned.remarks, sep="\n")
    execute(aligned, InProcess(), quiet=True)
    return {
        "image": image,
        "channels": {"marker": f"{aligned.url}/marker/resampling"},
        "truth": {"marked": str(truth)},
    }


def mark(cells: NDArray[np.uint64], seed: int) -> NDArray[np.uint8]:
    """Return which voxels are of a marked cell; which cells are is drawn."""
    ids = np.unique(cells)
    chosen = ids[np.random.default_rng(seed).random(len(ids)) < MARKED]
    return np.isin(cells, chosen[chosen > 0]).astype(np.uint8)


def photograph(marked: NDArray[np.uint8], spec: VolumeSpec, light: Path, place: Path, seed: int) -> None:
    """Write what light microscopy of a tissue shows, 16 bits, and the affine from its nanometres to the tissue's."""
    random = np.random.default_rng([seed, 1])
    angle = np.radians(random.uniform(4, 9))
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]) * 1.03
    # so wide that all of the tissue is in it
    middle = np.array(spec.offset) + (np.array(SHAPE) - 1) / 2 * SIZE
    shape = tuple(int(np.ceil(1.3 * n * v / w)) + 4 for n, v, w in zip(SHAPE, SIZE, LIGHT, strict=True))
    shift = middle - turn @ ((np.array(shape) - 1) / 2 * LIGHT) + random.uniform(-150, 150, 3)
    blurred = gaussian_filter(marked.astype(np.float32), [b / v for b, v in zip(BLUR, SIZE, strict=True)])
    grid = np.stack(np.meshgrid(*(np.arange(n) * w for n, w in zip(shape, LIGHT, strict=True)), indexing="ij"), -1)
    voxels = ((grid @ turn.T + shift) - spec.offset) / SIZE
    bright = map_coordinates(blurred, np.moveaxis(voxels, -1, 0), order=1, mode="nearest")
    taken = (random.poisson(PHOTONS * bright + 3) * 20 + random.normal(DARK, 5, shape)).clip(0, 65535)
    light_spec = VolumeSpec(shape, "uint16", LIGHT)
    create(str(light), light_spec).write(light_spec.box, taken.astype(np.uint16))
    rows = np.column_stack([turn, shift])[::-1, [2, 1, 0, 3]]
    rows[:, 3] /= 1000
    place.write_text("".join("\t".join(map(repr, row)) + "\n" for row in rows.tolist()))


def train(folder: Path, name: str, entries: dict[str, dict], options: argparse.Namespace) -> float:
    """Train a network on one tissue, with or without the channel; return how many seconds it took."""
    shown = {key: {**entry, "channels": {}} if name == "image" else entry for key, entry in entries.items()}
    document = {
        "name": name,
        "workspace": str(folder / "models"),
        "volumes": [shown["train"]],
        "validation": [{**shown["validation"], "region": VALIDATED}],
        "steps": options.steps,
        "interval": max(1, options.steps // 2),
        "window": [6, 96, 96],
        "threads": options.threads,
        "seed": options.seed,
        "loggers": [],
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    started = time.monotonic()
    neurokube("train", file, "--overwrite", "--quiet", *(["--from", START] if name == "tuned" else []))
    return time.monotonic() - started


def light_alone(entries: dict[str, dict]) -> float:
    """Return F1 of the resampled light, at the threshold that is best in the validation tissue."""
    curves = {}
    for name in ("validation", "test"):
        light = whole(open_volume(entries[name]["channels"]["marker"]))
        truth = whole(open_volume(entries[name]["truth"]["marked"]))
        curves[name] = Curve.empty().plus(light, truth, np.ones_like(truth))
    return float(curves["test"].f1[curves["validation"].best])


def whole(volume: Volume) -> NDArray:
    return volume.read(volume.spec.box)


def neurokube(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "neurokube", *map(str, command)], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
