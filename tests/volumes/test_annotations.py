import csv
import gzip
import json
import struct
import zipfile
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import roifile
import tensorstore as ts
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neurokube.blocks import Box
from neurokube.errors import DataError, UsageError
from neurokube.volumes import VolumeSpec, create, open_volume
from neurokube.volumes.annotations import import_annotation
from neurokube.volumes.annotations.outlines import fill

SHAPE, SIZE, PLACE = (6, 20, 30), (40.0, 8.0, 4.0), (80.0, 16.0, 4.0)


@pytest.fixture
def image(tmp_path: Path) -> str:
    """The image of all annotations; no two of its axes are alike."""
    url = str(tmp_path / "image.zarr")
    create(url, VolumeSpec(SHAPE, "uint8", SIZE, PLACE), attributes={"fingerprint": "of the image"})
    return url


def painted(dtype: str = "uint32", large: int = 7) -> np.ndarray:
    data = np.zeros(SHAPE, dtype)
    data[2, 3:9, 5:7] = 1
    data[4, 10:12, 20:29] = large
    return data


def check(report, url: Path, expected: np.ndarray) -> None:
    """Compare what was imported, put back into the image, with what was painted."""
    volume = open_volume(str(url))
    found = np.zeros(SHAPE, expected.dtype)
    found[report.region.slices] = volume.read(volume.spec.box)
    np.testing.assert_array_equal(found, expected)
    filled = np.nonzero(expected)
    assert report.region == Box(tuple(int(k.min()) for k in filled), tuple(int(k.max()) + 1 for k in filled))
    assert volume.spec.voxel_size == SIZE and volume.spec.kind == "labels"
    place = tuple(o + s * v for o, s, v in zip(PLACE, report.region.start, SIZE, strict=True))
    assert volume.spec.offset == report.offset == place
    ids, counts = np.unique(expected[filled], return_counts=True)
    assert report.voxels == dict(zip(ids.tolist(), counts.tolist(), strict=True))
    assert report.sections == tuple(np.unique(filled[0]).tolist())
    assert volume.attributes["names"] == {str(k): name for k, name in report.names.items()}


def refused(error: type[Exception], source: object, image: str, **options: object) -> str:
    destination = Path(image).with_name("refused.zarr")
    with pytest.raises(error) as caught:
        import_annotation(str(source), str(destination), image=image, quiet=True, **options)
    assert "\n" not in str(caught.value) and not destination.exists()
    return str(caught.value)


# Plain label stacks


def write_slices(folder: Path, data: np.ndarray) -> Path:
    folder = folder / "slices"
    folder.mkdir()
    for z, section in enumerate(data.astype(np.uint8)):
        Image.fromarray(section).save(folder / f"s{z:03}.png")
    return folder


def write_tiff(folder: Path, data: np.ndarray) -> Path:
    # as napari saves a Labels layer
    tifffile.imwrite(folder / "Labels.tif", data, compression="zlib")
    return folder / "Labels.tif"


def write_hyperstack(folder: Path, data: np.ndarray) -> Path:
    metadata = {"spacing": 0.04, "unit": "um", "axes": "ZYX"}
    tifffile.imwrite(folder / "fiji.tif", data.astype(np.uint16), imagej=True, resolution=(250, 125), metadata=metadata)
    return folder / "fiji.tif"


def write_hdf5(folder: Path, data: np.ndarray) -> Path:
    with h5py.File(folder / "labels.h5", "w") as file:
        file["labels"] = data
    return folder / "labels.h5"


def write_mrc(folder: Path, data: np.ndarray) -> Path:
    with mrcfile.new(folder / "mask.mrc") as file:
        file.set_data(data.astype(np.int8))
        file.voxel_size = (40, 80, 400)
    return folder / "mask.mrc"


def write_npy(folder: Path, data: np.ndarray) -> Path:
    np.save(folder / "labels.npy", data.astype(np.float32))
    return folder / "labels.npy"


def zarr(folder: Path, data: np.ndarray, driver: str = "zarr3", **metadata: object) -> Path:
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder}/"}}
    if metadata:
        spec["metadata"] = metadata
    array = ts.open(spec, create=True, dtype=data.dtype, shape=data.shape).result()
    array[...] = data
    return folder


