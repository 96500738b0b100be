"""A stage computed in memory, cell by cell in any order, as workers would."""

import random
from itertools import count

import numpy as np

from neurokube.stages import Block, Data, Source, VolumeOutput
from neurokube.volumes import Store, VolumeSpec, create

VOXEL_SIZE = (40.0, 8.0, 8.0)
_number = count()


def stored(name, voxels, tile, *, kind="volume", voxel_size=VOXEL_SIZE, offset=(0.0, 0.0, 0.0)):
    """Store an array as a volume: 8-bit as an image, others as labels."""
    labels = "image" if voxels.dtype == np.uint8 else "labels"
    spec = VolumeSpec(voxels.shape, voxels.dtype.name, voxel_size, offset, kind=labels)
    volume = create(f"memory://{next(_number)}/{name}", spec, shard=tile)
    volume.write(spec.box, voxels)
    return Source(name, kind, {name: VolumeOutput(name, spec, tile)}, {name: volume.url})


def source(name, *, kind="volume", dtype="uint8", holds=None, shape=(24, 64, 64), channels=None, others=()):
    """Describe a volume, and others of the same kind, that is not there."""
    spec = VolumeSpec(shape, dtype, VOXEL_SIZE, kind=holds or ("image" if dtype == "uint8" else "labels"))
    outputs = {n: VolumeOutput(n, spec, (16, 64, 64)) for n in (name, *others)}
    return Source(name, kind, outputs, {n: "/none" for n in outputs})


def computed(stage, sources, *, seed=0):
    """Run all steps of a stage, cells in random order; return what it wrote, as a source of others, and open."""
    url = f"memory://{next(_number)}"
    outputs = stage.outputs(sources)
    own = Source(stage.kind, stage.kind, outputs, {name: f"{url}/{name}" for name in outputs})
    for name, output in outputs.items():
        if isinstance(output, VolumeOutput):
            create(own.urls[name], output.spec, shard=output.cell, factors=output.factors)
    data = Data(sources, own)
    for step in stage.steps(sources):
        for cell in random.Random(seed).sample(range(len(step.grid)), len(step.grid)):
            step.compute(Block(step.grid.box(cell), (cell,)), data)
            data.checksums(step.objects([cell]))
    return own, data


def voxels(own, data, name=None):
    """Return a volume that a stage wrote, whole."""
    name = name or own.kind
    return data.volume(name).read(own.outputs[name].spec.box)


def file(own, name):
    """Return the content of a file that a stage wrote."""
    folder, _, key = own.urls[name].rpartition("/")
    return Store(folder).read(key)
