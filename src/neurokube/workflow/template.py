"""A commented workflow for a given volume."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..blocks import Vector
from ..errors import DataError, UsageError, surroundings
from ..networks import load_bundle
from ..networks.proposal import EDGES, Proposal, edge_label, fits, propose
from ..stages import STAGES, Stage
from ..volumes import Volume, VolumeSpec, open_volume
from ..volumes.volume import nanometres

_CHAIN = ("boundaries", "fragments", "graph", "multicut", "segmentation")


def write_workflow(
    volume_url: str, path: str, *, model: str | None = None, modality: str | None = None, overwrite: bool = False
) -> Proposal | None:
    """Write a workflow file for a volume; return the model that it names, if any.

    Without a `model` the one is taken whose voxel size and modality are nearest, see `networks.proposal`; "none"
    takes no model but a filter that needs no training.

    Raises:
        UsageError: where the file is there already.
        DataError: where there is no volume, or not one that a workflow can start from.
    """
    file = Path(path)
    if file.exists() and not overwrite:
        raise UsageError(f"{path}: is there already; choose another name with --output, or give --overwrite")
    volume = open_volume(volume_url)
    spec = volume.spec
    if not spec.is_grey:
        channels = "" if spec.channels is None else f" of {spec.channels} channels"
        raise DataError(
            f"{volume_url}: holds {spec.kind} of {spec.dtype}{channels}; a workflow starts from an 8-bit image: "
            "name one, or import yours with --to-8bit auto"
        )
    proposal = _proposal(volume.spec, model, modality)
    text = workflow_text(volume, file.absolute().parent, proposal)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise surroundings(error, path) or UsageError(
            f"{path}: {error.strerror}; give --output a file in a folder that is there"
        ) from None
    return proposal


def _proposal(spec: VolumeSpec, model: str | None, modality: str | None) -> Proposal | None:
    if model == "none":
        return None
    if model is None:
        return propose(spec.voxel_size, modality)
    card = load_bundle(model).card
    if not fits(card.voxel_size, spec.voxel_size):
        raise UsageError(
            f"{model}: was trained on voxels of {nanometres(card.voxel_size)}, too far from "
            f"{nanometres(spec.voxel_size)} to resample; name another model, or 'none'"
        )
    if edge_label(card) is None:
        raise UsageError(
            f"{model}: finds {', '.join(card.labels)}, and a workflow starts from {' or '.join(EDGES)}; name a model "
            "of these ('neurokube models list'), or 'none', and add this one to the workflow as a stage of its own"
        )
    return Proposal(model, card, spec.voxel_size)


def workflow_text(volume: Volume, folder: Path, proposal: Proposal | None = None) -> str:
    """Return the YAML of a workflow that fits the volume and lies in `folder`; with a model, where one is proposed."""
    spec = volume.spec
    name = volume.url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "volume"
    sections = "one by one: z is coarse" if spec.is_coarse else "together, in 3D"
    path = volume.url if "://" in volume.url else _shown(Path(volume.url), folder)
    z, y, x = spec.shape
    lines = [
        f"# A workflow for {name}: {z} x {y} x {x} voxels (z, y, x) of "
        f"{' x '.join(f'{v:g}' for v in spec.voxel_size)} nm.",
        f"# Sections are taken {sections}.",
        "# A commented line shows a default; take the '#' away to change it. Then:",
        "#   neurokube run FILE                                     runs it, and goes on after any interruption",
        f"#   neurokube run FILE --region {_look(spec.shape)}".ljust(58) + " a quick look at a cut-out",
        f"name: {json.dumps(name)}",
        "workspace: runs    # the run is written to <workspace>/<name>, beside this file",
        "",
        "inputs:",
        f"  image: {{path: {json.dumps(path, ensure_ascii=False)}}}",
        "",
        "stages:",
    ]
    if proposal is None:
        for kind in _CHAIN:
            lines += _stage_lines(kind, STAGES[kind], {})
        return "\n".join(lines) + "\n"
    lines += [f"  # {line}" for line in proposal.remarks]
    edges = {"boundaries": f"semantics.{edge_label(proposal.card)}"}
    given: dict[str, dict[str, Any]] = {
        "semantics": {"model": proposal.model},
        "fragments": edges,
        "graph": edges,
        "multicut": {} if proposal.card.bias is None else {"bias": proposal.card.bias},
    }
    for kind in ("semantics", *_CHAIN[1:]):
        lines += _stage_lines(kind, STAGES[kind], given.get(kind, {}))
    return "\n".join(lines) + "\n"


def _look(shape: Vector) -> str:
    """Return a region in the middle that is small enough for a quick look."""
    sides = ((n, min(n, most)) for n, most in zip(shape, (50, 512, 512), strict=True))
    return ",".join(f"{(n - side) // 2}:{(n - side) // 2 + side}" for n, side in sides)


def _shown(path: Path, folder: Path) -> str:
    path = path.absolute()
    if not path.is_relative_to(folder):
        return str(path)
    shown = str(path.relative_to(folder))
    return f"./{shown}" if shown.startswith("~") else shown


def _stage_lines(kind: str, stage: type[Stage], given: Mapping[str, Any]) -> list[str]:
    lines = [f"  # {(stage.__doc__ or '').splitlines()[0]}", f"  {kind}:"]
    for name, value in given.items():
        lines.append(f"    {name}: {json.dumps(value)}".ljust(35) + f" # {stage.model_fields[name].description}")
    for name, field in stage.model_fields.items():
        if name in given or name in stage.found:
            continue
        default = field.default
        value = "null" if default is None else list(default) if isinstance(default, tuple) else default
        text = str(value).lower() if isinstance(value, bool) else value
        lines.append(f"    # {name}: {text}".ljust(35) + f" # {field.description}")
    return [*lines, ""]