def write_zarr3(folder: Path, data: np.ndarray) -> Path:
    return zarr(folder / "labels.zarr", data)


def write_zarr2(folder: Path, data: np.ndarray) -> Path:
    return zarr(folder / "labels2.zarr", data, "zarr", chunks=[2, 7, 9], dimension_separator="/")


WRITERS = [write_slices, write_tiff, write_hyperstack, write_hdf5, write_mrc, write_npy, write_zarr3, write_zarr2]


@pytest.mark.parametrize("write", WRITERS)
def test_a_label_stack_keeps_its_ids_and_place(tmp_path, image, write):
    source = write(tmp_path, painted())
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, quiet=True, names={7: "mito"})
    check(report, tmp_path / "a.zarr", painted())
    assert report.dtype == "uint8" and report.names == {7: "mito"}


@pytest.mark.filterwarnings("ignore:.*stored as RGB:DeprecationWarning")
@pytest.mark.parametrize("write", WRITERS)
def test_a_cut_out_is_placed_by_its_first_voxel(tmp_path, image, write):
    source = write(tmp_path, painted()[2:5, 3:14, 4:])
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, offset=(2, 3, 4), quiet=True)
    check(report, tmp_path / "a.zarr", painted())


@pytest.mark.parametrize(
    ("largest", "dtype"), [(255, "uint8"), (256, "uint32"), (2**32, "uint64"), (2**64 - 1, "uint64")]
)
def test_the_type_is_the_smallest_that_holds_the_ids(tmp_path, image, largest, dtype):
    source = zarr(tmp_path / "l.zarr", painted("uint64", largest))
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, quiet=True)
    check(report, tmp_path / "a.zarr", painted("uint64", largest))
    assert report.dtype == dtype


def test_annotated_sections_are_reported_with_where_they_start(tmp_path, image):
    source = write_npy(tmp_path, painted()[2:5])
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, quiet=True)
    assert report.sections == (0, 2)
    assert report.remarks == ("3 sections from section 0 of the image on (--at places it)",)


def ome(version: str) -> dict[str, object]:
    axes = [{"name": "t", "type": "time"}] + [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    steps = [
        {"type": "scale", "scale": [1, 0.04, 0.008, 0.004]},
        {"type": "translation", "translation": [0, 0.16, 0.024, 0.008]},
    ]
    scales = [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}], "version": version}]
    return {"multiscales": scales}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_ome_zarr_lies_where_its_metadata_says(tmp_path, image, version):
    folder = tmp_path / "ome.zarr"
    zarr(folder / "labels" / "cells" / "0", painted()[None, 2:, 1:, 1:], "zarr" if version == "0.4" else "zarr3")
    group = folder / "labels" / "cells"
    if version == "0.4":
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (group / ".zgroup").write_text('{"zarr_format": 2}')
        (group / ".zattrs").write_text(json.dumps(ome(version)))
    else:
        node = {"zarr_format": 3, "node_type": "group"}
        (folder / "zarr.json").write_text(json.dumps(node))
        (group / "zarr.json").write_text(json.dumps(node | {"attributes": {"ome": ome(version)}}))
    report = import_annotation(str(folder), str(tmp_path / "a.zarr"), image=image, dataset="labels/cells", quiet=True)
    check(report, tmp_path / "a.zarr", painted())


# napari, Fiji, IMOD


def write_shapes(file: Path, shapes: list[tuple[str, list[tuple[float, ...]]]]) -> Path:
    with file.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["index", "shape-type", "vertex-index", "axis-0", "axis-1", "axis-2"])
        for k, (kind, corners) in enumerate(shapes):
            writer.writerows([k, kind, i, *corner] for i, corner in enumerate(corners))
    return file


