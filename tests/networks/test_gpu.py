"""A graphics card: what a prediction, a run and a training on it must keep.

Where there is none these tests are skipped; NEUROKUBE_REHEARSE=1 lets the processor stand in for it, so that a change
of theirs can be tried before a card is at hand.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

TESTS = Path(__file__).parents[1]
sys.path += [str(TESTS / folder) for folder in ("stages", "training", "workflow")]

import benches  # noqa: E402
from benches import same, texture, written  # noqa: E402
from blobs import document as training  # noqa: E402
from blobs import write as write_blobs  # noqa: E402
from blobs import write_file, write_tissue  # noqa: E402
from generators import write_generator  # noqa: E402
from tiny import document, results  # noqa: E402

from neurokube.blocks import Box  # noqa: E402
from neurokube.doctor import examine  # noqa: E402
from neurokube.engines import Batch, InProcess  # noqa: E402
from neurokube.engines.local import Local  # noqa: E402
from neurokube.errors import ConfigurationError, NeuroKubeError  # noqa: E402
from neurokube.networks import load_bundle  # noqa: E402
from neurokube.networks.predictor import Numerics, fastest, open_predictor, software  # noqa: E402
from neurokube.networks.probe import Candidate, choose  # noqa: E402
from neurokube.training import parse_training  # noqa: E402
from neurokube.training.trainer import train  # noqa: E402
from neurokube.workflow import Run, execute, parse_workflow, work  # noqa: E402
from neurokube.workflow.calibration import calibrate  # noqa: E402
from neurokube.workflow.estimate import Target, estimate  # noqa: E402

CARD = torch.cuda.is_available()
REHEARSAL = not CARD and os.environ.get("NEUROKUBE_REHEARSE") == "1"
pytestmark = pytest.mark.skipif(not CARD and not REHEARSAL, reason="no GPU that PyTorch can use is here")
on_a_card = pytest.mark.skipif(not CARD, reason="a processor cannot stand in for the card here")

BACKEND: Any = "cuda" if CARD else "torch"
DTYPES = ("float32", "bfloat16")
BATCH = 3


# a network


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    """Return small networks of each kind, with random weights, and a window for each."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "unet": (tiny(folder / "unet"), (16, 24, 32)),
        "inception": (tiny(folder / "inception", kind="inception", features=(4, 8)), (16, 24, 32)),
        "generator": (write_generator(folder / "generator", factor=3, aside=2), (12, 24, 20)),
    }


def opened(bundle, window, backend=BACKEND, dtype="float32", batch=BATCH):
    numerics = Numerics(backend=backend, dtype=dtype, window=window, batch=batch)
    return open_predictor(str(bundle.folder), bundle.card.sha256, numerics)


def images(window, n=BATCH, seed=0):
    return np.random.default_rng(seed).standard_normal((n, *window)).astype(np.float32)


def in_double_precision(bundle, seen):
    with torch.no_grad():
        found = bundle.network(fold=False).double()(torch.from_numpy(seen[:, None]).double())
    return (torch.sigmoid(found) if bundle.card.output == "logits" else found).numpy()


