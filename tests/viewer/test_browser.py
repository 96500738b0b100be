"""What a user sees: Neuroglancer itself draws a run's volumes, each in its place."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import executable, look, looks
from numpy.typing import NDArray

from neurokube.blocks import Box, Vector
from neurokube.viewer import Layer, serve, viewer_state
from neurokube.volumes import Volume, VolumeSpec, create, pyramid_factors
from neurokube.volumes.exporting import export_volume

pytestmark = [
    pytest.mark.skipif(find_spec("neuroglancer") is None, reason="needs the extra 'view'"),
    pytest.mark.skipif(executable() is None, reason="needs Chromium: install it, or set CHROMIUM to its path"),
]

READY = "Boolean(window.viewer && viewer.isReady())"
REPORT = """(() => {
  if (!window.viewer) return 'no viewer';
  const layers = viewer.layerManager.managedLayers;
  return {
    ready: viewer.isReady(),
    layers: layers.map(layer => [layer.name, layer.visible]),
    errors: layers.flatMap(layer => (layer.layer ? layer.layer.dataSources : []).map(
      source => source.loadState && source.loadState.error && `${layer.name}: ${source.loadState.error}`
    )).filter(Boolean),
    text: document.body.innerText,
    panels: [...viewer.display.panels].filter(panel => panel.sliceView).map(panel => {
      const {left, top} = panel.element.getBoundingClientRect();
      const {clientLeft, clientTop, clientWidth, clientHeight} = panel.element;
      return {
        rectangle: [left + clientLeft, top + clientTop, clientWidth, clientHeight],
        projection: [...panel.sliceView.projectionParameters.value.viewProjectionMat],
        position: [...panel.sliceView.projectionParameters.value.globalPosition],
      };
    }),
  };
})()"""


@dataclass(frozen=True)
class Panel:
    """A cross section on the screen, in voxels (z, y, x) of a volume whose first voxel is (0, 0, 0)."""

    picture: NDArray[np.uint8]
    projection: NDArray[np.float64]
    rectangle: tuple[float, float, float, float]
    origin: NDArray[np.float64]
    position: NDArray[np.float64]

    @property
    def normal(self) -> int:
        """The axis that the cross section is across."""
        return 2 - int(np.argmax(np.abs(self.projection[2, :3])))

    def colour(self, voxel: tuple[float, float, float]) -> NDArray[np.int64]:
        """Return red, green and blue at the middle of a voxel."""
        point = np.array([*(self.origin + voxel)[::-1], 1.0])
        x, y, _, w = self.projection @ point
        left, top, width, height = self.rectangle
        column, row = left + (x / w + 1) / 2 * width, top + (1 - y / w) / 2 * height
        return np.array(self.picture[int(row), int(column)], np.int64)


def panels(report: Any, picture: NDArray[np.uint8], spec: VolumeSpec) -> Iterator[Panel]:
    origin = np.divide(spec.offset, spec.voxel_size)
    for panel in report["panels"]:
        projection = np.array(panel["projection"]).reshape(4, 4).T
        position = np.array(panel["position"][::-1]) - origin
        yield Panel(picture, projection, tuple(panel["rectangle"]), origin, position)


def edges(box: Box, panel: Panel) -> Iterator[tuple[Vector, Vector]]:
    """Yield pairs of neighbouring voxels, inside and outside of each side of the box that a panel crosses."""
    inside = [a + (b - a) // 5 for a, b in zip(box.start, box.stop, strict=True)]  # off the lines in the middle
    inside[panel.normal] = round(panel.position[panel.normal])
    for axis in {0, 1, 2} - {panel.normal}:
        for last, step in ((box.start[axis], -1), (box.stop[axis] - 1, 1)):
            pair = [list(inside), list(inside)]
            pair[0][axis], pair[1][axis] = last, last + step
            (z, y, x), (zz, yy, xx) = pair
            yield (z, y, x), (zz, yy, xx)


def fill(url: Path, spec: VolumeSpec, values: NDArray[Any], *, step: int = 0) -> Volume:
    """Write a volume with all its resolutions; each level is brighter than the finer one by `step`."""
    factors = pyramid_factors(spec)
    volume = create(str(url), spec, factors=factors)
    for level, (z, y, x) in enumerate(factors):
        data = values[::z, ::y, ::x]
        volume.write(Box.of(data.shape), data + data.dtype.type(step * level), level)
    return volume


def is_gray(colour: NDArray[np.int64]) -> bool:
    return int(np.ptp(colour)) <= 3


def gray_value(value: float, state: dict[str, Any]) -> float:
    low, high = state["layers"][0]["shaderControls"]["normalized"]["range"]
    return float(np.clip((value - low) / (high - low), 0, 1) * 255)


def test_the_image_and_its_labels_are_in_place_in_all_cross_sections(tmp_path: Path) -> None:
    spec = VolumeSpec((32, 128, 128), "uint8", (40.0, 8.0, 8.0), offset=(400.0, 80.0, 168.0))
    box, wall = Box((6, 32, 48), (24, 80, 112)), 100
    image = np.broadcast_to(np.linspace(60, 120, 128).astype(np.uint8), spec.shape).copy()
    image[box.slices] = 200
    boundaries = np.zeros(spec.shape, np.uint8)
    boundaries[:, wall : wall + 4] = 255
    labels = np.zeros(spec.shape, np.uint64)
    labels[box.slices] = 7 + (1 << 40)
    fill(tmp_path / "image", spec, image)
    fill(tmp_path / "boundaries", spec, boundaries)
    label_spec = VolumeSpec(spec.shape, "uint64", spec.voxel_size, spec.offset, kind="labels")
    fill(tmp_path / "fragments", label_spec, np.ones(spec.shape, np.uint64))
    fill(tmp_path / "segmentation", label_spec, labels)
    layers = [
        Layer("image", str(tmp_path / "image"), "image"),
        Layer("boundaries", str(tmp_path / "boundaries"), "probability"),
        Layer("fragments", str(tmp_path / "fragments"), "segmentation", visible=False),
        Layer("segmentation", str(tmp_path / "segmentation"), "segmentation"),
    ]
    (profile := tmp_path / "profile").mkdir()
    with serve(layers) as server:
        report, picture = look(server.url, READY, REPORT, profile=profile)
        state = viewer_state(layers, server.address)

    assert report["errors"] == []
    assert report["layers"] == [[layer.name, layer.visible] for layer in layers]
    assert "Python server" not in report["text"]
    seen = list(panels(report, picture, spec))
    assert sorted(panel.normal for panel in seen) == [0, 1, 2]
    for panel in seen:
        for inside, outside in edges(box, panel):
            assert not is_gray(panel.colour(inside)), (panel.normal, inside)
            assert is_gray(panel.colour(outside)), (panel.normal, outside)
            expected = gray_value(float(image[outside]), state)
            assert abs(panel.colour(outside) - expected).max() <= 4, (panel.normal, outside)
        if panel.normal != 1:
            middle = [10, wall + 2, 20]
            middle[panel.normal] = round(panel.position[panel.normal])
            red, _, blue = panel.colour((middle[0], middle[1], middle[2]))
            assert red - blue > 80, "the boundaries are drawn over the image in orange"


def test_a_large_volume_is_drawn_from_a_coarse_resolution_in_place(tmp_path: Path) -> None:
    spec = VolumeSpec((8, 1024, 1024), "uint8", (40.0, 8.0, 8.0), offset=(0.0, 4000.0, 8000.0))
    box, step = Box((2, 256, 384), (6, 640, 896)), 10
    image = np.full(spec.shape, 60, np.uint8)
    image[box.slices] = 160
    coarse = len(fill(tmp_path / "image", spec, image, step=step).arrays) - 1
    layers = [Layer("image", str(tmp_path / "image"), "image")]
    (profile := tmp_path / "profile").mkdir()
    with serve(layers) as server:
        report, picture = look(server.url, READY, REPORT, profile=profile)
        state = viewer_state(layers, server.address)

    assert report["errors"] == []
    panel = next(p for p in panels(report, picture, spec) if p.normal == 0)
    drawn = set()
    for axis, shift in ((1, 8), (2, 8)):
        for side, sign in ((box.start[axis], 1), (box.stop[axis], -1)):
            voxel = [4, 300, 450]
            voxel[axis] = side + sign * shift
            inside = panel.colour((voxel[0], voxel[1], voxel[2]))
            voxel[axis] = side - sign * shift
            outside = panel.colour((voxel[0], voxel[1], voxel[2]))
            drawn.add((int(inside[0]), int(outside[0])))
    grays = [tuple(round(gray_value(v + step * n, state)) for v in (160, 60)) for n in range(coarse + 1)]
    assert drawn <= set(grays[1:]), "every pixel comes from a coarse level"


@pytest.mark.parametrize("channels", [None, 2])
def test_a_volume_that_lies_by_an_affine_is_drawn_where_it_lies(tmp_path: Path, channels: int | None) -> None:
    spec = VolumeSpec((32, 128, 128), "uint8", (40.0, 8.0, 8.0), offset=(400.0, 80.0, 168.0))
    fill(tmp_path / "image", spec, np.full(spec.shape, 100, np.uint8))
    light = VolumeSpec((12, 20, 20), "uint16", (100.0, 50.0, 50.0), channels=channels)
    values = np.full(light.shape, 10, np.uint16)
    values[3:9, 4:8, 10:16] = 200
    values = values if channels is None else np.stack([values, np.full_like(values, 10)])
    create(str(tmp_path / "light"), light).write(light.box, values)
    # a quarter turn in the plane: y of the image is x of the light, x of the image runs against its y
    affine = ((1.0, 0.0, 0.0, 450.0), (0.0, 0.0, 1.0, 120.0), (0.0, -1.0, 0.0, 1150.0))
    layers = [
        Layer("image", str(tmp_path / "image"), "image"),
        Layer("light", str(tmp_path / "light"), "fluorescence", affine=affine),
    ]
    (profile := tmp_path / "profile").mkdir()
    with serve(layers) as server:
        report, picture = look(server.url, READY, REPORT, profile=profile)

    assert report["errors"] == []
    panel = next(p for p in panels(report, picture, spec) if p.normal == 0)
    # the box lies at y 64.4 to 101.9 and x 75.9 to 100.9 in voxels of the image
    for y, x in ((67, 79), (99, 79), (67, 98), (99, 98)):
        red, green, _ = panel.colour((15, y, x))
        assert abs(red - 100) <= 4 and green > 250, (y, x)
    for y, x in ((61, 80), (105, 80), (80, 72), (80, 105)):
        assert abs(panel.colour((15, y, x)) - 100).max() <= 4, (y, x)


def test_zarr_n5_and_precomputed_show_the_same_picture(tmp_path: Path) -> None:
    spec = VolumeSpec((32, 128, 128), "uint8", (40.0, 8.0, 8.0), offset=(160.0, 64.0, 128.0))
    z, y, x = np.ogrid[:32, :128, :128]
    image = (120 + 50 * np.sin(z / 3 + y / 9) + 50 * np.cos(x / 7 - y / 21)).astype(np.uint8)
    labels = ((z // 8) * 100 + (y // 20) * 10 + x // 30 + 1).astype(np.uint64) * np.uint64(2**40 + 1)
    labels[:, 50:70] = 0
    label_spec = VolumeSpec(spec.shape, "uint64", spec.voxel_size, spec.offset, kind="labels")
    fill(tmp_path / "image", spec, image)
    fill(tmp_path / "labels", label_spec, labels)
    formats = ("ome-zarr", "n5", "precomputed")
    (profile := tmp_path / "profile").mkdir()
    with ExitStack() as stack:
        urls = []
        for format in formats:
            for name in ("image", "labels"):
                export_volume(str(tmp_path / name), str(tmp_path / format / name), format=format, quiet=True)
            layers = [
                Layer("image", str(tmp_path / format / "image"), "image"),
                Layer("labels", str(tmp_path / format / "labels"), "segmentation"),
            ]
            urls.append(stack.enter_context(serve(layers)).url)
        seen = looks(urls, READY, REPORT, profile=profile, width=600, height=480)
    assert [(report["errors"], len(report["panels"])) for report, _ in seen] == [([], 3)] * 3
    (first, zarr), *others = seen
    rectangles = [[round(v) for v in panel["rectangle"]] for panel in first["panels"]]
    for format, (_, picture) in zip(formats[1:], others, strict=True):
        different = np.abs(zarr.astype(int) - picture).max(2)
        for left, top, width, height in rectangles:
            cross_section = (slice(top, top + height), slice(left, left + width))
            assert len(np.unique(zarr[cross_section].reshape(-1, 3), axis=0)) > 50, "something is drawn"
            assert different[cross_section].max() <= 1, f"{format}: is drawn otherwise"
        # the corners of the wire box in the three-dimensional view
        assert (different > 1).sum() <= 50, f"{format}: {(different > 1).sum()} pixels differ"
