"""BioImage Model Zoo packages, versions 0.4 and 0.5 of the description, as candidates for a bundle.

Only TorchScript and ONNX weights are read, since the zoo's other weights are pickles or not of PyTorch.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from ...errors import DataError, UsageError
from ...volumes.volume import NANOMETRES
from .archives import inside
from .descriptions import first_error, offline
from .running import Image, require
from .zoo_writing import KEPT

if TYPE_CHECKING:
    from bioimageio.spec.model import ModelDescr

DESCRIPTIONS = ("bioimageio.yaml", "rdf.yaml")

_AXES = ["b", "c", "z", "y", "x"]
_LETTERS = {"batch": "b", "channel": "c", "time": "t", "index": "i"}


@dataclass(frozen=True)
class Trial:
    """A package's own test: normalized grey values in, (n, labels, z, y, x) out, after a sigmoid or not."""

    image: Image
    output: Image
    sigmoid: bool


@dataclass(frozen=True)
class Candidate:
    """What a bundle is to be made of: the card's fields as far as they are known, the file of weights, a test."""

    card: dict[str, Any]
    weights: str
    data: bytes
    trial: Trial | None = None


def read_package(folder: Path, source: str, given: Mapping[str, Any]) -> Candidate:
    """Read an unpacked package; what is `given` does not have to be in it.

    Raises:
        DataError: where it is damaged, or no network that NeuroKube can run: names what.
        UsageError: where something has to be said that the package does not say.
    """
    document = _document(folder, source)
    _check_axes(document, source)
    kind = _kind(document, source)
    description = _description(document, folder, source)
    weights = _weights(document["weights"][kind], folder, source)
    image, labels = description.inputs[0], description.outputs[0]
    test = [_test_tensor(tensor, folder, source) for tensor in (image, labels)]
    normalize, normalization = _preprocessing(image)
    sigmoid = _postprocessing(labels, source)
    config = document.get("config")
    kept = config.get("neurokube") if isinstance(config, dict) else None
    card: dict[str, Any] = {
        **_about(description),
        "labels": [str(name) for name in labels.axes[1].channel_names],  # type: ignore[union-attr]
        "output": "logits" if sigmoid else None,
        "voxel_size": _voxel_size(image),
        "normalization": normalization,
        **_window(image, labels, None if test[0] is None else test[0].shape[2:]),
        **({key: kept[key] for key in KEPT if key in kept} if isinstance(kept, dict) else {}),
        **given,
        "architecture": {"kind": kind},
    }
    trial = None
    if test[0] is not None and test[1] is not None and normalize is not None:
        trial = Trial(normalize(test[0].astype(np.float32)), test[1].astype(np.float32), sigmoid)
    known = {key: value for key, value in card.items() if value is not None}
    _check_known(known, _steps(image), source)
    return Candidate(known, {"torchscript": "model.pt", "onnx": "model.onnx"}[kind], weights, trial)


def _check_known(card: dict[str, Any], steps: list[str], source: str) -> None:
    if "voxel_size" not in card:
        raise UsageError(f"{source}: does not say its voxel size; give it with --voxel-size Z,Y,X in nm")
    if "window" not in card:
        raise UsageError(f"{source}: its sizes depend on each other; give one that fits with --window Z,Y,X in voxels")
    if "normalization" not in card:
        raise UsageError(
            f"{source}: its grey values or their preprocessing ({', '.join(steps) or 'none'}) are not ours; "
            "give --normalization volume, or MEAN,DEVIATION of grey values from 0 to 255"
        )


def _document(folder: Path, source: str) -> dict[str, Any]:
    path = next(folder / name for name in DESCRIPTIONS if (folder / name).is_file())
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: {path.name} is no YAML ({' '.join(str(error).split())[:100]})") from None
    if not isinstance(document, dict) or document.get("type", "model") != "model":
        raise DataError(f"{source}: {path.name} describes no model; name a model's package")
    version = str(document.get("format_version"))
    if not version.startswith(("0.4", "0.5")):
        raise DataError(f"{source}: has version {version} of the model description; 0.4 and 0.5 are understood")
    return document


def _check_axes(document: dict[str, Any], source: str) -> None:
    for side in ("inputs", "outputs"):
        tensors = document.get(side)
        if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
            raise DataError(f"{source}: {side}: NeuroKube runs models with one image in and one array of labels out")
        axes = tensors[0].get("axes") or []
        found = [_letter(axis) for axis in axes]
        if found != _AXES:
            what = "a 2D model" if "z" not in found else "another order"
            raise DataError(
                f"{source}: {side}: has the axes {', '.join(found)} ({what}); "
                "NeuroKube runs 3D models with b, c, z, y, x in this order"
            )


def _letter(axis: Any) -> str:
    if not isinstance(axis, dict):
        return str(axis)
    kind = str(axis.get("type"))
    return _LETTERS.get(kind) or str(axis.get("id", "x"))


def _description(document: dict[str, Any], folder: Path, source: str) -> "ModelDescr":
    require("bioimageio.spec", "import from the BioImage Model Zoo")
    from bioimageio.spec import InvalidDescr, build_description
    from bioimageio.spec.model import ModelDescr

    try:
        with offline(folder, files=False):
            description = build_description(document, format_version="latest")
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise DataError(f"{source}: its description cannot be understood ({str(error)[:160]})") from None
    if isinstance(description, InvalidDescr):
        raise DataError(f"{source}: its description is not valid: {first_error(description)}")
    assert isinstance(description, ModelDescr)
    channels = description.inputs[0].axes[1].size
    if channels != 1:
        raise DataError(f"{source}: takes {channels} image channels; NeuroKube runs models of one")
    return description


