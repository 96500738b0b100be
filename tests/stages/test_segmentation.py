import numpy as np
import pytest

from neurokube.blocks import Grid
from neurokube.errors import ConfigurationError, DataError
from neurokube.stages import Block, Data, Source, TableOutput, VolumeOutput
from neurokube.stages.fragments import first_id
from neurokube.stages.segmentation import Segmentation
from neurokube.volumes import VolumeSpec, create, open_volume

SPEC = VolumeSpec((2, 8, 80), "uint64", (40.0, 8.0, 8.0), kind="labels")
TILES = Grid(SPEC.shape, (2, 8, 40))
SEGMENTS = [np.array([1, 2, 1], np.uint64), np.array([2, 3], np.uint64)]


def fragments(url="/none"):
    output = VolumeOutput("fragments", SPEC, TILES.cell)
    return Source("fragments", "fragments", {"fragments": output}, {"fragments": url})


def multicut(url="/none", cells=TILES):
    return Source("multicut", "multicut", {"segments": TableOutput("segments", cells)}, {"segments": url})


@pytest.fixture
def stored(tmp_path):
    """Two tiles of fragments on disk, five fragments in all, and the segments that a multicut gave them."""
    labels = np.random.default_rng(0).integers(0, 4, SPEC.shape).astype(np.uint64)
    labels[..., 40:] = np.minimum(labels[..., 40:], 2)
    ids = labels.copy()
    ids[..., 40:][labels[..., 40:] > 0] += np.uint64(first_id(TILES, 1))
    volume = create(str(tmp_path / "fragments"), SPEC, shard=TILES.cell)
    volume.write(SPEC.box, ids)
    sources = {"fragments": fragments(volume.url), "multicut": multicut(str(tmp_path / "segments"))}
    own = {"segments": sources["multicut"].outputs["segments"]}
    writer = Data({}, Source("multicut", "multicut", own, sources["multicut"].urls))
    for tile, segments in enumerate(SEGMENTS):
        writer.put("segments", tile, segments)
    return sources, labels


def computed(sources, folder):
    stage = Segmentation()
    outputs = stage.outputs(sources)
    urls = {name: str(folder / name) for name in outputs}
    volume = outputs["segmentation"]
    create(urls["segmentation"], volume.spec, shard=volume.cell, factors=volume.factors)
    data = Data(sources, Source("segmentation", "segmentation", outputs, urls))
    for step in stage.steps(sources):
        for cell in range(len(step.grid)):
            step.compute(Block(step.grid.box(cell), (cell,)), data)
    return open_volume(urls["segmentation"]), data


def test_every_fragment_takes_the_label_of_its_segment(stored, tmp_path):
    sources, labels = stored
    segmentation, _ = computed(sources, tmp_path)
    tables = [np.concatenate([[0], segments]) for segments in SEGMENTS]
    expected = np.concatenate([tables[0][labels[..., :40]], tables[1][labels[..., 40:]]], axis=-1)
    np.testing.assert_array_equal(segmentation.read(SPEC.box), expected)
    assert (segmentation.spec.dtype, segmentation.spec.kind) == ("uint64", "labels")


def test_the_table_names_the_segment_of_every_fragment(stored, tmp_path):
    sources, _ = stored
    _, data = computed(sources, tmp_path)
    rows = np.concatenate([data.table("fragment-segment", tile) for tile in range(len(TILES))])
    first = first_id(TILES, 1)
    assert rows.tolist() == [[1, 1], [2, 2], [3, 1], [first + 1, 2], [first + 2, 3]]


def test_coarser_resolutions_are_filled(stored, tmp_path):
    sources, _ = stored
    segmentation, _ = computed(sources, tmp_path)
    assert len(segmentation.arrays) == 2
    coarse = segmentation.arrays[1][...].read().result()
    assert set(np.unique(coarse)) <= {0, 1, 2, 3}
    assert coarse.any()


def test_a_lost_table_is_named(stored, tmp_path):
    sources, _ = stored
    lost = tmp_path / "segments" / "0.0.1.npy"
    lost.unlink()
    with pytest.raises(DataError, match=r"cannot be read .* run again to compute it anew") as error:
        computed(sources, tmp_path)
    assert str(error.value).startswith(f"{lost}: ")


def test_segments_must_be_those_of_the_fragments():
    other = multicut(cells=Grid(SPEC.shape, (2, 8, 80)))
    with pytest.raises(ConfigurationError, match="multicut: 'multicut' did not join the fragments of 'fragments'"):
        Segmentation().steps({"fragments": fragments(), "multicut": other})


def test_fragments_cannot_stand_for_segments():
    with pytest.raises(ConfigurationError, match=r"'fragments' .* has no table 'segments'"):
        Segmentation().steps({"fragments": fragments(), "multicut": fragments()})
