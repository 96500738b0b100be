"""Affine transformations from one volume's nanometres to another's, as registration tools write them."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import ConfigurationError, surroundings
from .files.reading import UNITS, nanometres_of
from .store import placed
from .volume import Nanometres, VolumeSpec

Axes = Literal["zyx", "xyz"]
Row = tuple[float, float, float, float]

_FLATTEST = 1e6
"""A matrix that lengthens one direction this much more than another flattens the volume."""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SHAPE = "needs 3 rows of 4 numbers, or 4 whose last is 0, 0, 0, 1"


class Affine(BaseModel):
    """An affine transformation: `matrix` times (position, 1), the position being one in the volume it belongs to.

    `axes` is the order of rows and of columns; the last column, the translation, is in `unit`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = Field(None, description="file that holds the matrix: text, CSV, JSON, or of elastix")
    matrix: tuple[Row, ...] | None = Field(None, description="or 3 rows of 4 numbers, the translation last")
    axes: Axes | None = Field(None, description="zyx or xyz: the order of rows and columns")
    unit: str | None = Field(None, description="of the translation [default: nanometer]")
    inverse: bool | None = Field(None, description="the matrix leads from the workspace to the volume")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else {"matrix": value} if isinstance(value, list) else value

    @field_validator("matrix", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        return None if value is None else _checked(value)

    @field_validator("unit")
    @classmethod
    def _length(cls, unit: str | None) -> str | None:
        if unit is not None and not nanometres_of(unit):
            raise ValueError(f"unknown; known are {', '.join(u for u in UNITS if len(u) > 5)}")
        return unit

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.matrix is None):
            raise ValueError("give either 'file' or 'matrix'")
        if self.matrix is not None and self.axes is None:
            raise ValueError("a matrix needs 'axes: zyx' or 'axes: xyz', the order of its rows and columns")
        return self

    @classmethod
    def of(cls, matrix: NDArray[np.float64]) -> Self:
        """Return the transformation of a matrix (3, 4) of nanometres, axes z, y, x."""
        return cls(matrix=tuple(map(tuple, matrix.tolist())), axes="zyx", unit="nanometer", inverse=False)

    def loaded(self, folder: Path) -> Self:
        """Return the same as a matrix of nanometres, axes z, y, x, that leads from the volume to the workspace.

        A file's path counts from `folder`.

        Raises:
            ConfigurationError: where the file cannot be read, or does not say what is needed.
        """
        told = self
        if self.file is not None:
            path = placed(self.file, folder)
            told = _joined(type(self), path, _read(Path(path)), self.model_dump(exclude={"file"}, exclude_none=True))
        assert told.matrix is not None
        rows = np.array(told.matrix)
        if told.axes == "xyz":
            rows = rows[::-1, [2, 1, 0, 3]]
        rows[:, 3] *= nanometres_of(told.unit or "nanometer")
        return type(self).of(_inverted(rows) if told.inverse else rows)

    @property
    def array(self) -> NDArray[np.float64]:
        """The matrix (3, 4) of one that was `loaded`."""
        assert self.matrix is not None and self.file is None
        return np.array(self.matrix)


def _inverted(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.inv(np.vstack([rows, [0, 0, 0, 1]]))[:3])


def _checked(value: Any) -> tuple[Row, ...]:
    """Return three rows of four numbers.

    Raises:
        ValueError: where they are others, or flatten the volume.
    """
    try:
        rows = np.array(value, float)
    except (TypeError, ValueError):
        raise ValueError(_SHAPE) from None
    if rows.shape not in ((3, 4), (4, 4)) or (len(rows) == 4 and not np.array_equal(rows[3], [0, 0, 0, 1])):
        raise ValueError(f"{_SHAPE} (it has {' x '.join(map(str, rows.shape))})")
    if not np.isfinite(rows).all():
        raise ValueError("holds what is no number; correct it")
    if not np.linalg.cond(rows[:3, :3]) < _FLATTEST:
        raise ValueError("cannot be inverted, it flattens the volume; correct it, or export it with more digits")
    return tuple((a, b, c, d) for a, b, c, d in rows[:3].tolist())


