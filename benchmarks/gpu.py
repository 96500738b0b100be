"""What a graphics card makes of our networks: bare, in a stage, beside MONAI; and of a training.

    python -m benchmarks.gpu [--json FILE] [--seconds 280] [--only PART ...]

    card        the two ceilings that everything else is held against: a large product, a large copy; and the bus
    network     networks on windows that are on the card: dtype, batch, layout, a captured graph, cuDNN's own search
    predictor   the same from NumPy to NumPy, as a stage calls it, and where the time goes
    stage       the stage semantics and superresolution over a volume, read from and written to disk; what of the time
                goes where, how busy the card is; and MONAI's sliding windows with the same network, windows, overlap,
                batch and dtype
    together    several processes that share the card
    training    the parts of a step of a training: windows by the processor, the rest by the card
    whole       whole trainings, by how many processes prepare windows
    compile     torch.compile, in a process of its own

Rates of `network` and `predictor` count the voxels of windows, halo included, those of stages the volume's.  What
would begin after `--seconds` is left out, and said.  Without a card the processor computes little of everything, to
try it out.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import prod
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from neurokube.blocks import Box, Vector, quantized
from neurokube.networks import Bundle, load_bundle
from neurokube.networks.predictor import Numerics, Predictor, open_predictor
from neurokube.stages import Block
from neurokube.stages.inference import Inference, Writer, _Coming
from neurokube.stages.network import NetworkStage
from neurokube.volumes import VolumeSpec, create, open_volume
from neurokube.workflow import Run, parse_workflow

from .measure import machine

CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CARD else "cpu")
BACKEND: Any = "cuda" if CARD else "torch"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNET, FLAT, INCEPTION, FINER = "fib25-10-10-10", "synthetic-40-8-8", "boundaries-fib25-10-10-10", "finer-20-10-10"
WINDOWS: dict[str, tuple[Vector, ...]] = {
    UNET: ((72, 72, 72), (104, 104, 104), (168, 168, 168)),
    FLAT: ((12, 112, 112), (20, 176, 176), (20, 304, 304)),
    INCEPTION: ((56, 56, 56), (88, 88, 88), (152, 152, 152)),
    FINER: ((40, 64, 64), (40, 96, 96), (60, 160, 160)),
}
"""What planning tries: strides of 32, 64, 128 with halo and overlap, or of sections."""
BATCHES = (1, 2, 4, 8, 16)


class Report:
    """Rows of figures: printed at once, and kept as JSON, so that nothing is lost where time runs out."""

    def __init__(self, path: Path | None, seconds: float) -> None:
        self._path, self._end = path, time.monotonic() + seconds
        self._found: dict[str, Any] = {
            "machine": machine(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if CARD else None,
            "cudnn": torch.backends.cudnn.version() if CARD else None,
            "left_out": [],
        }

    def add(self, part: str, /, **row: Any) -> None:
        """Print a row and keep it."""
        self._found.setdefault(part, []).append(row)
        print(f"{part:9} " + "  ".join(f"{name} {_shown(value)}" for name, value in row.items()), flush=True)
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        """Say that something was not measured."""
        self._found["left_out"].append({"what": what, "why": why})
        print(f"left out: {what}: {why}", flush=True)
        self.write()

    def write(self) -> None:
        """Write all that was found so far."""
        if self._path is not None:
            self._path.write_text(json.dumps(self._found, indent=1))

    @property
    def left(self) -> float:
        """Seconds that may still be used."""
        return self._end - time.monotonic()

    @contextmanager
    def within(self, what: str) -> Iterator[None]:
        """Let the rest go on where one thing cannot be measured, as where memory does not suffice."""
        try:
            yield
        except Exception as error:
            self.leave_out(what, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            if CARD:
                torch.cuda.empty_cache()


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def wait() -> None:
    """Wait until the card is done."""
    if CARD:
        torch.cuda.synchronize()


def timed(compute: Callable[[], Any], *, seconds: float = 0.25, least: int = 3, most: int = 50) -> float:
    """Return the median seconds of a computation after two that do not count; the card is waited for each time."""
    for _ in range(2 if CARD else 1):
        compute()
    wait()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < (least if CARD else 1) or (time.perf_counter() < end and len(found) < most and CARD):
        started = time.perf_counter()
        compute()
        wait()
        found.append(time.perf_counter() - started)
    return median(found)


def windows_of(name: str) -> tuple[Vector, ...]:
    """Return the windows to measure a model with; small ones where there is no card."""
    if CARD:
        return WINDOWS[name]
    bundle = load_bundle(name)
    z, y, x = (-(-16 // m) * m for m in bundle.card.multiple)
    return ((z, y, x),)


# the card


def card(report: Report) -> None:
    """Measure ceilings."""
    n = 8192 if CARD else 256
    for dtype in DTYPES.values():
        for tf32 in (False, True) if dtype == torch.float32 else (False,):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
            seconds = timed(partial(torch.matmul, a, b))
            name = "tf32" if tf32 else str(dtype).removeprefix("torch.")
            report.add("card", product=name, TFLOPs=2 * n**3 / seconds / 1e12)
    torch.backends.cuda.matmul.allow_tf32 = False
    here = torch.randn((2**30 if CARD else 2**20) // 4, device=DEVICE)
    there = torch.empty_like(here)
    report.add("card", copy="on the card", GBs=2 * here.nbytes / timed(partial(there.copy_, here)) / 1e9)
    for pinned in (False, True) if CARD else (False,):
        host = torch.empty(2**28 // 4 if CARD else 2**18, pin_memory=pinned).normal_()
        part = here[: host.numel()]
        kind = "pinned" if pinned else "pageable"
        report.add("card", copy=f"to it, {kind}", GBs=host.nbytes / timed(partial(part.copy_, host)) / 1e9)
        report.add("card", copy=f"from it, {kind}", GBs=host.nbytes / timed(partial(host.copy_, part)) / 1e9)


# networks on the card


def ready(bundle: Bundle, dtype: torch.dtype, layout: torch.memory_format) -> torch.nn.Module:
    """Return a network on the card."""
    switches(tf32=False)
    network: torch.nn.Module = bundle.network().to(DEVICE, dtype).to(memory_format=layout)  # type: ignore[call-overload]
    return network


def switches(*, tf32: bool, search: bool = False) -> None:
    """Set what the predictor sets, or what it does without."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = search, not search


