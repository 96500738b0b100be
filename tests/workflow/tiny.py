"""A tiny volume of real-looking tissue and a workflow that cuts it into many small blocks."""

import hashlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pyarrow import parquet

from neurokube.blocks import Box
from neurokube.stages import FileOutput, TableOutput
from neurokube.synthesis import Neuropil, synthesize
from neurokube.volumes import VolumeSpec, create
from neurokube.workflow import Run, parse_workflow

SHAPE = (32, 96, 96)
VOXEL_SIZE = (10.0, 10.0, 10.0)
TILE = [16, 32, 32]
CELLS = 18


@lru_cache(maxsize=1)
def tissue() -> np.ndarray:
    return synthesize(Neuropil(seed=3), VOXEL_SIZE, Box.of(SHAPE))["image"]


def write_image(folder: Path, voxels: np.ndarray | None = None) -> Path:
    voxels = tissue() if voxels is None else voxels
    path = folder / "image.zarr"
    spec = VolumeSpec(voxels.shape, "uint8", VOXEL_SIZE)
    volume = create(str(path), spec, shard=(16, 32, 32), attributes={"fingerprint": digest(voxels)})
    volume.write(Box.of(voxels.shape), voxels)
    return path


STAGES = {
    "boundaries": {"tile": TILE},
    "fragments": {"tile": TILE, "reach": 60.0},
    "graph": {},
    "lifted": {
        "priors": {
            "classes": {"channels": {"ridges": "boundaries", "grey": "image"}, "repel": 2},
            "objects": {"objects": "objects", "attract": 2, "repel": 1, "overlap": 5},
        }
    },
    "multicut": {"first_block": TILE, "lifted": "lifted"},
    "segmentation": {},
    "objects": {"semantics": "boundaries", "threshold": 0.3, "core": 0.7, "reach": 60, "tile": TILE},
    "measurements": {"cells": "segmentation", "semantics": "boundaries"},
    "fusion": {
        "tile": TILE,
        "channels": {"ridges": "boundaries.boundaries", "grey": "image"},
        "weights": {"ridges": 0.9, "grey": -0.4},
        "bias": -0.2,
    },
}


def document(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "run",
        "workspace": str(folder / "runs"),
        "inputs": {"image": {"path": str(folder / "image.zarr")}},
        "stages": STAGES,
    } | changes


def planned(folder: Path, **changes: Any) -> Run:
    return Run.planned(parse_workflow(document(folder, **changes)))


def write_workflow(folder: Path, **changes: Any) -> Path:
    path = folder / "workflow.yaml"
    path.write_text(yaml.safe_dump(document(folder, **changes)))
    return path


def digest(array: np.ndarray) -> str:
    header = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def results(run: Run) -> dict[str, str]:
    """Return a digest of everything that a run wrote: each resolution of each volume, each table, each file."""
    found = {}
    for stage in run.plan.stages:
        data = stage.data()
        for name, output in stage.own.outputs.items():
            if isinstance(output, TableOutput):
                cells = "".join(digest(data.table(name, cell)) for cell in range(len(output.grid())))
                found[f"{stage.name}/{name}"] = hashlib.sha256(cells.encode()).hexdigest()[:16]
                continue
            if isinstance(output, FileOutput):
                found[f"{stage.name}/{name}"] = hashlib.sha256(content(name, data.file(name))).hexdigest()[:16]
                continue
            volume = data.volume(name)
            for level in range(len(volume.arrays)):
                voxels = volume.read(Box.of(volume.level_shape(level)), level)
                found[f"{stage.name}/{name}/{level}"] = digest(voxels)
    return found


def content(name: str, file: bytes) -> bytes:
    """Return what a file says, whichever version wrote it."""
    return repr(parquet.read_table(BytesIO(file)).to_pydict()).encode() if name.endswith(".parquet") else file


def records(run: Run) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Return every completion record by step, block shape and block."""
    return {
        (name, str(blocks), record.block): vars(record)
        for name, step in run.plan.steps.items()
        for blocks, record in run.ledger(step).records()
    }
