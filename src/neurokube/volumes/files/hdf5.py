"""HDF5: datasets of other tools read; written with the attributes of CREMI and of Fiji's and ilastik's readers."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..volume import Nanometres, VolumeSpec
from .reading import Source, by, placed, plausible, three_axes
from .writing import BATCH_BYTES, EVERY_DTYPE, Sections, Writer, batches, section_bytes, whole_file

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")


def open_hdf5(file: Path, name: str | None) -> Source:
    """Open the dataset of that name, or else the only one of three axes."""
    import h5py

    h5 = h5py.File(file, "r")
    try:
        dataset = _dataset(file, h5, name)
        shape = three_axes(f"{file}:{dataset.name}", dataset.shape)
        return Source(
            path=f"{file}:{dataset.name.lstrip('/')}",
            description=f"HDF5 dataset {dataset.name}",
            shape=shape,
            dtype=dataset.dtype.newbyteorder("="),
            sections=lambda a, b: dataset[a:b],
            voxel_size=_size(dataset),
            offset=_offset(dataset),
            batch=dataset.chunks[0] if dataset.chunks else 16,
            close=h5.close,
        )
    except BaseException:
        h5.close()
        raise


def _dataset(file: Path, h5: Any, name: str | None) -> Any:
    import h5py

    found: list[Any] = []
    h5.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    if name is not None:
        if name not in h5 or not isinstance(h5[name], h5py.Dataset):
            raise DataError(f"{file}: no dataset '{name}'; it holds {_listing(found)}")
        return h5[name]
    stacks = [item for item in found if len(item.shape) == 3]
    if len(stacks) != 1:
        raise DataError(f"{file}: choose a dataset of three axes with --dataset; it holds {_listing(found)}")
    return stacks[0]


def _listing(datasets: list[Any]) -> str:
    names = [f"{d.name.lstrip('/')} ({by(d.shape)} {d.dtype})" for d in datasets]
    return ", ".join(names[:10]) + f" and {len(names) - 10} more" * (len(names) > 10) if names else "no datasets"


def _triple(dataset: Any, name: str, unit: float) -> list[float]:
    """Return an attribute of three numbers (z, y, x); empty where its axes are others."""
    values = [float(s) * unit for s in np.ravel(dataset.attrs[name])]
    order = str(dataset.attrs.get("axes", "zyx")).lower()
    return values[::-1] if order == "xyz" else values if order == "zyx" else []


def _size(dataset: Any) -> Nanometres | None:
    """Return the voxel size that attributes give, as CREMI (nm) and ilastik (micrometres) write it."""
    for name, unit in (("voxel_size_nm", 1.0), ("resolution", 1.0), ("element_size_um", 1e3)):
        if name in dataset.attrs:
            return plausible(_triple(dataset, name, unit))
    return None


def _offset(dataset: Any) -> Nanometres | None:
    """Return the place of the first voxel, as CREMI writes it in nm."""
    return placed(_triple(dataset, "offset", 1.0), 12) if "offset" in dataset.attrs else None


def _write(path: Path, spec: VolumeSpec, sections: Sections, *, token: str = "") -> tuple[str, ...]:
    import h5py

    name = "labels" if spec.kind == "labels" else "raw"
    lead = () if spec.channels is None else (spec.channels,)
    chunk = tuple(min(n, c) for n, c in zip(spec.shape, (_depth(spec), 256, 256), strict=True))
    with whole_file(path) as work, _Lenient(work) as raw, h5py.File(raw, "w") as h5:
        dataset = h5.create_dataset(
            name,
            (*lead, *spec.shape),
            spec.dtype,
            chunks=(*(1 for _ in lead), *chunk),
            compression="gzip" if spec.kind == "labels" else None,
            compression_opts=1 if spec.kind == "labels" else None,
            shuffle=spec.kind == "labels",
        )
        dataset.attrs["axes"] = "c" * len(lead) + "zyx"
        dataset.attrs["resolution"] = np.array(spec.voxel_size)
        dataset.attrs["offset"] = np.array(spec.offset)
        dataset.attrs["element_size_um"] = np.array(spec.voxel_size) / 1e3
        for start, stop in batches(spec, chunk[0]):
            dataset[..., start:stop, :, :] = sections(start, stop)
            h5.flush()
            raw.check()
    return ()


class _Lenient(io.RawIOBase):
    """A file whose writes never fail, but are remembered to have: `check` and the end of the block raise that.

    The library keeps what it could not write, tries again when it is closed, and then ends the process (h5py 3.16).
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("r+b", buffering=0)
        self._fault: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self._fault is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._fault = error
        return size

    def check(self) -> None:
        """Raise the first fault."""
        if self._fault is not None:
            raise self._fault

    def readinto(self, data: Any) -> int:
        return self._file.readinto(data) or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        return self._file.truncate(size)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.check()


def _depth(spec: VolumeSpec) -> int:
    """Return the sections in a chunk: few where they are so large that many would not fit in memory."""
    return max(1, min(16, BATCH_BYTES // section_bytes(spec)))


WRITER = Writer("hdf5", ".h5", EVERY_DTYPE, EVERY_DTYPE, _write, channels=True)
