"""One batch through a model of any kind, to see that it runs and what it gives."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigurationError, DataError, NeuroKubeError
from ..bundle import Bundle, Card
from ..predictor import openvino_core

Image = NDArray[np.float32]


def predict(bundle: Bundle, image: Image) -> Image:
    """Return what a network gives, (n, labels, factor * z, y, x), for normalized grey values (n, channels, z, y, x).

    Raises:
        DataError: where it does not run on them, or gives another shape or no numbers.
    """
    run = _by_openvino if bundle.card.architecture.kind == "onnx" else _by_torch
    try:
        output = run(bundle, np.ascontiguousarray(image, np.float32))
    except NeuroKubeError:
        raise
    except Exception as error:
        # somebody else's network may raise anything
        raise DataError(
            f"{bundle.weights.name}: does not run on a window of {image.shape}: {_cause(error)}; "
            "window and channels must be those that it was made for"
        ) from None
    z, y, x = image.shape[2:]
    expected = (len(image), len(bundle.card.labels), bundle.card.factor * z, y, x)
    if not isinstance(output, np.ndarray) or output.shape != expected:
        found = f"an array of {output.shape}" if isinstance(output, np.ndarray) else type(output).__name__
        raise DataError(
            f"{bundle.weights.name}: returns {found}, not (n, labels, z, y, x) = {expected}; "
            "name a label an output channel, and a network whose output is as large as its input"
        )
    if not np.isfinite(output).all():
        raise DataError(f"{bundle.weights.name}: returns values that are no numbers; its weights are damaged")
    return output.astype(np.float32, copy=False)


def probabilities(card: Card, output: Image) -> Image:
    """Return a network's output as probabilities."""
    from scipy.special import expit

    return np.asarray(expit(output), np.float32) if card.output == "logits" else output


def require(module: str, purpose: str) -> Any:
    """Return a module of the extra `exchange`.

    Raises:
        ConfigurationError: where it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        raise ConfigurationError(f"{purpose} needs {module}: pip install 'neurokube[exchange]'") from None


def _by_torch(bundle: Bundle, image: Image) -> Any:
    import torch

    network: Callable[..., Any] = bundle.network()
    with torch.inference_mode():
        output = network(torch.from_numpy(image))
    return output.numpy() if isinstance(output, torch.Tensor) else output


def _by_openvino(bundle: Bundle, image: Image) -> Any:
    require("openvino", "running an ONNX model")
    core = openvino_core()
    # left to itself OpenVINO calculates in bfloat16 where the processor can
    model = core.compile_model(core.read_model(bundle.weights), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = model([image])
    return outputs[0] if len(outputs) == 1 else tuple(outputs.values())


def _cause(error: Exception) -> str:
    """Return the last line that says something: TorchScript and OpenVINO put where it happened before what."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else repr(error))[:160]
