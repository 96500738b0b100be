"""Both stages that make an image of an image: the laws, windows, emptiness, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from itertools import combinations, product
from pathlib import Path
from typing import Any, ClassVar

import benches
import numpy as np
import pytest
import yaml
from benches import Settings, on_a_device, same, texture, written
from generators import REACH, SHAPE, VOXEL_SIZE, Bench, normalization_of, whole, write_generator
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import WindowGrid
from neurokube.engines import Batch, InProcess
from neurokube.engines.local import Local
from neurokube.errors import ConfigurationError
from neurokube.networks import Bundle
from neurokube.stages.superresolution import Superresolution
from neurokube.stages.translation import Translation
from neurokube.volumes import VolumeSpec
from neurokube.workflow import execute, work

KINDS = {
    "superresolution": {"factor": 2, "aside": 2},
    "translation": {"plane": "yx", "target": {"mean": 90, "deviation": 20}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Bundle]:
    return {kind: write_generator(tmp_path_factory.mktemp(kind), **fields) for kind, fields in KINDS.items()}


@pytest.fixture(params=list(KINDS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def bench(tmp_path: Path, kind: str, models: dict[str, Bundle]) -> Any:
    def make(image: Any = None, **place: Any) -> Bench:
        return Bench(tmp_path, kind, models[kind].folder, image, **place)

    return make


# partition, engine and resume invariance


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_output_does_not_depend_on_block_shape(bench, backend):
    here = bench()
    usual = {"backend": backend, "permutations": 2}
    found = [here.results(str(block), block=block, **usual) for block in ([1, 1, 1], [16, 20, 44], [60, 60, 60])]
    assert all(same(found[0], other) for other in found[1:])
    assert np.ptp(found[0][f"{here.kind}/0"]) > 60


def test_what_a_device_does_itself_has_the_bits_of_what_the_processor_does_for_it(bench, monkeypatch):
    here = bench()
    settings = {"permutations": 12, "network_batch": 3, "overlap": [0, 2, 3]}
    expected = here.results("processor", **settings)
    on_a_device(monkeypatch)
    for block in ([16, 20, 44], [60, 60, 60]):
        assert same(here.results(f"device {block}", block=block, **settings), expected)


block_shapes = st.tuples(*(st.integers(1, 2 * n) for n in SHAPE)).map(list)


@settings(max_examples=5, deadline=None)
@given(block=block_shapes, overlap=st.sampled_from([None, [0, 2, 3], [1, 1, 0]]))
def test_output_does_not_depend_on_any_block_shape_however_windows_overlap(tmp_path_factory, models, block, overlap):
    for kind in KINDS:
        here = Bench(tmp_path_factory.mktemp("any"), kind, models[kind].folder)
        image = here.results("one", overlap=overlap)
        assert same(image, here.results("any", overlap=overlap, block=block))


def test_output_does_not_depend_on_order_or_number_of_workers(bench):
    here = bench()
    reference = here.results("one", block=[60, 60, 60], permutations=4)
    shares = here.plan("shares", block=[8, 32, 48], permutations=4)
    shares.prepare()
    for name, step in shares.plan.steps.items():
        for share in (2, 0, 1):
            assert not work(shares.url, name, Batch.share(share, 3, len(step.blocks))).failed
    assert same(written(shares), reference)
    pool = here.plan("pool", block=[16, 20, 44], permutations=4)
    execute(pool, Local(2), quiet=True)
    assert same(written(pool), reference)


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(bench):
    here = bench()
    slow = {"permutations": 16, "block": [8, 24, 24]}
    reference = here.results("undisturbed", permutations=16)
    path = here.folder / "workflow.yaml"
    path.write_text(yaml.safe_dump(here.document("run", slow)))
    run = here.plan(**slow)
    step = run.plan.steps[f"{here.kind}/{here.kind}"]
    command = [sys.executable, "-m", "neurokube", "run", str(path), "-q", "-w", "0"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None and not run.ledger(step).count():
        time.sleep(0.01)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = run.ledger(step).count()
    assert 0 < before < len(step.blocks)
    assert execute(here.plan(**slow), InProcess(), quiet=True).found[step.name] == before
    assert same(written(run), reference)


# what comes out

VIEWS = [((), False), ((), True)]
ALL = [(flips, turned) for k in range(4) for flips in combinations((0, 1, 2), k) for turned in (False, True)]


@pytest.mark.parametrize(("count", "views"), [(1, VIEWS[:1]), (2, VIEWS)])
def test_output_is_that_of_the_whole_volume_at_once(bench, models, kind, count, views):
    here = bench()
    run = here.plan(permutations=count)
    grid = run.plan.stages[0].stage.grid(run.plan.stages[0].sources["image"].spec)
    assert all(len(starts) > 1 for starts in grid.starts), "windows must have something to do"
    expected = np.clip(whole(models[kind], here.image, views), 1, 255)
    assert np.abs(here.image_of(permutations=count) - expected).max() < 0.51


def test_turned_planes_and_flips_are_averaged_where_they_lie(bench, models, kind):
    here = bench()
    # a flip along z moves what is between sections: what was made after a section is then made before it
    factor = models[kind].card.factor
    straight, flipped = (
        whole(models[kind], image, [v for v in ALL if 0 not in v[0]]) for image in (here.image, here.image[::-1])
    )
    assert straight.shape[0] == factor * (SHAPE[0] - 1) + 1
    expected = np.clip((straight + flipped[::-1]) / 2, 1, 255)
    assert np.abs(here.image_of(permutations=16) - expected).max() < 0.51


def test_across_backends_a_voxel_differs_by_at_most_1(bench):
    here = bench()
    found = [here.image_of(backend=b, network_batch=n).astype(int) for b, n in product(("openvino", "torch"), (1, 3))]
    for other in found[1:]:
        assert np.abs(found[0] - other).max() <= 1
        assert np.count_nonzero(found[0] - other) <= 0.002 * other.size


def test_a_volume_smaller_than_a_window_is_predicted_as_if_mirrored(bench):
    here = bench(texture((REACH + 1, 13, 17)))
    assert same(here.results("one", block=[60, 60, 60]), here.results("many", block=[8, 16, 16]))


# mask and emptiness


def test_what_is_empty_stays_empty_without_a_prediction_and_nothing_else_does(bench, kind, monkeypatch):
    from neurokube.networks import predictor

    image = texture(SHAPE)
    image[:, :, 20:] = 0
    image[3, 5, 5] = image[8:10, 7, 7] = 0
    here = bench(image)
    seen = []
    original = predictor.Predictor.__call__
    monkeypatch.setattr(
        predictor.Predictor, "__call__", lambda self, images: seen.append(len(images)) or original(self, images)
    )
    found = here.image_of(block=[60, 60, 60])
    run = here.plan("block-60-60-60")
    grid = run.plan.stages[0].stage.grid(run.plan.stages[0].sources["image"].spec)
    turns = 1 if kind == "translation" else 2
    assert sum(seen) == turns * sum(image[grid.box(k).slices].any() for k in range(len(grid))) < turns * len(grid)
    factor = 2 if kind == "superresolution" else 1
    rows = np.arange(len(found))
    assert np.array_equal(found == 0, (image[rows // factor] == 0) & (image[-(-rows // factor)] == 0))
    assert same(here.results("many", block=[8, 16, 16]), written(run))


def test_what_is_masked_is_0_and_the_rest_as_without_a_mask(bench, kind):
    here = bench()
    every = here.image_of(block=[60, 60, 60])
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 5:18, 30:] = 7
    here.mask(mask)
    found = here.results("masked", block=[16, 60, 60])
    assert same(found, here.results("masked in parts", block=[8, 16, 16]))
    factor = 2 if kind == "superresolution" else 1
    rows = np.arange(len(every))
    wanted = (mask[rows // factor] != 0) | (mask[-(-rows // factor)] != 0)
    assert np.array_equal(found[f"{kind}/0"], np.where(wanted, every, 0))


# windows


@given(
    st.tuples(st.integers(5, 300), st.integers(1, 900), st.integers(1, 900)),
    st.sampled_from([None, (0, 0, 0), (2, 8, 8)]),
    st.integers(1, 16),
)
def test_windows_have_the_halo_that_the_network_needs_or_the_whole_volume(models, shape, overlap, count):
    for stage, kind in ((Superresolution, "superresolution"), (Translation, "translation")):
        factor = {"factor": 2} if kind == "superresolution" else {}
        made = stage(model=str(models[kind].folder), overlap=overlap, permutations=count, **factor)
        image = VolumeSpec(shape, "uint8", VOXEL_SIZE[kind])
        tried = list(made._windows(image))
        assert 1 <= len(tried) <= 5
        for stride, halo, window in tried:
            grid = WindowGrid(shape, window, stride, halo)
            assert window[1] == window[2]
            for axis in range(3):
                # where nothing is turned, the network of a plane looks nowhere along the third axis
                blind = axis == 0 if kind == "translation" else axis == 1 and count == 1
                need = 0 if blind else REACH
                assert halo[axis] >= need or len(grid.starts[axis]) == 1
                assert grid.overlap[axis] >= (overlap or (0, 0, 0))[axis] or len(grid.starts[axis]) == 1


def test_what_is_not_asked_for_is_found_by_trying(bench):
    here = bench(texture((30, 90, 90)))
    free = {"window": None, "network_batch": None, "tile": None}
    settled = here.plan(**free).plan.stages[0].stage.settled
    assert settled.peak > 2**26
    assert settled.numerics.window[1:] == (min(90, settled.stride[1] + 2 * settled.halo[1]),) * 2


# what is refused

REFUSED = [
    ("image: has 4 sections, too thin for .*, which looks 4 to either side; use", texture((4, 30, 30)), {}),
    (
        r"window: \(11, 8, 8\) leaves too little between a halo of .*; set a larger window",
        None,
        {"window": [11, 8, 8]},
    ),
    (r"permutations: 16, but voxels and windows allow 8", None, {"permutations": 16, "window": [11, 24, 32]}),
]


@pytest.mark.parametrize(("message", "image", "settings"), REFUSED)
def test_what_cannot_be_done_is_refused_in_a_line(tmp_path, message, image, settings):
    model = write_generator(tmp_path / "model", factor=2)
    with pytest.raises(ConfigurationError, match=rf"{message}[^\n]*$"):
        Bench(tmp_path, "superresolution", model.folder, image).plan(**settings)


def test_voxels_too_far_from_the_models_are_refused_and_other_ones_remarked(tmp_path, models):
    (tmp_path / "far").mkdir()
    far = Bench(tmp_path / "far", "translation", models["translation"].folder, voxel_size=(10.0, 40.0, 40.0))
    with pytest.raises(ConfigurationError, match=r"model: .*10 x 10 x 10 nm, .* 10 x 40 x 40 nm: too far [^\n]*$"):
        far.plan()
    near = Bench(tmp_path, "translation", models["translation"].folder, voxel_size=(10.0, 8.0, 8.0)).plan()
    assert any("10 x 10 x 10 nm, the image has 10 x 8 x 8 nm: it is applied" in line for line in near.plan.remarks)


def test_a_model_is_refused_where_it_makes_something_else(tmp_path, models):
    twice, alike = models["superresolution"].folder, models["translation"].folder
    wrong = [
        ("superresolution", alike, "makes one section of one; use it in a stage of kind translation"),
        ("translation", twice, "makes 2 sections of one; use it in a stage of kind superresolution"),
        ("superresolution", "synthetic-40-8-8", "makes no images but membranes.*; use it in a stage of kind semantics"),
    ]
    for number, (kind, model, message) in enumerate(wrong):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(ConfigurationError, match=rf"model: [^\n]*{message}$"):
            Bench(tmp_path / str(number), kind, model).plan()

    class Labels(benches.Bench):
        kind = "semantics"
        usual: ClassVar[Settings] = {}

    with pytest.raises(ConfigurationError, match=r"makes images, no probabilities; [^\n]* of kind translation$"):
        Labels(tmp_path, alike, texture(SHAPE), (10.0, 10.0, 10.0)).plan()


def test_grey_values_are_measured_on_the_volume_unless_the_model_fixes_them(tmp_path, kind):
    measured = normalization_of(texture(SHAPE))
    fields = {"normalization": measured.model_dump(), "seed": 0}
    own = write_generator(tmp_path / "own", **KINDS[kind])
    fixed = write_generator(tmp_path / "fixed", **KINDS[kind], **fields)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (Bench(tmp_path / name, kind, bundle.folder) for name, bundle in (("a", own), ("b", fixed)))
    assert np.array_equal(one.image_of(), other.image_of())
    assert [step for step in other.plan().plan.steps if "statistics" in step] == []