def distance(found, expected):
    """Return how far apart two arrays are, for their length."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


KINDS = pytest.mark.parametrize("kind", ["unet", "inception", "generator"])
MODELS = ("fib25-10-10-10", "boundaries-fib25-10-10-10", "synthetic-40-8-8", "finer-20-10-10")


@KINDS
@pytest.mark.parametrize(("dtype", "most"), [("float32", 3e-6), ("bfloat16", 2e-2)])
def test_prediction_is_that_of_the_network_in_double_precision(models, record_property, kind, dtype, most):
    """In float32 no TensorFloat-32 is used, which would be off by some 3e-4."""
    bundle, window = models[kind]
    seen = images(window)
    found = opened(bundle, window, dtype=dtype)(seen)
    off = distance(found, in_double_precision(bundle, seen))
    record_property("distance", off)
    assert found.dtype == np.float32
    assert off < most


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_predict_as_on_a_processor(record_property, name):
    bundle = load_bundle(name)
    z, y, x = (3 * m if m > 4 else 16 for m in bundle.card.multiple)
    window = (z, 2 * y, 2 * x)
    image = np.stack([texture(window), texture(window)[:, ::-1]])
    seen = (image.astype(np.float32) - image.mean()) / image.std()
    expected = opened(bundle, window, "torch", batch=2)(seen)
    exact = opened(bundle, window, batch=2)(seen)
    coarse = opened(bundle, window, dtype="bfloat16", batch=2)(seen)
    record_property("float32", float(np.abs(exact - expected).max()))
    record_property("bfloat16", [float(np.abs(coarse - expected).max()), float(np.abs(coarse - expected).mean())])
    assert np.abs(exact - expected).max() < 1e-4
    # an eighth of a grey value's step of 255, but for some voxels
    assert np.abs(coarse - expected).mean() < (0.02 if bundle.card.output == "image" else 0.005)


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_has_the_same_bits_alone_anywhere_in_a_batch_and_again(models, kind, dtype):
    bundle, window = models[kind]
    seen = images(window)
    predictor = opened(bundle, window, dtype=dtype)
    together = predictor(seen)
    kept = together.copy()
    assert np.array_equal(predictor(seen[::-1].copy())[::-1], together)
    for k in range(BATCH):
        assert np.array_equal(predictor(seen[k : k + 1])[0], together[k])
    open_predictor.cache_clear()
    assert np.array_equal(opened(bundle, window, dtype=dtype)(seen), together)
    # nor did what came after touch it
    assert np.array_equal(kept, together)


@on_a_card
def test_the_card_is_the_usual_backend_and_its_name_is_kept(models):
    bundle, window = models["unet"]
    assert fastest(bundle)[0] == "cuda"
    usual = Numerics.usual(bundle, window)
    assert usual.backend == "cuda" and usual.batch > 1
    assert open_predictor(str(bundle.folder), bundle.card.sha256, usual)(images(window, 1)).shape == (1, 2, *window)
    assert software("cuda") == {"torch": software("torch")["torch"], "device": torch.cuda.get_device_name()}


@on_a_card
def test_the_doctor_names_the_card(tmp_path, command):
    name = torch.cuda.get_device_name()
    assert any(name in line for line in examine(str(tmp_path))["gpus"])
    code, said, _ = command("doctor", "--json")
    assert code == 0 and any(name in line for line in json.loads(said)["gpus"])


# memory


def peak_of(bundle, numerics):
    """Return the most memory, in bytes, that PyTorch holds on the card for a prediction and the one after it."""
    open_predictor.cache_clear()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    predictor = open_predictor(str(bundle.folder), bundle.card.sha256, numerics)
    for _ in range(2):
        predictor(images(numerics.window, numerics.batch))
    return torch.cuda.max_memory_allocated() - before


@on_a_card
@KINDS
def test_memory_found_by_trying_is_what_a_prediction_holds(models, record_property, kind):
    bundle, _ = models[kind]
    sizes = [(16, 64, 64), (16, 128, 128), (16, 192, 192)]
    tried = [Candidate(Numerics(backend="cuda", window=size, batch=4), size) for size in sizes]
    # memory that the last one alone does not fit into
    limit = 0.9 * peak_of(bundle, tried[-1].numerics)
    chosen, peak = choose(str(bundle.folder), bundle.card.sha256, tried, limit)
    held = peak_of(bundle, chosen.numerics)
    record_property("peak", peak)
    record_property("held", held)
    assert chosen in tried[:2]
    assert peak == pytest.approx(held, rel=0.05)


@on_a_card
def test_a_limit_that_no_window_fits_into_is_refused(models):
    bundle, window = models["unet"]
    tried = [Candidate(Numerics(backend="cuda", window=window, batch=4), window)]
    with pytest.raises(ConfigurationError, match=r"^memory: the smallest window \(16, 24, 32\) already takes"):
        choose(str(bundle.folder), bundle.card.sha256, tried, 2**16)


@pytest.fixture
def little_memory():
    """Let this process use 64 MiB of the card more than it holds."""
    open_predictor.cache_clear()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**26) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    open_predictor.cache_clear()
    torch.cuda.empty_cache()


@on_a_card
def test_a_window_too_large_for_the_card_says_what_to_set_and_leaves_it_usable(models, little_memory):
    bundle, window = models["unet"]
    small = opened(bundle, window)(images(window))
    large = (64, 256, 256)
    with pytest.raises(NeuroKubeError) as raised:
        opened(bundle, large)(images(large))
    said = str(raised.value)
    assert said.startswith("out of memory with windows of (64, 256, 256) in batches of 3: set a smaller 'window' or")
    assert "\n" not in said
    assert np.array_equal(opened(bundle, window)(images(window)), small)


@on_a_card
def test_a_network_too_large_for_the_card_says_so(tiny, tmp_path, little_memory):
    bundle = tiny(tmp_path / "large", features=(64, 256, 512))
    with pytest.raises(NeuroKubeError, match=r"^out of memory with windows of \(16, 24, 24\) in batches of 3: "):
        opened(bundle, (16, 24, 24))


# a stage


class Bench(benches.Bench):
    """A folder in which a U-Net's runs are made on the card."""

    kind = "semantics"
    usual = {"backend": BACKEND, "tile": [8, 16, 16], "window": [8, 24, 24], "overlap": [1, 2, 2]}  # noqa: RUF012


