"""What the accessory network of inception layers adds to membranes: F1, and VOI of the multicut.

python -m benchmarks.fusion fib25 DATA FOLDER --boundaries MODEL [--membranes fib25-10-10-10]
python -m benchmarks.fusion train DATA FOLDER [--steps 500]           the accessory network of vnc
python -m benchmarks.fusion vnc DATA FOLDER --membranes MODEL         after train; MODEL as of benchmarks.semantics

fib25: networks learned from sections before 100; weights are fitted on 100 to 111 and scored on 112 to 124.  Then
each map (membranes alone, boundaries alone, fused) goes through watershed, graph and multicuts of several biases; the
bias with the best VOI on sections 100 to 111 is scored on 112 to 124, and on the whole volume, most of which was
trained on.  (The shipped membranes chose their best step by sections 100 to 124, which favours them, not the fusion.)

vnc: networks learn from sections 0 to 10; weights are fitted on 11 and scored on 12 to 14.  There is no truth of cells
in 3D, so there is no VOI.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from neurokube.blocks import Box
from neurokube.evaluation import evaluate_instances
from neurokube.volumes import open_volume

from .measure import machine
from .semantics import LABELS, annotated, configuration, neurokube, prepare, train

BIASES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
SMALLEST = 1000
"""Voxels: bodies under this are noise in the truth of fib25, and segments under it join a neighbour."""
SECTIONS = {"fit": (100, 112), "test": (112, 125), "whole": (0, 125)}
MAPS = {"membranes": "semantics.membranes", "boundaries": "accessory.boundaries", "fused": "fusion.boundaries"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["fib25", "train", "vnc"])
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--membranes", default="fib25-10-10-10")
    parser.add_argument("--boundaries")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = options.folder.absolute()
    if options.part == "train":
        learn(options.data, folder, options.steps, options.threads)
        return
    print(f"{machine()}; {options.part}", flush=True)
    if options.part == "vnc":
        boundaries = options.boundaries or str(folder / "models" / "accessory" / "model")
        vnc(options.data, folder, options.membranes, boundaries)
    elif options.boundaries is None:
        parser.error("fib25 needs --boundaries: what examples/models/boundaries-fib25/training.yaml trains")
    else:
        fib25(options.data, folder, options.membranes, options.boundaries, options.workers)


# fib25


def fib25(data: Path, folder: Path, membranes: str, boundaries: str, workers: int) -> None:
    image, bodies = folder / "image.zarr", folder / "bodies.zarr"
    neurokube("import", data / "raw", image, "--voxel-size", "10,10,10", "--overwrite", "--quiet")
    neurokube("import", data / "bodies.h5", bodies, "--voxel-size", "10,10,10", "--labels", "--overwrite", "--quiet")
    source = {"boundaries_of": str(bodies), "thickness": 40, "smallest": SMALLEST}
    entries = {
        role: {"image": str(image), "region": "{}:{},0:250,0:250".format(*SECTIONS[part]), "truth": {"edges": source}}
        for role, part in (("validation", "fit"), ("test", "test"))
    }
    truth = folder / "truth.yaml"
    truth.write_text(yaml.safe_dump({role: [entry] for role, entry in entries.items()}, sort_keys=False))
    fitted = folder / "fusion.yaml"
    channels = [f"{membranes}:membranes", f"{boundaries}:boundaries"]
    fuse(truth, channels, fitted)
    workflow = folder / "workflow.yaml"
    workflow.write_text(yaml.safe_dump(chains(image, membranes, boundaries, fitted), sort_keys=False))
    neurokube("run", workflow, "--workers", workers, "--quiet")
    print("| map | bias | " + " | ".join(f"VOI, sections {a} to {b - 1}" for a, b in SECTIONS.values()) + " |")
    for name in MAPS:
        scores = {bias: voi(folder / "runs" / "fusion", bodies, name, bias) for bias in BIASES}
        best = min(scores, key=lambda bias: sum(scores[bias]["fit"]))
        for bias, found in scores.items():
            cells = [written(*parts) for parts in found.values()]
            print(f"| {name}{', chosen' if bias == best else ''} | {bias} | {' | '.join(cells)} |", flush=True)


def chains(image: Path, membranes: str, boundaries: str, fitted: Path) -> dict[str, Any]:
    """Return a workflow: the maps, and for each of them fragments, a graph, and a segmentation a bias."""
    stages: dict[str, Any] = {
        "semantics": {"model": membranes, "labels": ["membranes"]},
        "accessory": {"stage": "semantics", "model": boundaries, "labels": ["boundaries"]},
        "fusion": {
            "channels": {name: MAPS[name] for name in ("membranes", "boundaries")},
            "fitted": str(fitted),
        },
    }
    for name, source in MAPS.items():
        stages |= segmented(name, source, SMALLEST)
    inputs = {"image": {"path": str(image)}}
    return {"name": "fusion", "inputs": inputs, "stages": stages}


def segmented(name: str, boundaries: str, smallest: int) -> dict[str, Any]:
    """Return the stages that make, of one boundary map, a segmentation a bias without segments under `smallest`."""
    fragments, graph = f"fragments-{name}", f"graph-{name}"
    stages: dict[str, Any] = {
        fragments: {"stage": "fragments", "boundaries": boundaries},
        graph: {"stage": "graph", "fragments": fragments, "boundaries": boundaries},
    }
    for bias in BIASES:
        chosen = {"bias": bias, "smallest": smallest}
        multicut, segmentation = chain(name, bias)
        stages[multicut] = {"stage": "multicut", "fragments": fragments, "graph": graph, **chosen}
        stages[segmentation] = {"stage": "segmentation", "fragments": fragments, "multicut": multicut}
    return stages


def chain(name: str, bias: float) -> tuple[str, str]:
    """Return the names of the multicut and the segmentation of a map and a bias."""
    last = f"{name}-{round(100 * bias)}"
    return f"multicut-{last}", f"segmentation-{last}"


def voi(run: Path, bodies: Path, name: str, bias: float) -> dict[str, tuple[float, float]]:
    """Return VOI, split and merge in bits, by part of the volume."""
    found = {}
    for part, (first, last) in SECTIONS.items():
        box = Box((first, 0, 0), (last, 250, 250))
        segmentation = run / chain(name, bias)[1] / "segmentation"
        volumes = [open_volume(str(path)).crop(box) for path in (segmentation, bodies)]
        scores = evaluate_instances(*volumes, min_size=SMALLEST, quiet=True)
        found[part] = (scores.voi_split, scores.voi_merge)
    return found


def written(split: float, merge: float) -> str:
    """Return VOI for a cell of a table."""
    return f"{split:.3f} + {merge:.3f} = {split + merge:.3f}"


# vnc


def learn(data: Path, folder: Path, steps: int, threads: int) -> None:
    """Train the accessory network on the sections from which the others learn."""
    if not (folder / "truth.yaml").exists():
        prepare(data, folder)
    settings = {
        "volumes": [boundaries_of(annotated(folder, 0, 11))],
        "validation": [boundaries_of(annotated(folder, 11, 12))],
        "network": "inception",
        "size": "medium",
    }
    train(folder, configuration(folder, "accessory", threads, settings), steps, max(20, steps // 10), None)


def boundaries_of(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an annotated volume whose membranes are called boundaries, and nothing else."""
    return {**entry, "truth": {"boundaries": {**entry["truth"]["membranes"], "values": LABELS["membranes"]}}}


def vnc(data: Path, folder: Path, model: str, accessory: str) -> None:
    """Fuse membranes with synapses, without the accessory network and with it."""
    if not (folder / "truth.yaml").exists():
        prepare(data, folder)
    own = [f"{model}:membranes", f"{model}:synapses"]
    for name, channels in (("without", own), ("with", [*own, f"{accessory}:boundaries"])):
        print(f"{name} the accessory network", flush=True)
        fuse(folder / "truth.yaml", channels, folder / f"fusion-{name}.yaml", "--label", "membranes")


def fuse(truth: Path, channels: Sequence[str], fitted: Path, *options: str) -> None:
    print(neurokube("fuse", truth, "--channels", ",".join(channels), "-o", fitted, "--overwrite", "--quiet", *options))


if __name__ == "__main__":
    main()
