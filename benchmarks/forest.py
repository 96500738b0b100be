"""What a forest adds to the mean of the boundary map: edges told apart, VOI and adapted Rand error of the multicut.

python -m benchmarks.forest DATA FOLDER [--boundaries boundaries-fib25-10-10-10] [--map VOLUME] [--seeds 3]

FIB-SEM (fib25).  Forests learn from sections 0 to 79, with the boundary map alone and with filters of the image too.
Sections 80 to 124 are a run of their own, in which no fragment was learned from: the bias is chosen by VOI on 80 to 99
and scored on 100 to 124, for the plain mean and for the forests in the same way.  The boundary map, of a network that
learned from sections 0 to 79, is made of the whole volume once (or is `--map`); it is better where forests learn than
where they are scored, which favours nobody but is no help to forests.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

from neurokube.blocks import Box
from neurokube.evaluation import InstanceScores, evaluate_instances
from neurokube.networks.forest import load_forest
from neurokube.volumes import open_volume

from .fusion import SMALLEST, written
from .measure import machine
from .semantics import neurokube

BIASES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)
LEARNED, APPLIED = (0, 80), (80, 125)
SECTIONS = {"fit": (80, 100), "test": (100, 125)}
FILTERS = [
    {"filter": "gaussian", "width": 20},
    {"filter": "gradient", "width": 20},
    {"filter": "hessian", "width": 20},
    {"filter": "hessian", "width": 40},
]
KINDS: dict[str, list[str] | None] = {"map": [], "filters": None}
"""Channels that forests see beside the boundary map: none, or all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--boundaries", default="boundaries-fib25-10-10-10")
    parser.add_argument("--map", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = options.folder.absolute()
    print(f"{machine()}; fib25", flush=True)
    image, bodies = imported(options.data, folder)
    boundaries = options.map or predicted(folder, image, options.boundaries, options.workers)
    forests = [f"{kind}-{seed}" for kind in KINDS for seed in range(options.seeds)]
    workflow = written_to(folder / "workflow.yaml", chains(image, boundaries.absolute(), forests))
    for name in forests:
        train(folder, workflow, bodies, name)
    neurokube("run", workflow, "--region", region(APPLIED), "--workers", options.workers, "--quiet")
    run = folder / "runs" / f"forest@{region(APPLIED).replace(':', '-').replace(',', '_')}"
    compare(run, bodies, ["mean", *forests])


def imported(data: Path, folder: Path) -> tuple[Path, Path]:
    image, bodies = folder / "image.zarr", folder / "bodies.zarr"
    neurokube("import", data / "raw", image, "--voxel-size", "10,10,10", "--overwrite", "--quiet")
    neurokube("import", data / "bodies.h5", bodies, "--voxel-size", "10,10,10", "--labels", "--overwrite", "--quiet")
    return image, bodies


def predicted(folder: Path, image: Path, model: str, workers: int) -> Path:
    """Return the boundary map of the whole volume."""
    stages = {"semantics": {"model": model, "labels": ["boundaries"]}}
    document = {"name": "map", "inputs": {"image": {"path": str(image)}}, "stages": stages}
    neurokube("run", written_to(folder / "map.yaml", document), "--workers", workers, "--quiet")
    return folder / "runs" / "map" / "semantics" / "boundaries"


def region(sections: tuple[int, int]) -> str:
    return "{}:{},0:250,0:250".format(*sections)


def written_to(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def chains(image: Path, boundaries: Path, forests: list[str]) -> dict[str, Any]:
    """Return a workflow: fragments, a graph, and a segmentation for each forest, and without one, and each bias."""
    stages: dict[str, Any] = {
        "fragments": {"boundaries": "boundaries"},
        "graph": {"boundaries": "boundaries", "image": "image", "filters": FILTERS},
    }
    for name in ("mean", *forests):
        forest = {} if name == "mean" else {"forest": f"models/{name}/model"}
        for bias in BIASES:
            multicut, segmentation = chain(name, bias)
            stages[multicut] = {"stage": "multicut", "bias": bias, "smallest": SMALLEST, **forest}
            stages[segmentation] = {"stage": "segmentation", "multicut": multicut}
    inputs = {"image": {"path": str(image)}, "boundaries": {"path": str(boundaries)}}
    return {"name": "forest", "inputs": inputs, "stages": stages}


def chain(name: str, bias: float) -> tuple[str, str]:
    last = f"{name}-{round(100 * bias)}"
    return f"multicut-{last}", f"segmentation-{last}"


def train(folder: Path, workflow: Path, bodies: Path, name: str) -> None:
    """Train a forest, and say how well it tells the edges of the sections that are scored."""
    kind, seed = name.split("-")
    volume = {"workflow": str(workflow), "truth": str(bodies)}
    document = {
        "name": name,
        "task": "forest",
        "volumes": [{**volume, "region": region(LEARNED)}],
        "validation": [{**volume, "region": region(APPLIED)}],
        "smallest": SMALLEST,
        "seed": int(seed),
        "threads": 1,
    } | ({} if KINDS[kind] is None else {"channels": KINDS[kind]})
    neurokube("train", written_to(folder / f"{name}.yaml", document), "--overwrite", "--quiet")
    found = load_forest(str(folder / "models" / name / "model")).card.scores["validation"]
    rows = {name: {**found, "f1": found["f1"]["boundary"]}, "mean": found["mean"]}
    for row, scores in rows.items():
        print(f"edges: {row}: F1 {scores['f1']}, AUC {scores['auc']}, log loss {scores['log_loss']}", flush=True)


def compare(run: Path, bodies: Path, names: list[str]) -> None:
    print("| boundaries | bias | VOI, sections 80 to 99 | VOI, sections 100 to 124 | adapted Rand error |")
    for name in names:
        found = {bias: scored(run, bodies, name, bias) for bias in BIASES}
        best = min(found, key=lambda bias: found[bias]["fit"].voi)
        for bias, parts in found.items():
            voi = " | ".join(written(part.voi_split, part.voi_merge) for part in parts.values())
            chosen = ", chosen" if bias == best else ""
            print(f"| {name}{chosen} | {bias} | {voi} | {parts['test'].adapted_rand_error:.3f} |", flush=True)


def scored(run: Path, bodies: Path, name: str, bias: float) -> dict[str, InstanceScores]:
    """Return scores by part of the volume; the run begins with section 80."""
    volumes = open_volume(str(run / chain(name, bias)[1] / "segmentation")), open_volume(str(bodies))
    found = {}
    for part, (first, last) in SECTIONS.items():
        boxes = (Box((first - start, 0, 0), (last - start, 250, 250)) for start in (APPLIED[0], 0))
        cut = [volume.crop(box) for volume, box in zip(volumes, boxes, strict=True)]
        found[part] = evaluate_instances(*cut, min_size=SMALLEST, quiet=True)
    return found


if __name__ == "__main__":
    main()
