from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from numpy.typing import NDArray

from neurokube.volumes import Volume, VolumeSpec, create


@pytest.fixture(scope="session")
def make_volume(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Volume]:
    """Write an array (z, y, x) as a new volume; keywords are fields of its spec."""
    folder, number = tmp_path_factory.mktemp("volumes"), count()

    def make(array: NDArray[Any], **fields: Any) -> Volume:
        fields = {"voxel_size": (10.0, 10.0, 10.0), "kind": "labels", **fields}
        z, y, x = array.shape[-3:]
        spec = VolumeSpec(shape=(z, y, x), dtype=array.dtype.name, **fields)
        volume = create(str(folder / f"{next(number)}.zarr"), spec, shard=(64, 64, 64))
        volume.write(spec.box, array)
        return volume

    return make
