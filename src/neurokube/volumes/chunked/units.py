"""Units of length, by the names that other tools write."""

from collections.abc import Sequence

from ...errors import DataError
from ..volume import NANOMETRES, Nanometres

_NAMES = {
    **NANOMETRES,
    "nm": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "micron": 1e3,
    "mm": 1e6,
    "m": 1e9,
    "å": 0.1,
    "pm": 1e-3,
    "picometer": 1e-3,
}


def nanometres_of(unit: str, where: str) -> float:
    """Return the length of a unit in nm.

    Raises:
        DataError: for a unit that is no length; it names the metadata.
    """
    name = str(unit).strip().lower()
    for known in (name, name.removesuffix("s"), name.replace("metre", "meter").removesuffix("s")):
        if known in _NAMES:
            return _NAMES[known]
    raise DataError(f"{where}: its voxel size is in '{unit}', which is no length; correct it, as to nm")


def converted(values: Sequence[float], units: Sequence[str], where: str) -> Nanometres:
    """Return lengths (z, y, x) in nm."""
    z, y, x = (float(value) * nanometres_of(unit, where) for value, unit in zip(values, units, strict=True))
    return z, y, x