def test_napari_shapes_are_filled_in_their_sections(tmp_path, image):
    # napari puts the centre of a voxel at whole numbers
    shapes = [
        ("rectangle", [(2, 2.5, 4.5), (2, 2.5, 6.5), (2, 8.5, 6.5), (2, 8.5, 4.5)]),
        ("line", [(1, 0, 0), (1, 5, 5)]),
        ("polygon", [(4.0, 9.6, 19.6), (4.0, 9.6, 28.4), (4.0, 11.4, 28.4), (4.0, 11.4, 19.6)]),
        ("ellipse", [(5, 4, 10), (5, 4, 20), (5, 8, 20), (5, 8, 10)]),
        ("path", [(0, -3, 27), (0, 3.2, 27), (0, 3.2, 40), (0, -3, 40)]),
    ]
    source = write_shapes(tmp_path / "Shapes.csv", shapes)
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, quiet=True, names={3: "axon"})
    expected = painted("uint8", 3)
    y, x = np.mgrid[:20, :30]
    expected[5][((y - 6) / 2) ** 2 + ((x - 15) / 5) ** 2 < 1 - 1e-4] = 4
    expected[0, :4, 27:] = 5
    # the ring of an ellipse has corners: at its ends they may miss the centre of a voxel
    found = np.zeros_like(expected)
    found[report.region.slices] = open_volume(str(tmp_path / "a.zarr")).read(Box.of(report.region.shape))
    found[5][(found[5] == 4) & (expected[5] == 0)] = 0
    np.testing.assert_array_equal(found, expected)
    assert report.names == {3: "axon"}
    assert report.remarks == (
        "passed over, having no inside: 1 line",
        "what was drawn beyond the image was left out",
    )


def polygon(name: str, z: int, corners: list[tuple[float, float]], **options: object) -> roifile.ImagejRoi:
    roi = roifile.ImagejRoi.frompoints([(x, y) for y, x in corners], name=name, position=z - 1 if z else None)
    for key, value in options.items():
        setattr(roi, key, value)
    return roi


def box_roi(kind: roifile.ROI_TYPE, name: str, z: int, box: tuple[int, int, int, int]) -> roifile.ImagejRoi:
    top, left, bottom, right = box
    return roifile.ImagejRoi(roitype=kind, name=name, z_position=z, top=top, left=left, bottom=bottom, right=right)


def test_rois_of_fiji_are_filled_in_their_slices(tmp_path, image):
    rois = [
        polygon("mito-1", 3, [(3, 5), (3, 7), (9, 7), (9, 5)]),
        box_roi(roifile.ROI_TYPE.RECT, "axon 12", 5, (10, 20, 12, 29)),
        box_roi(roifile.ROI_TYPE.OVAL, "mito", 6, (2, 4, 8, 14)),
        box_roi(roifile.ROI_TYPE.LINE, "scale bar", 1, (0, 0, 0, 9)),
        polygon("0001-0003-0009", 0, [(2, 8), (2, 11), (5, 11), (5, 8)]),
    ]
    path = [
        0,
        10.0,
        2.0,
        1,
        20.0,
        2.0,
        1,
        20.0,
        9.0,
        1,
        10.0,
        9.0,
        4,
        0,
        12.0,
        4.0,
        1,
        15.0,
        4.0,
        1,
        15.0,
        7.0,
        1,
        12.0,
        7.0,
        4,
    ]
    composite = box_roi(roifile.ROI_TYPE.RECT, "axon-2", 2, (2, 10, 9, 20))
    composite.multi_coordinates = np.array(path, np.float32)
    composite.shape_roi_size = len(path)
    roifile.roiwrite(tmp_path / "RoiSet.zip", [*rois, composite])
    report = import_annotation(str(tmp_path / "RoiSet.zip"), str(tmp_path / "a.zarr"), image=image, quiet=True)
    expected = painted("uint8", 2)
    y, x = np.mgrid[:20, :30]
    expected[5][((y + 0.5 - 5) / 3) ** 2 + ((x + 0.5 - 9) / 5) ** 2 < 1] = 1
    expected[0, 2:5, 8:11] = 3
    expected[1, 2:9, 10:20] = 2
    expected[1, 4:7, 12:15] = 0
    check(report, tmp_path / "a.zarr", expected)
    assert report.names == {1: "mito", 2: "axon", 3: "roi"}


