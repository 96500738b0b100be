"""The demo: synthesize tissue, reconstruct it, score it, and show what came out."""

import json
import time
from pathlib import Path
from typing import Any

from .blocks import Box
from .errors import UsageError, surroundings
from .evaluation import (
    FLOOR,
    InstanceScores,
    MaskScores,
    Picture,
    Table,
    evaluate_instances,
    evaluate_mask,
    print_rows,
    score_rows,
    write_report,
)
from .evaluation.overlays import blend, boundaries_of, label_colours, overlay
from .stages.semantics import Semantics
from .volumes import Volume, join, open_volume
from .words import counted, human_bytes
from .workflow import Run, execute, load_workflow
from .workflow.status import cost, distinct

WORKFLOW = """\
# The demo: synthetic neuropil, 64 sections of 512 x 512 pixels, 40 x 8 x 8 nm, to a segmentation.
# 'neurokube run' on this file goes on with it, or starts anew what you change.
name: neuropil
workspace: .

stages:
  synthesis:
    shape: [64, 512, 512]      # voxels (z, y, x)
    voxel_size: [40, 8, 8]     # nm
  semantics:
    image: synthesis.image
    model: synthetic-40-8-8    # shipped; trained on other tissue of the same kind
    labels: [membranes, mitochondria]
    window: [12, 176, 176]     # voxels; without it planning tries which is fastest here
  fragments:
    boundaries: semantics.membranes
  graph:
    boundaries: semantics.membranes
  multicut:
    bias: 0.62
    size_weight: 1
  segmentation:
"""


def demonstrate(folder: str, *, workers: int, quiet: bool = False) -> dict[str, Any]:
    """Run the demo in a folder; print a table; write `report.html` and `report.json`; return the latter.

    Raises:
        UsageError: where the folder holds something else.
    """
    from .engines import InProcess
    from .engines.local import Local

    started = time.monotonic()
    file = _prepare(folder)
    run = Run.planned(load_workflow(str(file)))
    execute(run, Local(workers) if workers else InProcess(), quiet=quiet)
    reconstructed = time.monotonic() - started
    volumes = {
        name: open_volume(join(run.url, *name.split("/")))
        for name in (
            "synthesis/image",
            "synthesis/labels",
            "synthesis/membranes",
            "synthesis/mitochondria",
            "semantics/membranes",
            "semantics/mitochondria",
            "fragments/fragments",
            "segmentation/segmentation",
        )
    }
    truth = volumes["synthesis/labels"]
    cells = evaluate_instances(volumes["segmentation/segmentation"], truth, quiet=quiet)
    fragments = evaluate_instances(volumes["fragments/fragments"], truth, quiet=quiet)
    semantics = run.workflow.stages["semantics"]
    assert isinstance(semantics, Semantics)
    thresholds = semantics.card.thresholds
    masks = {
        name: evaluate_mask(
            volumes[f"semantics/{name}"], volumes[f"synthesis/{name}"], threshold=255 * thresholds[name], quiet=quiet
        )
        for name in ("membranes", "mitochondria")
    }
    steps = {name: cost(distinct(run, step)) for name, step in run.plan.steps.items()}
    report = {
        "voxels": truth.spec.box.size,
        "voxel_size": truth.spec.voxel_size,
        "workers": workers,
        "seconds": round(reconstructed, 1),
        "scores": {
            "segmentation": cells.as_dict(),
            "fragments": fragments.as_dict(),
            **{name: scores.as_dict() for name, scores in masks.items()},
        },
        "steps": steps,
        "run": {key: run.document[key] for key in ("neurokube", "python", "numerics", "keys", "workflow")},
    }
    Path(folder, "report.json").write_text(json.dumps(report, indent=2))
    _write_page(folder, report, cells, fragments, masks, volumes)
    report["total_seconds"] = round(time.monotonic() - started, 1)
    _print(folder, run.url, report, cells)
    return report


