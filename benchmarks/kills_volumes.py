"""Do volumes survive kill -9?  A hundred of them, while volumes are imported, exported and made coarser.

    python -m benchmarks.kills_volumes [--kills 100] [--seed 1] [--only import]

Each case is one command, which is killed with SIGKILL, and whatever it started with it, either at a random moment
after it has begun to write or when a random share of the bytes is there; then it is called again, until it ends.
It ends as often as the kills of the case last, each time from nothing.

While it writes, samples, and after each kill all of the objects that stand under their final names are read.  It is a
failure when

- one of them differs from what an undisturbed process writes: half a chunk was taken for a whole one;
- a volume or file opens under its own name before it is complete; or, where it replaces another one, what opens is
  neither the old one whole nor the new one whole;
- what a resumed command leaves in the end differs in one byte, or one file, from that of an undisturbed one;
- a command that nobody disturbed fails.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import tifffile

from neurokube.blocks import Box, Grid
from neurokube.errors import DataError
from neurokube.volumes import VolumeSpec, create, open_volume
from neurokube.volumes.exporting import export_volume
from neurokube.workflow import Run
from neurokube.workflow.integrity import check_run, repair

from .measure import machine

PATIENCE = 180.0
"""Seconds after which a command that was not killed counts as hanging."""

IMAGE = VolumeSpec((96, 640, 600), "uint8", (40.0, 8.0, 8.0))
LABELS = VolumeSpec((48, 300, 280), "uint64", (40.0, 8.0, 8.0), kind="labels")

BOUNDARIES = "run/boundaries/boundaries"

Files = dict[str, bytes]
"""What a folder holds: the content of each file by its path."""


def below(folder: Path) -> list[Path]:
    """Return the files below a folder, or the file that it is, while others come and go."""
    if folder.is_file():
        return [folder]
    return [Path(where, name) for where, _, names in os.walk(folder) for name in names]


def read_all(folder: Path) -> Files:
    """Return every file below a folder, but what a run notes of itself, and what killed writes of its workers left."""
    found = {}
    for path in below(folder):
        name = path.relative_to(folder)
        beside = "run" in name.parts[:1] and ("c" not in name.parts or path.name.endswith("__lock"))
        with suppress(OSError):
            if not beside:
                found[name.as_posix()] = path.read_bytes()
    return found


# What is killed


@dataclass
class Case:
    """A command, and what it makes of a folder that is its own.

    `prepare` sets the folder up for a round; `opens` returns whether what is made can be opened under its name, and
    is whole; `work` is where it grows, below the folder.
    """

    name: str
    arguments: list[str]
    work: str
    opens: Callable[[Path], bool]
    prepare: Callable[[Path], object] = lambda folder: None
    kills: int = 0
    rounds: int = 0
    calls: int = 0
    resumed: int = 0
    compared: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def image(seed: int = 0) -> np.ndarray:
    """Return noise on slow waves: as hard to compress as micrographs."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[: IMAGE.shape[0], : IMAGE.shape[1], : IMAGE.shape[2]]
    waves = 100 + 40 * np.sin(z / 7) + 30 * np.sin(y / 31 + seed) + 30 * np.sin(x / 37)
    return (waves + rng.normal(0, 12, IMAGE.shape)).clip(1, 255).astype(np.uint8)