# what is in a file

_Kind = TypeVar("_Kind", bound=Affine)


def _joined(kind: type[_Kind], path: str, found: Mapping[str, Any], given: Mapping[str, Any]) -> _Kind:
    """Return what a file and the workflow say together; only the direction of a file may be given another."""
    for name in ("axes", "unit"):
        if name in found and name in given and found[name] != given[name]:
            raise ConfigurationError(
                f"{path}: says {name}: {found[name]}, the workflow {given[name]}; leave it out in one of them"
            )
    try:
        return kind.model_validate({**found, **given})
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f"{part}: " for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown field; a file has matrix, axes, unit and inverse"
        if "needs 'axes" in message:
            message = f"does not say the order of its axes; write affine: {{file: {path}, axes: xyz}}, or zyx"
        raise ConfigurationError(f"{path}: {field}{message}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: no text; export the affine as a matrix") from None
    except OSError as error:
        reason = f"{path}: {error.strerror}; name the file that a registration tool wrote"
        raise surroundings(error, str(path)) or ConfigurationError(reason) from None
    if text.lstrip().startswith(("{", "[{")) or path.suffix.lower() == ".json":
        try:
            return _of_json(json.loads(text), path)
        except ValueError as error:
            raise ConfigurationError(f"{path}: no JSON ({error}); correct it") from None
    if re.search(r"^\s*\(Transform\s", text, re.MULTILINE):
        return _of_elastix(text, path)
    return {"matrix": _numbers(text, path)}


def _of_json(document: Any, path: Path) -> dict[str, Any]:
    if isinstance(document, list):
        return {"matrix": document}
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path}: holds no matrix; write {{matrix, axes, unit}}")
    if isinstance(document.get("transform"), dict):
        document = document["transform"]
    if "outputDimensions" in document:
        return _of_neuroglancer(document, path)
    if document.get("type") == "affine":
        # as in OME-NGFF: the order is that of the axes of an image that the file does not name
        return {"matrix": document.get("affine")}
    if "matrix" not in document:
        raise ConfigurationError(f"{path}: holds no matrix; write {{matrix, axes, unit}}")
    return {name: value for name, value in document.items() if name != "file"}


