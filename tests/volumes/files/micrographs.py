"""DM files, as Gatan's DigitalMicrograph would write them."""

import struct
from pathlib import Path

import numpy as np

SIZE, OFFSET = (40.0, 8.0, 4.5), (-120.0, 16.0, 31.5)


def dm(path: Path, data: np.ndarray, version: int = 4, order: str = "<", units: tuple[str, ...] = ("nm",) * 3) -> Path:
    """Write a DM file of a preview and an image, after the description of the format."""
    number = ">i" if version == 3 else ">q"
    codes = {"int16": 1, "float32": 2, "uint8": 6, "uint16": 10}

    def pack(*values: int) -> bytes:
        return b"".join(struct.pack(number, v) for v in values)

    def tag(kind: int, name: str, body: bytes) -> bytes:
        length = pack(len(body)) if version == 4 else b""
        return struct.pack(">BH", kind, len(name)) + name.encode() + length + body

    def group(name: str, *tags: bytes) -> bytes:
        return tag(20, name, b"\x01\x00" + pack(len(tags)) + b"".join(tags))

    def value(name: str, kind: int, code: str, v: float) -> bytes:
        return tag(21, name, b"%%%%" + pack(1, kind) + struct.pack(order + code, v))

    def array(name: str, kind: int, values: np.ndarray) -> bytes:
        return tag(
            21,
            name,
            b"%%%%" + pack(3, 20, kind, values.size) + values.astype(values.dtype.newbyteorder(order)).tobytes(),
        )

    def image(voxels: np.ndarray, code: int) -> bytes:
        axes = voxels.shape[::-1]
        calibrations = [
            group(
                "",
                value("Origin", 6, "f", -o / s),
                value("Scale", 6, "f", s),
                array("Units", 4, np.frombuffer(u.encode("utf-16-le"), "<u2")),
            )
            for o, s, u in zip(OFFSET[::-1], SIZE[::-1], units, strict=True)
        ][: len(axes)]
        return group(
            "",
            group(
                "ImageData",
                group("Calibrations", group("Dimension", *calibrations)),
                array("Data", {1: 2, 2: 6, 6: 10, 10: 4, 23: 5}[code], voxels.ravel()),
                value("DataType", 3, "i", code),
                group("Dimensions", *(value("", 5, "I", n) for n in axes)),
            ),
        )

    note = tag(21, "Point", b"%%%%" + pack(7, 15, 0, 2, 0, 6, 0, 6) + struct.pack(order + "ff", 1, 2))
    preview = image(np.zeros((400, 400), np.uint32), 23)
    tags = [note, group("ImageList", preview, image(data, codes[data.dtype.name])), value("InImageMode", 8, "b", 1)]
    body = b"\x01\x00" + pack(len(tags)) + b"".join(tags)
    path.write_bytes(struct.pack(">i", version) + pack(len(body)) + struct.pack(">i", order == "<") + body + bytes(8))
    return path