def _kind(document: dict[str, Any], source: str) -> Literal["torchscript", "onnx"]:
    weights = document.get("weights")
    if not isinstance(weights, dict) or not weights:
        raise DataError(f"{source}: its description names no weights; get the package again")
    if weights.get("torchscript"):
        return "torchscript"
    if weights.get("onnx"):
        return "onnx"
    raise DataError(
        f"{source}: has only {', '.join(weights)} weights; a pickle is never opened: "
        "add TorchScript or ONNX weights ('bioimageio add-weights') and import that package"
    )


def _weights(entry: dict[str, Any], folder: Path, source: str) -> bytes:
    """Return the weights; the checksum is read from the document itself, as conversion drops it."""
    if entry.get("external_data"):
        raise DataError(f"{source}: its ONNX weights are in a second file; save them as one file")
    path = inside(folder, str(entry["source"]), source)
    data = path.read_bytes()
    if entry.get("sha256") and hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DataError(f"{source}: {path.name} does not have the checksum that the package names; get it again")
    return data


def _about(description: "ModelDescr") -> dict[str, Any]:
    return {
        "name": description.name,
        "description": description.description,
        "licence": str(description.license) if isinstance(description.license, str) else None,
        "authors": [author.name for author in description.authors],
        "citations": [f"{entry.text} {entry.doi or entry.url or ''}".strip() for entry in description.cite],
    }


def _steps(image: Any) -> list[str]:
    return [step.id for step in image.preprocessing if step.id != "ensure_dtype"]


def _preprocessing(
    image: Any,
) -> tuple[Callable[[NDArray[np.float32]], Image] | None, str | dict[str, float] | None]:
    """Return how the package normalizes, and that in grey values from 0 to 255; None for what is not ours."""
    steps = [step for step in image.preprocessing if step.id != "ensure_dtype"]
    if len(steps) > 1:
        return None, None
    if steps and steps[0].id == "zero_mean_unit_variance":
        kwargs = steps[0].kwargs
        if kwargs.axes is not None and not {"z", "y", "x"} <= {str(axis) for axis in kwargs.axes}:
            return None, None
        axes = None if kwargs.axes is None else tuple(_AXES.index(str(a)[0]) for a in kwargs.axes)
        return (
            lambda grey: (grey - grey.mean(axes, keepdims=True)) / (grey.std(axes, keepdims=True) + kwargs.eps)
        ), "volume"
    linear = _linear(steps[0]) if steps else (0.0, 1.0)
    if linear is None:
        return None, None
    mean, deviation = linear
    in_grey_values = getattr(image.data, "type", None) == "uint8"
    return (lambda grey: (grey - np.float32(mean)) / np.float32(deviation)), {
        "mean": mean,
        "deviation": deviation,
    } if in_grey_values else None


def _linear(step: Any) -> tuple[float, float] | None:
    """Return the mean and deviation by which a step normalizes."""
    if step.id == "fixed_zero_mean_unit_variance":
        first, second = step.kwargs.mean, step.kwargs.std
    elif step.id == "scale_linear":
        first, second = step.kwargs.offset, step.kwargs.gain
    else:
        return None
    a, b = (float(n[0] if isinstance(n, (list, tuple)) else n) for n in (first, second))
    if b <= 0:
        return None
    return (a, b) if step.id == "fixed_zero_mean_unit_variance" else (-a / b, 1 / b)


def _postprocessing(labels: Any, source: str) -> bool:
    steps = [step.id for step in labels.postprocessing if step.id != "ensure_dtype"]
    if steps not in ([], ["sigmoid"]):
        raise DataError(
            f"{source}: its outputs are followed by {', '.join(steps)}; NeuroKube runs models that give probabilities, "
            "with a sigmoid or nothing after them"
        )
    return bool(steps)


def _voxel_size(image: Any) -> list[float] | None:
    space = image.axes[2:]
    if any(axis.unit not in NANOMETRES for axis in space):
        return None
    return [round(axis.scale * NANOMETRES[axis.unit], 6) for axis in space]


def _window(image: Any, labels: Any, tested: tuple[int, ...] | None) -> dict[str, Any]:
    """Return window, multiple and halo; a model whose sizes are no multiples of anything keeps its one window."""
    window, multiple = [], []
    for number, axis in enumerate(image.axes[2:]):
        least, step = getattr(axis.size, "min", axis.size), getattr(axis.size, "step", None)
        size = tested[number] if tested else least
        if not isinstance(size, int):
            return {}
        window.append(size)
        multiple.append(step if step and least % step == 0 else size)
    return {"window": window, "multiple": multiple, "halo": [getattr(axis, "halo", 0) for axis in labels.axes[2:]]}


def _test_tensor(tensor: Any, folder: Path, source: str) -> NDArray[Any] | None:
    if tensor.test_tensor is None:
        return None
    path = inside(folder, str(tensor.test_tensor.source), source)
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{source}: {path.name} is no array ({error}); get the package again") from None
    if array.ndim != len(_AXES):
        raise DataError(f"{source}: {path.name} has {array.ndim} axes, not {len(_AXES)}; get the package again")
    return array
