"""Axon, dendrite, glia in synthetic tissue that no model has seen: F1 of voxels, and of whole segments.

python -m benchmarks.classes FOLDER [--model classes-40-8-8] [--seed 401] [--workers 2]

Voxels: each label at the threshold of the model's card.  Segments: each segment of the multicut (of the shipped model's
membranes), and each true cell, is what its voxels are on average, which is what a lifted multicut asks.  F1 counts
voxels in both.  Draws image, truth, and both results side by side in FOLDER/classes.png.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measure import machine
from neurokube.engines.local import Local
from neurokube.networks import load_bundle
from neurokube.volumes import open_volume
from neurokube.workflow import Run, execute, parse_workflow

CLASSES = ("axon", "dendrite", "glia")
COLOURS = np.array([(0, 0, 0), (230, 80, 60), (70, 130, 230), (90, 200, 90)], np.uint8)
SHAPE = (16, 768, 768)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="classes-40-8-8")
    parser.add_argument("--seed", type=int, default=401)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    run = Run.planned(parse_workflow(workflow(arguments.folder, arguments.model, arguments.seed)))
    execute(run, Local(arguments.workers), quiet=True)
    arrays = {name: whole(f"{run.url}/{name}") for name in ("synthesis/image", "synthesis/classes", "synthesis/labels")}
    truth, labels = arrays["synthesis/classes"], arrays["synthesis/labels"]
    found = np.stack([whole(f"{run.url}/classes/{name}") for name in CLASSES])
    thresholds = load_bundle(arguments.model).card.thresholds
    voxels = [channel >= 255 * thresholds[name] for name, channel in zip(CLASSES, found, strict=True)]
    segments, cells = voted(found, whole(f"{run.url}/segmentation/segmentation")), voted(found, labels)
    masks = {
        "voxels": voxels,
        "segments": [segments == n + 1 for n in range(3)],
        "true cells": [cells == n + 1 for n in range(3)],
    }
    rows = {name: [f1(mask, truth == n + 1) for n, mask in enumerate(three)] for name, three in masks.items()}
    print(f"{machine()}; {arguments.model}, tissue {arguments.seed}")
    print(f"| | {' | '.join(CLASSES)} |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{score:.3f}' for score in row)} |")
    (arguments.folder / "scores.json").write_text(json.dumps(rows, indent=2))
    best = found.argmax(0) + 1
    draw(arrays["synthesis/image"], [truth, best.astype(np.uint8), segments], arguments.folder / "classes.png")


def workflow(folder: Path, model: str, seed: int) -> dict:
    image = {"image": "synthesis.image"}
    edges = {"boundaries": "semantics.membranes"}
    return {
        "name": f"tissue-{seed}",
        "workspace": str(folder.absolute()),
        "stages": {
            "synthesis": {
                "shape": SHAPE,
                "voxel_size": [40, 8, 8],
                "write": ["image", "classes", "labels"],
                "tissue": {"seed": seed},
            },
            "classes": {"stage": "semantics", "model": model, **image},
            "semantics": {"model": "synthetic-40-8-8", "labels": ["membranes"], **image},
            "fragments": edges,
            "graph": edges,
            "multicut": {"bias": load_bundle("synthetic-40-8-8").card.bias, "size_weight": 1},
            "segmentation": {},
        },
    }


def whole(path: str) -> NDArray:
    volume = open_volume(path)
    return volume.read(volume.spec.box)


def voted(found: NDArray[np.uint8], labels: NDArray) -> NDArray[np.uint8]:
    """Return for each voxel the class, from 1, whose mean probability in its segment is highest."""
    ids, inverse = np.unique(labels, return_inverse=True)
    means = [np.bincount(inverse.ravel(), channel.ravel().astype(float), len(ids)) for channel in found]
    return (np.argmax(means, 0) + 1).astype(np.uint8)[inverse.reshape(labels.shape)]


def f1(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(2 * np.count_nonzero(found & truth) / (np.count_nonzero(found) + np.count_nonzero(truth)))


def draw(image: NDArray[np.uint8], classes: list[NDArray[np.uint8]], file: Path) -> None:
    """Draw a section in the middle, then in the colours of its classes: axon red, dendrite blue, glia green."""
    z = len(image) // 2
    grey = np.repeat(image[z][..., None], 3, -1)
    shown = [grey, *((0.5 * grey + 0.5 * COLOURS[kind[z]]).astype(np.uint8) for kind in classes)]
    Image.fromarray(np.concatenate(shown, 1)).save(file)


if __name__ == "__main__":
    main()
