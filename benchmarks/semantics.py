"""Semantics on real serial sections: our training beside a plain U-Net's, on one split, in the same minutes.

python -m benchmarks.semantics DATA FOLDER prepare                 volumes and truth from the vnc data set
python -m benchmarks.semantics DATA FOLDER plain --minutes 12      the plain U-Net of benchmarks.plain_unet
python -m benchmarks.semantics DATA FOLDER ours --minutes 12 [--seed N] [--set augmentation.elastic=0 ...]
python -m benchmarks.semantics DATA FOLDER adapt --minutes 4 --sections 1 2 4 8 [--model MODEL]
python -m benchmarks.semantics DATA FOLDER score                   F1 of all that was trained, on the last 3 sections

Sections 0 to 10 train, 11 chooses thresholds and the best step, 12 to 14 are scored.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

LABELS = {
    "membranes": [0, 32, 64, 96, 128],
    "mitochondria": [191],
    "synapses": [223],
    "glia": [159],
    "cytosol": [255],
}
WINDOW = (5, 192, 192)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("part", choices=["prepare", "plain", "ours", "adapt", "score"])
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--steps", type=int, help="so many instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name")
    parser.add_argument("--set", nargs="*", default=[])
    parser.add_argument("--sections", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--model", default="synthetic-40-8-8")
    parser.add_argument("--permutations", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.part == "prepare":
        prepare(arguments.data, folder)
    elif arguments.part == "plain":
        plain(folder, arguments.minutes, arguments.seed, arguments.threads, arguments.steps)
    elif arguments.part == "ours":
        name = arguments.name or f"ours-{arguments.seed}"
        settings = {"seed": arguments.seed, **changes(arguments.set)}
        ours(folder, name, arguments.minutes, arguments.threads, settings, steps=arguments.steps)
    elif arguments.part == "adapt":
        adapt(folder, arguments.sections, arguments.minutes, arguments.threads, arguments.model, arguments.steps)
    else:
        score(folder, arguments.permutations)


def prepare(data: Path, folder: Path) -> None:
    for name, extra in (("raw", []), ("labels", ["--labels"])):
        command = ["import", data / name, folder / f"{name}.zarr", "--voxel-size", "50,4.6,4.6", *extra]
        neurokube(*command, "--overwrite", "--quiet")
    truth = {"test": [annotated(folder, 12, 15)], "validation": [annotated(folder, 11, 12)]}
    (folder / "truth.yaml").write_text(yaml.safe_dump(truth, sort_keys=False))


def annotated(folder: Path, first: int, last: int) -> dict:
    labels = str(folder.absolute() / "labels.zarr")
    return {
        "image": str(folder.absolute() / "raw.zarr"),
        "region": f"{first}:{last},0:1024,0:1024",
        "truth": {name: {"volume": labels, "values": values} for name, values in LABELS.items()},
    }


def configuration(folder: Path, name: str, threads: int, settings: dict) -> dict:
    document = {
        "name": name,
        "workspace": str(folder.absolute() / "models"),
        "volumes": [annotated(folder, 0, 11)],
        "validation": [annotated(folder, 11, 12)],
        # half the resolution: with the same minutes four times as much tissue is seen
        "voxel_size": [50, 9.2, 9.2],
        "size": [16, 32, 64, 128],
        "window": [6, 144, 144],
        "learning_rate": 0.004,
        "threads": threads,
    }
    for key, value in settings.items():
        place = document
        *path, last = key.split(".")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return document


def changes(settings: list[str]) -> dict:
    return {key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in settings)}


def ours(
    folder: Path,
    name: str,
    minutes: float,
    threads: int,
    settings: dict,
    model: str | None = None,
    steps: int | None = None,
) -> None:
    """Train for so many steps, or for about so many minutes: as many steps as a short trial says."""
    if steps is not None:
        train(folder, configuration(folder, name, threads, settings), steps, max(10, steps // 6), model)
        return
    trial = train(folder, configuration(folder, f"{name}-trial", threads, settings), 24, 12, model)
    rows = [json.loads(line) for line in (trial / "history.jsonl").read_text().splitlines()]
    pace = (rows[1]["seconds"] - rows[0]["seconds"]) / 12
    steps = max(60, int(60 * minutes / pace))
    train(folder, configuration(folder, name, threads, settings), steps, max(20, steps // 10), model)


def train(folder: Path, document: dict, steps: int, interval: int, model: str | None) -> Path:
    document = {**document, "steps": steps, "interval": interval}
    file = folder / f"{document['name']}.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    neurokube("train", file, "--overwrite", "--quiet", *(["--from", model] if model else []))
    return folder / "models" / document["name"]


def adapt(folder: Path, sections: list[int], minutes: float, threads: int, model: str, steps: int | None) -> None:
    """Fine-tune on the middle of a few sections, beside training from nothing with the same minutes."""
    for count in sections:
        first = (11 - count) // 2
        settings = {"volumes": [annotated(folder, first, first + count)]}
        card = json.loads(neurokube("models", "show", model, "--json"))
        tuned = {**settings, "voxel_size": card["voxel_size"]}
        ours(folder, f"tuned-{count}", minutes, threads, {**tuned, "learning_rate": 0.002}, model, steps)
        ours(folder, f"scratch-{count}", minutes, threads, {**tuned, "size": features(card)}, None, steps)


def features(card: dict) -> list[int]:
    return [level["features"] for level in card["architecture"]["levels"]]


def plain(folder: Path, minutes: float, seed: int, threads: int, steps: int | None) -> None:
    """Train the plain U-Net: cross-entropy and Dice, flips, transposes and contrast, one cycle of the rate."""
    from neurokube.networks import Normalization, write_bundle
    from neurokube.networks.precision import fast_bfloat16
    from neurokube.training.config import AnnotatedVolume, Augmentation
    from neurokube.training.losses import MaskedLoss
    from neurokube.training.sampling import Windows
    from neurokube.training.truth import load

    from .plain_unet import PlainUNet

    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    labels = list(LABELS)
    volume = load(AnnotatedVolume.model_validate(annotated(folder, 0, 11)), labels, (50, 4.6, 4.6))
    still = dict.fromkeys(
        ["scale", "rotation", "elastic", "shift", "missing", "dark", "gamma", "section_contrast", "noise", "blur"], 0
    )
    augmentation = Augmentation(contrast=0.2, **still)
    windows = Windows([volume], len(labels), WINDOW, seed=seed, balance=0, augmentation=augmentation)
    network = PlainUNet(len(labels)).to(memory_format=torch.channels_last_3d)
    loss = MaskedLoss(torch.ones(len(labels)), 1.0)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    half = fast_bfloat16()

    def step(number: int) -> None:
        windows.first, windows.count = 2 * number, 2
        image, truth, known = (torch.stack(parts) for parts in zip(windows[0], windows[1], strict=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = network(image.contiguous(memory_format=torch.channels_last_3d))
        value = loss(found.float(), truth, known)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    step(0)
    started = time.monotonic()
    for number in range(1, 6):
        step(number)
    steps = steps or int(60 * minutes / (time.monotonic() - started) * 5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    started = time.monotonic()
    for number in range(steps):
        step(6 + number)
        schedule.step()
        if number % 20 == 0:
            print(f"step {number} of {steps}, {time.monotonic() - started:.0f} s", flush=True)
    card = {
        "name": f"plain-{seed}",
        "architecture": {
            "kind": "python",
            "factory": "benchmarks.plain_unet:PlainUNet",
            "arguments": {"labels": len(labels)},
        },
        "labels": labels,
        "voxel_size": (50, 4.6, 4.6),
        "trained_normalization": Normalization(**volume.normalization.model_dump()),
        "window": WINDOW,
        "multiple": (1, 8, 8),
        "halo": (0, 24, 24),
        "training": {"steps": steps, "seconds": round(time.monotonic() - started)},
    }
    write_bundle(folder / "models" / f"plain-{seed}" / "model", card, network.state_dict())


def score(folder: Path, permutations: int) -> None:
    models = sorted(str(p.parent) for p in (folder / "models").glob("*/model/card.yaml") if "-trial" not in str(p))
    output = folder / f"evaluation-{permutations}"
    options = ["--permutations", permutations, "--output", output, "--quiet"]
    print(neurokube("evaluate", folder / "truth.yaml", "--models", ",".join(models), *options))


def neurokube(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "neurokube", *map(str, command)], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