def floats(bundle: Bundle, window: Vector) -> float:
    """Return the floating-point operations of a window."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        bundle.network().to("meta")(torch.empty(1, 1, *window, device="meta"))
    return float(counter.get_total_flops())


def network(report: Report) -> None:
    """Measure bare networks."""
    for name in WINDOWS:
        bundle = load_bundle(name)
        windows = windows_of(name)
        middle = windows[len(windows) // 2]
        work = {}
        with report.within(f"{name}: operations"):
            work = {window: floats(bundle, window) for window in windows}
        rows: list[tuple[str, int, Vector, dict[str, Any]]] = []
        for dtype in DTYPES if CARD else ("float32", "bfloat16"):
            rows += [(dtype, batch, middle, {}) for batch in (BATCHES if CARD else (1, 2))]
        rows += [("bfloat16", 4, window, {}) for window in windows if window != middle]
        rows += [("float32", 4, window, {}) for window in windows if window != middle]
        rows += [(dtype, 4, middle, {"layout": "contiguous"}) for dtype in ("float32", "bfloat16")]
        rows += [("float32", 4, middle, {"tf32": True})]
        if CARD:
            rows += [("bfloat16", batch, middle, {"graph": True}) for batch in (1, 4)]
            rows += [(dtype, 4, middle, {"search": True}) for dtype in ("float32", "bfloat16")]
        for dtype, batch, window, more in rows:
            if report.left < 0:
                report.leave_out(f"network {name} and what follows", "no time left")
                return
            with report.within(f"network {name} {dtype} {batch} {window} {more}"):
                seconds, peak = bare(bundle, dtype, batch, window, **more)
                told = {"TFLOPs": batch * work[window] / seconds / 1e12} if window in work else {}
                rate = batch * prod(window) / seconds / 1e6
                said = {"model": name, "dtype": dtype, "batch": batch, "window": window, **more}
                report.add("network", **said, ms=1000 * seconds, Mvoxels=rate, **told, MiB=peak >> 20)


def bare(
    bundle: Bundle,
    dtype: str,
    batch: int,
    window: Vector,
    *,
    layout: str = "channels_last_3d",
    tf32: bool = False,
    graph: bool = False,
    search: bool = False,
) -> tuple[float, int]:
    """Return the seconds of a batch of windows that are on the card, and the peak of memory there."""
    form = torch.channels_last_3d if layout == "channels_last_3d" else torch.contiguous_format
    network = ready(bundle, DTYPES[dtype], form)
    switches(tf32=tf32, search=search)
    image = torch.randn(batch, 1, *window, device=DEVICE).to(DTYPES[dtype]).contiguous(memory_format=form)
    if CARD:
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        if graph:
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    network(image)
            wait()
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                network(image)
            seconds = timed(captured.replay)
        else:
            seconds = timed(lambda: network(image))
    switches(tf32=False)
    return seconds, torch.cuda.max_memory_allocated() if CARD else 0


# from NumPy to NumPy


def predictor(report: Report) -> None:
    """Measure what a stage calls, and its parts."""
    for name in WINDOWS:
        bundle = load_bundle(name)
        windows = windows_of(name)
        window = windows[len(windows) // 2]
        for dtype in ("float32", "bfloat16"):
            for batch in (1, 4, 16) if CARD else (2,):
                if report.left < 0:
                    report.leave_out(f"predictor {name} and what follows", "no time left")
                    return
                with report.within(f"predictor {name} {dtype} {batch}"):
                    numerics = Numerics(backend=BACKEND, dtype=dtype, window=window, batch=batch)  # type: ignore[arg-type]
                    open_predictor.cache_clear()
                    made = open_predictor(name, bundle.card.sha256, numerics)
                    images = np.random.default_rng(0).standard_normal((batch, *window), np.float32)
                    seconds = timed(lambda made=made, images=images: made(images))
                    rate = batch * prod(window) / seconds / 1e6
                    said = {"model": name, "dtype": dtype, "batch": batch, "window": window}
                    report.add("predictor", **said, ms=1000 * seconds, Mvoxels=rate, **parts(made, images))


def parts(made: Predictor, images: np.ndarray) -> dict[str, float]:
    """Return milliseconds of what a prediction consists of, the card waited for after each."""
    found: dict[str, list[float]] = defaultdict(list)
    network, dtype = made._network, made._dtype  # type: ignore[attr-defined]

    @contextmanager
    def part(name: str) -> Iterator[None]:
        wait()
        started = time.perf_counter()
        yield
        wait()
        found[name].append(1000 * (time.perf_counter() - started))

    with torch.inference_mode():
        for _ in range(5 if CARD else 1):
            with part("to_card_ms"):
                x = torch.from_numpy(images[:, None]).to(DEVICE, dtype).contiguous(memory_format=torch.channels_last_3d)
            with part("network_ms"):
                y = network(x)
            with part("sigmoid_ms"):
                y = torch.sigmoid(y.float())
            with part("back_ms"):
                y = y.cpu()
            with part("numpy_ms"):
                y.numpy()
    return {name: median(values) for name, values in found.items()}


# stages


def texture(shape: Vector) -> np.ndarray:
    """Return grey values without a 0, smooth and noisy as tissue is."""
    random = np.random.default_rng(0)
    field = gaussian_filter(random.standard_normal(shape, np.float32), 2, mode="wrap")
    return np.clip(128 + 40 * field / field.std() + random.normal(0, 8, shape), 1, 255).astype(np.uint8)


def image(path: Path, shape: Vector, voxel_size: tuple[float, float, float]) -> None:
    """Write a volume: a piece of texture again and again."""
    piece = texture((64, 256, 256) if CARD else (16, 48, 48))
    volume = create(str(path), VolumeSpec(shape, "uint8", voxel_size), attributes={"fingerprint": str(shape)})
    for z in range(0, shape[0], len(piece)):
        times = [-(-n // m) for n, m in zip(shape[1:], piece.shape[1:], strict=True)]
        depth = min(len(piece), shape[0] - z)
        voxels = np.tile(piece, (1, *times))[:depth, : shape[1], : shape[2]]
        volume.write(Box((z, 0, 0), (z + depth, *shape[1:])), np.ascontiguousarray(voxels))


VOLUMES: dict[str, tuple[Vector, tuple[float, float, float]]] = {
    UNET: ((256, 640, 640), (10.0, 10.0, 10.0)),
    INCEPTION: ((256, 640, 640), (10.0, 10.0, 10.0)),
    FLAT: ((64, 768, 768), (40.0, 8.0, 8.0)),
    FINER: ((128, 640, 640), (20.0, 10.0, 10.0)),
}


def planned(folder: Path, model: str, **settings: Any) -> Run:
    """Plan a stage with a model over the volume that is right for it."""
    shape, voxel_size = VOLUMES[model]
    windows: tuple[Vector, ...] = windows_of(model)
    if not CARD:
        shape = (48, 48, 48) if model != FINER else (40, 48, 48)
        windows = (windows[0],) if model != FINER else ((36, 40, 40),)
    path = folder / f"{'-'.join(map(str, shape))}-{voxel_size[0]:g}.zarr"
    if not path.exists():
        image(path, shape, voxel_size)
    kind = "superresolution" if model == FINER else "semantics"
    stage = {"model": model, "backend": BACKEND, "window": list(windows[len(windows) // 2]), "memory": 8.0, **settings}
    stage |= {"factor": 2, "permutations": 1} if kind == "superresolution" else {}
    name = re.sub(r"\W+", "-", "-".join([model, *map(str, settings.values())])).strip("-")
    inputs = {"image": {"path": str(path)}}
    document = {"name": name, "workspace": str(folder), "inputs": inputs, "stages": {kind: stage}}
    run = Run.planned(parse_workflow(document))
    run.prepare()
    block = Block(Box.of((1, 1, 1)), (0,))
    run.plan.steps[f"{kind}/statistics"].step.compute(block, run.plan.stages[0].data())
    return run


def stage_of(run: Run) -> NetworkStage:
    stage = run.plan.stages[0].stage
    assert isinstance(stage, NetworkStage) and stage.settled is not None
    return stage


def compute(run: Run, only: Callable[[int], bool] = lambda block: True) -> int:
    """Compute the blocks of the network's step, and return how many voxels (of the output) they have."""
    stage = stage_of(run)
    step = run.plan.steps[f"{stage.kind}/{stage.kind}"]
    data, voxels = run.plan.stages[0].data(), 0
    for block in range(len(step.blocks)):
        if only(block):
            box = step.blocks.box(block)
            step.step.compute(Block(box, tuple(step.blocks.members(block))), data)
            voxels += box.size
    return voxels


