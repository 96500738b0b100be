"""A BioImage Model Zoo package of a bundle: description, weights, test tensors, documentation, cover."""

import re
from math import ceil, lcm
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ...blocks import Vector
from ...errors import DataError, UsageError
from ..bundle import Bundle, Card
from ..normalization import Normalization
from .descriptions import first_error, offline
from .exporting import OPSET, weight_formats, write_weights
from .running import Image, predict, probabilities, require

KEPT = (
    *("name", "description", "licence", "authors", "citations", "modality", "normalization"),
    *("trained_normalization", "window", "multiple", "halo", "thresholds", "scores", "training"),
)
"""Fields of a card that the zoo's description has no place for; they travel under `config: neurokube`."""

_FILES = {"torchscript": "weights.pt", "onnx": "weights.onnx"}
_EPSILON = 1e-6


def write_package(bundle: Bundle, path: Path, sample: NDArray[np.uint8] | None) -> None:
    """Write a zip with a description of version 0.5 that the zoo's own validation accepts.

    Raises:
        UsageError: where the model makes images.
        DataError: where the sample is smaller than a window, or the card says what the zoo does not accept.
    """
    if bundle.card.output == "image":
        raise UsageError(
            f"{bundle.card.name}: makes images, whose grey values a package cannot put back into those of the volume; "
            "export it with --format onnx or torchscript"
        )
    require("bioimageio.spec", "export for the BioImage Model Zoo")
    from bioimageio.spec import InvalidDescr, build_description, save_bioimageio_package

    card = bundle.card
    if card.channels != 1:
        raise DataError(f"{bundle.folder}: takes {card.channels} image channels; packages are written for one")
    image = _window_of(card, sample)
    output = probabilities(card, predict(bundle, _normalized(card, image)[None, None]))[0]
    with TemporaryDirectory() as temporary, offline(Path(temporary)):
        folder = Path(temporary)
        np.save(folder / "test_input.npy", image[None, None])
        np.save(folder / "test_output.npy", output[None])
        (folder / "README.md").write_text(_readme(card), encoding="utf-8")
        _draw_cover(image, output, folder / "cover.png")
        for kind in weight_formats(bundle):
            write_weights(bundle, folder / _FILES[kind], kind)
        description = build_description(_description(bundle))
        if isinstance(description, InvalidDescr):
            raise DataError(
                f"{bundle.folder}: the BioImage Model Zoo refuses {first_error(description)}; mend the card"
            )
        save_bioimageio_package(description, output_path=path)


def _halo(card: Card) -> Vector:
    """Return the halo by which programs pad a window, so that what they make is again a window that fits.

    None where a model takes windows of one size only.
    """
    if not _free(card):
        return (0, 0, 0)
    z, y, x = (ceil(2 * n / lcm(2, m)) * lcm(2, m) // 2 for n, m in zip(card.halo, card.multiple, strict=True))
    return z, y, x


def _smallest(card: Card) -> Vector:
    """Return the smallest window (z, y, x) of which the halo leaves something, at least the card's."""
    z, y, x = (
        max(window, ceil((2 * halo + 1) / multiple) * multiple)
        for window, halo, multiple in zip(card.window, _halo(card), card.multiple, strict=True)
    )
    return z, y, x


def _free(card: Card) -> bool:
    # somebody else's model may be able to run on windows of one size only
    return card.multiple != card.window


def _description(bundle: Bundle) -> dict[str, Any]:
    card, kind = bundle.card, bundle.card.architecture.kind
    dois = {text: match.group() for text in card.citations if (match := re.search(r"10\.\d{4,}/\S+", text))}
    return {
        "type": "model",
        "format_version": require("bioimageio.spec.model.v0_5", "export").ModelDescr.implemented_format_version,
        "name": f"{re.sub('[^A-Za-z0-9_+-]', '-', card.name)} (NeuroKube)",
        "description": card.description or f"Finds {', '.join(card.labels)} in volume electron microscopy.",
        "authors": [{"name": name.replace("/", " ")} for name in card.authors],
        "cite": [{"text": text, "doi": doi.rstrip(".,;)")} for text, doi in dois.items()],
        "license": card.licence,
        "documentation": {"source": "README.md"},
        "covers": [{"source": "cover.png"}],
        "tags": ["electron-microscopy", "3d", "brain", "pytorch", kind, "semantic-segmentation", "neurokube"],
        "inputs": [_input(card)],
        "outputs": [_output(card)],
        "weights": _weights(bundle),
        "config": {"neurokube": card.model_dump(mode="json", include=set(KEPT), exclude_none=True)},
    }


def _input(card: Card) -> dict[str, Any]:
    sizes = [{"min": n, "step": m} if _free(card) else n for n, m in zip(_smallest(card), card.multiple, strict=True)]
    return {
        "id": "image",
        "description": "grey values",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": ["grey"]},
            *({**axis, "size": n, "concatenable": True} for axis, n in zip(_space(card), sizes, strict=True)),
        ],
        "data": {"type": "uint8"},
        "preprocessing": [_normalizing(card), {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}],
        "test_tensor": {"source": "test_input.npy"},
    }


