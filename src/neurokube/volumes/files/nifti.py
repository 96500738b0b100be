"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz): read as given, with remarks on what its header leaves unclear; written."""

import gzip
from contextlib import ExitStack
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...blocks import Vector
from ...errors import DataError
from ...words import counted
from ..volume import Nanometres, VolumeSpec
from .gzipped import Gzipped
from .reading import DEFLATE, Source, expandable, mapped, placed, plausible, three_axes
from .writing import Sections, Writer, batches, whole_file

SUFFIXES = (".nii", ".nii.gz")
_UNITS = {1: ("m", 1e9), 2: ("mm", 1e6), 3: ("µm", 1e3)}
_MICRON = 3


def open_nifti(file: Path) -> Source:
    """Open a NIfTI file of three axes, x fastest; voxels stay in the file's order."""
    stream = Gzipped(file) if file.suffix.lower() == ".gz" else None
    try:
        header = _header(file, stream)
        shape = _shape(file, header)
        dtype = header.get_data_dtype()
        start = _start(file, header)
        size, offset, remarks = _geometry(header)
        slope, intercept, remark = _scaling(header)
        if stream is None:
            voxels = mapped(file, dtype, start, shape)
        else:
            expandable(file, start + prod(shape) * dtype.itemsize, DEFLATE)
        section = prod(shape[1:]) * dtype.itemsize

        def sections(first: int, last: int) -> NDArray[Any]:
            if stream is None:
                data: NDArray[Any] = voxels[first:last]
            else:
                packed = stream.read(start + first * section, (last - first) * section)
                data = np.frombuffer(packed, dtype).reshape(last - first, *shape[1:])
            if remark:
                data = data.astype(np.float32) * np.float32(slope) + np.float32(intercept)
            return data

        return Source(
            path=str(file),
            description=f"NIfTI file of {counted(shape[0], 'section')}",
            shape=shape,
            dtype=np.dtype(np.float32) if remark and dtype.kind in "iuf" else dtype.newbyteorder("="),
            sections=sections,
            voxel_size=size,
            offset=offset,
            batch=16,
            remarks=(*remarks, *remark),
            close=stream.close if stream else lambda: None,
        )
    except BaseException:
        if stream:
            stream.close()
        raise


def _header(file: Path, stream: Gzipped | None) -> Any:
    """Return the header, whose `structarr` holds its fields in the file's byte order."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    length = 540
    if stream:
        try:
            block = bytes(stream.read(0, length))
        except EOFError:  # a small image of the first version
            block = bytes(stream.read(0, 348))
    else:
        with file.open("rb") as raw:
            block = raw.read(length)
    for kind in (Nifti1Header, Nifti2Header):
        count = kind.template_dtype.itemsize
        for order in "<>":
            if len(block) >= count and int.from_bytes(block[:4], "little" if order == "<" else "big") == count:
                header = kind(block[:count], order, check=False)
                if not bytes(header["magic"].item()).startswith(b"n+"):
                    raise DataError(f"{file}: keeps its voxels in another file (.img); save it as one .nii file")
                return header
    raise DataError(f"{file}: does not begin as a NIfTI file; restore it from the original")


def _shape(file: Path, header: Any) -> Vector:
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise DataError(f"{file}: says it has {count} axes; restore it from the original")
    sizes = [int(n) for n in header["dim"][1 : count + 1]]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) == 2:
        sizes.append(1)
    return three_axes(file, tuple(reversed(sizes)))


def _start(file: Path, header: Any) -> int:
    start = float(header["vox_offset"])
    least = header.template_dtype.itemsize + 4
    if start == 0:
        return int(least)
    if not isfinite(start) or start != int(start) or start < least - 4:
        raise DataError(f"{file}: says its voxels begin at byte {start:g}; restore it from the original")
    return int(start)


def _scaling(header: Any) -> tuple[float, float, tuple[str, ...]]:
    """Return slope and intercept, and a remark where they change values."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not isfinite(slope) or not isfinite(intercept) or (slope, intercept) == (1, 0):
        return 1.0, 0.0, ()
    return slope, intercept, (f"its values are scaled as its header says, by {slope:g} and then plus {intercept:g}",)


