"""Another volume on the voxels of the image: what lies where, the same bits however it is cut, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurokube.blocks import Box, parse_region
from neurokube.engines import InProcess
from neurokube.engines.local import Local
from neurokube.errors import ConfigurationError
from neurokube.volumes import VolumeSpec, create, open_volume, pyramid_factors
from neurokube.volumes.pyramids import fill_level
from neurokube.workflow import Run, execute, parse_workflow

EM, LIGHT = (40.0, 8.0, 8.0), (100.0, 50.0, 50.0)
SHAPE = (10, 70, 60)
TURN = np.radians(20)
AFFINE = [
    [1.0, 0.0, 0.0, -30.0],
    [0.0, float(np.cos(TURN)), -float(np.sin(TURN)), 330.0],
    [0.0, float(np.sin(TURN)), float(np.cos(TURN)), -260.0],
]
HERE = np.eye(3, 4).tolist()


def write(
    path: Path, voxels: np.ndarray, size: tuple[float, float, float], pyramid: bool = False, **fields: Any
) -> str:
    channels = len(voxels) if voxels.ndim == 4 else None
    spec = VolumeSpec(voxels.shape[-3:], voxels.dtype.name, size, channels=channels, **fields)
    factors = pyramid_factors(spec, 8) if pyramid else ((1, 1, 1),)
    volume = create(str(path), spec, shard=(8, 16, 16), factors=factors, attributes={"fingerprint": path.name})
    volume.write(spec.box, voxels)
    for level in range(1, len(factors)):
        fill_level(volume, level, Box.of(volume.level_shape(level)))
    return str(path)


class Bench:
    """A folder with an image and another volume, in which runs of the stage are made."""

    def __init__(self, folder: Path, other: np.ndarray, size=LIGHT, affine: Any = AFFINE, **fields: Any) -> None:
        self.folder = folder
        self.image = write(folder / "image.zarr", np.full(SHAPE, 90, np.uint8), EM)
        self.other = write(folder / "other.zarr", other, size, **fields)
        self.affine = affine

    def plan(self, name: str = "run", region: str | None = None, **settings: Any) -> Run:
        affine = {"affine": {"matrix": self.affine, "axes": "zyx"}} if self.affine else {}
        document = {
            "name": name,
            "workspace": str(self.folder / "runs"),
            "inputs": {"image": {"path": self.image}, "other": {"path": self.other, **affine}},
            "stages": {"aligned": {"stage": "resampling", "volume": "other", "tile": [4, 24, 24], **settings}},
        }
        return Run.planned(parse_workflow(document), None if region is None else parse_region(region))

    def results(self, name: str = "run", region: str | None = None, engine: Any = None, **settings: Any) -> np.ndarray:
        run = self.plan(name, region, **settings)
        execute(run, engine or InProcess(), quiet=True)
        volume = open_volume(f"{run.url}/aligned/resampling")
        return volume.read(volume.spec.box)


def places(affine: Any = AFFINE, size=LIGHT, start=(0, 0, 0), shape=SHAPE) -> np.ndarray:
    """Return where the voxels of the image lie in the other volume, (z, y, x, 3), in its voxels."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) + np.array(start)
    rows = np.array(affine)
    return (grid * EM - rows[:, 3]) @ np.linalg.inv(rows[:, :3]).T / size


def lies_in(shape: tuple[int, ...], affine: Any = AFFINE, size=LIGHT) -> np.ndarray:
    at = places(affine, size)
    return ((at >= -0.5) & (at < np.array(shape) - 0.5)).all(-1)


def blobs(shape: tuple[int, int, int], dtype: Any = np.uint8) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(0).standard_normal(shape), 1.5)
    top = 255 if dtype == np.uint8 else 4000
    return np.clip(top * (0.5 + noise / np.abs(noise).max() / 2), 1, top).astype(dtype)


