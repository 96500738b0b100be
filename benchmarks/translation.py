"""What translation brings: semantics learned from one look of synthetic tissue, applied to another; F1 by label.

python -m benchmarks.translation FOLDER prepare            tissue in both looks, and files to train with
python -m benchmarks.translation FOLDER train [NAME ...]   semantics, translation, watched: all, or those named
python -m benchmarks.translation FOLDER score [NAME ...]   F1 by label as a table, scores.json and looks.png

Look A is a plain ssTEM stack, look B a noisy, faint SBF-SEM stack; the statistics of the tissue, and the shifts of
sections, are the same.  Semantics learns from A with truth, thresholds are those of another part of A (the model's
card).  Two CycleGANs learn to make B look like A from other parts of A and B, without truth: `watched` has the model
of semantics watch what comes back, `translation` has not.  What is scored is tissue that none of them has seen, in B
as it is, in B smoothed, in B after each of the CycleGANs, and, as the ceiling, in A.  To choose settings by, there is
`score --on validation`, other tissue.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from neurokube.evaluation import MaskScores, evaluate_mask
from neurokube.networks import load_bundle
from neurokube.volumes import create, open_volume

from .measure import machine
from .semantics import neurokube

LABELS = ("membranes", "mitochondria", "synapses", "cytosol")
SHIFT = 0.1
LOOKS: dict[str, dict[str, Any]] = {
    "a": {"microscope": "sstem"},
    "b": {"microscope": "sbf-sem", "noise": 26, "texture": 2.2},
}
PARTS = {
    "a-train": ("a", 1, (32, 384, 384)),
    "a-validation": ("a", 2, (16, 256, 256)),
    "b-validation": ("b", 2, (16, 256, 256)),
    "b-train": ("b", 3, (32, 384, 384)),
    "a-test": ("a", 4, (16, 384, 384)),
    "b-test": ("b", 4, (16, 384, 384)),
}
"""Look, seed of the tissue, and voxels (z, y, x)."""
TRAININGS = ("semantics", "translation", "watched")
SMOOTHING = 1.0
"""Deviation in pixels of the Gaussian that is the plain way to be rid of noise."""
ROWS = {
    "b": "B as it is",
    "smoothed": f"B, smoothed by {SMOOTHING:g} pixel",
    "translation": "B, translated",
    "watched": "B, translated, trained with `segmentation`",
    "a": "A, the same tissue",
}
Voxels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["prepare", "train", "score"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of trainings, of {', '.join(TRAININGS)}")
    parser.add_argument("--on", choices=["test", "validation"], default="test", help="which tissue to score")
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    folder = arguments.folder.absolute()
    if arguments.part == "prepare":
        prepare(folder, arguments.workers)
    elif arguments.part == "train":
        for name in arguments.names or TRAININGS:
            neurokube("train", folder / f"{name}.yaml", "--overwrite", "--quiet")
            card = load_bundle(str(bundle(folder, name))).card
            print(f"{name}: trained in {card.training['seconds']} s", flush=True)
    else:
        score(folder, arguments.names or TRAININGS[1:], arguments.on, arguments.workers)


def prepare(folder: Path, workers: int) -> None:
    """Make the tissue, and write the files to train with."""
    stages = {
        name: {
            "stage": "synthesis",
            "shape": list(shape),
            "voxel_size": [40, 8, 8],
            "write": ["image", *LABELS],
            "tissue": dict(LOOKS[look], seed=seed, shift=SHIFT),
        }
        for name, (look, seed, shape) in PARTS.items()
    }
    tissue = {"name": "tissue", "workspace": str(folder), "stages": stages}
    write(folder / "tissue.yaml", tissue)
    neurokube("run", folder / "tissue.yaml", "--workers", workers, "--quiet")
    for name, settings in trainings(folder).items():
        common = {"name": name, "workspace": str(folder / "models"), "threads": 1, "seed": 1}
        write(folder / f"{name}.yaml", {**common, **settings})


def trainings(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of each training that are its own.

    Augmentation is as by default: contrast, gamma, noise and blur of what semantics learns from, too.
    """
    semantics = {
        "volumes": [annotated(folder, "a-train")],
        "validation": [annotated(folder, "a-validation")],
        "size": [12, 32, 64, 96],
        "window": [6, 144, 144],
        "batch": 2,
        "steps": 500,
        "interval": 100,
        "learning_rate": 0.004,
    }
    translation = {
        "task": "translation",
        "volumes": [{"image": image(folder, "b-train")}],
        "targets": [{"image": image(folder, "a-train")}],
        "window": [2, 96, 96],
        "features": 16,
        "blocks": 4,
        # noise cannot come back: with the default weights, 10 and 5, the generators leave images as they are
        "gan": {"features": 32, "cycle": 2, "identity": 2, "rate": 0.5},
        "steps": 800,
        "interval": 100,
        "learning_rate": 0.0005,
    }
    watched = {**translation, "segmentation": str(bundle(folder, "semantics")), "segmentation_weight": 10}
    return {"semantics": semantics, "translation": translation, "watched": watched}


