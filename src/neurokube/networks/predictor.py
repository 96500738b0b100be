"""A network on a backend: windows in, probabilities out, the same bits for the same window every time."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt

from ..allocator import keep_freed
from ..blocks import Vector
from ..blocks.blending import Array
from ..errors import ConfigurationError, NeuroKubeError
from .bundle import Bundle, GeneratorArchitecture, OwnArchitecture, load_bundle

Backend = Literal["openvino", "torch", "cuda"]
Precision = Literal["float32", "bfloat16"]


BATCHES: dict[Backend, int] = {"openvino": 1, "torch": 2, "cuda": 4}
"""Windows at once, where nobody says: PyTorch convolves a single small one on a CPU by a slow way.

On an H200 our networks are at most 6 % faster in batches of 16 than of 4, and an eighth slower one by one, in bfloat16;
in float32 some take twice as long in batches of 16.
"""


class Numerics(BaseModel):
    """What decides the bits of a prediction, beside weights and software; fixed when a run is planned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: Backend
    dtype: Precision = "float32"
    window: Vector
    batch: PositiveInt = 1
    threads: PositiveInt = 1

    @classmethod
    def usual(cls, bundle: Bundle, window: Vector) -> Self:
        """Return the fastest backend and dtype that this machine has, a thread a process."""
        backend, dtype = fastest(bundle)
        return cls(backend=backend, dtype=dtype, window=window, batch=BATCHES[backend])


def fastest(bundle: Bundle) -> tuple[Backend, Precision]:
    """Return the backend and dtype to use where nothing else is asked for.

    Raises:
        ConfigurationError: where no backend that can run the model is installed.
    """
    if bundle.card.architecture.kind == "onnx":
        _need_openvino(bundle)
        return "openvino", "float32"
    if find_spec("torch") is None:
        raise ConfigurationError("networks need PyTorch: pip install torch==2.13.0")
    import torch

    from .precision import fast_bfloat16

    dtype: Precision = "bfloat16" if fast_bfloat16() else "float32"
    if torch.cuda.is_available():
        return "cuda", dtype
    if bundle.card.architecture.kind != "torchscript" and find_spec("openvino") is not None:
        return "openvino", dtype
    return "torch", dtype


def software(backend: Backend) -> dict[str, str]:
    """Return the versions and the processor or device on which the bits of a backend depend.

    Raises:
        ConfigurationError: where the backend is not installed.
    """
    packages = {"openvino": ("torch", "openvino"), "torch": ("torch",), "cuda": ("torch",)}[backend]
    try:
        found = {name: version(name) for name in packages}
    except PackageNotFoundError as error:
        raise ConfigurationError(f"backend {backend}: {error.name} is not installed; pip install it here") from None
    if backend == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ConfigurationError("backend cuda: no GPU can be used here; 'neurokube doctor' says what there is")
        return {**found, "device": torch.cuda.get_device_name()}
    return {**found, "instructions": instructions()}


@lru_cache(maxsize=1)
def instructions() -> str:
    """Return the family of vector instructions that PyTorch uses here, as AVX2 or AVX512."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


class Predictor:
    """A network that was made ready for windows of one shape."""

    device: Any = None
    """The PyTorch device whose tensors it takes beside NumPy arrays; None: none."""

    def __init__(self, bundle: Bundle, numerics: Numerics) -> None:
        self.card = bundle.card
        self.numerics = numerics

    def __call__(self, images: Array) -> Array:
        """Return probabilities (n, labels, z, y, x) of normalized windows (n, [channel,] z, y, x), at most a batch.

        Of a model that makes images, normalized grey values; each section becomes as many as the card's factor says.
        Both are float32.  Of a tensor on `device` comes a tensor there, for which nobody has waited.

        Raises:
            NeuroKubeError: where the device's memory does not suffice.
            DataError: where the model predicts another shape.
        """
        batch = self.numerics.batch
        given = len(images)
        if given < batch:
            # always one shape: another might be computed in another way
            images = _filled(images, batch)
        with memory_told(self.numerics):
            found = self._run(images[:, None] if images.ndim == 4 else images)
        z, y, x = self.numerics.window
        expected = (batch, len(self.card.labels), self.card.factor * z, y, x)
        if found.shape != expected:
            raise NeuroKubeError(f"model {self.card.name}: predicts {found.shape}, not {expected}; its card is wrong")
        return found[:given]

    @abstractmethod
    def _run(self, images: Array) -> Array: ...


def _filled(images: Array, batch: int) -> Array:
    """Return windows with as many empty ones after them as a batch has room for."""
    rest = (batch - len(images), *images.shape[1:])
    if isinstance(images, np.ndarray):
        return np.concatenate([images, np.zeros(rest, np.float32)])
    import torch

    return torch.cat([images, images.new_zeros(rest)])


@contextmanager
def memory_told(numerics: Numerics) -> Iterator[None]:
    """Say what to set where memory does not suffice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in ("out of memory", "alloc")):
            raise NeuroKubeError(
                f"out of memory with windows of {numerics.window} in batches of {numerics.batch}: set a smaller "
                "'window' or 'network_batch' in the stage, which computes it anew, or free memory and run again"
            ) from None
        raise


