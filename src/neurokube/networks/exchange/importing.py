"""Models of other people, as bundles: checked, run once, and only then put among the installed ones.

Nothing is unpickled, and no code is imported unless the user names it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from ...blocks import Vector
from ...errors import DataError, UsageError, surroundings
from ..bundle import (
    CARD,
    WEIGHTS,
    AnyBundle,
    Bundle,
    ForestBundle,
    PythonArchitecture,
    installed_folder,
    load_any,
    write_files,
    write_forest,
)
from ..forest import trees
from ..normalization import Normalization
from .archives import unpacked
from .running import predict
from .zoo_reading import DESCRIPTIONS, Candidate, Trial, read_package

_FACTORY = re.compile(r"[\w.]+:\w+")
_TOLERANCE = 1e-3
_NEEDED = ("labels", "voxel_size", "window")
_OF_ANY = {"voxel_size", "modality", "licence", "description"}
"""What can be said of a forest too."""


class Given(TypedDict, total=False):
    """What a user says about a model; goes before what its file says. Axes (z, y, x), voxel size in nm."""

    labels: tuple[str, ...]
    voxel_size: tuple[float, float, float]
    window: Vector
    multiple: Vector
    halo: Vector
    normalization: Literal["volume"] | Normalization
    output: Literal["logits", "probabilities", "image"]
    modality: str
    licence: str
    description: str


def import_model(
    source: str | Path,
    name: str | None = None,
    destination_folder: Path | None = None,
    *,
    weights: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **given: Unpack[Given],
) -> AnyBundle:
    """Make a bundle of a model and put it into a folder, that of the installed models unless named.

    `source` is a bundle or a BioImage Model Zoo package (a folder or a zip), a TorchScript (`.pt`) or ONNX
    (`.onnx`) file, or `package.module:factory`, called with `arguments`, which fits the safetensors file
    `weights`.  A file alone says nothing about itself: `labels`, `voxel_size` and `window` have to be given;
    its halo is an eighth of the window unless given.  Where nothing says what it gives, values that all lie
    between 0 and 1 are probabilities.  A network must run on one window, and repeat a package's own test; a
    forest must be one.

    Raises:
        UsageError: where something has to be given, or a model of that name is there.
        DataError: where the model is damaged or none that NeuroKube can run: names what.
        ConfigurationError: where a package of the extra `exchange` is missing.
    """
    factory = str(source) if _FACTORY.fullmatch(str(source)) and not Path(source).exists() else None
    if factory:
        candidate: Candidate | _Forest = _of_factory(factory, weights, arguments or {}, given)
    else:
        candidate = _read(Path(source).expanduser(), given)
    card = dict(candidate.card)
    if "window" in card:
        card.setdefault("halo", [n // 8 for n in card["window"]])
    card["name"] = name or re.sub(r"[^A-Za-z0-9._-]+", "-", str(card["name"])).strip("-._") or "model"
    folder = destination_folder or installed_folder()
    target = folder / card["name"]
    if target.exists() and not overwrite:
        raise UsageError(f"{target}: a model of that name is there; give another with --name, or --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".import-", dir=folder) as staging:
            new = Path(staging) / "new"
            if isinstance(candidate, _Forest):
                bundle: AnyBundle = write_forest(new, card, candidate.arrays)
            else:
                bundle = _tried(new, card, candidate, str(source))
            if target.exists():
                target.rename(Path(staging) / "old")
            bundle.folder.rename(target)
    except OSError as error:
        raise surroundings(error, str(folder)) or DataError(f"{source}: {error}") from None
    return load_any(str(target))


@dataclass(frozen=True)
class _Forest:
    """A forest that was read and is sound."""

    card: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


def _read(path: Path, given: Given) -> Candidate | _Forest:
    if not path.exists():
        raise UsageError(f"{path}: no such file; name a bundle, a zip, a .pt or .onnx file, or package:factory")
    if path.suffix in (".pt", ".pth", ".onnx"):
        kind = "onnx" if path.suffix == ".onnx" else "torchscript"
        return _of_file(path, {"kind": kind}, f"model{'.onnx' if kind == 'onnx' else '.pt'}", path.stem, given)
    if path.is_file() and path.suffix != ".zip":
        raise UsageError(f"{path}: is none of .zip, .pt (TorchScript) and .onnx; export the model as one of them")
    with unpacked(path) as folder:
        if (folder / CARD).is_file():
            return _of_bundle(folder, str(path), given)
        if any((folder / name).is_file() for name in DESCRIPTIONS):
            return read_package(folder, str(path), dict(given))
    raise DataError(f"{path}: holds neither {CARD} nor {' nor '.join(DESCRIPTIONS)}; name a bundle or a zoo package")


def _of_bundle(folder: Path, source: str, given: Given) -> Candidate | _Forest:
    bundle = load_any(str(folder))
    if isinstance(bundle, ForestBundle):
        if odd := sorted(given.keys() - _OF_ANY):
            raise UsageError(f"--{odd[0].replace('_', '-')}: {source} is a forest, which sees no image; leave it out")
        return _Forest({**bundle.card.model_dump(mode="json", exclude_none=True), **given}, trees(bundle).arrays())
    if isinstance(bundle.card.architecture, PythonArchitecture):
        # a card must not be able to name code that then runs
        factory = bundle.card.architecture.factory
        raise UsageError(
            f"{source}: runs code, {factory}; if you trust it, import '{factory}' with --weights {bundle.card.weights}"
        )
    card = {**bundle.card.model_dump(mode="json", exclude_none=True), **given}
    return Candidate(card, bundle.card.weights, bundle.weights.read_bytes())


def _of_factory(factory: str, weights: Path | None, arguments: Mapping[str, Any], given: Given) -> Candidate:
    if weights is None or weights.suffix != ".safetensors":
        raise UsageError(f"{factory}: name its weights with --weights FILE.safetensors; pickles are never opened")
    architecture = {"kind": "python", "factory": factory, "arguments": dict(arguments)}
    return _of_file(weights, architecture, WEIGHTS, factory.rpartition(":")[2], given)


def _of_file(path: Path, architecture: dict[str, Any], weights: str, name: str, given: Given) -> Candidate:
    if missing := [field for field in _NEEDED if field not in given]:
        options = ", ".join(f"--{field.replace('_', '-')}" for field in missing)
        raise UsageError(f"{path}: a file of weights does not say what it is; give {options}")
    try:
        return Candidate({"name": name, **given, "architecture": architecture}, weights, path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file of weights") from None


def _tried(folder: Path, card: dict[str, Any], candidate: Candidate, source: str) -> Bundle:
    """Write a bundle and run it on a window, and on the package's own test."""
    try:
        bundle = write_files(folder, {"output": "logits", **card}, candidate.weights, candidate.data)
        shape = (1, bundle.card.channels, *bundle.card.window)
        output = predict(bundle, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
        if candidate.trial:
            _repeat(bundle, candidate.trial)
        bounded = bool(output.min() >= 0 and output.max() <= 1)
        if "output" not in card and bounded:
            return write_files(folder, {**card, "output": "probabilities"}, candidate.weights, candidate.data)
    except DataError as error:
        raise DataError(f"{source}: {str(error).replace(f'{folder}/', '')}") from None
    if not bounded and card.get("output", "probabilities") == "probabilities":
        raise DataError(
            f"{source}: gives values from {output.min():.3g} to {output.max():.3g}, no probabilities; "
            "give --output logits if a sigmoid makes them such"
        )
    return bundle


def _repeat(bundle: Bundle, trial: Trial) -> None:
    from scipy.special import expit

    output = predict(bundle, trial.image)
    output = expit(output) if trial.sigmoid else output
    if trial.output.shape != output.shape:
        raise DataError(
            f"gives {output.shape} for the package's own test, which has {trial.output.shape}; get the package again"
        )
    apart = float(np.abs(output - trial.output).max())
    if not apart <= _TOLERANCE * max(1.0, float(np.abs(trial.output).max())):
        raise DataError(
            f"its output differs by up to {apart:.2g} from the package's own test; "
            "the weights are not those of the description, or this version of torch runs them otherwise"
        )