def test_names_asked_for_give_the_classes_their_ids(tmp_path, image):
    polygon("axon-4", 3, [(3, 5), (3, 7), (9, 7), (9, 5)]).tofile(tmp_path / "one.roi")
    report = import_annotation(
        str(tmp_path / "one.roi"), str(tmp_path / "a.zarr"), image=image, quiet=True, names={5: "mito", 9: "axon"}
    )
    assert report.voxels == {9: 12} and report.names == {9: "axon"}
    message = refused(DataError, tmp_path / "one.roi", image, names={5: "mito"})
    assert "'axon'" in message and "mito" in message


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack(">I", len(data)) + data


def imod(
    objects: list[tuple[bytes, int, list[tuple[int, list[tuple[float, float, float]]]]]], **header: object
) -> bytes:
    """A model by https://bio3d.colorado.edu/imod/doc/binspec.html, points (x, y, z)."""
    flags, pixel, units = header.get("flags", 1 << 14), header.get("pixel", 0.0), header.get("units", -9)
    data = b"IMODV1.2" + struct.pack(
        ">128s4iI4i6f5ffii3f",
        b"model",
        30,
        20,
        6,
        len(objects),
        flags,
        *[0] * 4,
        *[0.0] * 3,
        1,
        1,
        1,
        *[0] * 5,
        pixel,
        units,
        0,
        0,
        0,
        0,
    )
    for name, kind, contours in objects:
        data += b"OBJT" + struct.pack(
            ">64s16IiIii3fi8Bii", name, *[0] * 16, len(contours), kind, 0, 0, 1, 0, 0, 1, *[0] * 8, 0, 0
        )
        for flag, points in contours:
            data += b"CONT" + struct.pack(">iIii", len(points), flag, 0, 0) + np.array(points, ">f4").tobytes()
            data += chunk(b"SIZE", bytes(4 * len(points)))
        data += (
            chunk(b"IMAT", bytes(16))
            + b"MESH"
            + struct.pack(">iiIhh", 2, 1, 0, 0, 0)
            + bytes(24)
            + struct.pack(">i", -1)
        )
    origin = np.array(header.get("origin", (0, 0, 0)), float)
    minx = np.array([[1, 1, 1], origin, [0] * 3, [40, 80, 400], [0] * 3, [0] * 3], ">f4")
    return data + chunk(b"MINX", minx.tobytes()) + b"IEOF"