def _geometry(header: Any) -> tuple[Nanometres | None, Nanometres | None, tuple[str, ...]]:
    """Return voxel size and offset in nm (z, y, x), None where they are not known, and remarks."""
    remarks = []
    digits = 7 if header.template_dtype.itemsize < 500 else 12  # float32 or float64
    zooms = [float(s) for s in header["pixdim"][1:4]]
    affine, name = None, "qform"
    with np.errstate(all="ignore"):
        sform = header.get_sform() if int(header["sform_code"]) > 0 else None
        try:
            qform = header.get_qform() if int(header["qform_code"]) > 0 else None
        except ValueError as error:
            qform = None
            remarks.append(f"its qform is not valid ({error}): passed over")
    if sform is not None and not np.isfinite(sform).all():
        sform = None
        remarks.append("its sform holds NaN or infinite values: passed over")
    affine, name = (sform, "sform") if sform is not None else (qform, "qform")
    if sform is not None and qform is not None and not _alike(sform, qform):
        remarks.append("its qform and sform disagree: the sform is taken")
    if affine is None:
        remarks.append("it says no place in space: the offset is not known")
    else:
        lengths = [float(v) for v in np.linalg.norm(affine[:3, :3], axis=0)]
        if not np.allclose(lengths, np.abs(zooms), rtol=1e-3, atol=0):
            said = _numbers(zooms)
            remarks.append(
                f"its {name} has voxels of {_numbers(lengths)} and its pixdim says {said}: the {name} is taken"
            )
        zooms = lengths
    if plausible(zooms[::-1]) is None:
        remarks.append(f"its voxel size ({_numbers(zooms)}) is not one")
        return None, None, tuple(remarks)
    code = int(header["xyzt_units"]) & 7
    if code not in _UNITS:
        unit = "no unit of length" if code == 0 else f"an unknown unit of length ({code})"
        remarks.append(f"it says {unit} for its voxels of {_numbers(zooms)}; mm where it is a medical image")
        return None, None, tuple(remarks)
    scale = _UNITS[code][1]
    size = plausible([s * scale for s in reversed(zooms)], digits)
    if affine is None:
        return size, None, tuple(remarks)
    if not np.allclose(affine[:3, :3], np.diag(zooms), rtol=0, atol=1e-3 * max(zooms)):
        remarks.append(
            "its axes are turned or mirrored in space: voxels stay in the file's order, the origin is dropped"
        )
        return size, None, tuple(remarks)
    return size, placed([float(o) * scale for o in affine[2::-1, 3]], digits), tuple(remarks)


def _alike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return np.allclose(one, other, rtol=1e-3, atol=1e-3 * float(np.abs(one[:3, :3]).max()))


def _numbers(values: list[float]) -> str:
    """Return numbers in words, as `0.004 x 0.004 x 0.04`."""
    return " x ".join(f"{v:g}" for v in values)


def _write(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    order = np.dtype(spec.dtype).newbyteorder("<")
    with whole_file(path) as work, ExitStack() as stack:
        out: Any = stack.enter_context(work.open("wb"))
        if path.suffix.lower() == ".gz":
            out = stack.enter_context(gzip.GzipFile("", "wb", 1, out, mtime=0))
        out.write(_written_header(spec))
        for start, stop in batches(spec):
            out.write(np.ascontiguousarray(sections(start, stop), order).data)
    return ()


def _written_header(spec: VolumeSpec) -> bytes:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    header = (Nifti1Header if max(spec.shape) < 1 << 15 else Nifti2Header)(endianness="<")
    header.set_data_shape(spec.shape[::-1])
    header.set_data_dtype(np.dtype(spec.dtype))
    scale = _UNITS[_MICRON][1]
    affine = np.diag([*(s / scale for s in reversed(spec.voxel_size)), 1.0])
    affine[:3, 3] = [o / scale for o in reversed(spec.offset)]
    header.set_zooms(tuple(float(v) for v in np.diag(affine)[:3]))
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["xyzt_units"] = _MICRON
    header["descrip"] = b"written by NeuroKube"
    start = header.template_dtype.itemsize + 4
    header["vox_offset"] = start
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = b"n+1" if header.template_dtype.itemsize == 348 else b"n+2\0\r\n\x1a\n"
    return bytes(header.binaryblock) + bytes(4)


_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "uint64", "int64", "float64")
WRITER = Writer("nifti", ".nii", _DTYPES, ("uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64"), _write)