def _of_neuroglancer(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the transformation of a layer's source; its linear part is one of lengths, whatever the dimensions."""
    if "inputDimensions" in document:
        raise ConfigurationError(
            f"{path}: its inputDimensions give the volume another voxel size; import the volume with that, and "
            "leave them out"
        )
    try:
        scales = {name: scale * {"m": 1e9}[unit] for name, (scale, unit) in document["outputDimensions"].items()}
        axes, rows = "".join(scales), [[float(value) for value in row] for row in document["matrix"]]
        rows = [[*row[:-1], row[-1] * scale] for row, scale in zip(rows, scales.values(), strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise ConfigurationError(f"{path}: no transform as Neuroglancer has it; export the layer's source again") from (
            None
        )
    if axes not in ("zyx", "xyz"):
        raise ConfigurationError(f"{path}: its outputDimensions are {', '.join(scales)}; they must be x, y, z")
    return {"matrix": rows, "axes": axes, "unit": "nanometer"}


def _of_elastix(text: str, path: Path) -> dict[str, Any]:
    """Return what elastix found: it leads from the fixed to the moving image, about a centre."""
    fields = dict(re.findall(r"^\s*\((\w+)\s+(.*?)\)\s*$", text, re.MULTILINE))
    kind = fields["Transform"].strip('" ')
    if kind != "AffineTransform":
        raise ConfigurationError(f"{path}: is a {kind}, not an AffineTransform; register by that, or give a matrix")
    for name in ("InitialTransformParametersFileName", "InitialTransformParameterFileName"):
        if fields.get(name, '"NoInitialTransform"').strip('" ') != "NoInitialTransform":
            raise ConfigurationError(f"{path}: follows {fields[name]}; combine both into one, or give a matrix")
    try:
        values = [float(v) for v in fields["TransformParameters"].split()]
        linear = np.array(values[:9]).reshape(3, 3)
        shift = np.array(values[9:])
        centre = np.array([float(v) for v in fields["CenterOfRotationPoint"].split()])
        rows = np.column_stack([linear, shift + centre - linear @ centre])
    except (KeyError, ValueError):
        raise ConfigurationError(
            f"{path}: no affine of three axes; it needs 12 TransformParameters and a CenterOfRotationPoint"
        ) from None
    return {"matrix": rows.tolist(), "axes": "xyz", "inverse": True}


def _numbers(text: str, path: Path) -> list[list[float]]:
    """Return 12 or 16 numbers as rows of 4; `3d-affine: (...)` is how BigDataViewer prints them."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    plain = re.sub(r"^\s*[\w-]+:", "", "\n".join(lines))
    words = re.sub(r"[\s,;()\[\]]+", " ", plain).split()
    if odd := [word for word in words if not re.fullmatch(_NUMBER, word)]:
        raise ConfigurationError(f"{path}: '{odd[0][:20]}' is no number; a file of text holds a matrix, and no header")
    if len(words) not in (12, 16):
        raise ConfigurationError(f"{path}: holds {len(words)} numbers; a matrix {_SHAPE}")
    values = [float(word) for word in words]
    return [values[k : k + 4] for k in range(0, len(values), 4)]


# between the voxels of two volumes

HERE = np.eye(3, 4)
"""The matrix of a volume that lies where it says."""


def between(affine: NDArray[np.float64], source: VolumeSpec, target: VolumeSpec) -> NDArray[np.float64]:
    """Return the matrix (3, 4) from voxels (z, y, x) of a volume to those of another that `affine` leads to it from."""
    back = _inverted(affine)
    linear = back[:, :3] * np.array(target.voxel_size)
    shift = back[:, :3] @ target.offset + back[:, 3] - source.offset
    return np.asarray(np.column_stack([linear, shift]) / np.array(source.voxel_size)[:, None])


def extent(affine: NDArray[np.float64], spec: VolumeSpec) -> tuple[Nanometres, Nanometres]:
    """Return the lowest and the highest nanometres (z, y, x) that a volume reaches to after a transformation."""
    corners = _corners(spec)
    reached = corners @ affine[:, :3].T + affine[:, 3]
    (a, b, c), (d, e, f) = reached.min(0).tolist(), reached.max(0).tolist()
    return (a, b, c), (d, e, f)


def _corners(spec: VolumeSpec) -> NDArray[np.float64]:
    """Return the 8 corners (8, 3) of a volume; its offset is the middle of the first voxel."""
    low = np.array(spec.offset) - np.array(spec.voxel_size) / 2
    side = np.multiply(spec.shape, spec.voxel_size)
    return np.asarray([low + side * [k >> 2 & 1, k >> 1 & 1, k & 1] for k in range(8)])


def covered(matrix: NDArray[np.float64], source: VolumeSpec, target: VolumeSpec, points: int = 48) -> float:
    """Return about which share of the target lies in the source, by a lattice; `matrix` is that of `between`."""
    # with its corners: where all of these lie in it, all voxels do
    lattice = [np.linspace(0, n - 1, min(n, points)) for n in target.shape]
    inside = within(matrix, lattice, source.shape)
    return float(inside.mean())


def apart(matrix: NDArray[np.float64], source: VolumeSpec, target: VolumeSpec) -> bool:
    """Whether two volumes have no place in common, by lattices over both; `matrix` is that of `between`."""
    return covered(matrix, source, target) == 0 and covered(_inverted(matrix), target, source) == 0


def within(matrix: NDArray[np.float64], at: Sequence[NDArray[Any]], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return which of the target's voxels z, y, x lie in a source of a shape, each of whose voxels has an extent."""
    z, y, x = np.ix_(*at)
    inside: NDArray[np.bool_] = np.ones((1, 1, 1), bool)
    for row, n in zip(matrix, shape, strict=True):
        place = row[0] * z + row[1] * y + row[2] * x + row[3]
        inside = inside & (place >= -0.5) & (place < n - 0.5)
    return inside