def test_a_ramp_stays_a_ramp_where_the_affine_puts_it(tmp_path):
    ramp = np.broadcast_to(np.arange(6, 6 + 5 * 24, 5, dtype=np.uint8), (9, 20, 24)).copy()
    found = Bench(tmp_path, ramp).results()
    at, inside = places(), lies_in(ramp.shape)
    expected = 6 + 5 * at[..., 2].clip(0, 23)
    assert 0.2 < inside.mean() < 0.95
    assert (np.abs(found - expected)[inside] <= 0.51).all()
    assert (found[~inside] == 0).all() and (found[inside] > 0).all()


def test_blocks_order_workers_and_engines_never_change_a_bit(tmp_path):
    bench = Bench(tmp_path, blobs((9, 24, 24), np.uint16))
    reference = bench.results("one", block=[12, 72, 72])
    assert np.ptp(reference) > 100
    for block in ([4, 24, 24], [8, 24, 72]):
        assert np.array_equal(bench.results(f"b{block[0]}-{block[2]}", block=block), reference)
    assert np.array_equal(bench.results("two", block=[4, 48, 24], engine=Local(2)), reference)


def test_a_tile_of_another_size_shows_no_seam(tmp_path):
    bench = Bench(tmp_path, blobs((9, 24, 24)))
    one, other = bench.results("one"), bench.results("other", tile=[16, 80, 80])
    # another place to count from rounds otherwise: a value between two, seldom
    assert np.abs(one.astype(int) - other).max() <= 1 and (one != other).mean() < 0.001


def test_labels_are_taken_as_they_are(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (9, 24, 24)).astype(np.uint64)
    labels[labels > 0] += 1 << 60
    found = Bench(tmp_path, labels, kind="labels").results()
    at, inside = places(), lies_in(labels.shape)
    index = np.floor(at + 0.5).astype(int).clip(0, np.array(labels.shape) - 1)
    assert np.array_equal(found, np.where(inside, labels[tuple(np.moveaxis(index, -1, 0))], np.uint64(0)))
    assert open_volume(f"{tmp_path}/runs/run/aligned/resampling").spec.kind == "labels"


def test_one_of_several_channels_with_a_window_that_was_measured_or_is_given(tmp_path):
    light = np.stack([np.full((9, 24, 24), 7, np.uint16), blobs((9, 24, 24), np.uint16)])
    bench = Bench(tmp_path, light)
    run = bench.plan("measured", channel=1)
    execute(run, InProcess(), quiet=True)
    found = open_volume(f"{run.url}/aligned/resampling").read(Box.of(SHAPE))
    stage = run.plan.stages[0]
    (said,) = stage.stage.findings(stage.sources, stage.data())
    low, high = np.percentile(light[1], (0.1, 99.9))
    assert said.startswith(f"values {low:g} to {high:g} became 1 to 255")
    given = bench.results("given", channel=1, window=[float(low), float(high)])
    assert np.array_equal(found, given)
    wide = bench.results("wide", channel=1, window=[0, 40000])
    inside = lies_in(light.shape[1:])
    assert 8 < wide.max() < 30 and (wide[inside] >= 1).all() and (wide[~inside] == 0).all()


@pytest.mark.parametrize("pyramid", [False, True])
def test_what_is_finer_than_the_image_is_averaged(tmp_path, pyramid):
    size = (10.0, 2.0, 2.0)
    board = (np.indices((40, 280, 240)).sum(0) % 2 * 200 + 20).astype(np.uint8)
    found = Bench(tmp_path, board, size, HERE, pyramid=pyramid).results()
    assert np.abs(found[2:-2, 4:-4, 4:-4].astype(int) - 120).max() <= 2


def test_a_volume_on_the_same_voxels_comes_out_as_it_went_in(tmp_path):
    voxels = blobs(SHAPE)
    assert np.array_equal(Bench(tmp_path, voxels, EM, affine=None).results(), voxels)
    nearest = Bench(tmp_path, voxels, EM, affine=None).results("nearest", interpolation="nearest")
    assert np.array_equal(nearest, voxels)


def test_a_region_is_one_of_the_image_and_leaves_the_other_whole(tmp_path):
    bench = Bench(tmp_path, blobs((9, 24, 24)))
    whole = bench.results("whole", tile=[16, 80, 80])
    part = bench.results("part", region="2:6,10:50,20:60", tile=[16, 80, 80])
    assert np.abs(part.astype(int) - whole[2:6, 10:50, 20:60]).max() <= 1
    registered = Bench(tmp_path / "registered", blobs((9, 24, 24)), affine=None)
    assert registered.results(region="2:6,10:50,20:60").shape == (4, 40, 40)


