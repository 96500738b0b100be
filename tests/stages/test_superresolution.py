"""Superresolution: where new sections lie and what they are, by a network and by interpolation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import same, texture
from generators import SHAPE, Bench, write_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom

from neurokube.errors import ConfigurationError
from neurokube.stages.superresolution import cubic, linear
from neurokube.volumes import open_volume
from neurokube.workflow import parse_workflow

PLAIN = {"model": None, "window": None, "backend": None, "network_batch": None}


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    def make(image: Any = None, model: Any = None, **place: Any) -> Bench:
        return Bench(tmp_path, "superresolution", model, image, **place)

    return make


def interpolated(image, factor):
    """Return float64 grey values linearly between sections."""
    at = np.arange(factor * (len(image) - 1) + 1) / factor
    low = np.minimum(at.astype(int), len(image) - 2)
    weight = (at - low)[:, None, None]
    return image[low] * (1 - weight) + image[low + 1] * weight


# interpolation


@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 99))
def test_linear_interpolation_is_the_exact_mean_rounded_half_up(factor, depth, seed):
    image = np.random.default_rng(seed).integers(0, 256, (depth, 3, 4), np.uint8)
    found = linear(image, factor, range(factor * (depth - 1) + 1))
    assert np.array_equal(found, np.floor(interpolated(image.astype(float), factor) + 0.5 + 1e-9))


@given(st.integers(2, 5), st.integers(2, 9), st.integers(0, 99))
def test_cubic_interpolation_is_scipys(factor, depth, seed):
    image = np.random.default_rng(seed).integers(0, 256, (depth, 3, 4), np.uint8)
    sections = factor * (depth - 1) + 1
    expected = zoom(image.astype(float), (sections / depth, 1, 1), order=3, mode="mirror")
    found = cubic(image, factor, range(sections))
    assert np.abs(found - np.clip(expected, 0, 255)).max() < 0.5 + 1e-6
    assert np.array_equal(found[::factor], image)


@settings(max_examples=6, deadline=None)
@given(st.integers(2, 4), st.integers(12, 120), st.integers(8, 40), st.sampled_from(["linear", "cubic"]))
def test_interpolation_does_not_depend_on_tiles_or_blocks(tmp_path_factory, factor, depth, wide, method):
    image = texture((80, 20, 24))
    here = Bench(tmp_path_factory.mktemp("tiles"), "superresolution", None, image)
    common = {**PLAIN, "method": method, "factor": factor}
    one = here.results("one", **common, tile=[400, 64, 64])
    assert same(one, here.results("many", **common, tile=[depth, wide, wide], block=[50, 30, 30]))
    between = linear if method == "linear" else cubic
    assert np.array_equal(one["superresolution/0"], between(image, factor, range(factor * 79 + 1)))


# a network


@pytest.mark.parametrize(("factor", "backend"), [(2, "torch"), (3, "openvino")])
def test_an_untrained_network_interpolates_linearly(tmp_path, bench, factor, backend):
    model = write_generator(tmp_path / "model", seed=None, factor=factor)
    here = bench(model=model.folder)
    found = here.image_of(factor=factor, backend=backend)
    assert np.abs(found - interpolated(here.image.astype(float), factor)).max() < 0.51
    assert np.array_equal(found[::factor], here.image)


def test_sections_are_kept_byte_for_byte_where_asked(tmp_path, bench):
    model = write_generator(tmp_path / "model", factor=3)
    image = texture(SHAPE)
    image[4:6, 3:9] = 0
    here = bench(image, model.folder)
    changed = here.image_of(factor=3)
    kept = here.image_of(factor=3, keep_sections=True)
    assert np.array_equal(kept[::3], image)
    assert np.count_nonzero(changed[::3] != image) > 0.5 * image.size
    between = np.arange(len(kept)) % 3 != 0
    assert np.array_equal(kept[between], changed[between])
    assert same(
        here.results("other", factor=3, keep_sections=True, block=[5, 60, 20]),
        here.results("other", factor=3, keep_sections=True, block=[60, 60, 60]),
    )


def test_both_planes_are_seen_where_pixels_are_square(tmp_path, bench):
    model = write_generator(tmp_path / "model", factor=2)
    square = bench(model=model.folder)
    assert np.array_equal(square.image_of(), square.image_of(permutations=2))
    assert not any("permutations" in line for line in square.plan().plan.remarks)
    (tmp_path / "oblong").mkdir()
    oblong = Bench(tmp_path / "oblong", "superresolution", model.folder, voxel_size=(40.0, 10.0, 12.0))
    assert np.array_equal(oblong.image_of(), oblong.image_of(permutations=1))
    assert any("plane (z, x) only" in line for line in oblong.plan().plan.remarks)


# where things lie


@pytest.mark.parametrize("method", ["network", "linear", "cubic"])
@pytest.mark.parametrize("factor", [2, 5])
def test_a_landmark_stays_where_it_is_in_nanometres(tmp_path, bench, method, factor):
    image = np.full(SHAPE, 100, np.uint8)
    image[9, 20, 30] = 250
    offset = (400.0, 70.0, -30.0)
    model = write_generator(tmp_path / "model", seed=None, factor=factor)
    here = bench(image, model.folder if method == "network" else None, offset=offset)
    settings = {} if method == "network" else PLAIN
    run = here.plan(f"{method}-{factor}", method=method, factor=factor, **settings)
    here.results(f"{method}-{factor}", method=method, factor=factor, **settings)
    made = open_volume(f"{run.url}/superresolution/superresolution")
    assert made.spec.shape == (factor * (SHAPE[0] - 1) + 1, *SHAPE[1:])
    assert made.spec.voxel_size == (40.0 / factor, 10.0, 10.0)
    voxels = made.read(made.spec.box)
    for spec, array in ((made.spec, voxels), (open_volume(here.inputs["image"]["path"]).spec, image)):
        brightest = np.unravel_index(array.argmax(), array.shape)
        # as in OME-NGFF, an offset is the middle of the first voxel
        place = [o + n * s for o, n, s in zip(spec.offset, brightest, spec.voxel_size, strict=True)]
        assert place == pytest.approx([400 + 9 * 40, 70 + 200, -30 + 300])
    # the middle of the last section stays too, and nothing is after it
    last = made.spec.offset[0] + (made.spec.shape[0] - 1) * made.spec.voxel_size[0]
    assert last == pytest.approx(offset[0] + (SHAPE[0] - 1) * 40)


def test_what_comes_out_is_said_before_it_runs(bench):
    remarks = bench().plan(**PLAIN, method="linear").plan.remarks
    assert remarks == [
        "superresolution: 13 sections of 40 nm become 2 x 13 - 1 = 25 of 20 nm, as none is after the last; "
        "the middle of the first stays where it is, so that the volume begins 10 nm further in"
    ]
    assert "finer than pixels" in bench_remark(bench, factor=8)


def bench_remark(bench, **settings):
    return " ".join(bench().plan(**PLAIN, method="linear", **settings).plan.remarks)


# what is refused


def test_an_isotropic_volume_is_refused(bench):
    with pytest.raises(
        ConfigurationError, match=r"image: voxels of 15 x 10 x 10 nm [^\n]*; leave superresolution out$"
    ):
        bench(voxel_size=(15.0, 10.0, 10.0)).plan(**PLAIN, method="cubic")


def test_one_section_is_refused(bench):
    with pytest.raises(ConfigurationError, match=r"image: has one section[^\n]*; leave superresolution out$"):
        bench(texture((1, 20, 20))).plan(**PLAIN, method="linear")


def test_a_factor_that_is_not_the_models_is_refused(tmp_path, bench):
    model = write_generator(tmp_path / "model", factor=3)
    with pytest.raises(ConfigurationError, match=r"factor: 2, but .* makes 3 sections of one; set factor: 3[^\n]*$"):
        bench(model=model.folder).plan()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 2.5, "method": "linear"}, r"superresolution\.factor: must be a whole number \(it is 2\.5\)$"),
        (
            {"factor": 1, "method": "linear"},
            r"superresolution\.factor: must be greater than or equal to 2 \(it is 1\)$",
        ),
        (
            {"factor": 2, "method": "linear", "model": "finer-20-10-10"},
            r"superresolution: model: linear interpolation uses none; leave it out[^\n]*$",
        ),
        ({"factor": 2}, r"superresolution: model: is missing; name one, or set method: cubic or linear[^\n]*$"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_line(settings, message):
    document = {"name": "run", "inputs": {"image": {"path": "image.zarr"}}, "stages": {"superresolution": settings}}
    with pytest.raises(ConfigurationError, match=message):
        parse_workflow(document)


def test_outputs_are_those_of_this_stage_version(bench):
    """A changed output under an unchanged version would leave stale results in users' runs: raise the version."""
    here = bench()
    found = {}
    for method in ("linear", "cubic"):
        image = here.image_of(**PLAIN, method=method).astype(np.uint64).ravel()
        found[method] = [int(image.sum()), int((image * np.arange(1, image.size + 1, dtype=np.uint64)).sum())]
    assert (here.plan(**PLAIN, method="linear").plan.stages[0].stage.version, found) == (1, GOLDEN)


GOLDEN = {"linear": [5712769, 120232421274], "cubic": [5707315, 120093539254]}