def _output(card: Card) -> dict[str, Any]:
    space = [
        {**axis, "size": {"tensor_id": "image", "axis_id": axis["id"]}, **({"halo": halo} if halo else {})}
        for axis, halo in zip(_space(card), _halo(card), strict=True)
    ]
    return {
        "id": "labels",
        "description": "probability of each label; they do not exclude each other",
        "axes": [{"type": "batch"}, {"type": "channel", "channel_names": list(card.labels)}, *space],
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "postprocessing": [{"id": "sigmoid"}] if card.output == "logits" else [],
        "test_tensor": {"source": "test_output.npy"},
    }


def _space(card: Card) -> list[dict[str, Any]]:
    return [
        {"type": "space", "id": axis, "unit": "nanometer", "scale": scale}
        for axis, scale in zip("zyx", card.voxel_size, strict=True)
    ]


def _normalizing(card: Card) -> dict[str, Any]:
    if fixed := _fixed(card):
        kwargs = {"mean": fixed.mean, "std": fixed.deviation}
        return {"id": "fixed_zero_mean_unit_variance", "kwargs": kwargs}
    return {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["channel", "z", "y", "x"], "eps": _EPSILON}}


def _weights(bundle: Bundle) -> dict[str, Any]:
    import torch

    kinds = weight_formats(bundle)
    entries: dict[str, Any] = {}
    if "torchscript" in kinds:
        version = torch.__version__.partition("+")[0]
        entries["torchscript"] = {"source": _FILES["torchscript"], "pytorch_version": version}
    if "onnx" in kinds:
        opset = _opset(bundle.weights) if bundle.card.architecture.kind == "onnx" else OPSET
        entries["onnx"] = {"source": _FILES["onnx"], "opset_version": opset}
        if "torchscript" in kinds:
            entries["onnx"]["parent"] = "torchscript"
    return entries


def _opset(path: Path) -> int:
    model = require("onnx", "export of an ONNX model").load(path)
    return next((int(entry.version) for entry in model.opset_import if not entry.domain), OPSET)


def _fixed(card: Card) -> Normalization | None:
    return card.normalization if isinstance(card.normalization, Normalization) else card.trained_normalization


def _normalized(card: Card, image: NDArray[np.uint8]) -> Image:
    if fixed := _fixed(card):
        return fixed.apply(image)
    grey = image.astype(np.float64)
    return np.asarray((grey - grey.mean()) / (grey.std() + _EPSILON), np.float32)


def _window_of(card: Card, sample: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    shape = _smallest(card)
    if sample is None:
        from scipy.ndimage import gaussian_filter

        fixed = _fixed(card) or Normalization(mean=128.0, deviation=32.0)
        noise = gaussian_filter(np.random.default_rng(0).standard_normal(shape), 1.5)
        return np.asarray(np.clip(fixed.mean + fixed.deviation * noise / noise.std(), 0, 255), np.uint8)
    if any(have < need for have, need in zip(sample.shape, shape, strict=True)):
        raise DataError(f"--sample: has {sample.shape} voxels (z, y, x); a window of this model has {shape}")
    start = [(have - need) // 2 for have, need in zip(sample.shape, shape, strict=True)]
    return np.ascontiguousarray(sample[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))], np.uint8)


def _draw_cover(image: NDArray[np.uint8], output: Image, path: Path) -> None:
    """Draw the middle section, and beside it the most likely label's probability, as the zoo wants it: 2 to 1."""
    from PIL import Image as Picture

    middle = image.shape[0] // 2
    right = (output.max(axis=0)[middle] * 255).astype(np.uint8)
    halves = [Picture.fromarray(half).resize((256, 256)) for half in (image[middle], right)]
    cover = Picture.new("L", (512, 256))
    cover.paste(halves[0], (0, 0))
    cover.paste(halves[1], (256, 0))
    cover.convert("RGB").save(path)


def _readme(card: Card) -> str:
    size = " x ".join(f"{n:g}" for n in card.voxel_size)
    scores = yaml.safe_dump(card.model_dump(mode="json")["scores"], sort_keys=False) if card.scores else "none given\n"
    parts = [
        f"# {card.name}",
        card.description,
        f"Finds {', '.join(card.labels)} in volume electron microscopy of about {size} nm (z, y, x). "
        "Every output channel is the probability of one label; they do not exclude each other.",
        "Grey values are normalized by the mean and deviation of the training volumes. For a volume exposed "
        "differently use its own, leaving out padding of value 0.",
        *card.citations,
        "# Validation\n",
        "Compare probabilities at these thresholds with annotated sections that the model never saw; "
        f"thresholds: {card.thresholds or 0.5}; scores:\n\n```\n{scores}```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