class Clock:
    """Seconds that functions take in the thread of the stage; those they call are theirs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._undo: list[Callable[[], None]] = []
        self._watch(Inference, "_source", "read")
        self._watch(Inference, "_predict", "layers")
        self._watch(_Coming, "arrived", "wait for the card")
        self._watch(Writer, "wait", "wait for writing")

    def _watch(self, owner: Any, name: str, what: str) -> None:
        """Count a method of a class."""
        original, main = getattr(owner, name), threading.current_thread()

        def counted(*arguments: Any, **more: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*arguments, **more)
            finally:
                there = what if threading.current_thread() is main else f"{what}, beside"
                self.seconds[there] += time.perf_counter() - started

        setattr(owner, name, counted)
        self._undo.append(partial(setattr, owner, name, original))

    def stop(self) -> None:
        """Put everything back."""
        for undo in self._undo:
            undo()


class Busy:
    """How busy the card is while something is computed: the share of time in which it did anything, sampled."""

    def __enter__(self) -> "Busy":
        self._found: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        with suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not self._stop.wait(0.1):
                self._found.append(float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def percent(self) -> float | None:
        """The mean of the samples."""
        return mean(self._found) if self._found else None


def stage(report: Report, folder: Path) -> None:
    """Measure whole stages, and MONAI beside them."""
    plans: list[tuple[str, dict[str, Any]]] = [
        (UNET, {"dtype": "bfloat16", "network_batch": 4}),
        (FLAT, {"dtype": "bfloat16", "network_batch": 4}),
        (INCEPTION, {"dtype": "bfloat16", "network_batch": 4}),
        (FINER, {"dtype": "bfloat16", "network_batch": 4}),
        (UNET, {"dtype": "float32", "network_batch": 4}),
        (UNET, {"dtype": "bfloat16", "network_batch": 16}),
        (UNET, {"dtype": "bfloat16", "network_batch": 1}),
    ]
    for model, settings in plans:
        if report.left < 0:
            report.leave_out(f"stage {model} {settings} and what follows", "no time left")
            return
        with report.within(f"stage {model} {settings}"):
            one_stage(report, folder, model, settings)


def one_stage(report: Report, folder: Path, model: str, settings: dict[str, Any]) -> None:
    """Measure a stage: once with what its time goes into, then in turns with MONAI."""
    run = planned(folder, model, **settings)
    found = stage_of(run)
    assert found.settled is not None
    numerics, spec = found.settled.numerics, run.plan.stages[0].sources["image"].spec
    grid, blocks = found.grid(spec), run.plan.steps[f"{found.kind}/{found.kind}"].blocks
    opened = open_predictor(model, found.settled.sha256, numerics)
    images = np.random.default_rng(0).standard_normal((numerics.batch, *numerics.window), np.float32)
    batches, one_batch = len(grid) / numerics.batch, timed(lambda: opened(images))
    on_card, _ = bare(load_bundle(model), numerics.dtype, numerics.batch, numerics.window)
    said = {"model": model, **settings, "window": numerics.window}
    clock = Clock()
    with Busy() as busy:
        started = time.perf_counter()
        voxels = compute(run)
        seconds = time.perf_counter() - started
        clock.stop()
    report.add(
        "stage",
        **said,
        Mvoxels=voxels / seconds / 1e6,
        seconds=seconds,
        windows=len(grid),
        blocks=len(blocks),
        block=blocks.box(0).shape,
        recomputation=found.recomputation(spec, blocks.box(0).shape),
        of_predictor=batches * one_batch / seconds,
        of_network=batches * on_card / seconds,
        busy_percent=busy.percent,
        **dict(sorted(clock.seconds.items())),
    )
    if found.kind != "semantics":
        return
    contestants = {"neurokube": lambda: compute(run), **monai(run)}
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(2):
        for name, act in contestants.items():
            if report.left < 0:
                report.leave_out(f"stage {said}: turns", "no time left")
                return
            with report.within(f"{name} {said}"):
                started = time.perf_counter()
                act()
                times[name].append(time.perf_counter() - started)
    for name, found_times in times.items():
        row = {"who": name, "Mvoxels": voxels / median(found_times) / 1e6, "seconds": median(found_times)}
        turns = [theirs / ours for theirs, ours in zip(found_times, times["neurokube"], strict=False)]
        report.add("turns", **said, **row, neurokube_over_it=median(turns))


def monai(run: Run) -> dict[str, Callable[[], Any]]:
    """Return MONAI's sliding windows with what the stage has: from memory to memory, and doing the same job."""
    from monai.inferers import sliding_window_inference

    found = stage_of(run)
    assert found.settled is not None
    numerics, data = found.settled.numerics, run.plan.stages[0].data()
    dtype, grid = DTYPES[numerics.dtype], found.grid(run.plan.stages[0].sources["image"].spec)
    network = ready(found.bundle, dtype, torch.channels_last_3d)

    def predict(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(network(x.to(dtype).contiguous(memory_format=torch.channels_last_3d)).float())

    def slide(images: torch.Tensor, device: torch.device) -> torch.Tensor:
        with torch.inference_mode():
            made = sliding_window_inference(
                images,
                roi_size=numerics.window,
                sw_batch_size=numerics.batch,
                predictor=predict,
                overlap=[1 - s / w + 1e-9 for s, w in zip(grid.stride, numerics.window, strict=True)],
                mode="gaussian",
                sw_device=DEVICE,
                device=device,
            )
        assert isinstance(made, torch.Tensor)
        return made

    def read() -> torch.Tensor:
        volume = open_volume(data.volume("image").url)
        return torch.from_numpy(found.normalization(data).apply(volume.read(volume.spec.box)))[None, None]

    def job() -> None:
        made = slide(read().to(DEVICE), DEVICE)[0]
        values = quantized(made).cpu().numpy()
        for name, channel in zip(found.card.labels, values, strict=True):
            data.write(name, Box.of(channel.shape), np.ascontiguousarray(channel))

    images = read()
    return {
        "monai, same windows, memory to memory, all on the card": lambda: slide(images.to(DEVICE), DEVICE).cpu(),
        "monai, same windows, memory to memory, sums in host memory": lambda: slide(images, torch.device("cpu")),
        "monai, same job, all on the card": job,
    }


# processes that share the card


def together(report: Report, folder: Path) -> None:
    """Measure several processes at a stage at once."""
    for processes in (1, 4, 8) if CARD else (1, 2):
        if report.left < 30 * CARD:
            report.leave_out(f"together {processes} and more", "no time left")
            return
        with report.within(f"together {processes}"):
            run = planned(
                folder, UNET, network_batch=4, dtype="bfloat16", block=[128, 128, 128] if CARD else [16, 24, 48]
            )
            command = [sys.executable, "-m", "benchmarks.gpu", "--share"]
            workers = [
                subprocess.Popen(
                    [*command, f"{k}/{processes}", "--run", run.url],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for k in range(processes)
            ]
            for worker in workers:
                assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
            with Busy() as busy:
                started = time.perf_counter()
                voxels = _all(workers)
                seconds = time.perf_counter() - started
            row = {"model": UNET, "processes": processes, "Mvoxels": voxels / seconds / 1e6, "seconds": seconds}
            report.add("together", **row, busy_percent=busy.percent)


def _all(workers: list["subprocess.Popen[str]"]) -> int:
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    found = 0
    for worker in workers:
        assert worker.stdout is not None
        found += int(worker.stdout.readline())
    for worker in workers:
        worker.communicate()
    return found


def share(run_url: str, which: str) -> None:
    """Compute a share of the blocks when told to."""
    run = Run.open(run_url)
    k, n = map(int, which.split("/"))
    compute(run, lambda block: block == k)
    print("ready", flush=True)
    sys.stdin.readline()
    print(compute(run, lambda block: block % n == k), flush=True)


# training


def tissue(folder: Path) -> dict[str, Any]:
    """Write a volume and its truth, and return what all trainings have in common."""
    shape: Vector = (160, 160, 160) if CARD else (16, 48, 48)
    grey = texture(shape)
    mask = (gaussian_filter(grey.astype(np.float32), 2) > 128).astype(np.uint8)
    for name, voxels, kind in (("grey", grey, "image"), ("mask", mask, "labels")):
        spec = VolumeSpec(shape, "uint8", (10.0, 10.0, 10.0), kind=kind)  # type: ignore[arg-type]
        create(str(folder / f"{name}.zarr"), spec).write(spec.box, voxels)
    volumes = [{"image": str(folder / "grey.zarr"), "truth": {"blob": str(folder / "mask.zarr")}}]
    common = {"workspace": str(folder / "models"), "volumes": volumes, "loggers": [], "devices": 1}
    return common if CARD else {**common, "window": [16, 16, 16]}


def training(report: Report, folder: Path) -> None:
    """Measure a training, and what it consists of."""
    from rich.progress import Progress

    from neurokube.training import parse_training
    from neurokube.training.semantics import prepare

    common = tissue(folder)
    for size, batch in (("small", 2), ("large", 2), ("large", 8)):
        for precision in ("float32", "bfloat16"):
            if report.left < 0:
                report.leave_out(f"training {size} {batch} {precision} and what follows", "no time left")
                return
            with report.within(f"training {size} {batch} {precision}"):
                made = parse_training(
                    {"name": "parts", "size": size, "batch": batch, "precision": precision, **common}, where="benchmark"
                )
                module = prepare(made, None, Progress(disable=True))  # type: ignore[arg-type]
                windows = module.windows
                windows.count = 10**6
                started, count = time.perf_counter(), 6 if CARD else 1
                items = [windows[k] for k in range(count)]
                window_ms = 1000 * (time.perf_counter() - started) / count
                one = [torch.stack([items[k % count][j] for k in range(batch)]).to(DEVICE) for j in range(3)]
                row = {"size": size, "batch": batch, "precision": precision, "window": windows.window}
                told = {"window_ms": window_ms}
                for exact in (True, False):
                    told[f"step_ms, {'deterministic' if exact else 'free'}"] = 1000 * steps(
                        module, one, precision, deterministic=exact
                    )
                report.add(
                    "training", **row, **told, loaders_that_feed_it=batch * window_ms / min(list(told.values())[1:])
                )


def whole(report: Report, folder: Path) -> None:
    """Measure whole trainings, by how many processes prepare windows."""
    common = tissue(folder)
    for loaders in (0, 4, 8) if CARD else (0, 1):
        if report.left < 25 * CARD:
            report.leave_out(f"whole training with {loaders} loaders and more", "no time left")
            return
        with report.within(f"whole training {loaders}"):
            length = (100 if loaders else 40) if CARD else 2
            content = {"name": f"whole-{loaders}", "size": "small", "batch": 2, "loaders": loaders, **common}
            content |= {"steps": 2 * length, "interval": length}
            (folder / "training.json").write_text(json.dumps(content))
            # in a process of its own, which can be ended with those that prepare windows for it
            report.add("training", **told_by(report, 60.0, "--train", str(folder / "training.json")))


def train_one(path: Path) -> None:
    """Print a row of a whole training, of whose two intervals the second counts."""
    from neurokube.training import parse_training
    from neurokube.training.trainer import train

    content = json.loads(path.read_text())
    with Busy() as busy:
        bundle = train(parse_training(content, where="benchmark"), quiet=True)
    rows = [json.loads(line) for line in (bundle.folder.parent / "history.jsonl").read_text().splitlines()]
    seconds = rows[1]["seconds"] - rows[0]["seconds"]
    row = {"whole": True, **{name: content[name] for name in ("size", "batch", "loaders")}, "precision": "auto"}
    rate = content["interval"] / max(0.1, seconds)
    print(json.dumps({**row, "steps_a_second": rate, "busy_percent": busy.percent}))


def told_by(report: Report, most: float, *options: str) -> Any:
    """Return what this program tells as JSON in a process of its own; that and all it started end with the time."""
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said, complaints = process.communicate(timeout=min(most, max(5.0, report.left)))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise RuntimeError((complaints.strip().splitlines() or ["?"])[-1])
    return json.loads(said.splitlines()[-1])


def steps(module: Any, batch: list[torch.Tensor], precision: str, *, deterministic: bool) -> float:
    """Return the seconds of a step on a batch that is on the card: forward, backward, optimizer."""
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = deterministic, True
    network = module.network.to(DEVICE, memory_format=torch.channels_last_3d).train()
    loss_of = module.loss.to(DEVICE)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = network(batch[0].contiguous(memory_format=torch.channels_last_3d))
        loss_of(logits.float(), batch[1], batch[2]).backward()
        optimizer.step()

    try:
        return timed(step)
    finally:
        torch.use_deterministic_algorithms(False)


# torch.compile


def compiled(report: Report) -> None:
    """Measure compiled networks, in a process that can be ended."""
    for name in (UNET, FINER):
        if report.left < 20 * CARD:
            report.leave_out(f"compile {name} and more", "no time left")
            return
        with report.within(f"compile {name}"):
            report.add("compile", **told_by(report, 70.0, "--compile", name))


def compile_one(name: str) -> None:
    """Print a row of a compiled network beside the same as it is."""
    bundle, windows = load_bundle(name), windows_of(name)
    window, batch = windows[len(windows) // 2], 4 if CARD else 1
    network = ready(bundle, torch.bfloat16, torch.channels_last_3d)
    x = torch.randn(batch, 1, *window, device=DEVICE).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        plain = timed(lambda: network(x))
        expected = network(x).float()
        started = time.perf_counter()
        made = torch.compile(network)
        made(x)
        wait()
        took = time.perf_counter() - started
        faster = timed(lambda: made(x))
        off = float((made(x).float() - expected).norm() / expected.norm())
    row = {"model": name, "batch": batch, "window": window, "ms": 1000 * faster, "plain_ms": 1000 * plain}
    print(json.dumps({**row, "compiling_s": took, "distance": off}))


ORDER = ("card", "stage", "together", "predictor", "whole", "training", "network", "compile")
"""What is left out first, where time runs out, comes last."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--only", nargs="*", choices=ORDER, default=list(ORDER))
    parser.add_argument("--share", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        return train_one(options.train)
    if options.share:
        return share(options.run, options.share)
    if options.compile:
        return compile_one(options.compile)
    report = Report(options.json, options.seconds)
    print(f"{machine()}; torch {torch.__version__}, {torch.cuda.get_device_name() if CARD else 'no card'}")
    with TemporaryDirectory(prefix="gpu-") as name:
        folder = Path(name)
        acts: dict[str, Callable[[], None]] = {
            "card": partial(card, report),
            "network": partial(network, report),
            "predictor": partial(predictor, report),
            "stage": partial(stage, report, folder),
            "together": partial(together, report, folder),
            "training": partial(training, report, folder),
            "whole": partial(whole, report, folder),
            "compile": partial(compiled, report),
        }
        for part in (p for p in ORDER if p in options.only):
            started = time.monotonic()
            with report.within(part):
                acts[part]()
            report.add("seconds", part=part, seconds=time.monotonic() - started)
    report.write()


if __name__ == "__main__":
    main()
