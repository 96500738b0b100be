"""A network as a stage: the same bits however the volume is cut, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path
from typing import Any, ClassVar

import benches
import numpy as np
import pytest
import torch
import yaml
from benches import SHAPE, Settings, on_a_device, same, texture, write_volume, written
from numpy.typing import NDArray

from neurokube.blocks import WindowGrid
from neurokube.engines import Batch, InProcess
from neurokube.engines.local import Local
from neurokube.errors import ConfigurationError, DataError, NeuroKubeError
from neurokube.networks import Bundle, Normalization, load_bundle, write_bundle
from neurokube.networks.unet import UNet, UNetConfig
from neurokube.stages import Semantics
from neurokube.workflow import Run, execute, work

LABELS = ("membrane", "mitochondria", "nucleus")
WINDOW, OVERLAP = [8, 24, 24], [1, 2, 2]


def write_model(folder: Path, seed: int = 0, **fields: Any) -> Bundle:
    """Write a U-Net of random weights whose batch norms have seen something."""
    torch.manual_seed(seed)
    config = UNetConfig.fitting((10.0, 10.0, 10.0), len(LABELS), (4, 6))
    network = UNet(config).train()
    with torch.no_grad():
        network(2 * torch.randn(2, 1, 8, 16, 16) + 0.3)
        network.head.weight *= 3
    card = {
        "name": "tiny",
        "architecture": {"kind": "unet", "levels": [level.model_dump() for level in config.levels]},
        "labels": LABELS,
        "voxel_size": (10.0, 10.0, 10.0),
        "window": (8, 24, 24),
        "multiple": config.factor,
        "halo": (1, 3, 3),
    }
    return write_bundle(folder, {**card, **fields}, network.state_dict())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Bundle:
    return write_model(tmp_path_factory.mktemp("model"))


class Bench(benches.Bench):
    """A folder in which a U-Net's runs are made."""

    kind = "semantics"
    usual: ClassVar[Settings] = {"tile": [8, 16, 16], "window": WINDOW, "overlap": OVERLAP}


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path, model: Bundle) -> MakeBench:
    def make(image: NDArray[np.uint8] | None = None, voxel_size: tuple[float, float, float] = (10.0,) * 3) -> Bench:  # type: ignore[assignment]
        return Bench(tmp_path, model.folder, texture() if image is None else image, voxel_size)

    return make


def settled(run: Run) -> Any:
    stage = run.plan.stages[0].stage
    assert isinstance(stage, Semantics)
    assert stage.settled is not None
    return stage.settled


# partition, engine and resume invariance

BLOCKS = ([1, 1, 1], [8, 32, 20], [20, 60, 60])


@pytest.mark.parametrize(("backend", "batch"), list(product(("openvino", "torch"), (1, 3))))
def test_output_does_not_depend_on_block_shape(bench, backend, batch):
    here = bench()
    found = [
        here.results(str(block), block=block, backend=backend, network_batch=batch, permutations=2) for block in BLOCKS
    ]
    assert all(same(found[0], other) for other in found[1:])
    assert {name.split("/")[0] for name in found[0]} == set(LABELS)
    assert all(np.ptp(found[0][f"{label}/0"]) > 20 for label in LABELS)


def test_output_with_all_permutations_does_not_depend_on_blocks_order_or_number_of_workers(bench):
    here = bench()
    settings = {"permutations": 16, "network_batch": 3}
    reference = here.results("one", block=[20, 60, 60], **settings)
    shares = here.plan("shares", block=[8, 32, 48], **settings)
    shares.prepare()
    for name, step in shares.plan.steps.items():
        for share in (2, 0, 1):
            assert not work(shares.url, name, Batch.share(share, 3, len(step.blocks))).failed
    assert same(written(shares), reference)
    pool = here.plan("pool", block=[16, 20, 44], **settings)
    execute(pool, Local(2), quiet=True)
    assert same(written(pool), reference)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("voxel_size", [(10.0, 10.0, 10.0), (10.0, 7.0, 7.0)])