@pytest.fixture
def bench(tmp_path, models):
    return Bench(tmp_path, models["unet"][0].folder, texture(), (10.0, 10.0, 10.0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_does_not_depend_on_block_shape_order_or_number_of_workers(bench, dtype):
    settings = {"dtype": dtype, "network_batch": BATCH, "permutations": 4}
    reference = bench.results("one", block=[20, 60, 60], **settings)
    assert np.ptp(reference["membrane/0"]) > 20
    for block in ([1, 1, 1], [8, 32, 20]):
        assert same(bench.results(str(block), block=block, **settings), reference)
    shares = bench.plan("shares", block=[8, 16, 16], **settings)
    shares.prepare()
    for name, step in shares.plan.steps.items():
        for share in (2, 0, 1):
            assert not work(shares.url, name, Batch.share(share, 3, len(step.blocks))).failed
    assert same(written(shares), reference)
    # two processes share the card
    pool = bench.plan("pool", block=[8, 16, 16], **settings)
    execute(pool, Local(2), quiet=True)
    assert same(written(pool), reference)


@on_a_card
@pytest.mark.parametrize("dtype", DTYPES)
def test_windows_that_are_added_up_in_host_memory_make_the_same_bits(bench, monkeypatch, dtype):
    """That is done where the card has no room for the sums of a layer."""
    settings = {"dtype": dtype, "network_batch": BATCH, "permutations": 3}
    reference = bench.results("there", block=[20, 60, 60], **settings)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    assert same(bench.results("here", block=[20, 60, 60], **settings), reference)


@pytest.fixture
def large(tmp_path, models):
    return Bench(tmp_path, models["unet"][0].folder, texture((64, 128, 128)), (10.0, 10.0, 10.0))


@on_a_card
def test_what_planning_finds_out_is_of_the_card(large):
    run = large.plan(backend=None, window=None, overlap=None, network_batch=None, tile=[32, 64, 64], memory=2.0)
    stage = run.plan.stages[0].stage
    numerics = stage.settled.numerics
    assert (numerics.backend, numerics.dtype) == ("cuda", fastest(stage.bundle)[1])
    assert stage.settled.software["device"] == torch.cuda.get_device_name()
    assert 0 < stage.settled.peak < 2 * 2**30
    assert "by cuda" in stage.chosen()
    execute(run, InProcess(), quiet=True)


@on_a_card
@pytest.mark.parametrize("kind", ["unet", "generator"])
def test_a_block_holds_on_the_card_no_more_than_was_planned(tmp_path, models, record_property, kind):
    bundle, _ = models[kind]
    made = Bench(tmp_path, bundle.folder, texture((64, 192, 192)), (40.0 if kind == "generator" else 10.0, 10.0, 10.0))
    settings = {"window": None, "overlap": None, "tile": [32, 64, 64], "block": [999, 999, 999]}
    if kind == "generator":
        made.kind, settings["factor"] = "superresolution", 3
    run = made.plan(memory=2.0, network_batch=4, **settings)
    stage, spec = run.plan.stages[0].stage, run.plan.stages[0].sources["image"].spec
    open_predictor.cache_clear()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    execute(run, InProcess(), quiet=True)
    held = torch.cuda.max_memory_allocated() - before
    planned = stage.settled.peak + stage._card_column(spec, stage.settled.numerics.window[0]) * 192 * 192
    record_property("held", held)
    record_property("planned", planned)
    assert stage.settled.peak < held <= 1.05 * planned


@on_a_card
def test_hours_of_the_card_are_counted_and_cost(large):
    run = large.plan(network_batch=1)
    told = estimate(run, Target(1, price_gpu=2.0), calibrate(run, InProcess, places=1, quiet=True))
    row = next(row for row in told.steps if row.step == "semantics/semantics")
    assert row.gpus == 1 and row.cost.likely > 0
    assert told.gpu_hours.likely > 0


@on_a_card
def test_a_run_of_another_card_is_refused_by_a_worker(bench):
    stage = bench.plan().plan.stages[0].stage
    other = stage.settled.model_copy(update={"software": {**stage.settled.software, "device": "another"}})
    with pytest.raises(ConfigurationError, match=r"^planned with [^\n]*another[^\n]*, but this worker has"):
        stage.model_copy(update={"settled": other}).check_worker()


# a run

STAGES = {
    "synthesis": {"shape": [20, 72, 72], "voxel_size": [20, 10, 10], "tile": [8, 32, 32], "write": ["image"]},
    "superresolution": {
        "image": "synthesis.image",
        "model": "finer-20-10-10",
        "factor": 2,
        "window": [20, 48, 48],
        "tile": [16, 32, 32],
    },
    "semantics": {
        "image": "superresolution",
        "model": "fib25-10-10-10",
        "window": [24, 48, 48],
        "tile": [16, 32, 32],
        "permutations": 2,
    },
    "fragments": {"boundaries": "semantics.membranes", "tile": [16, 32, 32]},
    "graph": {"boundaries": "semantics.membranes"},
    "multicut": {},
    "segmentation": {},
}
NETWORKS = ("superresolution", "semantics")
OUTPUTS = ("superresolution/superresolution", "semantics/membranes")


def reconstruction(folder, backend=BACKEND, **settings):
    """Return a workflow from synthetic sections to cells."""
    chosen = {"backend": backend, "network_batch": 4, **settings}
    stages = {name: {**stage, **(chosen if name in NETWORKS else {})} for name, stage in STAGES.items()}
    return document(folder, inputs={}, stages=stages, block=[16, 32, 32])


def planned(folder, backend=BACKEND, **settings):
    return Run.planned(parse_workflow(reconstruction(folder, backend, **settings)))


def volumes(run):
    found = {}
    for output in OUTPUTS:
        stage, name = output.split("/")
        volume = next(s for s in run.plan.stages if s.name == stage).data().volume(name)
        found[output] = volume.read(Box.of(volume.level_shape(0))).astype(int)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run on the card that nothing happened to."""
    run = planned(tmp_path_factory.mktemp("undisturbed"))
    execute(run, InProcess(), quiet=True)
    return run, results(run)


DYING = """
import os, signal, sys
from neurokube.cli import main
from neurokube.networks.predictor import Predictor

left, predict = int(sys.argv.pop(1)), Predictor.__call__

def dying(self, images):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(self, images)

Predictor.__call__ = dying
main()
"""
"""The command line, which is killed at the n-th prediction."""


def test_a_run_killed_twice_goes_on_and_ends_with_the_same_bits(undisturbed, tmp_path):
    workflow = tmp_path / "workflow.yaml"
    workflow.write_text(yaml.safe_dump(reconstruction(tmp_path)))
    for predictions in (4, 12):
        command = [sys.executable, "-c", DYING, str(predictions), "run", str(workflow), "-q", "-w", "0"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
    run = planned(tmp_path)
    summary = execute(run, InProcess(), quiet=True)
    assert summary.found["superresolution/superresolution"] > 0
    assert results(run) == undisturbed[1]


def test_two_workers_on_one_card_make_what_one_process_makes(undisturbed, tmp_path):
    run = planned(tmp_path)
    execute(run, Local(2), quiet=True)
    assert results(run) == undisturbed[1]


def test_a_run_on_the_card_is_that_of_a_processor_but_for_rounding(tmp_path, record_property):
    found = {}
    for name, settings in {"processor": {"backend": "torch"}, "float32": {}, "bfloat16": {}}.items():
        (tmp_path / name).mkdir()
        dtype = name if name in DTYPES else "float32"
        run = planned(tmp_path / name, dtype=dtype, **settings)
        for step in (n for n in run.plan.steps if n.split("/")[0] in ("synthesis", *NETWORKS)):
            run.prepare()
            assert not work(run.url, step, Batch(0, len(run.plan.steps[step].blocks))).failed
        found[name] = volumes(run)
    for output in OUTPUTS:
        off = {dtype: np.abs(found[dtype][output] - found["processor"][output]) for dtype in DTYPES}
        record_property(output, {dtype: [int(d.max()), float(d.mean())] for dtype, d in off.items()})
        # values that lie at the border of two grey values
        assert off["float32"].max() <= 1 and off["float32"].mean() < 0.01
        assert off["bfloat16"].mean() < 1


# a training


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    """Return the paths of an image, the truth of its blobs, and another pair for validation."""
    return write_tissue(tmp_path_factory.mktemp("tissue"))


def history(bundle):
    return [json.loads(line) for line in (bundle.folder.parent / "history.jsonl").read_text().splitlines()]


TRAININGS: dict[str, dict[str, Any]] = {
    "unet-float32": {},
    "unet-bfloat16": {"precision": "bfloat16"},
    "inception-float32": {"network": "inception", "size": [4, 8]},
}


@pytest.mark.parametrize("settings", TRAININGS.values(), ids=TRAININGS)
def test_a_training_goes_on_to_the_same_weights_and_learns(tissue, tmp_path, settings):
    content = training(tissue, tmp_path, validated=True, steps=40, interval=10, **settings)
    made = parse_training(content, where="test")
    bundle = train(made, quiet=True)
    rows = history(bundle)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert bundle.card.scores["validation"]["f1"]["blob"] > 0.8
    (bundle.folder.parent / "checkpoints" / "step-00000040.ckpt").unlink()
    weights = bundle.tensors()
    again = train(made, resume=True, quiet=True).tensors()
    assert {name: torch.equal(tensor, again[name]) for name, tensor in weights.items()} == dict.fromkeys(weights, True)
    assert all(tensor.dtype != torch.bfloat16 for tensor in weights.values())


IMAGES: dict[str, dict[str, Any]] = {
    "superresolution": {"task": "superresolution", "factor": 2, "window": [8, 16]},
    "cyclegan": {"task": "superresolution", "factor": 2, "window": [8, 16], "method": "cyclegan"},
}


@pytest.mark.parametrize("settings", IMAGES.values(), ids=IMAGES)
def test_a_training_of_a_generator_goes_on_to_the_same_weights(tmp_path, settings):
    image = write_blobs(tmp_path / "coarse.zarr", texture((12, 48, 48)), "image", voxel_size=(20.0, 10.0, 10.0))
    content = {"name": "net", "workspace": str(tmp_path), "volumes": [{"image": image}], "features": 8, "blocks": 1}
    content |= {"batch": 4, "steps": 8, "interval": 4, "precision": "float32", "threads": 1, "loggers": [], **settings}
    if settings.get("method") == "cyclegan":
        content["gan"] = {"features": 4, "buffer": 6}
    made = parse_training(content, where="test")
    bundle = train(made, quiet=True)
    (bundle.folder.parent / "checkpoints" / "step-00000008.ckpt").unlink()
    assert train(made, resume=True, quiet=True).card.sha256 == bundle.card.sha256


KILLED = """
import os, signal, sys
from neurokube.cli import main
from neurokube.training.sampling import Windows

get = Windows.__getitem__

def killed(self, index):
    if self.first + index == 21:
        os.kill(os.getpid(), signal.SIGKILL)
    return get(self, index)

Windows.__getitem__ = killed
main()
"""
"""The command line, which is killed when a training asks for its window 21."""


def test_a_killed_training_goes_on_in_another_process_to_the_same_weights(tissue, tmp_path, command):
    shas = []
    for name in ("undisturbed", "killed"):
        file = write_file(tmp_path / f"{name}.yaml", training(tissue, tmp_path, validated=True, name=name, steps=16))
        if name == "killed":
            arguments = [sys.executable, "-c", KILLED, "train", str(file), "--quiet"]
            assert subprocess.run(arguments, capture_output=True, check=False).returncode == -signal.SIGKILL
            assert sorted((tmp_path / "models" / name / "checkpoints").glob("*.ckpt"))
        resume = ["--resume"] if name == "killed" else []
        code, _, said = command("train", file, *resume, "--quiet")
        assert code == 0, said
        shas.append(load_bundle(str(tmp_path / "models" / name / "model")).card.sha256)
    assert shas[0] == shas[1]


@pytest.mark.parametrize("precision", DTYPES)
def test_a_loss_that_is_no_number_ends_a_training_in_one_line(tissue, tmp_path, command, precision):
    content = training(tissue, tmp_path, learning_rate=1e30, precision=precision)
    code, _, said = command("train", write_file(tmp_path / "blobs.yaml", content), "--quiet")
    assert code == 1 and "learning_rate (now 1e+30)" in said and said.count("\n") == 1


@on_a_card
def test_more_devices_than_there_are_are_refused_in_one_line(tissue, tmp_path, command):
    there = torch.cuda.device_count()
    content = training(tissue, tmp_path, devices=there + 1)
    code, _, said = command("train", write_file(tmp_path / "blobs.yaml", content), "--quiet")
    assert code == 78 and said.count("\n") == 1
    assert f"devices: {there + 1}, but here" in said


@on_a_card
def test_a_network_trained_on_the_card_predicts_on_a_processor(tissue, tmp_path):
    bundle = train(parse_training(training(tissue, tmp_path, validated=True), where="test"), quiet=True)
    window = (8, 24, 24)
    expected = opened(bundle, window, "torch")(images(window))
    assert np.abs(opened(bundle, window)(images(window)) - expected).max() < 1e-4


def test_predictors_of_two_dtypes_do_not_disturb_each_other(models):
    """Switches of PyTorch that one sets hold for the whole process."""
    bundle, window = models["unet"]
    exact, coarse = opened(bundle, window), opened(bundle, window, dtype="bfloat16")
    first = exact(images(window))
    coarse(images(window))
    assert np.array_equal(exact(images(window)), first)
