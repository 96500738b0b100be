"""What the viewer shows first: Neuroglancer's state for a list of layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ..blocks import Box
from ..errors import UsageError
from ..volumes import Volume, VolumeSpec, open_volume
from ..volumes.volume import Nanometres

if TYPE_CHECKING:
    from ..volumes.affine import Row

LayerKind = Literal["image", "fluorescence", "probability", "segmentation"]

_GRAY_SHADER = "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }\n"
_PROBABILITY_SHADER = """#uicontrol invlerp normalized
#uicontrol vec3 colour color(default="#ff8000")
void main() { emitRGBA(vec4(colour, normalized())); }
"""
# light on dark: it is added to what is below
_FLUORESCENCE_SHADER = """#uicontrol invlerp normalized
#uicontrol vec3 colour color(default="#00ff00")
void main() { emitRGB(colour * normalized()); }
"""
_PANEL = 360
"""Pixels that the longest side of what is shown takes on the screen, a little less than a panel has."""
_SAMPLE = 128
"""The contrast is taken from at most this many voxels an axis."""


@dataclass(frozen=True)
class Layer:
    """A volume to show: its name in the viewer, its path or URL, how it is drawn, whether at once.

    `affine` is the matrix (3, 4) from its nanometres (z, y, x) to those of the other layers, where they differ.
    """

    name: str
    url: str
    kind: LayerKind
    visible: bool = True
    affine: "tuple[Row, ...] | None" = None


@dataclass(frozen=True)
class View:
    """A place to look at: its position (z, y, x) in nm, and by the names of layers the segments chosen in them."""

    position: Nanometres
    segments: Mapping[str, Sequence[int]] = field(default_factory=dict)


def viewer_state(layers: Sequence[Layer], address: str) -> dict[str, Any]:
    """Return Neuroglancer's state, ready for JSON, for layers served at `address`/data/NAME/.

    The view is centred on the smallest visible layer, so that the result of a region is in sight of a
    large image, and shows it whole, unless a layer lacks the coarse resolutions which that needs.
    Later layers are drawn over earlier ones.

    Raises:
        UsageError: where there is no layer, or two have one name.
        DataError: where a layer's volume cannot be opened.
    """
    if not layers:
        raise UsageError("there is nothing to view: run a stage of the workflow first")
    if len({layer.name for layer in layers}) < len(layers):
        raise UsageError(f"two layers have one name among {[layer.name for layer in layers]}: rename one")
    volumes = [open_volume(layer.url) for layer in layers]
    here = [(v, layer) for v, layer in zip(volumes, layers, strict=True) if layer.affine is None]
    shown = [v for v, layer in here if layer.visible] or [v for v, _ in here] or volumes
    focus = min((v.spec for v in shown), key=lambda spec: float(np.prod(_extent(spec))))
    finest, longest = min(focus.voxel_size), max(_extent(focus))
    scale = min(longest / _PANEL, *(_coarsest_pixel(v) for v in shown))
    return {
        # Neuroglancer shows the first two dimensions in its first panel, from left to right and downwards
        "dimensions": {a: [s / 1e9, "m"] for a, s in zip("xyz", reversed(focus.voxel_size), strict=True)},
        "position": _centre(focus)[::-1],
        "crossSectionScale": scale / finest,
        "projectionScale": 1.5 * longest / finest,
        "projectionOrientation": [0.38, -0.2, -0.09, 0.9],
        "layers": [_layer_state(layer, v, address) for layer, v in zip(layers, volumes, strict=True)],
        "layout": "4panel-alt",
        "hideCrossSectionBackground3D": True,
    }


def look_at(state: Mapping[str, Any], view: View) -> dict[str, Any]:
    """Return a viewer's state turned to a view, with a pixel of the screen for a voxel.

    Layers with chosen segments stand side by side, with all other visible layers in each.
    """
    scales = [state["dimensions"][axis][0] * 1e9 for axis in "xyz"]
    # rounded, since the viewer shows 30.999999999999996 as voxel 30
    position = [round(p / scale, 3) for p, scale in zip(reversed(view.position), scales, strict=True)]
    # as text, since JavaScript's numbers do not hold 64 bits
    layers = [
        {**layer, "segments": [str(n) for n in view.segments[layer["name"]]]}
        if layer["name"] in view.segments
        else layer
        for layer in state["layers"]
    ]
    turned = {**state, "position": position, "crossSectionScale": 1.0, "layers": layers}
    if len(view.segments) > 1:
        others = [layer["name"] for layer in layers if layer["visible"] and layer["name"] not in view.segments]
        turned["layout"] = {
            "type": "row",
            "children": [
                {"type": "viewer", "layers": [*others, name], "layout": state["layout"]} for name in view.segments
            ],
        }
    return turned


def contrast(volume: Volume) -> tuple[float, float] | None:
    """Return the intensities to draw black and white, or None where the sample is of one value.

    They are the 1st and 99th percentile of the centre of the coarsest resolution.  Voxels of value 0
    do not count: a chunk that was never written reads as 0.
    """
    level = len(volume.arrays) - 1
    shape = volume.level_shape(level)
    start = tuple(max(0, (n - _SAMPLE) // 2) for n in shape)
    box = Box.of(shape).clip(Box.of([_SAMPLE] * 3).shift(start))
    values = volume.read(box, level)
    values = values[values != 0]
    if values.size == 0:
        return None
    low, high = np.percentile(values, (1, 99), method="nearest").tolist()
    return (low, high) if low < high else None


def _driver(volume: Volume) -> str:
    return "zarr2" if volume.format == "zarr" else volume.format


def _source(layer: Layer, volume: Volume, address: str) -> str | dict[str, Any]:
    """Return where a layer's data is and, where Neuroglancer would draw it elsewhere than we say, its transform.

    Of N5 it knows no offset, and of N5 and precomputed it takes the corner of the first voxel for its place, of
    OME-Zarr, as we of all, the centre.
    """
    url = f"{address}/data/{quote(layer.name, safe='')}/|{_driver(volume)}:"
    shift = np.zeros(3)
    if volume.format in ("n5", "neuroglancer-precomputed"):
        shift = -np.array(volume.spec.voxel_size) / 2
        if volume.format == "n5":
            shift += volume.spec.offset
    if layer.affine is None and (volume.spec.channels or not shift.any()):
        return url
    affine = np.eye(3, 4) if layer.affine is None else np.array(layer.affine)
    affine[:, 3] += affine[:, :3] @ shift
    return {"url": url, "transform": _transform(volume, affine)}


def _transform(volume: Volume, affine: NDArray[np.float64]) -> dict[str, Any]:
    """Return what Neuroglancer calls the transform of a source: rows and columns are in the order of its axes.

    The linear part is one of lengths whatever the units; the translation is in those of the dimensions that come out.
    """
    zarr = volume.format.startswith("zarr")
    axes, rows = ("zyx", affine) if zarr else ("xyz", affine[::-1, [2, 1, 0, 3]])
    dimensions = {axis: [1e-9, "m"] for axis in axes}
    if volume.spec.channels:
        # the axis of channels stays as it is, where the format has it
        at, name = (0, "c'") if zarr else (3, "c^")
        rows = np.insert(np.insert(rows, at, 0, 1), at, 0, 0)
        rows[at, at] = 1
        entries = [*dimensions.items()]
        entries.insert(at, (name, [1, ""]))
        dimensions = dict(entries)
    return {"matrix": rows.tolist(), "outputDimensions": dimensions}


def _layer_state(layer: Layer, volume: Volume, address: str) -> dict[str, Any]:
    state: dict[str, Any] = {
        "name": layer.name,
        "source": _source(layer, volume, address),
        "visible": layer.visible,
    }
    if volume.spec.channels:
        state["localPosition"] = [0]  # the first channel is shown first, not the middle one
    if layer.kind == "segmentation":
        # no segment is chosen: all are drawn; the alpha of the others shows once one is chosen
        return state | {
            "type": "segmentation",
            "segments": [],
            "selectedAlpha": 0.4,
            "notSelectedAlpha": 0.15,
        }
    if layer.kind == "probability":
        return state | {"type": "image", "shader": _PROBABILITY_SHADER, "opacity": 0.7, "blend": "default"}
    if layer.kind == "fluorescence":
        state |= {"type": "image", "shader": _FLUORESCENCE_SHADER, "opacity": 1.0, "blend": "additive"}
    else:
        state |= {"type": "image", "shader": _GRAY_SHADER, "opacity": 1.0}
    if limits := contrast(volume):
        state["shaderControls"] = {"normalized": {"range": list(limits)}}
    return state


def _extent(spec: VolumeSpec) -> list[float]:
    """Return the sides (z, y, x) in nanometres."""
    return [n * s for n, s in zip(spec.shape, spec.voxel_size, strict=True)]


def _centre(spec: VolumeSpec) -> list[float]:
    """Return the middle (z, y, x) in voxels; as in OME-NGFF, the offset is the first voxel's centre."""
    return [o / s + (n - 1) / 2 for n, s, o in zip(spec.shape, spec.voxel_size, spec.offset, strict=True)]


def _coarsest_pixel(volume: Volume) -> float:
    """Return the pixel size in nanometres, along x, of the coarsest resolution."""
    return volume.spec.voxel_size[2] * volume.spec.shape[2] / volume.level_shape(len(volume.arrays) - 1)[2]