def write(file: Path, document: Mapping[str, Any]) -> None:
    file.write_text(yaml.safe_dump(dict(document), sort_keys=False))


def image(folder: Path, part: str) -> str:
    return str(folder / "tissue" / part / "image")


def annotated(folder: Path, part: str) -> dict[str, Any]:
    return {
        "image": image(folder, part),
        "truth": {label: str(folder / "tissue" / part / label) for label in LABELS},
    }


def bundle(folder: Path, name: str) -> Path:
    return folder / "models" / name / "model"


def score(folder: Path, names: Sequence[str], tissue: str, workers: int) -> None:
    """Run semantics on all that is compared, print F1 by label, and write what the looks are like."""
    images = {look: image(folder, f"{look}-{tissue}") for look in LOOKS}
    images["smoothed"] = smoothed(folder, tissue)
    stages: dict[str, Any] = {
        name: {"stage": "translation", "image": "b", "model": str(bundle(folder, name))} for name in names
    }
    compared = ["b", "smoothed", *names, "a"]
    for source in compared:
        stages[f"semantics-{source}"] = {
            "stage": "semantics",
            "image": source,
            "model": str(bundle(folder, "semantics")),
        }
    run = f"scored-{tissue}"
    inputs = {name: {"path": path} for name, path in images.items()}
    write(folder / f"{run}.yaml", {"name": run, "workspace": str(folder), "inputs": inputs, "stages": stages})
    neurokube("run", folder / f"{run}.yaml", "--workers", workers, "--quiet")
    thresholds = load_bundle(str(bundle(folder, "semantics"))).card.thresholds
    scores = {
        name: {
            label: f1(folder / run / f"semantics-{name}", folder / "tissue" / f"b-{tissue}", label, thresholds[label])
            for label in LABELS
        }
        for name in compared
    }
    print(machine())
    print(f"| F1, {tissue} | {' | '.join(LABELS)} | mean |\n|---|{'---|' * (len(LABELS) + 1)}")
    for name, row in scores.items():
        values = [found.f1 for found in row.values()]
        print(f"| {ROWS.get(name, name)} | {' | '.join(f'{v:.3f}' for v in [*values, float(np.mean(values))])} |")
    plain = {name: {label: found.as_dict() for label, found in row.items()} for name, row in scores.items()}
    end = "" if tissue == "test" else f"-{tissue}"
    (folder / f"scores{end}.json").write_text(json.dumps(plain, indent=2))
    images |= {name: str(folder / run / name / "translation") for name in names}
    draw({ROWS.get(name, name): middle(images[name]) for name in compared}, folder / f"looks{end}.png")


def smoothed(folder: Path, tissue: str) -> str:
    """Smooth the sections of B that are scored; return where they are now."""
    volume, path = open_volume(image(folder, f"b-{tissue}")), folder / f"smoothed-{tissue}.zarr"
    if not path.exists():
        voxels = gaussian_filter(volume.read(volume.spec.box), (0, SMOOTHING, SMOOTHING))
        attributes = {"fingerprint": f"{path.stem} by {SMOOTHING:g}"}
        create(str(path), volume.spec, attributes=attributes).write(volume.spec.box, voxels)
    return str(path)


def f1(found: Path, truth: Path, label: str, threshold: float) -> MaskScores:
    """Return the scores of a label, from the threshold of the model's card on; the truth of B is that of A."""
    volumes = [open_volume(str(folder / label)) for folder in (found, truth)]
    return evaluate_mask(*volumes, threshold=round(threshold * 255), quiet=True)


def middle(path: str) -> Voxels:
    volume = open_volume(path)
    depth = volume.spec.shape[0]
    found: Voxels = volume.read(volume.spec.box)[depth // 2]
    return found


def draw(planes: Mapping[str, Voxels], file: Path, margin: int = 16) -> None:
    """Draw planes side by side, each under its name."""
    columns = [np.pad(plane, ((margin, 0), (0, margin)), constant_values=255) for plane in planes.values()]
    picture = Image.fromarray(np.concatenate(columns, 1))
    text, left = ImageDraw.Draw(picture), 0
    for name, column in zip(planes, columns, strict=True):
        text.text((left + 2, 2), name, fill=0)
        left += column.shape[1]
    picture.save(file)


if __name__ == "__main__":
    main()
