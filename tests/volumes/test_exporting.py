import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import Box
from neurokube.errors import DataError, TryAgainError, UsageError
from neurokube.volumes import VolumeSpec, create, open_volume, pyramid_factors
from neurokube.volumes.chunked.multisets import decoded, deserialized, joined, serialized
from neurokube.volumes.exporting import export_volume
from neurokube.volumes.pyramids import downsample
from neurokube.volumes.volume import coarser

FORMATS = ("ome-zarr", "ome-zarr-0.4", "n5", "bdv-n5", "paintera", "precomputed")
DAMAGED = int(os.environ.get("NEUROKUBE_TEST_MUTATIONS", "60")) // len(FORMATS)
SPEC = VolumeSpec((41, 150, 131), "uint8", (40.0, 8.0, 8.0), (80.0, 16.0, -24.0))
LABELS = VolumeSpec((41, 150, 131), "uint64", (40.0, 8.0, 8.0), (80.0, 16.0, -24.0), "labels")


def content(spec, seed=0):
    """Return patches of random values, so that labels and their pyramids are worth a look."""
    rng = np.random.default_rng(seed)
    # labels that are far apart would have a file each in the lookup of Paintera
    coarse = rng.integers(0, 3000 if spec.dtype == "uint64" else 100, [-(-n // 5) for n in spec.shape])
    if spec.dtype == "uint64":
        coarse.flat[0] = 2**62 + 1
    return np.kron(coarse, np.ones((5, 5, 5), np.int64))[tuple(slice(n) for n in spec.shape)].astype(spec.dtype)


def make(path, spec, data=None, **options):
    volume = create(str(path), spec, **options)
    volume.write(spec.box, content(spec) if data is None else data)
    return volume


@pytest.fixture
def image(tmp_path):
    return make(tmp_path / "image.zarr", SPEC)


@pytest.fixture
def labels(tmp_path):
    return make(tmp_path / "labels.zarr", LABELS)


def export(volume, destination, format, **options):
    return export_volume(volume.url, str(destination), format=format, quiet=True, **options)


def pyramid(data, spec, factors):
    """Return what each resolution must be, each made of the one before."""
    levels = [data]
    for fine, coarse in pairwise(factors):
        step = tuple(b // a for a, b in zip(fine, coarse, strict=True))
        levels.append(downsample(levels[-1], step, spec.kind))
    return levels


# Round trips

specs = st.builds(
    VolumeSpec,
    shape=st.tuples(*[st.integers(1, 70)] * 3),
    dtype=st.sampled_from(["uint8", "uint16", "uint32", "float32"]),
    voxel_size=st.tuples(*[st.sampled_from([1.0, 4.0, 6.5, 40.0, 0.25])] * 3),
    # whole voxels: precomputed has no others
    offset=st.tuples(*[st.integers(-20, 20)] * 3),
    kind=st.just("image"),
)


@pytest.mark.parametrize("format", FORMATS)
@given(spec=specs, data=st.data())
@settings(max_examples=12, deadline=None)
def test_round_trip_keeps_voxels_and_place(format, spec, data, tmp_path_factory):
    if data.draw(st.booleans(), "labels"):
        spec = VolumeSpec(spec.shape, "uint64", spec.voxel_size, spec.offset, "labels")
    offset = tuple(n * v for n, v in zip(spec.offset, spec.voxel_size, strict=True))
    spec = VolumeSpec(spec.shape, spec.dtype, spec.voxel_size, offset, spec.kind)
    shard = data.draw(st.tuples(*[st.sampled_from([8, 24, 32])] * 3), "shard")
    folder = tmp_path_factory.mktemp("round")
    volume = make(folder / "v.zarr", spec, shard=shard)
    report = export(volume, folder / "o.n5", format)
    back = open_volume(report.url)
    assert back.spec.kind == spec.kind and back.spec.dtype == spec.dtype and back.spec.shape == spec.shape
    assert np.allclose(back.spec.voxel_size, spec.voxel_size) and np.allclose(back.spec.offset, spec.offset)
    factors = pyramid_factors(spec)
    assert len(back.arrays) == len(factors)
    assert np.allclose(back.voxel_sizes, [coarser(spec, factor).voxel_size for factor in factors])
    assert np.array_equal(back.read(spec.box), volume.read(spec.box))
    aligned = format != "precomputed" or all(
        o % f == 0 for o, f in zip(spec.place(spec)[0].start, factors[-1], strict=True)
    )
    if format not in ("precomputed", "paintera") and aligned:
        for k, level in enumerate(pyramid(volume.read(spec.box), spec, factors)):
            assert np.array_equal(back.read(Box.of(level.shape), k), level)


@pytest.mark.parametrize("format", ["ome-zarr", "ome-zarr-0.4", "n5", "precomputed"])
def test_channels_are_kept_or_chosen(format, tmp_path):
    spec = VolumeSpec((20, 70, 60), "uint8", (8.0, 8.0, 8.0), channels=3)
    data = np.random.default_rng(0).integers(0, 255, (3, *spec.shape)).astype("uint8")
    volume = make(tmp_path / "c.zarr", spec, data)
    export(volume, tmp_path / "all", format)
    back = open_volume(str(tmp_path / "all"))
    assert back.spec == spec
    assert np.array_equal(back.read(spec.box), data)
    export(volume, tmp_path / "one", format, channel=1)
    assert np.array_equal(open_volume(str(tmp_path / "one")).read(spec.box), data[1])


@pytest.mark.parametrize("format", ["bdv-n5", "paintera"])
def test_formats_of_one_channel_say_so(format, tmp_path):
    volume = create(str(tmp_path / "c.zarr"), VolumeSpec((20, 70, 60), "uint8", (8.0, 8.0, 8.0), channels=3))
    with pytest.raises(UsageError, match="one channel a volume: choose one of the 3 with --channel N"):
        export(volume, tmp_path / "c.n5", format)


@pytest.mark.parametrize("format", FORMATS)
def test_a_region_lies_where_it_was_cut(format, image, tmp_path):
    region = Box((3, 17, 5), (40, 149, 126))
    report = export(image, tmp_path / "cut.n5", format, region=region)
    back = open_volume(report.url)
    assert back.spec == SPEC.crop(region)
    assert np.array_equal(back.read(back.spec.box), image.read(region))


@pytest.mark.parametrize("format", ["n5", "precomputed"])
def test_a_coarser_resolution_becomes_the_finest(format, tmp_path):
    factors = [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    spec = VolumeSpec(SPEC.shape, "uint8", SPEC.voxel_size)
    volume = make(tmp_path / "v.zarr", spec, factors=factors)
    levels = pyramid(volume.read(spec.box), spec, factors)
    for k in (1, 2):
        volume.write(Box.of(levels[k].shape), levels[k], k)
    report = export(volume, tmp_path / "o", format, scale=1, levels=2)
    back = open_volume(report.url)
    assert back.voxel_sizes == ((40.0, 16.0, 16.0), (40.0, 32.0, 32.0))
    for k in (0, 1):
        assert np.array_equal(back.read(Box.of(levels[k + 1].shape), k), levels[k + 1])
    if format == "n5":
        assert back.spec.offset == (0.0, 4.0, 4.0)
    else:
        assert report.remarks and "whole voxels of offset" in report.remarks[0]


def test_resolutions_that_are_there_are_copied(tmp_path):
    spec = VolumeSpec((20, 100, 100), "uint8", (40.0, 8.0, 8.0))
    volume = make(tmp_path / "v.zarr", spec, factors=[(1, 1, 1), (1, 2, 2)])
    volume.write(Box((0, 0, 0), (20, 50, 50)), np.full((20, 50, 50), 7, "uint8"), 1)
    export(volume, tmp_path / "o", "n5")
    back = open_volume(str(tmp_path / "o"))
    assert (back.read(Box.of(back.level_shape(1)), 1) == 7).all()


def test_precomputed_resolutions_lie_on_one_grid(tmp_path):
    spec = VolumeSpec((9, 90, 90), "uint8", (8.0, 8.0, 8.0), (0.0, 8.0, 24.0))
    data = content(spec)
    export(make(tmp_path / "v.zarr", spec, data), tmp_path / "o", "precomputed")
    info = json.loads((tmp_path / "o/info").read_text())
    # the voxel 3 of the grid is the second half of the coarse voxel 1
    assert [scale["voxel_offset"] for scale in info["scales"]] == [[3, 1, 0], [1, 0, 0]]
    assert [scale["size"] for scale in info["scales"]] == [[90, 90, 9], [46, 46, 5]]
    coarse = open_volume(str(tmp_path / "o")).read(Box((0, 0, 0), (5, 46, 46)), 1)
    for z, y, x in ((0, 0, 0), (2, 3, 5), (4, 45, 45)):
        cell = data[2 * z : 2 * z + 2, max(0, 2 * y - 1) : 2 * y + 1, max(0, 2 * x - 1) : 2 * x + 1]
        assert coarse[z, y, x] == int(np.floor(cell.mean() + 0.5))


@pytest.mark.parametrize(
    ("format", "compression", "why"),
    [
        ("n5", "zstd:99", "zstd has levels up to 22"),
        ("ome-zarr", "gzip:10", "gzip has levels up to 9"),
        ("tiff", "zstd", "tiff leaves no choice; leave it out"),
    ],
)
def test_compression_that_there_is_not_is_refused(image, tmp_path, format, compression, why):
    with pytest.raises(UsageError, match=why):
        export(image, tmp_path / "o", format, compression=compression, levels=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "image.zarr"]


@pytest.mark.parametrize("compression", ["gzip:6", "zstd", "zstd:5", "blosc", "xz", "bzip2", "raw"])
def test_codecs_of_n5(compression, image, tmp_path):
    export(image, tmp_path / "o", "n5", compression=compression, levels=1)
    kind = compression.partition(":")[0]
    assert json.loads((tmp_path / "o/s0/attributes.json").read_text())["compression"]["type"] == kind
    assert np.array_equal(open_volume(str(tmp_path / "o")).read(SPEC.box), image.read(SPEC.box))


@pytest.mark.parametrize("format", ["ome-zarr", "ome-zarr-0.4"])
@pytest.mark.parametrize("compression", ["gzip", "zstd:5", "blosc"])
def test_codecs_of_zarr(format, compression, image, tmp_path):
    export(image, tmp_path / "o", format, compression=compression, levels=1)
    assert np.array_equal(zarr.open(tmp_path / "o")["0"][:], image.read(SPEC.box))


# Labels of Paintera


def chunk(path):
    attributes = json.loads(
        next(p for p in path.parents if (p / "attributes.json").exists()).joinpath("attributes.json").read_text()
    )
    return decoded(path.read_bytes(), attributes["compression"])


def test_multisets_count_every_label(labels, tmp_path):
    export(labels, tmp_path / "d.n5", "paintera")
    group, data = tmp_path / "d.n5/labels", labels.read(LABELS.box)
    factors = pyramid_factors(LABELS)
    for level, factor in enumerate(factors):
        shape, content = chunk(group / f"data/s{level}/0/0/0")
        multiset = deserialized(content)
        for where in np.ndindex(*(min(n, 3) for n in shape[::-1])):
            cell = data[tuple(slice(k * f, (k + 1) * f) for k, f in zip(where, factor, strict=True))]
            ids, counts = np.unique(cell, return_counts=True)
            index = int(np.ravel_multi_index(where, shape[::-1]))
            found_ids, found_counts = multiset[index]
            assert np.array_equal(found_ids, ids) and np.array_equal(found_counts, counts)
            assert counts[list(ids).index(multiset.argmax[index])] == counts.max()


def test_lookup_names_the_chunks_of_each_label(labels, tmp_path, monkeypatch):
    monkeypatch.setattr("neurokube.volumes.chunked.paintera.LOOKUP_PAIRS", 50)
    data = labels.read(LABELS.box) % np.uint64(2500)
    labels.write(LABELS.box, data)
    export(labels, tmp_path / "d.n5", "paintera", levels=2)
    group = tmp_path / "d.n5/labels"
    attributes = json.loads((group / "attributes.json").read_text())
    assert attributes["painteraData"] == {"type": "label"} and attributes["maxId"] == data.max()
    assert json.loads((tmp_path / "d.n5/attributes.json").read_text()) == {"n5": "4.0.0"}
    found = {}
    for file in sorted(group.glob("label-to-block-mapping/s0/[0-9]*")):
        content, at = chunk(file)[1], 0
        while at < len(content):
            label, count = int.from_bytes(content[at : at + 8], "big"), int.from_bytes(content[at + 8 : at + 12], "big")
            boxes = np.frombuffer(content, ">i8", 6 * count, at + 12).reshape(count, 6)
            assert label // 1000 == int(file.name)
            found[label] = {tuple(b) for b in boxes.tolist()}
            at += 12 + 48 * count
    assert set(found) == set(np.unique(data)[1:].tolist())
    for label in np.unique(data)[1::100].tolist():
        chunks = {tuple(k // c * c for k, c in zip(p, (16, 128, 128), strict=True)) for p in np.argwhere(data == label)}
        ends = {c: [min(a + n, s) - 1 for a, n, s in zip(c, (16, 128, 128), LABELS.shape, strict=True)] for c in chunks}
        assert found[label] == {(*c[::-1], *ends[c][::-1]) for c in chunks}
    content = chunk(group / "unique-labels/s0/0/0/0")[1]
    assert np.array_equal(np.frombuffer(content, ">u8"), np.unique(data[:16, :128, :128]))


@given(st.integers(0, 2**32), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_multisets_survive_serialization(seed, kinds):
    from bioimage_cpp.label_multiset import multiset_from_labels

    data = np.random.default_rng(seed).integers(0, kinds, (6, 7, 8)).astype(np.uint64)
    multiset = multiset_from_labels(data, (2, 3, 3))
    back = deserialized(serialized(multiset))
    whole = joined([((slice(None),) * 3, back)], (3, 3, 3))
    for other in (back, whole):
        for k in range(multiset.n_spatial):
            assert all(np.array_equal(a, b) for a, b in zip(other[k], multiset[k], strict=True))


def test_labels_beyond_java_are_refused(tmp_path):
    spec = VolumeSpec((4, 4, 4), "uint64", (8.0, 8.0, 8.0), kind="labels")
    volume = make(tmp_path / "v.zarr", spec, np.full(spec.shape, 2**63, np.uint64))
    with pytest.raises(DataError, match=r"up to 2\*\*63 - 1, one is 9223372036854775808; renumber"):
        export(volume, tmp_path / "o.n5", "paintera")


# What other tools read

READ_BACK = {
    "zarr-ome-zarr": "import zarr; g = zarr.open(url, mode='r'); a = g['0'][:]; meta = g.attrs.asdict()",
    "zarr-ome-zarr-0.4": "import zarr; g = zarr.open(url, mode='r'); a = g['0'][:]; meta = g.attrs.asdict()",
    "ome_zarr-ome-zarr": """
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader
        node = next(iter(Reader(parse_url(url))()))
        a = node.data[0].compute()
        meta = {"axes": [x["name"] for x in node.metadata["axes"]],
                "first": node.metadata["coordinateTransformations"][0],
                "shapes": [list(d.shape) for d in node.data]}
    """,
    "z5py-n5": """
        import z5py
        f = z5py.File(url, mode="r", use_zarr_format=False)
        a, meta = f["s0"][:], {**dict(f.attrs), "s1": dict(f["s1"].attrs)}
    """,
    "cloudvolume-precomputed": """
        from cloudvolume import CloudVolume
        v = CloudVolume("file://" + url, progress=False)
        a = v[:][..., 0].T
        meta = {"resolution": v.resolution.tolist(), "offset": v.voxel_offset.tolist(),
                "mips": [[[int(n) for n in of(m)] for of in (v.mip_resolution, v.mip_volume_size)]
                         for m in v.available_mips],
                "coarsest": CloudVolume("file://" + url, mip=len(v.available_mips) - 1, progress=False)[:].mean()}
    """,
    "elf-paintera": """
        import numpy as np, z5py
        from elf.label_multiset import deserialize_multiset
        container, _, name = url.rpartition("/")
        f = z5py.File(container, mode="r", use_zarr_format=False)[name]
        ds = f["data/s0"]
        a = np.zeros(ds.shape, np.uint64)
        for where in np.ndindex(*ds.chunks_per_dimension):
            begin = [k * c for k, c in zip(where, ds.chunks)]
            place = tuple(slice(b, min(b + c, s)) for b, c, s in zip(begin, ds.chunks, ds.shape))
            multiset = deserialize_multiset(ds.read_chunk(where), a[place].shape)
            a[place] = multiset.argmax.reshape(a[place].shape)
        shape = tuple(min(c, s) for c, s in zip(ds.chunks, f["data/s1"].shape))
        coarse = deserialize_multiset(f["data/s1"].read_chunk((0, 0, 0)), shape)
        meta = {**dict(f.attrs), "data": dict(f["data"].attrs),
                "cell": [[int(v) for v in part] for part in coarse[(0, 0, 0)]],
                "unique": f["unique-labels/s0"].read_chunk((0, 0, 0)).tolist()}
    """,
}


def read_by(peer, url, tmp_path):
    """Read a volume with another library: in this environment, or that of the interpreter NEUROKUBE_PEERS."""
    module = peer.partition("-")[0]
    programs = [sys.executable, *filter(None, [os.environ.get("NEUROKUBE_PEERS")])]
    need = f"import {module}, z5py" if module == "elf" else f"import {module}"
    able = [p for p in programs if subprocess.run([p, "-c", need], capture_output=True).returncode == 0]
    if not able:
        pytest.skip(f"{module} is not installed here, nor where NEUROKUBE_PEERS points")
    code = f"import json, numpy as np\nurl = {str(url)!r}\n" + textwrap.dedent(READ_BACK[peer])
    code += f"\nnp.save({str(tmp_path / 'peer.npy')!r}, a)\nprint('META' + json.dumps(meta, default=str))"
    done = subprocess.run([able[-1], "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(tmp_path / "peer.npy"), json.loads(done.stdout.partition("META")[2])


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("format", ["ome-zarr", "ome-zarr-0.4"])
def test_zarr_reads_it(format, kind, image, labels, tmp_path):
    volume = labels if kind == "labels" else image
    export(volume, tmp_path / "o", format)
    voxels, meta = read_by(f"zarr-{format}", tmp_path / "o", tmp_path)
    assert np.array_equal(voxels, volume.read(SPEC.box))
    scales = meta.get("ome", meta)["multiscales"][0]
    assert [axis["name"] for axis in scales["axes"]] == ["z", "y", "x"]
    placed = {t["type"]: t[t["type"]] for t in scales["datasets"][1]["coordinateTransformations"]}
    assert placed == {"scale": [40.0, 16.0, 16.0], "translation": [80.0, 20.0, -20.0]}


def test_ome_zarr_models_accept_0_4(image, labels, tmp_path):
    from ome_zarr_models.v04.image import Image

    for volume in (image, labels):
        export(volume, tmp_path / "o", "ome-zarr-0.4", overwrite=True)
        assert Image.from_zarr(zarr.open_group(tmp_path / "o", mode="r", zarr_format=2)).attributes.multiscales


def test_ome_zarr_reads_it(image, tmp_path):
    export(image, tmp_path / "o", "ome-zarr-0.4")
    voxels, meta = read_by("ome_zarr-ome-zarr", tmp_path / "o", tmp_path)
    assert np.array_equal(voxels, image.read(SPEC.box))
    assert meta["axes"] == ["z", "y", "x"] and meta["shapes"][1] == [41, 75, 66]
    assert [t[t["type"]] for t in meta["first"]] == [[40.0, 8.0, 8.0], [80.0, 16.0, -24.0]]


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_z5py_reads_it(kind, image, labels, tmp_path):
    volume = labels if kind == "labels" else image
    export(volume, tmp_path / "o.n5", "n5")
    voxels, meta = read_by("z5py-n5", tmp_path / "o.n5", tmp_path)
    assert np.array_equal(voxels, volume.read(SPEC.box))
    assert meta["pixelResolution"] == {"unit": "nm", "dimensions": [8.0, 8.0, 40.0]}
    assert meta["s1"]["downsamplingFactors"] == [2, 2, 1]
    assert meta["s1"]["transform"]["translate"] == [80.0, 20.0, -20.0]


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_cloud_volume_reads_it(kind, image, labels, tmp_path):
    volume = labels if kind == "labels" else image
    export(volume, tmp_path / "o", "precomputed")
    voxels, meta = read_by("cloudvolume-precomputed", tmp_path / "o", tmp_path)
    assert np.array_equal(voxels, volume.read(SPEC.box))
    assert meta["resolution"] == [8, 8, 40] and meta["offset"] == [-3, 2, 2]
    back = open_volume(str(tmp_path / "o"))
    last = len(back.arrays) - 1
    assert meta["mips"][last] == [[int(v) for v in back.voxel_sizes[last][::-1]], list(back.level_shape(last)[::-1])]
    if kind == "image":
        assert float(meta["coarsest"]) == pytest.approx(back.read(Box.of(back.level_shape(last)), last).mean())


def test_elf_reads_multisets(tmp_path):
    # elf takes its time for every voxel
    spec = VolumeSpec((18, 40, 150), "uint64", LABELS.voxel_size, LABELS.offset, "labels")
    data = content(spec)
    export(make(tmp_path / "v.zarr", spec, data), tmp_path / "d.n5/seg", "paintera", levels=2)
    voxels, meta = read_by("elf-paintera", tmp_path / "d.n5/seg", tmp_path)
    assert np.array_equal(voxels, data)
    assert meta["data"]["resolution"] == [8.0, 8.0, 40.0] and meta["data"]["offset"] == [-24.0, 16.0, 80.0]
    ids, counts = np.unique(data[:1, :2, :2], return_counts=True)
    assert meta["cell"] == [ids.tolist(), counts.tolist()]
    assert meta["unique"] == np.unique(data[:16, :128, :128]).tolist() and meta["maxId"] == data.max()


def test_bdv_xml_follows_its_convention(image, tmp_path):
    report = export(image, tmp_path / "o.n5", "bdv-n5")
    root = ElementTree.parse(report.url).getroot()
    loader = root.find("SequenceDescription/ImageLoader")
    assert loader.get("format") == "bdv.n5" and loader.findtext("n5") == "o.n5"
    assert root.findtext(".//ViewSetup/size") == "131 150 41"
    affine = np.reshape([float(v) for v in root.findtext(".//ViewTransform/affine").split()], (3, 4))
    assert np.allclose(affine @ [0, 0, 0, 1], [-24, 16, 80]) and np.allclose(affine @ [1, 1, 1, 1], [-16, 24, 120])
    array = ts.open(
        {"driver": "n5", "kvstore": {"driver": "file", "path": f"{tmp_path}/o.n5/setup0/timepoint0/s0/"}}
    ).result()
    assert np.array_equal(array.read().result().T, image.read(SPEC.box))
    factors = json.loads((tmp_path / "o.n5/setup0/attributes.json").read_text())["downsamplingFactors"]
    assert factors == [list(f[::-1]) for f in pyramid_factors(SPEC)]


# Files that other tools write


def n5_array(path, shape=(6, 5, 4), block=(4, 4, 4), dtype="uint8", **attributes):
    """Write an N5 dataset, shape (x, y, z), with tensorstore; return its values (z, y, x)."""
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}}
    metadata = {"dimensions": shape, "blockSize": block, "dataType": dtype, "compression": {"type": "gzip"}}
    array = ts.open(spec | {"metadata": metadata | attributes}, create=True).result()
    data = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    array.write(data).result()
    return data.T


def test_n5_viewer_sizes_are_read_in_their_unit(tmp_path):
    data = n5_array(tmp_path / "g/s0", pixelResolution={"unit": "um", "dimensions": [0.008, 0.004, 0.04]})
    n5_array(
        tmp_path / "g/s1",
        (3, 3, 4),
        downsamplingFactors=[2, 2, 1],
        pixelResolution={"unit": "um", "dimensions": [0.008, 0.004, 0.04]},
    )
    volume = open_volume(str(tmp_path / "g"))
    assert np.allclose(volume.voxel_sizes, [(40, 4, 8), (40, 8, 16)])
    assert np.array_equal(volume.read(volume.spec.box), data)


def test_cosem_transforms_are_read_by_the_names_of_axes(tmp_path):
    transform = {
        "axes": ["x", "y", "z"],
        "units": ["nm", "nm", "um"],
        "scale": [8, 4, 0.04],
        "translate": [1, 2, 0.003],
    }
    n5_array(tmp_path / "a", transform=transform)
    spec = open_volume(str(tmp_path / "a")).spec
    assert np.allclose(spec.voxel_size, (40, 4, 8)) and np.allclose(spec.offset, (3, 2, 1))


def test_a_plain_n5_array_needs_a_voxel_size(tmp_path):
    n5_array(tmp_path / "a")
    with pytest.raises(DataError, match=r'says no voxel size; add it to the file in nm, as "resolution": \[X, Y, Z\]'):
        open_volume(str(tmp_path / "a"))
    file = tmp_path / "a/attributes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"resolution": [8, 4, 40], "offset": [1, 2, 3]}))
    spec = open_volume(str(tmp_path / "a")).spec
    assert spec.voxel_size == (40, 4, 8) and spec.offset == (3, 2, 1)


def test_all_five_axes_of_bio_formats_are_read(tmp_path):
    data = np.arange(60, dtype="uint8").reshape(1, 1, 3, 4, 5)
    group = zarr.create_group(tmp_path / "o", zarr_format=2)
    group.create_array("0", data=data)
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": n, **({"unit": "micrometer"} if n in "zyx" else {})} for n in "tczyx"],
            "datasets": [
                {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 0.04, 0.008, 0.008]}]}
            ],
        }
    ]
    volume = open_volume(str(tmp_path / "o"))
    assert volume.spec.shape == (3, 4, 5) and np.allclose(volume.spec.voxel_size, (40, 8, 8))
    assert np.array_equal(volume.read(volume.spec.box), data[0, 0])


def test_a_turned_bdv_volume_is_refused(image, tmp_path):
    report = export(image, tmp_path / "o.n5", "bdv-n5")
    xml = Path(report.url)
    text = xml.read_text()
    xml.write_text(text.replace("8.0 0.0 0.0 -24.0", "8.0 1.0 0.0 -24.0"))
    with pytest.raises(DataError, match="turns, mirrors or shears the volume; resample it"):
        open_volume(report.url)
    xml.write_text(text.replace("<unit>nm", "<unit>um"))
    assert np.allclose(open_volume(report.url).spec.voxel_size, (40000, 8000, 8000))
    xml.write_text(text[:200])
    with pytest.raises(DataError, match="damaged XML"):
        open_volume(report.url)


@pytest.mark.parametrize("format", FORMATS)
def test_workflows_take_every_format(format, image, tmp_path):
    """The same run, whatever format the image is in."""
    from neurokube.workflow.plan import input_key
    from neurokube.workflow.template import write_workflow

    report = export(image, tmp_path / "o.n5", format)
    assert input_key(open_volume(report.url), None) == input_key(open_volume(report.url), None)
    write_workflow(report.url, str(tmp_path / "w.yaml"), model="none")
    assert f'path: "{Path(report.url).relative_to(tmp_path)}"' in (tmp_path / "w.yaml").read_text()


# Bad input


def test_destinations_that_cannot_be(image, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="exists and is not a volume"):
        export(image, full, "n5", overwrite=True)
    with pytest.raises(UsageError, match="is, holds or lies in the source"):
        export(image, tmp_path, "n5")
    export(image, tmp_path / "o", "n5", levels=1)
    with pytest.raises(UsageError, match="exists; choose another destination, or replace it with --overwrite"):
        export(image, tmp_path / "o", "precomputed")
    export(image, tmp_path / "o", "precomputed", levels=1, overwrite=True)
    assert open_volume(str(tmp_path / "o")).format == "neuroglancer-precomputed"
    assert not (tmp_path / "o.partial").exists() and not (tmp_path / "o/.neurokube-export").exists()
    container = tmp_path / "d.n5"
    export(image, container, "paintera", levels=1)
    with pytest.raises(UsageError, match="exists and is not a volume"):
        export(image, container, "n5", overwrite=True)
    with pytest.raises(UsageError, match="name a container or a group in one"):
        export(image, tmp_path / "plain", "paintera")


def test_options_that_do_not_fit(image, tmp_path):
    for options, words in (
        ({"format": "jpg"}, "--format jpg: choose one of ome-zarr"),
        ({"format": "n5", "scale": 3}, "has the resolutions 0 to 0"),
        ({"format": "n5", "region": Box((0, 0, 0), (99, 9, 9))}, "is not inside"),
        ({"format": "n5", "compression": "lzma"}, "this format has gzip:LEVEL, zstd:LEVEL"),
        ({"format": "n5", "channel": 0}, "has no channels"),
    ):
        with pytest.raises(UsageError, match=words):
            export_volume(image.url, str(tmp_path / "o"), quiet=True, **options)
    big = make(tmp_path / "big.zarr", VolumeSpec((4, 4, 100), "uint64", (8.0, 8.0, 8.0)))
    with pytest.raises(UsageError, match="export with --levels 1, or with --labels"):
        export(big, tmp_path / "o", "n5")
    export(big, tmp_path / "o", "n5", labels=True)
    assert open_volume(str(tmp_path / "o")).spec.kind == "labels"


def test_no_volume_there(tmp_path):
    with pytest.raises(DataError, match="no volume there"):
        open_volume(str(tmp_path))
    (tmp_path / "attributes.json").write_text('{"n5": "4.0.0"}')
    with pytest.raises(DataError, match="neither a dataset nor a group"):
        open_volume(str(tmp_path))
    (tmp_path / "attributes.json").unlink()
    (tmp_path / "info").write_text('{"@type": "neuroglancer_legacy_mesh"}')
    with pytest.raises(DataError, match="describes neuroglancer_legacy_mesh; give the URL of a volume"):
        open_volume(str(tmp_path))


@pytest.mark.parametrize("format", FORMATS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=DAMAGED, deadline=None)
def test_damaged_files_are_one_line(format, seed, tmp_path_factory):
    """Cut, flipped or edited, a file never leads to anything but an error of one line, or to other values."""
    folder = tmp_path_factory.mktemp("damage")
    spec = VolumeSpec((10, 20, 70), "uint64", (8.0, 8.0, 8.0), kind="labels")
    report = export(make(folder / "v.zarr", spec), folder / "o.n5", format)
    rng = random.Random(seed)
    root = folder / "o.n5"
    file = rng.choice(sorted(p for p in root.rglob("*") if p.is_file()))
    data = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    try:
        volume = open_volume(report.url)
        for level in range(len(volume.arrays)):
            volume.read(Box.of(volume.level_shape(level)), level)
    except (DataError, TryAgainError) as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("format", ["n5", "paintera"])
def test_a_full_disk_loses_nothing(format, image, labels, small_disk):
    """What was written stays, and the export goes on once there is space."""
    volume = labels if format == "paintera" else image
    plain = {"compression": "raw", "levels": 1, "workers": 1}
    report = None
    for _ in range(2):
        with pytest.raises(TryAgainError, match="free some space") as refusal:
            report = export(volume, small_disk / "d.n5", format, **plain)
        assert "\n" not in str(refusal.value)
        with pytest.raises(DataError):
            open_volume(str(small_disk / "d.n5/labels" if format == "paintera" else small_disk / "d.n5"))
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    report = export(volume, small_disk / "d.n5", format, **plain)
    assert np.array_equal(open_volume(report.url).read(SPEC.box), volume.read(SPEC.box))


def test_an_unknown_codec_is_one_line(image, tmp_path):
    export(image, tmp_path / "o", "n5", levels=1)
    file = tmp_path / "o/s0/attributes.json"
    file.write_text(file.read_text().replace('"gzip"', '"lerc"'))
    with pytest.raises(DataError, match="lerc") as refusal:
        open_volume(str(tmp_path / "o"))
    assert "\n" not in str(refusal.value)


# Kills

KILLED = """
import sys
from neurokube.__main__ import main
sys.argv = ["neurokube", "export", {source!r}, {destination!r}, "--format", {format!r}, "--quiet"]
import neurokube.volumes.exporting as exporting
exporting.TASK_BYTES, exporting.MOST_BYTES, exporting.EVERY = 1 << 16, 1 << 16, 0.02
main()
"""


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("format", ["ome-zarr", "n5", "paintera", "precomputed"])
def test_killed_exports_go_on_and_end_alike(format, tmp_path):
    kind, dtype = ("labels", "uint64") if format == "paintera" else ("image", "uint8")
    # multisets take their time
    spec = VolumeSpec((48, 140, 260) if kind == "labels" else (96, 400, 390), dtype, (40.0, 8.0, 8.0), kind=kind)
    volume = make(tmp_path / "v.zarr", spec)
    report = export(volume, tmp_path / "whole.n5", format)
    expected = files(Path(report.url))
    destination = tmp_path / "killed.n5"
    partial = Path(str(Path(report.url)).replace("whole.n5", "killed.n5") + ".partial")
    end = Path(str(partial).removesuffix(".partial"))
    code = KILLED.format(source=volume.url, destination=str(destination), format=format)
    rng, kills, written = random.Random(0), 0, 0
    while not end.exists():
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        goal = written + rng.randrange(1, 2 + len(expected) // 5)
        while process.poll() is None and kills < 5:
            written = sum(1 for p in partial.rglob("*") if p.is_file()) if partial.exists() else 0
            if written >= goal:
                process.send_signal(signal.SIGKILL)
                kills += 1
                with pytest.raises(DataError):
                    open_volume(str(end))
                break
            time.sleep(0.002)
        _, said = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said
    assert kills >= 2
    resumed = files(end)
    # a whole shard or chunk, wherever the kill struck; what tensorstore had not renamed has another name
    left = [name for name in resumed if name not in expected]
    assert not left or all("__lock" in name or ".tmp" in name for name in left), left
    different = [name for name, data in expected.items() if resumed.get(name) != data]
    assert [name for name in different if not name.endswith((".json", "info"))] == []


def test_what_was_written_is_not_written_again(image, tmp_path, monkeypatch):
    import neurokube.volumes.exporting as exporting

    monkeypatch.setattr(exporting, "TASK_BYTES", 1 << 16)
    monkeypatch.setattr(exporting, "MOST_BYTES", 1 << 16)
    done = []
    record = exporting.Ledger.record

    def counting(self, level, block):
        record(self, level, block)
        done.append((level, block))
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(exporting.Ledger, "record", counting)
    with pytest.raises(KeyboardInterrupt):
        export(image, tmp_path / "o", "n5", workers=1)
    report = export(image, tmp_path / "o", "n5", workers=1)
    assert report.resumed
    assert len(done) == len(set(done)) > 2
    assert np.array_equal(open_volume(str(tmp_path / "o")).read(SPEC.box), image.read(SPEC.box))


def test_another_plan_begins_anew(image, tmp_path, monkeypatch):
    import neurokube.volumes.exporting as exporting

    def stop(self, level, block):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting.Ledger, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            export(image, tmp_path / "o", "n5", compression="zstd")
    assert (tmp_path / "o.partial").exists()
    assert not export(image, tmp_path / "o", "precomputed").resumed
    assert open_volume(str(tmp_path / "o")).format == "neuroglancer-precomputed"
    assert not (tmp_path / "o/s0").exists()


def stopped_after(count, monkeypatch, do):
    """Do something that is stopped when so many blocks are recorded."""
    import neurokube.volumes.exporting as exporting

    record, done = exporting.Ledger.record, []

    def counting(self, level, block):
        record(self, level, block)
        done.append(block)
        if len(done) == count:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "TASK_BYTES", 1 << 16)
        patch.setattr(exporting, "MOST_BYTES", 1 << 16)
        patch.setattr(exporting.Ledger, "record", counting)
        with pytest.raises(KeyboardInterrupt):
            do()


@pytest.mark.parametrize("where", ["folder", "url"])
def test_what_another_export_has_half_removed_is_not_gone_on_with(where, image, tmp_path, monkeypatch):
    import neurokube.volumes.exporting as exporting

    destination = str(tmp_path / "o") if where == "folder" else f"memory://export/half-{os.getpid()}"
    same = {"format": "n5", "workers": 1, "quiet": True}
    stopped_after(3, monkeypatch, lambda: export_volume(image.url, destination, **same))
    rmtree, delete_all = shutil.rmtree, exporting.Store.delete_all

    def removing(path, **options):
        rmtree(path, **options)
        raise KeyboardInterrupt

    def deleting(self, prefix="", but=""):
        delete_all(self, prefix, but)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting.shutil, "rmtree", removing)
        patch.setattr(exporting.Store, "delete_all", deleting)
        with pytest.raises(KeyboardInterrupt):
            export_volume(image.url, destination, format="n5", compression="zstd", quiet=True)
    assert not export_volume(image.url, destination, **same).resumed
    assert np.array_equal(open_volume(destination).read(SPEC.box), image.read(SPEC.box))


def test_a_kill_between_the_last_two_steps_is_made_good(image, tmp_path, monkeypatch):
    import neurokube.volumes.exporting as exporting

    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting._Place, "_announce", stop)
        with pytest.raises(KeyboardInterrupt):
            export(image, tmp_path / "o.n5", "bdv-n5")
    assert (tmp_path / "o.n5/.neurokube-export").exists() and not (tmp_path / "o.xml").exists()
    with pytest.raises(UsageError, match="exists; choose another destination, or replace it with --overwrite"):
        export(image, tmp_path / "o.n5", "n5")
    written = (tmp_path / "o.n5/setup0/timepoint0/s0/0/0/0").stat().st_mtime_ns
    assert export(image, tmp_path / "o.n5", "bdv-n5").resumed
    assert (tmp_path / "o.n5/setup0/timepoint0/s0/0/0/0").stat().st_mtime_ns == written
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.zarr", "o.n5", "o.xml"]
    assert not (tmp_path / "o.n5/.neurokube-export").exists()
    assert np.array_equal(open_volume(str(tmp_path / "o.xml")).read(SPEC.box), image.read(SPEC.box))


def test_slices_of_another_channel_are_not_gone_on_with(tmp_path, monkeypatch):
    from neurokube.volumes.files import writing

    spec = VolumeSpec((20, 70, 60), "uint8", (8.0, 8.0, 8.0), channels=2)
    data = np.random.default_rng(0).integers(0, 255, (2, *spec.shape)).astype("uint8")
    volume = make(tmp_path / "c.zarr", spec, data)
    monkeypatch.setattr(writing, "BATCH_BYTES", 70 * 60 * 4)
    view = sys.modules["neurokube.volumes.exporting"].View
    read = view.read

    def stop(self, box, level=0):
        if box.start[0] >= 8:
            raise KeyboardInterrupt
        return read(self, box, level)

    with monkeypatch.context() as patch:
        patch.setattr(view, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            export(volume, tmp_path / "s", "tiff-stack", channel=0)
    assert len(list((tmp_path / "s.partial").glob("s*.tif"))) == 8
    export(volume, tmp_path / "s", "tiff-stack", channel=1)
    import tifffile

    assert np.array_equal(tifffile.imread(sorted((tmp_path / "s").glob("*.tif"))), data[1])


@pytest.mark.parametrize("format", ["tiff-stack", "vast"])
def test_a_folder_of_slices_is_replaced_when_asked_for(format, image, tmp_path):
    export(image, tmp_path / "s", format)
    with pytest.raises(UsageError, match="exists; choose another destination, or replace it with --overwrite"):
        export(image, tmp_path / "s", format)
    region = Box((0, 0, 0), (9, 150, 131))
    export(image, tmp_path / "s", format, region=region, overwrite=True)
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ["image.zarr", "s"] and len(list((tmp_path / "s").iterdir())) == 9
    )
    (tmp_path / "s" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match=r"holds more than exported slices \(thesis.txt\)"):
        export(image, tmp_path / "s", format, overwrite=True)
    assert (tmp_path / "s" / "thesis.txt").exists()
    with pytest.raises(UsageError, match="is a folder and would become a file"):
        export(image, tmp_path / "s", "mrc", overwrite=True)
    export(image, tmp_path / "a.mrc", "mrc")
    with pytest.raises(UsageError, match="is a file and would become a folder"):
        export(image, tmp_path / "a.mrc", format, overwrite=True)


def test_labels_for_vast_come_back(labels, tmp_path, command):
    code, out, _ = command("export", labels.url, tmp_path / "s", "-f", "vast", "--relabel", "-q")
    assert code == 0 and "uint16" in out
    table = [int(line.partition(",")[2]) for line in (tmp_path / "s.labels.csv").read_text().splitlines()[1:]]
    back = tmp_path / "back.zarr"
    code, _, err = command("import", tmp_path / "s", back, "--voxel-size", "40,8,8", "-q", "--to-8bit", "auto")
    assert code == 65 and "use --labels where colours are labels, as of VAST" in err and err.count("\n") == 1
    code, out, _ = command("import", tmp_path / "s", back, "--voxel-size", "40,8,8", "-q", "--labels")
    assert code == 0 and "red * 65536 + green * 256 + blue" in out
    new = open_volume(str(back))
    ids = np.array([0, *table], np.uint64)
    assert new.spec.kind == "labels"
    assert np.array_equal(ids[new.read(new.spec.box)], labels.read(LABELS.box))


def test_a_shard_of_precomputed_is_written_once(labels, tmp_path, monkeypatch):
    import neurokube.volumes.exporting as exporting

    def writes():
        found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/write")
        return found[0]["values"][0]["value"]

    monkeypatch.setattr(exporting, "EVERY", 1e9)
    before = writes()
    export(labels, tmp_path / "o", "precomputed", levels=1)
    shards = list((tmp_path / "o").rglob("*.shard"))
    # besides: the info file, and the ledger, which is begun three times, ended and removed
    assert len(shards) == 1 and writes() - before <= len(shards) + 6


def test_many_threads_take_no_more_memory(image, tmp_path, monkeypatch):
    import neurokube.volumes.exporting as exporting

    monkeypatch.setattr(exporting, "MEMORY", 3 << 20)
    asked = []
    together = exporting.together
    monkeypatch.setattr(exporting, "together", lambda n, *rest: asked.append(n) or together(n, *rest))
    export(image, tmp_path / "o", "ome-zarr-0.4", workers=64)
    assert set(asked) == {3}


def test_a_url_gets_its_metadata_last(image, monkeypatch):
    import neurokube.volumes.exporting as exporting

    url = "memory://export/last"

    def stop(self, quiet):
        self.target.write(0, self.blocks[0].box(0), self.view.read(self.blocks[0].box(0)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting._Writing, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            export_volume(image.url, url, format="precomputed", quiet=True)
    with pytest.raises(DataError, match="no volume there"):
        open_volume(url)
    assert export_volume(image.url, url, format="precomputed", quiet=True).resumed
    assert np.array_equal(open_volume(url).read(SPEC.box), image.read(SPEC.box))
    with pytest.raises(UsageError, match="holds something"):
        export_volume(image.url, url, format="n5", quiet=True)
    export_volume(image.url, url, format="n5", quiet=True, overwrite=True)
    assert open_volume(url).format == "n5"


def test_the_command_says_what_it_did(image, tmp_path):
    command = [sys.executable, "-m", "neurokube", "export", image.url, str(tmp_path / "o.n5"), "-f", "n5", "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "n5, 41 x 150 x 131 voxels (z y x) of 40 x 8 x 8 nm, uint8, 3 resolutions" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 64 and again.stderr.count("\n") == 1