def square(y0: float, y1: float, x0: float, x1: float, z: float) -> list[tuple[float, float, float]]:
    return [(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]


OBJECTS = [
    (b"mito", 0, [(0, square(3, 9, 5, 7, 2)), (1 << 3, square(0, 9, 0, 9, 0)), (0, [(1, 1, 0), (5, 1, 1), (5, 5, 2)])]),
    (b"", 1 << 3, [(0, square(0, 9, 0, 9, 3))]),
    # a cell with a hole, something in the hole, and a part that overlaps the cell
    (b"cell", 0, [(0, square(*box, 4)) for box in ((1, 19, 1, 19), (3, 16, 3, 16), (5, 9, 6, 12), (17, 20, 17, 29))]),
]  # fmt: skip


def imod_expected() -> np.ndarray:
    expected = np.zeros(SHAPE, "uint8")
    expected[2, 3:9, 5:7] = 1
    expected[4, 1:19, 1:19] = 2
    expected[4, 3:16, 3:16] = 0
    expected[4, 5:9, 6:12] = 2
    expected[4, 17:20, 17:29] = 2
    return expected


def test_contours_of_imod_are_filled_with_their_holes(tmp_path, image):
    (tmp_path / "cells.mod").write_bytes(imod(OBJECTS))
    report = import_annotation(str(tmp_path / "cells.mod"), str(tmp_path / "a.zarr"), image=image, quiet=True)
    check(report, tmp_path / "a.zarr", imod_expected())
    assert report.names == {1: "mito", 2: "cell"}
    assert report.remarks == ("passed over, as open or not in one section: 3 contours",)


def test_an_imod_model_of_a_part_of_the_image_finds_its_place(tmp_path, image):
    shift = np.array((1, 2, 1))  # x, y, z
    moved = [(n, k, [(f, [tuple(np.subtract(p, shift)) for p in points]) for f, points in cs]) for n, k, cs in OBJECTS]
    (tmp_path / "cells.mod").write_bytes(imod(moved, origin=shift * (40, 80, 400)))
    report = import_annotation(str(tmp_path / "cells.mod"), str(tmp_path / "a.zarr"), image=image, quiet=True)
    check(report, tmp_path / "a.zarr", imod_expected())


@given(
    st.lists(st.tuples(st.floats(-5, 15), st.floats(-5, 15)), min_size=3, max_size=9),
    st.integers(-4, 6),
    st.integers(-4, 6),
)
def test_filling_a_part_is_the_part_of_what_is_filled(corners, y, x):
    ring = np.array(corners)
    whole = fill([ring], (-6, -6), (24, 24))
    np.testing.assert_array_equal(fill([ring], (y, x), (5, 7)), whole[y + 6 : y + 11, x + 6 : x + 13])


# Paintera


def n5(folder: Path, data: np.ndarray, **attributes: object) -> Path:
    """An array of axes (z, y, x) as N5 keeps it: dimensions in order x, y, z."""
    metadata = {
        "blockSize": [8, 7, 2],
        "compression": {"type": "gzip"},
        "dataType": data.dtype.name,
        "dimensions": list(data.shape[::-1]),
    }
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{folder}/"}, "metadata": metadata}
    array = ts.open(spec, create=True).result()
    array[...] = data.T
    put(folder, **attributes)
    return folder


def put(folder: Path, **attributes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "attributes.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | attributes))


def multisets(folder: Path, data: np.ndarray, *, with_argmax: bool) -> Path:
    """The same as label multisets, by https://github.com/saalfeldlab/imglib2-label-multisets."""
    block = (2, 7, 8)
    put(
        folder,
        dimensions=list(data.shape[::-1]),
        blockSize=list(block[::-1]),
        dataType="uint8",
        compression={"type": "gzip"},
        isLabelMultiset=True,
    )
    for z, y, x in np.ndindex(*(-(-n // b) for n, b in zip(data.shape, block, strict=True))):
        part = data[2 * z : 2 * z + 2, 7 * y : 7 * y + 7, 8 * x : 8 * x + 8]
        if not part.any():
            continue
        distinct, which = np.unique(part, return_inverse=True)
        # beside each label another one that is rarer
        entries = b"".join(struct.pack("<iQiQi", 2, int(k), 3, 99, 2) for k in distinct)
        argmax = part.astype(">u8").tobytes() if with_argmax else b""
        data_of = (
            struct.pack(">i", len(argmax) // 8) + argmax + (28 * which.reshape(-1)).astype(">i4").tobytes() + entries
        )
        header = struct.pack(">HH3II", 1, 3, *part.shape[::-1], len(data_of))
        file = folder / str(x) / str(y) / str(z)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(header + gzip.compress(data_of))
    return folder


def paintera(folder: Path, data: np.ndarray, kind: str = "plain") -> Path:
    root = folder / "painted.n5"
    put(root, n5="2.5.1")
    group = root / "volumes" / "labels"
    put(group, painteraData={"type": "label"}, maxId=int(data.max()))
    place = {"resolution": [4.0, 8.0, 40.0], "offset": [8.0, 24.0, 160.0]}
    put(group / "data", multiScale=True, **place)
    if kind == "plain":
        n5(group / "data" / "s0", data)
    else:
        multisets(group / "data" / "s0", data, with_argmax=kind == "argmax")
    n5(root / "volumes" / "raw", (data > 0).astype(np.uint8))
    return root


@pytest.mark.parametrize("kind", ["plain", "argmax", "entries"])
@pytest.mark.parametrize("dataset", [None, "volumes/labels"])
def test_labels_of_paintera_lie_where_they_were_painted(tmp_path, image, kind, dataset):
    canvas = painted("uint64", 300)[2:, 1:, 1:]
    canvas[0, 0], canvas[1, 0] = 2**64 - 1, 2**64 - 3
    source = paintera(tmp_path, canvas, kind)
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, dataset=dataset, quiet=True)
    check(report, tmp_path / "a.zarr", painted("uint64", 300))


def test_what_was_merged_in_paintera_has_the_id_of_its_segment(tmp_path, image):
    source = paintera(tmp_path, painted("uint64", 300)[2:, 1:, 1:])
    folder = source / "volumes" / "labels" / "fragment-segment-assignment"
    put(folder, dimensions=[3, 2], blockSize=[3, 1], dataType="uint64", compression={"type": "gzip"})
    (folder / "0").mkdir()
    for k, row in enumerate(([300, 1, 17], [40, 50, 50])):  # fragments, and their segments
        block = struct.pack(">HH2I", 0, 2, 3, 1) + gzip.compress(np.array(row, ">u8").tobytes())
        (folder / "0" / str(k)).write_bytes(block)
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, quiet=True)
    assert report.voxels == {50: 12, 40: 18}


# webKnossos


def webknossos_layer(folder: Path, data: np.ndarray, scale: object = (4.0, 8.0, 40.0), mag: int = 1) -> Path:
    """A volume layer as webKnossos writes it: axes c, x, y, z, in chunks of its buckets."""
    codecs = [
        {"name": "transpose", "configuration": {"order": [3, 2, 1, 0]}},
        {"name": "bytes", "configuration": {"endian": "little"}},
        {
            "name": "blosc",
            "configuration": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle", "typesize": 4, "blocksize": 0},
        },
    ]
    zarr(
        folder / "volumeAnnotationData" / str(mag),
        data.T[None],
        chunk_grid={"name": "regular", "configuration": {"chunk_shape": [1, 32, 32, 32]}},
        chunk_key_encoding={"name": "default", "configuration": {"separator": "."}},
        codecs=codecs,
        dimension_names=["c", "x", "y", "z"],
    )
    z, y, x = data.shape
    layer = {
        "name": "volumeAnnotationData",
        "category": "segmentation",
        "dataFormat": "zarr3",
        "boundingBox": {"topLeft": [0, 0, 0], "width": x, "height": y, "depth": z},
        "mags": [{"mag": [k, k, k], "axisOrder": {"c": 0, "x": 1, "y": 2, "z": 3}} for k in (2 * mag, mag)],
    }
    properties = {"id": {"name": "", "team": ""}, "scale": scale, "dataLayers": [layer]}
    (folder / "datasource-properties.json").write_text(json.dumps(properties))
    return folder


NML = """<things><parameters><scale x="4.0" y="8.0" z="40.0" /></parameters>
<volume id="0" name="Volume" location="data_Volume.zip" format="{format}" fallbackLayer="segmentation">
<segments><segment id="7" name="Mito &amp; co" /><segment id="1" /><segment id="12" name="gone" /></segments>
</volume></things>"""


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return target


@pytest.mark.parametrize("unpacked", [False, True])
def test_an_annotation_of_webknossos_brings_its_names(tmp_path, image, unpacked):
    layer = webknossos_layer(tmp_path / "layer", painted(), scale=[1, 1, 1])
    folder = tmp_path / "annotation"
    folder.mkdir()
    (folder / "skin__explorational.nml").write_text(NML.format(format="zarr3"))
    zipped(layer, folder / "data_Volume.zip")
    source = folder if unpacked else zipped(folder, tmp_path / "skin__explorational.zip")
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, quiet=True)
    check(report, tmp_path / "a.zarr", painted())
    assert report.names == {7: "Mito & co"}
    assert report.remarks == ("only what was edited is there, the rest of layer 'segmentation' is not",)


@pytest.mark.parametrize("scale", [[4, 8, 40], {"factor": [0.004, 0.008, 0.04], "unit": "micrometer"}])
def test_a_dataset_of_webknossos_is_read_at_its_finest_magnification(tmp_path, image, scale):
    source = webknossos_layer(tmp_path / "dataset", painted(), scale)
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, quiet=True)
    check(report, tmp_path / "a.zarr", painted())


def test_a_zipped_dataset_of_webknossos_may_be_in_a_folder(tmp_path, image):
    webknossos_layer(tmp_path / "zipped" / "dataset", painted())
    source = zipped(tmp_path / "zipped", tmp_path / "dataset.zip")
    report = import_annotation(str(source), str(tmp_path / "a.zarr"), image=image, quiet=True)
    check(report, tmp_path / "a.zarr", painted())


def test_a_coarser_magnification_does_not_fit_the_image(tmp_path, image):
    source = webknossos_layer(tmp_path / "dataset", painted(), mag=2)
    message = refused(DataError, source, image)
    assert "80 x 16 x 8 nm" in message and "40 x 8 x 4 nm" in message


def test_wkw_is_refused_with_what_to_do(tmp_path, image):
    folder = tmp_path / "annotation"
    folder.mkdir()
    (folder / "a.nml").write_text(NML.format(format="wkw"))
    (folder / "data_Volume.zip").write_bytes(b"")
    assert "as Zarr" in refused(DataError, folder, image)


def test_only_what_is_stored_is_read_of_a_huge_array(tmp_path):
    image = str(tmp_path / "huge.zarr")
    create(image, VolumeSpec((5000, 90_000, 80_000), "uint8", SIZE))
    folder = tmp_path / "l.zarr"
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [32, 32, 32]}}},
    }
    array = ts.open(spec, create=True, dtype=ts.uint32, shape=(5000, 90_000, 80_000)).result()
    array[4321, 70_000:70_010, 33:37] = 3
    report = import_annotation(str(folder), str(tmp_path / "a.zarr"), image=image, quiet=True)
    assert report.region == Box((4321, 70_000, 33), (4322, 70_010, 37)) and report.voxels == {3: 40}