def _prepare(folder: str) -> Path:
    file = Path(folder, "workflow.yaml")
    path = Path(folder)
    if path.exists() and not file.exists() and (path.is_file() or any(path.iterdir())):
        raise UsageError(f"{folder}: holds something else than a demo; name another folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(WORKFLOW)
    except OSError as error:
        raise surroundings(error, folder) or UsageError(f"{folder}: {error.strerror}") from None
    return file


def _print(folder: str, run_url: str, report: dict[str, Any], cells: InstanceScores) -> None:
    voxels = report["voxels"] / 1e6
    print_rows(
        [
            ("volume", f"{voxels:.1f} million voxels"),
            ("reconstructed in", f"{report['seconds']:.0f} s with {counted(report['workers'], 'worker')}"),
            *score_rows(cells),
        ]
    )
    print(f"pictures, scores and costs: {folder}/report.html")
    print(f"the volumes in Neuroglancer: neurokube view {run_url}")


def _write_page(
    folder: str,
    report: dict[str, Any],
    cells: InstanceScores,
    fragments: InstanceScores,
    masks: dict[str, MaskScores],
    volumes: dict[str, Volume],
) -> None:
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for name, step in report["steps"].items():
        by_stage.setdefault(name.split("/")[0], []).append(step)
    costs = [
        (
            stage,
            f"{sum(s['seconds'] for s in steps):.1f} s",
            human_bytes(sum(s["bytes"] for s in steps)),
            human_bytes(max(s["peak_memory"] for s in steps)),
        )
        for stage, steps in by_stage.items()
    ]
    write_report(
        str(Path(folder, "report.html")),
        title="NeuroKube demo: synthetic neuropil",
        summary=(
            f"{report['voxels'] / 1e6:.1f} million voxels of {'x'.join(f'{v:g}' for v in report['voxel_size'])} nm, "
            f"synthesized, and reconstructed with a network that never saw it, in {report['seconds']:.0f} s "
            f"by {counted(report['workers'], 'worker')}."
        ),
        tables=[
            Table("Cells against the truth", ("", "segmentation", "fragments"), _beside(cells, fragments), FLOOR),
            Table("Semantics against the truth", ("", *masks), _beside(*masks.values())),
            Table(
                "Time and memory",
                ("stage", "work", "written, uncompressed", "worker's peak memory"),
                costs,
                "Work is summed over all workers, which go on from stage to stage; a peak is the most held by then.",
            ),
        ],
        pictures=_pictures(volumes, masks),
        provenance=report["run"],
    )


def _beside(one: InstanceScores | MaskScores, other: InstanceScores | MaskScores) -> list[tuple[str, str, str]]:
    """Return the scores of two as rows."""
    return [(name, a, b) for (name, a), (_, b) in zip(score_rows(one), score_rows(other), strict=True)]


def _pictures(volumes: dict[str, Volume], masks: dict[str, MaskScores]) -> list[tuple[str, str, list[Picture]]]:
    spec = volumes["synthesis/image"].spec
    depth, height, width = spec.shape
    z, y = depth // 2, height // 2
    section = Box((z, 0, 0), (z + 1, height, width))
    side = Box((0, y, 0), (depth, y + 1, width))
    flat = {name: volume.read(section)[0] for name, volume in volumes.items()}
    upright = {name: volumes[name].read(side)[:, 0] for name in ("synthesis/image", "segmentation/segmentation")}
    image, segments, truth = flat["synthesis/image"], flat["segmentation/segmentation"], flat["synthesis/labels"]
    aspect = spec.voxel_size[0] / spec.voxel_size[2]
    wrong = [
        Picture(name, overlay(flat[f"semantics/{name}"] >= scores.threshold, flat[f"synthesis/{name}"] != 0))
        for name, scores in masks.items()
    ]
    return [
        (
            f"Section {z}",
            "Each segment has a colour of its own; the truth's colours are others.",
            [
                Picture("image", image),
                Picture("membranes: probability", flat["semantics/membranes"]),
                Picture("fragments", blend(image, label_colours(flat["fragments/fragments"]))),
                Picture("segmentation", blend(image, label_colours(segments))),
                Picture("truth", blend(image, label_colours(truth))),
            ],
        ),
        (
            "Right and wrong",
            "Yellow: in both; red: found, but not true; green: true, but not found; black: in neither.",
            [
                *wrong,
                Picture("borders of segments", overlay(boundaries_of(segments), boundaries_of(truth))),
            ],
        ),
        (
            "From the side",
            "A plane across all sections.",
            [
                Picture("image", upright["synthesis/image"], aspect),
                Picture(
                    "segmentation",
                    blend(upright["synthesis/image"], label_colours(upright["segmentation/segmentation"])),
                    aspect,
                ),
            ],
        ),
    ]
