"""Our models for other programs: BioImage Model Zoo packages, ONNX and TorchScript files.

What is written is traced from the network with its batch norms folded.
"""

import warnings
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError, surroundings
from ..bundle import Bundle
from .running import require

Format = Literal["bioimageio", "onnx", "torchscript"]
OPSET = 18


def export_model(
    bundle: Bundle,
    destination: Path,
    *,
    format: Format,
    sample: NDArray[np.uint8] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as one file and return it.

    `bioimageio` is a zip that follows version 0.5 of the model description and tests itself on `sample`, grey
    values (z, y, x) of at least a window, or on noise.  A `torchscript` or `onnx` file takes normalized grey
    values (n, channels, z, y, x) and gives what the card's `output` says, (n, labels, factor * z, y, x); n, z, y
    and x are free, z, y and x multiples of the card's `multiple`.

    Raises:
        UsageError: where the destination exists, or the model cannot be written in this format.
        ConfigurationError: where a package of the extra `exchange` is missing.
        DataError: where the model does not run, or the card says what a package cannot.
    """
    if format not in get_args(Format):
        raise UsageError(f"--format {format}: must be one of {', '.join(get_args(Format))}")
    if destination.exists() and (destination.is_dir() or not overwrite):
        raise UsageError(f"{destination}: exists; name another file, or --overwrite")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        # in the same folder, so that the finished file appears at once
        with TemporaryDirectory(prefix=".export-", dir=destination.parent) as temporary:
            part = Path(temporary) / "part"
            if format == "bioimageio":
                from .zoo_writing import write_package

                write_package(bundle, part, sample)
            else:
                write_weights(bundle, part, format)
            part.replace(destination)
    except OSError as error:
        raise surroundings(error, str(destination)) or UsageError(f"{destination}: {error.strerror}") from None
    return destination


def weight_formats(bundle: Bundle) -> tuple[Literal["torchscript", "onnx"], ...]:
    """Return the formats in which a model can be written; somebody else's only as it came."""
    kind = bundle.card.architecture.kind
    return (kind,) if kind in ("torchscript", "onnx") else ("torchscript", "onnx")


def write_weights(bundle: Bundle, path: Path, format: Literal["torchscript", "onnx"]) -> None:
    """Write the network into one file.

    Raises:
        UsageError: where a TorchScript model is wanted as ONNX or the other way round.
    """
    if format not in weight_formats(bundle):
        kind = bundle.card.architecture.kind
        raise UsageError(f"{bundle.card.name}: is {kind} from elsewhere and can be exported as {kind} or bioimageio")
    if bundle.card.architecture.kind == format:
        copyfile(bundle.weights, path)
    else:
        _trace(bundle, path, format)


def _trace(bundle: Bundle, path: Path, format: Literal["torchscript", "onnx"]) -> None:
    import torch

    network = bundle.network().requires_grad_(False)
    image = torch.zeros((1, bundle.card.channels, *bundle.card.window))
    with warnings.catch_warnings():
        # torch is pinned: TorchScript is deprecated in it, and what the model zoo's programs read
        warnings.simplefilter("ignore", DeprecationWarning)
        if format == "torchscript":
            traced = torch.jit.trace(network, image, check_trace=False)  # type: ignore[no-untyped-call]
            traced.save(str(path))
            return
        require("onnx", "export as ONNX")
        free = {0: "batch", 2: "z", 3: "y", 4: "x"}
        # the exporter that traces is 30 times faster than its successor here, and its file half as large
        torch.onnx.export(
            network,
            (image,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["labels"],
            dynamic_axes={"image": free, "labels": free},
        )