# Bad input


def test_what_lies_outside_the_image_is_refused_with_both_boxes(tmp_path, image):
    whole = ("0:6,0:20,0:30",)
    stack = write_npy(tmp_path, painted())
    cases = [
        (refused(DataError, stack, image, offset=(0, 1, 0)), "0:6,1:21,0:30"),
        (
            refused(
                DataError,
                webknossos_layer(tmp_path / "wk", np.pad(painted(), ((0, 3), (0, 0), (0, 0)), "edge") + 1),
                image,
            ),
            "0:9,0:20,0:30",
        ),
        (
            refused(
                DataError, write_shapes(tmp_path / "s.csv", [("polygon", [(9, 1, 1), (9, 1, 5), (9, 5, 5)])]), image
            ),
            "9:10,1:6,1:6",
        ),
    ]
    for message, box in cases:
        assert box in message and whole[0] in message


def test_what_holds_nothing_is_refused(tmp_path, image):
    np.save(tmp_path / "empty.npy", np.zeros(SHAPE, np.uint8))
    zarr(tmp_path / "empty.zarr", np.zeros(SHAPE, np.uint8))
    (tmp_path / "empty.mod").write_bytes(imod([(b"mito", 0, [])]))
    write_shapes(tmp_path / "empty.csv", [("line", [(1, 0, 0), (1, 5, 5)])])
    for name in ("empty.npy", "empty.zarr", "empty.mod", "empty.csv"):
        message = refused(DataError, tmp_path / name, image)
        assert name in message and "nothing is painted" in message


