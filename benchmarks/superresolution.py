"""Superresolution against sections that were taken away: linear, cubic, and trained models, on one split.

python -m benchmarks.superresolution DATA FOLDER prepare                   every second section, a file to train with
python -m neurokube train FOLDER/training.yaml                             learns from the first half of what is left
python -m benchmarks.superresolution DATA FOLDER score [MODEL ...]         restores the second half, and compares
python -m benchmarks.superresolution DATA FOLDER segmentation [MODEL ...]  what it is worth to a segmentation

DATA holds `unlabelled/`, PNG sections of isotropic voxels of 10 nm.  Peak signal to noise is of all voxels that were
taken away; structural similarity (Wang et al., 2004) of each section alone, their mean.  Planes of all are drawn side
by side in FOLDER/planes.png.

segmentation: DATA also holds `raw/`, another such volume, and its truth, `bodies.h5`.  Every second section is taken
away, and what is left goes through membranes (--membranes), watershed, graph and multicut: as it is, and with the
sections made anew by each method; beside them the volume with all its sections.  All are scored on the sections that
were kept.  The bias of the multicut is chosen, for each contestant, by VOI where y < 125 and scored where y >= 125,
and the other way round; the mean of both is steadier than either, as one large cell joined or parted moves a half by
0.1 bits.  The membranes learned from sections 0 to 99 of this volume, with all of them there, so that the figures are
good for a comparison only.  The models of superresolution never saw it.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from benchmarks.fusion import BIASES, SMALLEST, chain, segmented, written
from benchmarks.measure import machine
from neurokube.blocks import Box
from neurokube.engines import InProcess
from neurokube.evaluation import InstanceScores, evaluate_instances
from neurokube.networks.bundle import load_bundle
from neurokube.volumes import Volume, VolumeSpec, create, open_volume
from neurokube.volumes.importing import import_volume
from neurokube.workflow import Run, execute, parse_workflow

PIXEL, FACTOR = 10.0, 2
Voxels = NDArray[np.uint8]
MIDDLE = 125
"""Where y begins the second half: the bias that is best in one is scored in the other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["prepare", "score", "segmentation"])
    parser.add_argument("models", nargs="*", help="bundles, or names of installed models")
    parser.add_argument("--permutations", type=int, help="of the models [default: both planes across]")
    parser.add_argument(
        "--membranes", default="fib25-10-10-10", help="model of the segmentation [default: %(default)s]"
    )
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.part == "prepare":
        prepare(arguments.data, arguments.folder)
    elif arguments.part == "score":
        score(arguments.data, arguments.folder, arguments.models, arguments.permutations)
    else:
        made = methods(arguments.models, arguments.permutations)
        segmentation(arguments.data, arguments.folder, arguments.models, made, arguments.membranes)


def sections(data: Path, name: str = "unlabelled") -> Voxels:
    return np.stack([np.asarray(Image.open(file)) for file in sorted((data / name).glob("*.png"))])