def test_what_a_device_does_itself_has_the_bits_of_what_the_processor_does_for_it(
    bench, monkeypatch, dtype, voxel_size
):
    """Windows are cut, normalized, turned, weighed, added up and made bytes there, each in the same order as here."""
    here = bench(voxel_size=voxel_size)
    mask = np.ones(SHAPE, np.uint8)
    mask[:, :20] = 0
    here.mask(mask)
    settings = {"labels": ["nucleus", "membrane"], "permutations": 3, "network_batch": 3, "dtype": dtype}
    expected = here.results("processor", **settings)
    on_a_device(monkeypatch)
    for block in ([8, 16, 16], [20, 60, 60]):
        assert same(here.results(f"device {block}", block=block, **settings), expected)


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(bench):
    here = bench()
    reference = here.results("undisturbed", permutations=8)
    path = here.folder / "workflow.yaml"
    path.write_text(yaml.safe_dump(here.document("run", {"permutations": 8, "block": [8, 16, 16]})))
    run = here.plan(permutations=8, block=[8, 16, 16])
    step = run.plan.steps["semantics/semantics"]
    command = [sys.executable, "-m", "neurokube", "run", str(path), "-q", "-w", "0"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None and not run.ledger(step).count():
        time.sleep(0.01)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = run.ledger(step).count()
    assert 0 < before < len(step.blocks)
    summary = execute(here.plan(permutations=8, block=[8, 16, 16]), InProcess(), quiet=True)
    assert summary.found[step.name] == before
    assert same(written(run), reference)


# what comes out


def normalization_of(image: NDArray[np.uint8]) -> Normalization:
    return Normalization.of_histogram(np.bincount(image.ravel(), minlength=256), "image")


def naive(
    bundle: Bundle,
    image: NDArray[np.uint8],
    grid: WindowGrid,
    turns: bool = False,
    normalization: Normalization | None = None,
) -> NDArray[np.float64]:
    """Return 0 to 255 for each label by a plain loop over windows, in float64, weights summed and divided by."""
    network = bundle.network(fold=False).double()
    normalization = normalization or normalization_of(image)
    total, weights = np.zeros((len(LABELS), *image.shape)), np.zeros(image.shape)
    padded = np.pad(image, [(0, max(0, w - n)) for n, w in zip(image.shape, grid.window, strict=True)], mode="reflect")
    normal = (padded.astype(float) - normalization.mean) / normalization.deviation
    for index in range(len(grid)):
        box, core = grid.box(index), grid.core(index)
        window = torch.from_numpy(np.ascontiguousarray(normal[box.slices]))
        views: list[tuple[tuple[int, ...], bool]] = [((), False)]
        if turns:
            views = [(flips, turn) for k in range(4) for flips in combinations((1, 2, 3), k) for turn in (False, True)]
        seen = torch.zeros((len(LABELS), *grid.window), dtype=torch.float64)
        for flips, turn in views:
            x = window.transpose(1, 2)[None] if turn else window[None]
            with torch.no_grad():
                y = torch.sigmoid(network(x.flip(flips)[None])[0]).flip(flips)
            seen += y.transpose(2, 3) if turn else y
        place = [_rise(grid, axis, k) for axis, k in enumerate(grid.coordinate(index))]
        weight = place[0][:, None, None] * place[1][:, None] * place[2]
        total[(slice(None), *core.slices)] += (
            weight * (seen.numpy() / len(views))[(slice(None), *core.relative_to(box.start).slices)]
        )
        weights[core.slices] += weight
    return 255 * total / weights


def _rise(grid: WindowGrid, axis: int, k: int) -> NDArray[np.float64]:
    start, stop = grid.span(axis, k)
    shared, last = grid.overlap[axis], len(grid.starts[axis]) - 1
    weight = np.ones(stop - start)
    for step in range(shared):
        if k > 0:
            weight[step] = min(weight[step], (step + 1) / (shared + 1))
        if k < last and grid.stride[axis] + step < stop - start:
            weight[grid.stride[axis] + step] = 1 - (step + 1) / (shared + 1)
    return weight


@pytest.mark.parametrize("turns", [False, True])
def test_output_is_that_of_a_plain_loop_over_windows_in_double_precision(bench, model, turns):
    here = bench()
    run = here.plan(permutations=16 if turns else 1)
    found = here.results(permutations=16 if turns else 1)
    stage = run.plan.stages[0].stage
    grid = stage.grid(run.plan.stages[0].sources["image"].spec)
    assert len(grid) > 8
    assert min(grid.overlap) >= 1
    expected = naive(load_bundle(str(model.folder)), here.image, grid, turns)
    for label, values in zip(LABELS, expected, strict=True):
        assert np.abs(found[f"{label}/0"] - values).max() <= 1


@pytest.mark.parametrize("shape", [(5, 36, 40), (12, 20, 40), (3, 10, 13)])
def test_a_volume_smaller_than_a_window_is_predicted_as_if_mirrored(bench, model, shape):
    here = bench(texture(shape))
    found = here.results("one", block=[99, 99, 99])
    assert same(found, here.results("many", block=[8, 16, 16]))
    stage = here.plan().plan.stages[0]
    expected = naive(load_bundle(str(model.folder)), here.image, stage.stage.grid(stage.sources["image"].spec))
    for label, values in zip(LABELS, expected, strict=True):
        assert np.abs(found[f"{label}/0"] - values).max() <= 1


def test_across_numerics_classes_a_voxel_differs_by_at_most_1(bench):
    here = bench()
    classes = list(product(("openvino", "torch"), (1, 2)))
    found = [here.results(f"{b}{n}", backend=b, network_batch=n, permutations=4) for b, n in classes]
    for other in found[1:]:
        for label in LABELS:
            difference = np.abs(found[0][f"{label}/0"].astype(int) - other[f"{label}/0"])
            # what lies next to a half may be rounded either way
            assert difference.max() <= 1
            assert np.count_nonzero(difference) <= 0.002 * difference.size


def test_labels_are_written_as_asked_for_and_as_without(bench):
    here = bench()
    every = here.results("all")
    two = here.results("two", labels=["nucleus", "membrane"])
    assert {name.split("/")[0] for name in two} == {"nucleus", "membrane"}
    assert same(two, {name: every[name] for name in two})


# mask and emptiness


def test_what_is_masked_is_0_and_written_and_the_rest_as_without_a_mask(bench):
    here = bench()
    every = here.results("unmasked")
    mask = np.zeros(SHAPE, np.uint8)
    mask[3:9, 5:18, 28:] = 7
    here.mask(mask)
    found = here.results("masked", block=[16, 99, 99])
    assert same(found, here.results("masked in parts", block=[8, 16, 16]))
    for label in LABELS:
        assert np.array_equal(found[f"{label}/0"], np.where(mask, every[f"{label}/0"], 0))
    run = here.plan("masked")
    step = run.plan.steps["semantics/semantics"]
    assert len(run.ledger(step).remaining()) == 0


def test_what_is_empty_is_0_and_written_without_a_prediction(bench, monkeypatch):
    image = texture()
    image[:, :, 14:] = 0
    here = bench(image)
    seen = []

    from neurokube.networks import predictor

    original = predictor.Predictor.__call__
    monkeypatch.setattr(
        predictor.Predictor, "__call__", lambda self, images: seen.append(len(images)) or original(self, images)
    )
    found = here.results("one", block=[99, 99, 99])
    run = here.plan("one")
    grid = run.plan.stages[0].stage.grid(run.plan.stages[0].sources["image"].spec)
    full = [k for k in range(len(grid)) if image[grid.box(k).slices].any()]
    assert sum(seen) == len(full) < len(grid)
    assert same(found, here.results("many", block=[8, 16, 16]))
    beyond = max(grid.core(k).stop[2] for k in full)
    assert not any(found[f"{label}/0"][:, :, beyond:].any() for label in LABELS)
    assert len(run.ledger(run.plan.steps["semantics/semantics"]).remaining()) == 0


# another voxel size


def _resampled(values: NDArray[np.float64], scale: tuple[float, ...], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Resample by matrices of triangle weights, in float64; beyond the faces it goes on as at them."""
    for axis, (s, n) in enumerate(zip(scale, shape, strict=True)):
        if s == 1:
            continue
        middle = (np.arange(n) + 0.5) * s - 0.5
        values = np.pad(values, [(4, 4) if a == axis else (0, 0) for a in range(3)], mode="edge")
        place = np.arange(values.shape[axis]) - 4
        weights = np.maximum(0, 1 - np.abs(place - middle[:, None]) / max(1, s))
        weights /= weights.sum(1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


@pytest.mark.parametrize("voxel_size", [(10.0, 7.0, 7.0), (17.3, 10.1, 13.1)])
def test_an_image_of_another_voxel_size_is_resampled_in_and_out(bench, model, voxel_size):
    here = bench(voxel_size=voxel_size)
    found = here.results("one", block=[99, 99, 99])
    for block in ([8, 16, 16], [8, 48, 48], [16, 16, 32]):
        assert same(found, here.results(str(block), block=block))
    scale = tuple(1.0 if abs(10 / v - 1) < 0.03 else 10 / v for v in voxel_size)
    stage = here.plan("one").plan.stages[0]
    grid = stage.stage.grid(stage.sources["image"].spec)
    inner = np.rint(_resampled(here.image.astype(float), scale, grid.shape)).astype(np.uint8)
    predicted = naive(load_bundle(str(model.folder)), inner, grid, normalization=normalization_of(here.image))
    back = tuple(1 / s for s in scale)
    for label, values in zip(LABELS, predicted, strict=True):
        # a grey value that is rounded the other way on the way in moves what is around it
        assert np.abs(found[f"{label}/0"] - _resampled(values, back, SHAPE)).max() <= 2
    assert "resampled" in stage.stage.remarks(stage.sources)[0]


def test_a_mask_thinner_than_a_voxel_of_the_model_still_gets_its_prediction(bench):
    here = bench(texture((10, 60, 60)), voxel_size=(10.0, 4.0, 4.0))
    every = here.results("unmasked")
    mask = np.zeros((10, 60, 60), np.uint8)
    mask[:, 33, :] = 1
    write_volume(here.folder / "mask.zarr", mask, (10.0, 4.0, 4.0))
    here.inputs["mask"] = {"path": str(here.folder / "mask.zarr")}
    found = here.results("masked")
    for label in LABELS:
        assert np.array_equal(found[f"{label}/0"], np.where(mask, every[f"{label}/0"], 0))


# what planning finds


def test_blocks_are_so_large_that_few_windows_are_computed_twice(bench):
    here = bench(texture((32, 160, 160)))
    run = here.plan(window=[8, 24, 24], tile=[8, 16, 16])
    stage = run.plan.stages[0].stage
    spec = run.plan.stages[0].sources["image"].spec
    assert stage.recomputation(spec, (8, 16, 16)) > 2
    blocks = run.plan.steps["semantics/semantics"].blocks
    assert len(blocks) > 1
    assert stage.recomputation(spec, blocks.box(0).shape) <= 1.25


def test_a_block_takes_less_memory_where_less_is_allowed(bench):
    here = bench(texture((14, 400, 400)))
    wide = here.plan(memory=3).plan.steps["semantics/semantics"].blocks.box(0).shape
    narrow = here.plan(memory=0.002).plan.steps["semantics/semantics"].blocks.box(0).shape
    assert narrow[1] < wide[1]


def test_a_block_on_a_card_takes_less_of_it_where_less_is_allowed_and_is_some_rows_of_windows_deep(bench):
    run = bench(texture((64, 160, 160))).plan(window=[8, 24, 24], tile=[8, 16, 16])
    stage = run.plan.stages[0].stage
    found = stage.settled
    numerics = found.numerics.model_copy(update={"backend": "cuda"})
    spec, output = run.plan.stages[0].sources["image"].spec, run.plan.stages[0].own.outputs["membrane"]
    shapes = []
    for spare in (2**30, 2**20, 2**10):
        # nearly all of 3 GiB is the network's
        settled = found.model_copy(update={"numerics": numerics, "peak": 3 * 2**30 - spare})
        there = stage.model_copy(update={"settled": settled})
        block = there._block(output, spec)
        shapes.append(block)
        assert block[0] >= 4 * settled.stride[0]
        assert block[1:] == (16, 16) or there._card_column(spec, 8) * block[1] * block[2] <= spare
    assert shapes[0][1] > shapes[1][1] >= shapes[2][1] == 16
    assert stage.recomputation(spec, shapes[0]) <= 1.1


def test_window_and_batch_are_found_by_trying_and_kept(bench, monkeypatch):
    here = bench(texture((40, 120, 120)))
    free = {"window": None, "overlap": None, "network_batch": None, "tile": None}
    run = here.plan(**free)
    found = settled(run)
    assert found.peak > 2**26
    assert found.numerics.window[1] == found.numerics.window[2]
    assert all(n % m == 0 for n, m in zip(found.numerics.window, (2, 2, 2), strict=True))
    run.prepare()

    from neurokube.networks import probe

    monkeypatch.setattr(probe, "choose", lambda *_: pytest.fail("tried again"))
    again = here.plan(**free, memory=2)
    assert settled(again) == found
    assert again.plan.stages[0].key == run.plan.stages[0].key


def test_a_memory_in_which_not_even_the_smallest_window_fits_is_refused(bench):
    here = bench(texture((40, 120, 120)))
    with pytest.raises(ConfigurationError, match=r"memory: [^\n]*allow more, or use a smaller model$"):
        here.plan(window=None, network_batch=None, tile=None, memory=0.05)


@pytest.mark.parametrize("change", [{"seed": 1}, {"normalization": {"mean": 100.0, "deviation": 20.0}}])
def test_a_changed_model_is_settled_and_computed_anew(tmp_path, change):
    write_model(tmp_path / "model")
    here = Bench(tmp_path, tmp_path / "model", texture(), (10.0, 10.0, 10.0))
    before = here.results()
    old = here.plan()
    write_model(tmp_path / "model", **change)
    run = here.plan()
    assert settled(run) != settled(old)
    assert run.plan.stages[0].key != old.plan.stages[0].key
    summary = execute(run, InProcess(), quiet=True)
    assert not summary.found.get("semantics/semantics")
    assert not same(written(run), before)


def test_a_worker_refuses_a_model_that_changed_since_the_run_was_planned(tmp_path):
    write_model(tmp_path / "model")
    here = Bench(tmp_path, tmp_path / "model", texture(), (10.0, 10.0, 10.0))
    run = here.plan()
    run.prepare()
    write_model(tmp_path / "model", seed=1)
    with pytest.raises(ConfigurationError, match=r"changed since the run was planned; run again$"):
        work(run.url, "semantics/semantics", Batch(0, 1))


def test_a_worker_with_other_software_refuses(bench):
    run = bench().plan()
    settings = run.document["settled"]["semantics"]["settled"]
    settings["software"] = {"torch": "1.0", "instructions": "SSE2"}
    run.prepare()
    # keys are of what was settled, and would be noticed first
    run.document["keys"] = {stage.name: stage.key for stage in Run.open(run.url).plan.stages}
    run.prepare()
    with pytest.raises(ConfigurationError, match=r"planned with .*SSE2.* but this worker has"):
        work(run.url, "semantics/semantics", Batch(0, 1))


# what is refused


REFUSED = {
    "labels: .* has no vesicle; it has membrane, mitochondria, nucleus": {"labels": ["membrane", "vesicle"]},
    r"permutations: 16, but voxels and windows allow 8; square": {"permutations": 16, "window": [8, 24, 32]},
    r"window: \(8, 24, 25\) must be multiples of \(2, 2, 2\)": {"window": [8, 24, 25]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_the_model_does_not_allow_are_refused_in_a_line(bench, message):
    with pytest.raises(ConfigurationError, match=rf"{message}[^\n]*$"):
        bench().plan(**REFUSED[message])


def test_an_image_with_voxels_too_far_from_the_models_is_refused(bench):
    with pytest.raises(ConfigurationError, match=r"model: .*10 x 10 x 10 nm, .* 10 x 40 x 40 nm: too far [^\n]*$"):
        bench(voxel_size=(10.0, 40.0, 40.0)).plan()


def test_an_image_that_came_to_be_too_coarse_is_refused_though_all_was_settled(bench, tmp_path, model):
    bench().plan().prepare()
    (tmp_path / "coarse").mkdir()
    coarse = Bench(tmp_path / "coarse", model.folder, texture(), (10.0, 40.0, 40.0))
    coarse.folder = tmp_path
    with pytest.raises(ConfigurationError, match="too far apart"):
        coarse.plan()


def test_weights_that_are_not_the_cards_are_refused(tmp_path):
    bundle = write_model(tmp_path / "model")
    here = Bench(tmp_path, tmp_path / "model", texture(), (10.0, 10.0, 10.0))
    data = bytearray(bundle.weights.read_bytes())
    data[-1] ^= 1
    bundle.weights.write_bytes(data)
    with pytest.raises(DataError, match=r"^[^\n]*checksum[^\n]*get the bundle again$"):
        here.plan()


def test_a_device_out_of_memory_ends_the_run_with_the_remedy(bench, monkeypatch):
    from neurokube.networks import predictor

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(predictor._Torch, "_run", fail)
    run = bench().plan()
    with pytest.raises(NeuroKubeError, match="out of memory"):
        execute(run, InProcess(), quiet=True)
    note = run.quarantined(run.plan.steps["semantics/semantics"])[0]
    assert "set a smaller 'window' or 'network_batch' in the stage" in note["error"]


def test_what_was_chosen_for_this_machine_is_told(bench: MakeBench, command: Any) -> None:
    here = bench()
    path = here.folder / "w.yaml"
    path.write_text(yaml.safe_dump(here.document("run", {"dtype": "float32", "threads": 2})))
    said = "semantics: windows of 8 x 24 x 24, 2 at a time, float32 by torch, 2 threads a worker\n"
    assert said in command("plan", path)[2]
    assert said in command("run", path, "-w", "0", "-q")[2]
    assert said in command("status", here.folder / "runs" / "run")[1]