class _Torch(Predictor):
    def __init__(self, bundle: Bundle, numerics: Numerics) -> None:
        import torch

        super().__init__(bundle, numerics)
        self._device = torch.device("cuda" if numerics.backend == "cuda" else "cpu")
        self._dtype = torch.bfloat16 if numerics.dtype == "bfloat16" else torch.float32
        if self._device.type == "cpu":
            torch.set_num_threads(numerics.threads)
        else:
            self.device = self._device
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        network = bundle.network().to(self._device, self._dtype)
        if bundle.card.architecture.kind != "torchscript":
            network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._network = network

    def _run(self, images: Array) -> Array:
        import torch

        host = isinstance(images, np.ndarray)
        with torch.inference_mode():
            x = torch.from_numpy(np.ascontiguousarray(images)) if host else images
            x = x.to(self._device, self._dtype).contiguous(memory_format=torch.channels_last_3d)
            y = self._network(x).float()
            if self.card.output == "logits":
                y = torch.sigmoid(y)
            return y.cpu().numpy() if host else y


@cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one for as long as the process lives.

    With its last core OpenVINO 2026 unloads its CPU plugin, which frees the stack on which the thread that had loaded
    it handles signals.  In another thread than that, nobody tells the kernel, and the next SIGTERM or Ctrl-C crashes.
    """
    import openvino as ov

    return ov.Core()


class _OpenVino(Predictor):
    def __init__(self, bundle: Bundle, numerics: Numerics) -> None:
        import openvino as ov
        from openvino import opset13 as ops

        super().__init__(bundle, numerics)
        channels = bundle.card.channels
        shape = [numerics.batch, channels, *numerics.window]
        core = openvino_core()
        if bundle.card.architecture.kind == "onnx":
            model = core.read_model(bundle.weights)
        else:
            import torch

            # convolving the example takes longer than all the rest; ours may be as small as can be, of any network
            # else, tracing could keep what follows from the example's shape
            own = isinstance(bundle.card.architecture, OwnArchitecture | GeneratorArchitecture)
            example = torch.zeros([1, channels, *bundle.card.multiple] if own else shape)
            with torch.inference_mode():
                model = ov.convert_model(bundle.network(), example_input=example)
        model.reshape(shape)
        output = model.output(0).get_node().input_value(0)
        if bundle.card.output == "logits":
            model = ov.Model([ops.sigmoid(output)], model.get_parameters(), "probabilities")
        settings = {
            "INFERENCE_NUM_THREADS": numerics.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "bf16" if numerics.dtype == "bfloat16" else "f32",
            "EXECUTION_MODE_HINT": "ACCURACY" if numerics.dtype == "float32" else "PERFORMANCE",
        }
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self._request.infer([np.ascontiguousarray(images)], share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data, np.float32)


@lru_cache(maxsize=2)
def open_predictor(model: str, sha256: str, numerics: Numerics) -> Predictor:
    """Make a model ready; the same is kept for the next time.

    Raises:
        ConfigurationError: where the backend is not here.
        DataError: where the bundle is damaged, or no longer the one with this checksum.
        NeuroKubeError: where the device has no memory for its weights.
    """
    keep_freed()
    bundle = load_bundle(model)
    if bundle.card.sha256 != sha256:
        raise ConfigurationError(f"{bundle.folder}: its weights changed since the run was planned; run again")
    # a card may be so full that not even its name can be asked for
    with memory_told(numerics):
        software(numerics.backend)
        if numerics.backend == "openvino":
            _need_openvino(bundle)
            return _OpenVino(bundle, numerics)
        return _Torch(bundle, numerics)


def _need_openvino(bundle: Bundle) -> None:
    if find_spec("openvino") is None:
        raise ConfigurationError(f"{bundle.folder}: needs OpenVINO here: pip install openvino")