def test_a_run_says_how_much_is_covered(tmp_path):
    bench = Bench(tmp_path, blobs((9, 24, 24)))
    (said,) = bench.plan().remarks
    share = lies_in((9, 24, 24)).mean()
    found = float(said.split("about ")[1].split(" %")[0]) / 100
    assert said.startswith("aligned: 'other' covers about") and "; it is 0 elsewhere; if that is less than" in said
    assert abs(found - share) < 0.05


def test_another_affine_computes_anew(tmp_path):
    bench = Bench(tmp_path, blobs((9, 24, 24)))
    one = bench.plan()
    bench.affine = [*AFFINE[:2], [*AFFINE[2][:3], -259.0]]
    two = bench.plan()
    assert one.plan.stages[0].key != two.plan.stages[0].key
    assert one.document["inputs"]["other"]["affine"] == tuple(map(tuple, AFFINE))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channel": 1}, "channel: 'other' has 1, counted from 0; there is no 1"),
        ({"window": [5, 5]}, "window: its first value must be below the second"),
        ({"volume": "image", "like": "other"}, "like: 'other' has an affine and voxels of its own; read it through"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(tmp_path, settings, message):
    with pytest.raises(ConfigurationError) as caught:
        Bench(tmp_path, blobs((9, 24, 24))).plan(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_volume_that_lies_elsewhere_is_refused_with_both_places(tmp_path):
    far = [*AFFINE[:2], [*AFFINE[2][:3], 1e6]]
    with pytest.raises(ConfigurationError, match=r"inputs\.other\.affine: leads it to .*, away from .*inverse: true"):
        Bench(tmp_path, blobs((9, 24, 24)), affine=far).plan()


def test_a_region_that_it_does_not_reach_is_empty_and_said_so(tmp_path):
    bench = Bench(tmp_path, blobs((4, 4, 4)), affine=HERE)
    run = bench.plan("region", region="0:4,40:60,40:60")
    assert run.remarks == ["aligned: 'other' lies nowhere in 'image' as it is here: all is 0"]
    execute(run, InProcess(), quiet=True)
    assert not open_volume(f"{run.url}/aligned/resampling").read(Box.of((4, 20, 20))).any()


def test_labels_refuse_what_would_change_them(tmp_path):
    bench = Bench(tmp_path, np.ones((9, 24, 24), np.uint64), kind="labels")
    with pytest.raises(ConfigurationError, match="window: 'other' holds labels"):
        bench.plan(window=[0, 5])
    with pytest.raises(ConfigurationError, match="interpolation: 'other' holds labels"):
        bench.plan(interpolation="linear")


def test_an_affine_may_come_from_a_file_beside_the_workflow(tmp_path):
    bench = Bench(tmp_path, blobs((9, 24, 24)))
    reference = bench.plan()
    rows = np.array(AFFINE)[::-1, [2, 1, 0, 3]] * [1, 1, 1, 1e-3]
    (tmp_path / "affine.txt").write_text("\n".join(" ".join(map(repr, row)) for row in rows.tolist()))
    document = reference.workflow.model_dump(mode="json")
    document["inputs"]["other"]["affine"] = {"file": "affine.txt", "axes": "xyz", "unit": "micrometer"}
    from_file = parse_workflow(document, folder=tmp_path)
    assert np.allclose(from_file.inputs["other"].affine.array, AFFINE)
    document["inputs"]["other"]["affine"] = "affine.txt"
    with pytest.raises(ConfigurationError, match=r"inputs\.other\.affine: .*does not say the order of its axes"):
        parse_workflow(document, folder=tmp_path)
    document["inputs"]["other"]["affine"] = [[1, 0, 0, 0]]
    with pytest.raises(ConfigurationError, match=r"inputs\.other\.affine.*3 rows of 4 numbers"):
        parse_workflow(document, folder=tmp_path)