def test_another_voxel_size_is_refused_with_both(tmp_path, image):
    with h5py.File(tmp_path / "l.h5", "w") as file:
        file["labels"] = painted()
        file["labels"].attrs["resolution"] = (40.0, 4.0, 4.0)
    message = refused(DataError, tmp_path / "l.h5", image)
    assert "40 x 4 x 4 nm" in message and "40 x 8 x 4 nm" in message
    (tmp_path / "l.mod").write_bytes(imod(OBJECTS, pixel=5.0))
    assert "5 x 5 nm" in refused(DataError, tmp_path / "l.mod", image)


def test_sections_of_another_size_are_refused(tmp_path, image):
    np.save(tmp_path / "l.npy", painted()[:, :, 1:])
    message = refused(DataError, tmp_path / "l.npy", image)
    assert "20 x 29" in message and "20 x 30" in message and "--at" in message


def test_slices_that_are_no_neighbours_are_refused(tmp_path, image):
    folder = write_slices(tmp_path, painted()[::2])
    for z in (2, 1):
        (folder / f"s{z:03}.png").rename(folder / f"s{2 * z:03}.png")
    message = refused(DataError, folder, image)
    assert "3 slices" in message and "steps of 2" in message


@pytest.mark.parametrize(("value", "words"), [(-1, "negative"), (0.5, "whole"), (np.nan, "whole")])
def test_values_that_are_no_ids_are_refused_with_their_section(tmp_path, image, value, words):
    data = painted("float32" if isinstance(value, float) else "int16")
    data[3, 1, 1] = value
    np.save(tmp_path / "l.npy", data)
    message = refused(DataError, tmp_path / "l.npy", image)
    assert words in message and "section 3" in message and "l.npy" in message