def labels() -> np.ndarray:
    """Return labels in patches."""
    coarse = np.random.default_rng(1).integers(1, 3000, [-(-n // 6) for n in LABELS.shape])
    return np.kron(coarse, np.ones((6, 6, 6), np.int64))[tuple(slice(n) for n in LABELS.shape)].astype(np.uint64)


def made(path: Path, spec: VolumeSpec, data: np.ndarray) -> str:
    """Write a volume of one resolution and return its path."""
    create(str(path), spec).write(spec.box, data)
    return str(path)


def sources(folder: Path) -> Iterator[tuple[str, str]]:
    """Write image stacks and yield a name and the path of each."""
    data = image()
    (folder / "slices").mkdir()
    for z, section in enumerate(data):
        tifffile.imwrite(folder / f"slices/s{z:04d}.tif", section)
    yield "TIFF stack", str(folder / "slices")
    with h5py.File(folder / "stack.h5", "w") as file:
        file.create_dataset("raw", data=data, chunks=(16, 128, 128), compression="gzip", compression_opts=1)
    yield "HDF5", f"{folder / 'stack.h5'}:raw"
    with mrcfile.new(folder / "stack.mrc") as file:
        file.set_data(data.astype(np.uint16))
    yield "MRC", str(folder / "stack.mrc")


def whole(name: str, *known: np.ndarray) -> Callable[[Path], bool]:
    """Return what opens a volume and compares it with what it may be."""

    def opens(folder: Path) -> bool:
        try:
            volume = open_volume(str(folder / name))
        except DataError:
            return False
        found = volume.read(volume.spec.box)
        if not any(np.array_equal(found, data) for data in known):
            raise ValueError(f"{name} opens and is not whole")
        return True

    return opens


def cases(folder: Path) -> list[Case]:
    """Return what is killed."""
    data, ids = image(), labels()
    volume, label_volume = made(folder / "image.zarr", IMAGE, data), made(folder / "labels.zarr", LABELS, ids)
    size = ["--voxel-size", "40,8,8", "--json", "-q"]
    found = [
        Case(
            f"import, {name}",
            ["import", source, "v.zarr", *size, *(["--to-8bit", "0,255"] if name == "MRC" else [])],
            "v.zarr.partial",
            whole("v.zarr", data),
        )
        for name, source in sources(folder)
    ]
    found.append(
        Case(
            "import, replacing",
            ["import", str(folder / "slices"), "v.zarr", *size, "--overwrite"],
            "v.zarr.partial",
            whole("v.zarr", data, (other := image(7))),
            lambda here: made(here / "v.zarr", IMAGE, other),
        )
    )
    for format in ("ome-zarr", "ome-zarr-0.4", "n5", "bdv-n5", "precomputed"):
        arguments = ["export", volume, "v.n5", "-f", format, "--json", "-q"]
        opened = "v.xml" if format == "bdv-n5" else "v.n5"
        found.append(Case(f"export, {format}", arguments, "v.n5.partial", whole(opened, data)))
    found.append(
        Case(
            "export, n5, replacing",
            ["export", volume, "v.n5", "-f", "n5", "--json", "-q", "--overwrite"],
            "v.n5.partial",
            whole("v.n5", data, other),
            lambda here: _replaced(here, other),
        )
    )
    for format in ("paintera", "precomputed"):
        arguments = ["export", label_volume, "v.n5/labels", "-f", format, "--json", "-q"]
        found.append(Case(f"export, {format}, labels", arguments, "v.n5/labels.partial", whole("v.n5/labels", ids)))
    for format, name in (("hdf5", "v.h5"), ("nifti", "v.nii.gz"), ("mrc", "v.mrc"), ("tiff-stack", "v"), ("vast", "v")):
        arguments = ["export", volume, name, "-f", format, "--json", "-q"]
        found.append(Case(f"export, {format}", arguments, f"{name}.partial", _there(name)))
    found.append(_pyramid(folder / "pyramid", volume))
    return found


def _replaced(here: Path, data: np.ndarray) -> None:
    source = made(here / "old.zarr", IMAGE, data)
    export_volume(source, str(here / "v.n5"), format="n5", quiet=True)
    shutil.rmtree(source)


def _there(name: str) -> Callable[[Path], bool]:
    return lambda folder: (folder / name).exists()


def _pyramid(folder: Path, volume: str) -> Case:
    """Return the steps of a run that make the coarser resolutions of its boundary map; the finest one is there."""
    folder.mkdir()
    source = json.dumps(volume)
    workflow = folder / "workflow.yaml"
    workflow.write_text(f"name: run\nworkspace: .\ninputs:\n  image: {{path: {source}}}\nstages:\n  boundaries:\n")
    command = [sys.executable, "-m", "neurokube", "run", str(workflow), "-q", "-w", "0"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    stored = open_volume(str(folder / BOUNDARIES))
    levels = [stored.read(Box.of(stored.level_shape(k)), k) for k in range(len(stored.arrays))]
    for path in [path for path in folder.glob(f"{BOUNDARIES}/[1-9]*/c/**/*") if path.is_file()]:
        path.unlink()
    run = Run.open(str(folder / "run"))
    repair(run, check_run(run, quiet=True).damage)

    def opens(here: Path) -> bool:
        """Read shard by shard: each is whole or absent."""
        volume, complete = open_volume(str(here / BOUNDARIES)), True
        for level, right in enumerate(levels):
            z, y, x = volume.arrays[level].chunk_layout.write_chunk.shape[-3:]
            grid = Grid(right.shape, (z, y, x))  # type: ignore[arg-type]
            for box in (grid.box(cell) for cell in range(len(grid))):
                found = volume.read(box, level)
                complete &= bool(found.any())
                if found.any() and not np.array_equal(found, right[box.slices]):
                    raise ValueError(f"level {level}, voxels {box} are read and are not whole")
        return complete

    def prepare(here: Path) -> None:
        shutil.copytree(folder, here, dirs_exist_ok=True)

    return Case("pyramid", ["run", "workflow.yaml", "-q", "-w", "0"], BOUNDARIES, opens, prepare)


# Killing


class Killing:
    """The rounds of one case."""

    def __init__(self, case: Case, folder: Path, chance: random.Random) -> None:
        self.case, self.folder, self.chance = case, folder, chance
        self.truth: Files = {}
        self.total, self.span = 1, 1.0

    def run(self, kills: int) -> None:
        """Find out what is right, then kill so often, and let it end."""
        began = time.monotonic()
        self._undisturbed()
        while self.case.kills < kills:
            here = self._fresh()
            while not self._call(here, kill=self.case.kills < kills):
                pass
            self._compare(here)
        self.case.seconds = time.monotonic() - began

    def _fresh(self) -> Path:
        here = self.folder / str(self.case.rounds)
        here.mkdir(parents=True)
        self.case.prepare(here)
        self.case.rounds += 1
        return here

    def _undisturbed(self) -> None:
        here = self._fresh()
        had = self._size(here)
        process = self._start(here)
        began = self._begun(here, process, had)
        largest = had
        while process.poll() is None:
            largest = max(largest, self._size(here))
            time.sleep(0.002)
        self.span = max(0.05, time.monotonic() - began)
        self._end(process)
        self.truth = read_all(here)
        self.total = max(largest, self._size(here))
        self.case.rounds = 0
        shutil.rmtree(here)

    def _start(self, here: Path) -> subprocess.Popen[str]:
        self.case.calls += 1
        command = [sys.executable, "-m", "neurokube", *self.case.arguments]
        return subprocess.Popen(
            command, cwd=here, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def _begun(self, here: Path, process: subprocess.Popen[str], had: int) -> float:
        while process.poll() is None and self._size(here) == had:
            time.sleep(0.002)
        return time.monotonic()

    def _size(self, here: Path) -> int:
        """Return how many bytes are there of what is in the making."""
        size = 0
        for path in below(here / self.case.work):
            with suppress(OSError):
                size += path.stat().st_size
        return size

    def _call(self, here: Path, *, kill: bool) -> bool:
        """Call the command; return whether it came to its end."""
        had = self._size(here)
        process = self._start(here)
        if kill:
            began = self._begun(here, process, had)
            # a single file begins anew
            had = had if (here / self.case.work).is_dir() else 0
            goal = had + self.chance.random() * max(0, self.total - had)
            ends = began + self.chance.uniform(0, self.span)
            by_bytes = self.chance.random() < 0.5
            while process.poll() is None and (self._size(here) < goal if by_bytes else time.monotonic() < ends):
                self._look(here, most=6)
                time.sleep(0.002)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                self.case.kills += 1
                self._look(here)
                self._open(here)
                # some are complete when they are killed
                return not self._different(here)
        self._end(process)
        return True

    def _end(self, process: subprocess.Popen[str]) -> None:
        try:
            said, wrong = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise SystemExit(f"{self.case.name}: did not end in {PATIENCE:.0f} s") from None
        if process.returncode:
            raise SystemExit(f"{self.case.name}: ended with {process.returncode}, undisturbed: {wrong}")
        self.case.resumed += '"resumed": true' in said

    def _look(self, here: Path, most: int | None = None) -> None:
        """Read objects that stand under their final names, all or some, and compare them with what is right."""
        work = here / self.case.work
        if not work.is_dir():
            return
        paths = [p for p in below(work) if p.relative_to(here).as_posix().replace(".partial", "", 1) in self.truth]
        for path in paths if most is None else self.chance.sample(paths, min(most, len(paths))):
            name = path.relative_to(here).as_posix().replace(".partial", "", 1)
            try:
                content = path.read_bytes()
            except OSError:  # it moved on
                continue
            self.case.compared += 1
            if content != self.truth[name]:
                self.case.failures.append(f"{name}: {len(content)} bytes that are not those of a whole one")

    def _open(self, here: Path) -> None:
        """Open what is there under its own name, between two calls."""
        try:
            opened = self.case.opens(here)
        except ValueError as error:
            self.case.failures.append(str(error))
            return
        if opened and "replacing" not in self.case.name and (left := self._different(here)):
            # a kill between the last two steps leaves notes beside a volume that is complete
            beside = [name for name in left if ".neurokube" not in name and not name.endswith("export.json")]
            if beside:
                self.case.failures.append(f"opens before it is complete: {beside[:3]}")

    def _different(self, here: Path) -> list[str]:
        found = read_all(here)
        return sorted(name for name in found.keys() | self.truth.keys() if found.get(name) != self.truth.get(name))

    def _compare(self, here: Path) -> None:
        self._open(here)
        if wrong := self._different(here):
            self.case.failures.append(f"{len(wrong)} files differ in the end, as {wrong[0]}")
        shutil.rmtree(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    print(machine())
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kills-volumes-") as name:
        folder = Path(name)
        chosen = [case for case in cases(folder) if options.only in case.name]
        each = -(-options.kills // len(chosen))
        print(
            "| | kills | calls | ended what was begun | objects compared | failures | s |\n"
            "|---|---|---|---|---|---|---|",
            flush=True,
        )
        for number, case in enumerate(chosen):
            Killing(case, folder / f"case{number}", chance).run(each)
            print(
                f"| {case.name} | {case.kills} | {case.calls} | {case.resumed} | {case.compared:,} | "
                f"{len(case.failures)} | {case.seconds:.0f} |",
                flush=True,
            )
            for failure in case.failures[:10]:
                print(f"  {failure}", file=sys.stderr)
    kills, failures = sum(case.kills for case in chosen), sum(len(case.failures) for case in chosen)
    print(f"{kills} kills, {sum(case.rounds for case in chosen)} rounds, {failures} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
