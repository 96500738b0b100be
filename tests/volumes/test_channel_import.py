"""A channel of a TIFF of light microscopy, as ImageJ and OME write it."""

import numpy as np
import pytest
import tifffile

from neurokube.errors import DataError, UsageError
from neurokube.volumes import open_volume
from neurokube.volumes.importing import import_volume
from neurokube.volumes.sources import open_source

STACK = np.random.default_rng(0).integers(0, 4000, (5, 2, 12, 10), np.uint16)
"""(z, channel, y, x)."""


def hyperstack(path):
    metadata = {"spacing": 0.2, "unit": "um", "axes": "ZCYX"}
    tifffile.imwrite(path, STACK, imagej=True, resolution=(10, 10), metadata=metadata)


def ome(path):
    size = {"PhysicalSizeZ": 0.2, "PhysicalSizeY": 0.1, "PhysicalSizeX": 0.1}
    tifffile.imwrite(path, STACK.swapaxes(0, 1), metadata={"axes": "CZYX", **size})


def compressed(path):
    tifffile.imwrite(path, STACK, metadata={"axes": "ZCYX", "PhysicalSizeZ": 0.2}, ome=True, compression="zlib")


@pytest.mark.parametrize("write", [hyperstack, ome, compressed])
@pytest.mark.parametrize("channel", [0, 1])
def test_a_channel_is_read_section_by_section(tmp_path, write, channel):
    write(tmp_path / "light.ome.tif")
    with open_source(str(tmp_path / "light.ome.tif"), channel=channel) as source:
        assert source.shape == (5, 12, 10)
        assert np.array_equal(source.read(0, 5), STACK[:, channel])
        assert np.array_equal(source.read(2, 4), STACK[2:4, channel])


def test_a_channel_is_imported_with_its_voxel_size(tmp_path, command):
    hyperstack(tmp_path / "light.tif")
    code, said, _ = command(
        "import", tmp_path / "light.tif", tmp_path / "light.zarr", "--channel", 1, "--to-8bit", "0,3999", "--quiet"
    )
    assert code == 0 and "200 x 100 x 100 nm" in said
    volume = open_volume(str(tmp_path / "light.zarr"))
    expected = np.rint(STACK[:, 1] * (255 / 3999)).astype(np.uint8)
    assert np.array_equal(volume.read(volume.spec.box), expected)


def test_which_channel_has_to_be_said(tmp_path):
    hyperstack(tmp_path / "light.tif")
    with pytest.raises(DataError, match="has 2 channels; choose one with --channel 0"):
        import_volume(str(tmp_path / "light.tif"), str(tmp_path / "a.zarr"), voxel_size=None, to_8bit="auto")
    with (
        pytest.raises(UsageError, match="--channel 2, but it has 2, counted from 0"),
        open_source(str(tmp_path / "light.tif"), channel=2),
    ):
        pass
    np.save(tmp_path / "a.npy", STACK[:, 0])
    with (
        pytest.raises(UsageError, match="--channel 1 is for a TIFF file"),
        open_source(str(tmp_path / "a.npy"), channel=1),
    ):
        pass


def test_time_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "t.tif", np.stack([STACK] * 2), imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(DataError, match="save one point of time"), open_source(str(tmp_path / "t.tif"), channel=0):
        pass