def prepare(data: Path, folder: Path) -> None:
    whole = sections(data)
    thick = kept(VolumeSpec(whole.shape, "uint8", (PIXEL, PIXEL, PIXEL)), whole, folder / "thick.zarr", data.name)
    depth, height, width = thick.spec.shape
    half = depth // 2
    learned = half * 4 // 5
    document = {
        "name": "finer",
        "workspace": str(folder.absolute() / "models"),
        "task": "superresolution",
        "factor": FACTOR,
        "modality": "fib-sem",
        "volumes": [{"image": "thick.zarr", "region": f"0:{learned},0:{height},0:{width}"}],
        "validation": [{"image": "thick.zarr", "region": f"{learned}:{half},0:{height},0:{width}"}],
        "seed": 1,
    }
    (folder / "training.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


def score(data: Path, folder: Path, models: list[str], permutations: int | None) -> None:
    truth = sections(data)
    first = len(truth[::FACTOR]) // 2
    truth = truth[first * FACTOR :]
    made = restored(folder, first, models, permutations)
    truth = truth[: len(next(iter(made.values())))]
    taken = np.arange(len(truth)) % FACTOR != 0
    print(machine())
    print(f"{np.count_nonzero(taken)} sections of {truth.shape[1]} x {truth.shape[2]} that were taken away")
    figures = {name: similarity(voxels[taken], truth[taken]) for name, voxels in made.items()}
    for name, (noise, structure) in figures.items():
        print(f"{name:32} PSNR {noise:.2f} dB   SSIM {structure:.4f}")
    (folder / "scores.json").write_text(json.dumps(figures, indent=2))
    draw({"truth": truth, **made}, folder / "planes.png")


def restored(folder: Path, first: int, models: list[str], permutations: int | None) -> dict[str, Voxels]:
    """Return what each makes of the sections from the first on."""
    thick = open_volume(str(folder / "thick.zarr"))
    contestants = methods(models, permutations)
    document = {
        "name": "superresolution",
        "workspace": str(folder / "runs"),
        "inputs": {"image": {"path": thick.url}},
        "stages": {
            name: {"stage": "superresolution", "factor": FACTOR, **settings} for name, settings in contestants.items()
        },
    }
    depth, height, width = thick.spec.shape
    run = Run.planned(parse_workflow(document), Box((first, 0, 0), (depth, height, width)))
    execute(run, InProcess(), quiet=True)
    volumes = (open_volume(f"{run.url}/{name}/superresolution") for name in contestants)
    return {
        name: volume.read(volume.spec.box) for name, volume in zip(["linear", "cubic", *models], volumes, strict=True)
    }


def methods(models: list[str], permutations: int | None) -> dict[str, dict]:
    """Return the settings of the stage by contestant: both interpolations, then the models, numbered."""
    interpolations: dict[str, dict] = {"linear": {"method": "linear"}, "cubic": {"method": "cubic"}}
    return interpolations | {
        f"model-{n}": {"model": model, "permutations": permutations} for n, model in enumerate(models)
    }


def similarity(made: Voxels, truth: Voxels) -> tuple[float, float]:
    """Return PSNR of all in dB, and the mean SSIM of single sections."""
    a, b = (torch.from_numpy(voxels.astype(np.float32))[:, None] for voxels in (made, truth))
    structure = [
        structural_similarity_index_measure(p[None], t[None], data_range=255.0) for p, t in zip(a, b, strict=True)
    ]
    return float(peak_signal_noise_ratio(a, b, data_range=255.0)), float(torch.stack(structure).mean())


def draw(made: Mapping[str, Voxels], file: Path, margin: int = 16) -> None:
    """Draw the planes xy (a section that was taken away), xz and yz through the middle, a column a contestant."""
    depth, height, width = next(iter(made.values())).shape
    at = (depth // 2 // FACTOR * FACTOR + 1, height // 2, width // 2)
    columns = []
    for voxels in made.values():
        planes = (voxels[at[0]], voxels[:, at[1]], voxels[:, :, at[2]])
        columns.append(
            np.concatenate(
                [np.pad(p, ((margin, 0), (0, margin + width - p.shape[1])), constant_values=255) for p in planes]
            )
        )
    picture = Image.fromarray(np.concatenate(columns, 1))
    picture = picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)
    text = ImageDraw.Draw(picture)
    for column, name in enumerate(made):
        top = 0
        for plane, rows in (("xy", height), ("xz", depth), ("yz", depth)):
            text.text((2 * column * (width + margin) + 4, 2 * top + 8), f"{Path(name).name}, {plane}", fill=0)
            top += margin + rows
    picture.save(file)


def segmentation(data: Path, folder: Path, models: list[str], made: dict[str, dict], membranes: str) -> None:
    folder = folder.absolute()
    workflow = folder / "segmentation"
    raw = sections(data, "raw")
    spec = VolumeSpec(raw.shape, "uint8", (PIXEL, PIXEL, PIXEL))
    create(str(workflow / "raw.zarr"), spec, attributes={"fingerprint": f"{data.name}-raw"}).write(spec.box, raw)
    kept(spec, raw, workflow / "thick.zarr", f"{data.name}-thick")
    import_volume(
        str(data / "bodies.h5"),
        str(workflow / "bodies.zarr"),
        voxel_size=spec.voxel_size,
        kind="labels",
        overwrite=True,
        quiet=True,
    )
    bodies = open_volume(str(workflow / "bodies.zarr"))
    truth = kept(bodies.spec, bodies.read(bodies.spec.box), workflow / "truth.zarr")
    names = {"raw": "all sections", "thick": "every second section", "linear": "linear", "cubic": "cubic"}
    names |= {f"model-{n}": model for n, model in enumerate(models)}
    document = chains(workflow, list(names), made, membranes)
    run = Run.planned(parse_workflow(document))
    execute(run, InProcess(), quiet=True)
    print(machine())
    print("| | bias | VOI, y >= 125 | bias | VOI, y < 125 | VOI, mean | adapted Rand error, mean |")
    print("|---|---|---|---|---|---|---|")
    for contestant, name in names.items():
        found = {bias: halves(run, contestant, bias, truth, workflow) for bias in BIASES}
        best = [min(found, key=lambda bias: found[bias][half].voi) for half in (0, 1)]
        scored = [found[best[0]][1], found[best[1]][0]]
        cells = [
            f"{bias} | {written(scores.voi_split, scores.voi_merge)}" for bias, scores in zip(best, scored, strict=True)
        ]
        voi, error = (sum(getattr(s, field) for s in scored) / 2 for field in ("voi", "adapted_rand_error"))
        print(f"| {name} | {' | '.join(cells)} | {voi:.3f} | {error:.3f} |", flush=True)


def chains(folder: Path, names: list[str], made: dict[str, dict], membranes: str) -> dict:
    """Return a workflow that segments every contestant with every bias."""
    label = load_bundle(membranes).card.labels[0]
    stages: dict[str, dict] = {
        name: {"stage": "superresolution", "image": "thick", "factor": FACTOR, **settings}
        for name, settings in made.items()
    }
    for name in names:
        semantics = f"semantics-{name}"
        stages[semantics] = {"stage": "semantics", "image": name, "model": membranes, "labels": [label]}
        stages |= segmented(name, f"{semantics}.{label}", SMALLEST // FACTOR if name == "thick" else SMALLEST)
    inputs = {name: {"path": str(folder / f"{name}.zarr")} for name in ("raw", "thick")}
    return {"name": "run", "workspace": str(folder), "inputs": inputs, "stages": stages}


def kept(spec: VolumeSpec, voxels: NDArray, url: Path, fingerprint: str = "") -> Volume:
    """Write the sections that were kept of a volume that has all, as one of thick sections."""
    voxels = voxels[::FACTOR]
    thick = replace(spec, shape=voxels.shape, voxel_size=(FACTOR * PIXEL, PIXEL, PIXEL))
    volume = create(str(url), thick, attributes={"fingerprint": fingerprint} if fingerprint else None)
    volume.write(thick.box, voxels)
    return volume


def halves(run: Run, name: str, bias: float, truth: Volume, folder: Path) -> list[InstanceScores]:
    """Return the scores of the first half and of the second."""
    _, last = chain(name, bias)
    found = open_volume(f"{run.url}/{last}/segmentation")
    if found.spec.shape != truth.spec.shape:
        found = kept(found.spec, found.read(found.spec.box), folder / "kept" / f"{last}.zarr")
    depth, height, width = truth.spec.shape
    boxes = Box((0, 0, 0), (depth, MIDDLE, width)), Box((0, MIDDLE, 0), (depth, height, width))
    smallest = SMALLEST // FACTOR
    return [evaluate_instances(found.crop(b), truth.crop(b), min_size=smallest, quiet=True) for b in boxes]


if __name__ == "__main__":
    main()
