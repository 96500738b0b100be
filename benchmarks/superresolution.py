"""Superresolution against sections that were taken away: linear, cubic, and trained models, on one split.

python -m benchmarks.superresolution DATA FOLDER prepare            every second section, and a file to train with
python -m neurokube train FOLDER/training.yaml                      learns from the first half of what is left
python -m benchmarks.superresolution DATA FOLDER score [MODEL ...]  restores the second half, and compares

DATA holds `unlabelled/`, PNG sections of isotropic voxels of 10 nm.  Peak signal to noise is of all voxels that were
taken away; structural similarity (Wang et al., 2004) of each section alone, their mean.  Planes of all are drawn side
by side in FOLDER/planes.png.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from benchmarks.measure import machine
from neurokube.blocks import Box
from neurokube.engines import InProcess
from neurokube.volumes import VolumeSpec, create, open_volume
from neurokube.workflow import Run, execute, parse_workflow

PIXEL, FACTOR = 10.0, 2
Voxels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["prepare", "score"])
    parser.add_argument("models", nargs="*", help="bundles, or names of installed models")
    parser.add_argument("--permutations", type=int, help="of the models [default: both planes across]")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.part == "prepare":
        prepare(arguments.data, arguments.folder)
    else:
        score(arguments.data, arguments.folder, arguments.models, arguments.permutations)


def sections(data: Path) -> Voxels:
    return np.stack([np.asarray(Image.open(file)) for file in sorted((data / "unlabelled").glob("*.png"))])


def prepare(data: Path, folder: Path) -> None:
    thick = sections(data)[::FACTOR]
    spec = VolumeSpec(thick.shape, "uint8", (FACTOR * PIXEL, PIXEL, PIXEL))
    create(str(folder / "thick.zarr"), spec, attributes={"fingerprint": data.name}).write(spec.box, thick)
    half, (_, height, width) = len(thick) // 2, thick.shape
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
    contestants: dict[str, dict] = {"linear": {"method": "linear"}, "cubic": {"method": "cubic"}}
    contestants |= {f"model-{n}": {"model": model, "permutations": permutations} for n, model in enumerate(models)}
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


if __name__ == "__main__":
    main()