def test_a_place_between_voxels_is_refused(tmp_path, image):
    source = paintera(tmp_path, painted("uint64"))
    put(source / "volumes" / "labels" / "data", offset=[6.0, 24.0, 160.0])
    assert "between voxels" in refused(DataError, source, image)


def test_an_roi_without_a_slice_is_refused(tmp_path, image):
    polygon("mito", 0, [(3, 5), (3, 7), (9, 7)]).tofile(tmp_path / "one.roi")
    assert "'mito'" in refused(DataError, tmp_path / "one.roi", image)


def test_colour_tables_are_refused_with_how_to_keep_the_ids(tmp_path, image):
    picture = Image.fromarray(painted("uint8")[2])
    picture.putpalette(np.random.default_rng(0).integers(0, 255, 768).astype(np.uint8).tobytes())
    (tmp_path / "slices").mkdir()
    picture.save(tmp_path / "slices" / "s1.png")
    assert "Grays" in refused(DataError, tmp_path / "slices", image)


def test_a_flipped_imod_model_is_refused(tmp_path, image):
    (tmp_path / "l.mod").write_bytes(imod(OBJECTS, flags=1 << 14 | 1 << 16))
    assert "3dmod" in refused(DataError, tmp_path / "l.mod", image)


def test_damaged_files_are_named(tmp_path, image):
    whole = imod(OBJECTS)
    (tmp_path / "cut.mod").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.roi").write_bytes(b"Iout\0\xe5")
    (tmp_path / "cut.zip").write_bytes(b"PK\3\4 and no more")
    (tmp_path / "cut.csv").write_text("index,shape-type,vertex-index,axis-0,axis-1,axis-2\n0,polygon,0,1,a,2\n")
    (tmp_path / "points.csv").write_text("index,axis-0,axis-1,axis-2\n0,1,2,3\n")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "a.nml").write_text("<things/>")
    zarr(tmp_path / "cut.zarr", painted())
    next(f for f in (tmp_path / "cut.zarr").rglob("*") if f.is_file() and f.name != "zarr.json").write_bytes(b"no")
    source = paintera(tmp_path, painted("uint64")[2:, 1:, 1:], "argmax")
    next(f for f in (source / "volumes" / "labels" / "data" / "s0").glob("*/*/*")).write_bytes(b"\0\1\0\3 no")
    for name in (
        "cut.mod",
        "cut.roi",
        "cut.zip",
        "cut.csv",
        "points.csv",
        "note.txt",
        "a.nml",
        "cut.zarr",
        "gone.zip",
        "gone.n5",
    ):
        assert name in refused(DataError, tmp_path / name, image)
    assert "s0" in refused(DataError, source, image)


def test_several_label_sources_are_listed_for_a_choice(tmp_path, image):
    source = paintera(tmp_path, painted("uint64")[2:, 1:, 1:])
    put(source / "other", painteraData={"type": "label"})
    n5(source / "other" / "data" / "s0", painted("uint64"))
    message = refused(DataError, source, image)
    assert "other" in message and "volumes/labels" in message and "--dataset" in message


def test_options_that_do_not_fit_are_refused(tmp_path, image):
    write_shapes(tmp_path / "s.csv", [("polygon", [(1, 1, 1), (1, 1, 5), (1, 5, 5)])])
    assert "--dataset" in refused(UsageError, tmp_path / "s.csv", image, dataset="a")
    assert "'background'" in refused(UsageError, tmp_path / "s.csv", image, names={0: "background"})
    assert "same name" in refused(UsageError, tmp_path / "s.csv", image, names={1: "a", 2: "a"})
