"""Two hundred damaged files of each reader: each is read or refused in one line, in bounded memory and time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from micrographs import dm

from neurokube.volumes import VolumeSpec
from neurokube.volumes.files import WRITERS

MUTANTS = 200
MEMORY = 3 << 30
"""Address space that a process may take: libraries alone reserve more than one GB of it."""

READ = """
import json, resource, signal, sys, warnings
import numpy as np
from pathlib import Path
import h5py, mrcfile, nibabel, nrrd, tifffile
from PIL import Image
from neurokube.errors import DataError, UsageError
from neurokube.volumes.sources import open_source

warnings.simplefilter("ignore")
original, suffix, seed, count, memory = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
whole = Path(original).read_bytes()
head = max(64, min(2000, len(whole) // 3))
rng = np.random.default_rng(seed)
target = Path(original).with_name("mutant" + suffix)
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
outcomes = {"read": 0, "refused": 0}

def mutant():
    block = bytearray(whole)
    kind = rng.integers(5)
    if kind == 0:
        del block[int(rng.integers(len(block))):]
    elif kind == 1:  # bits, anywhere
        for at in rng.integers(len(block), size=rng.integers(1, 9)):
            block[at] ^= 1 << int(rng.integers(8))
    elif kind == 2:  # bytes of the header
        for at in rng.integers(head, size=rng.integers(1, 9)):
            block[at] = int(rng.integers(256))
    elif kind == 3:  # a number of the header becomes a huge or negative one
        at = int(rng.integers(head - 8))
        block[at:at + 4] = int(rng.choice([0x7FFFFFFF, 0xFFFFFFFF, 0, 1 << 30, 0x7F800000, 0xFF7FFFFF])).to_bytes(
            4, str(rng.choice(["little", "big"])))
    else:  # a digit of a text header
        digits = [k for k in range(head) if chr(block[k]).isdigit()]
        if digits:
            block[int(rng.choice(digits))] = ord(str(rng.choice(list("0123456789-.e"))))
    return bytes(block)

for number in range(count):
    target.write_bytes(mutant())
    signal.alarm(20)  # a reader that hangs ends the process
    try:
        with open_source(str(target)) as source:
            # what an import reads of a source, as far as it would fit
            for z in {0, source.shape[0] // 2, source.shape[0] - 1}:
                if np.prod(source.shape[1:]) * source.dtype.itemsize < 1 << 28:
                    source.read(z, z + 1)
        outcomes["read"] += 1
    except (DataError, UsageError) as error:
        assert "\\n" not in str(error) and len(str(error)) < 1000, (number, error)
        outcomes["refused"] += 1
    signal.alarm(0)
print(json.dumps(outcomes))
"""


def original(folder: Path, name: str) -> tuple[Path, str]:
    """Write a small file and return it, with the end of its name."""
    data = np.random.default_rng(0).integers(0, 20, (6, 40, 50)).astype(np.uint8)
    name, _, kind = name.partition(" ")
    if name in ("dm3", "dm4"):
        return dm(folder / f"a.{name}", data.astype(np.uint16), int(name[-1])), f".{name}"
    if name == "npy":
        np.save(folder / "a.npy", data)
        return folder / "a.npy", ".npy"
    suffix = ".nii.gz" if kind == "gzip" else WRITERS[name].suffix
    spec = VolumeSpec(data.shape, "uint8", (40, 8, 8), (80, 16, 8), "labels" if kind == "labels" else "image")
    WRITERS[name].write(folder / f"a{suffix}", spec, lambda a, b: data[a:b])
    return folder / f"a{suffix}", suffix


NAMES = ["hdf5", "hdf5 labels", "nrrd", "nrrd labels", "nifti", "nifti gzip", "mrc", "amira", "amira labels", "tiff"]
NAMES += ["tiff labels", "imagej", "dm3", "dm4", "npy"]


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space of a process")
@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, name):
    file, suffix = original(tmp_path, name)
    seed = NAMES.index(name)
    command = [sys.executable, "-c", READ, file, suffix, str(seed), str(MUTANTS), str(MEMORY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert sum(outcomes.values()) == MUTANTS and outcomes["refused"] > MUTANTS // 20
