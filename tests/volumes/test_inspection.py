from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from neurokube.volumes import VolumeSpec, create
from neurokube.volumes.inspection import inspect_volume

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
SIZES = {"fib25": (10.0, 10.0, 10.0), "vnc": (50.0, 4.6, 4.6)}


@pytest.fixture(scope="module", params=["fib25", "vnc"])
def real(request):
    folder = SHARED / request.param / "raw"
    if not folder.exists():
        pytest.skip(f"the {request.param} data set is not here")
    files = sorted(f for f in folder.iterdir() if f.suffix in (".tif", ".png"))
    return request.param, np.stack([np.asarray(Image.open(f)) for f in files])


def texture(shape=(24, 160, 200), ratio=1, seed=0, size=3.0):
    """Random blobs with thin dark lines between them, `ratio` times as coarse along z."""
    noise = np.random.default_rng(seed).standard_normal((shape[0] * ratio, *shape[1:])).astype(np.float32)
    blobs = gaussian_filter(noise, size)
    lines = np.exp(-((blobs / (0.3 * blobs.std())) ** 2))
    return (170 - 100 * lines + np.clip(5 * noise, -20, 20)).astype(np.uint8)[::ratio]


def inspect(tmp_path, data, size=(10.0, 10.0, 10.0), kind="image"):
    spec = VolumeSpec(data.shape, data.dtype.name, size, kind=kind)
    volume = create(str(tmp_path / "a.zarr"), spec)
    volume.write(spec.box, data)
    return inspect_volume(volume)


def warnings(findings):
    return {f.code: f.sections for f in findings if f.severity == "warning"}


def test_good_data_gives_no_warning(tmp_path, real):
    name, data = real
    findings = inspect(tmp_path, data, SIZES[name])
    assert warnings(findings) == {}
    assert [f.code for f in findings] == ([] if name == "fib25" else ["alignment"])


def test_inverted_contrast_is_noticed(tmp_path, real):
    name, data = real
    assert warnings(inspect(tmp_path, 255 - data, SIZES[name])) == {"inverted-contrast": []}


def test_bad_sections_are_named_and_no_others(tmp_path, real):
    name, data = real
    blank, duplicate, shifted = len(data) // 5, len(data) // 2, len(data) - 3
    data = data.copy()
    data[blank] = 40
    data[duplicate] = data[duplicate - 1]
    data[shifted] = np.roll(data[shifted], 20, axis=1)
    assert warnings(inspect(tmp_path, data, SIZES[name])) == {
        "blank-sections": [blank],
        "duplicate-sections": [duplicate],
        "shifted-sections": [shifted],
    }


def test_a_voxel_size_that_the_texture_belies_is_noticed(tmp_path, real):
    name, data = real
    size = {"fib25": (40.0, 4.0, 4.0), "vnc": (4.6, 4.6, 4.6)}[name]
    findings = inspect(tmp_path, data, size)
    assert warnings(findings) == {"voxel-size": []}
    message = next(f.message for f in findings if f.code == "voxel-size")
    assert "\n" not in message and f"{size[0]:g} x {size[1]:g}" in message and "--voxel-size" in message


@pytest.mark.parametrize("ratio", [1, 4])
def test_synthetic_texture_looks_as_anisotropic_as_it_is(tmp_path, ratio):
    size = (4.0 * ratio, 4.0, 4.0)
    assert warnings(inspect(tmp_path, texture(ratio=ratio), size)) == {}
    wrong = (4.0, 4.0, 4.0) if ratio == 4 else (40.0, 4.0, 4.0)
    assert set(warnings(inspect(tmp_path / "wrong", texture(ratio=ratio), wrong))) == {"voxel-size"}


@pytest.mark.parametrize("size", [(1000.0, 4.0, 4.0), (40.0, 4000.0, 4000.0), (4.0, 40.0, 40.0), (0.4, 0.4, 0.4)])
def test_implausible_voxel_sizes_are_noticed(tmp_path, size):
    findings = inspect(tmp_path, np.zeros((4, 8, 8), np.uint64), size, kind="labels")
    assert warnings(findings) == {"voxel-size": []}


def test_labels_of_a_plausible_voxel_size_give_nothing(tmp_path):
    assert inspect(tmp_path, np.zeros((4, 8, 8), np.uint64), kind="labels") == []


def test_a_jump_that_stays_is_named_once(tmp_path):
    data = texture()
    data[10:] = np.roll(data[10:], (15, -12), axis=(1, 2))
    assert warnings(inspect(tmp_path, data)) == {"shifted-sections": [10]}


@pytest.mark.parametrize("section", [0, 23])
def test_a_shift_at_either_end_is_noticed(tmp_path, section):
    data = texture()
    data[section] = np.roll(data[section], 15, axis=1)
    assert warnings(inspect(tmp_path, data)) == {"shifted-sections": [section]}


def test_a_duplicate_that_was_compressed_again_is_noticed(tmp_path):
    data = texture()
    noise = np.random.default_rng(1).integers(-3, 4, data[0].shape)
    data[12] = (data[11] + noise).astype(np.uint8)
    assert warnings(inspect(tmp_path, data)) == {"duplicate-sections": [12]}


def test_a_blank_section_may_have_some_noise(tmp_path):
    data = texture()
    data[5] = np.random.default_rng(1).integers(0, 3, data[5].shape)
    data[6] = 0
    data[6, 80, 80] = 255
    assert warnings(inspect(tmp_path, data)) == {"blank-sections": [5, 6]}


def test_uncorrelated_sections_are_not_called_shifted(tmp_path):
    data = np.stack([texture((1, 160, 200), seed=k)[0] for k in range(12)])
    assert "shifted-sections" not in warnings(inspect(tmp_path, data))


def test_saturation_and_low_contrast_are_noticed(tmp_path):
    bright = np.clip(texture().astype(int) + 90, 0, 255).astype(np.uint8)
    flat = (texture() // 16 + 100).astype(np.uint8)
    assert set(warnings(inspect(tmp_path / "a", bright))) == {"saturated"}
    assert set(warnings(inspect(tmp_path / "b", flat))) == {"low-contrast"}


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 100, 100), (2, 100, 100), (40, 1, 300), (3, 300, 7)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_shape_and_type_can_be_looked_at(tmp_path, shape, dtype):
    data = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    assert isinstance(inspect(tmp_path, data), list)


def test_a_wholly_blank_volume_names_all_sections(tmp_path):
    assert warnings(inspect(tmp_path, np.zeros((3, 64, 64), np.uint8))) == {"blank-sections": [0, 1, 2]}


def test_a_deep_volume_is_sampled(tmp_path):
    data = zoom(texture((20, 64, 64)), (40, 1, 1), order=0)
    data = data + np.random.default_rng(0).integers(0, 40, data.shape, np.uint8)
    data[700:] = 0
    blank = warnings(inspect(tmp_path, data))["blank-sections"]
    assert blank == list(range(791, 800))
