"""Windowed inference of any box has the bits of the whole volume."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import Box, WindowGrid, quantized
from neurokube.errors import NeuroKubeError
from neurokube.networks import Normalization
from neurokube.networks.permutations import permutations
from neurokube.stages.inference import Inference, Writer, host, recomputation
from neurokube.stages.inference import layers_of as cut

NORMALIZATION = Normalization(mean=100.0, deviation=30.0)


class Shade:
    """Stands in for a network: what it says of a voxel depends on the voxel's place in the window, and on others."""

    device = None

    def __init__(self, window, batch, factor=1):
        self.numerics = SimpleNamespace(batch=batch)
        self.factor = factor
        self.place = np.random.default_rng(0).random(window).astype(np.float32)
        self.windows = 0

    def __call__(self, images):
        self.windows += len(images)
        one = 1 / (1 + np.exp(-images - self.place))
        found = np.stack([one, one * one, 1 - one[:, ::-1]], 1).astype(np.float32)
        steps = np.arange(self.factor, dtype=np.float32)[:, None, None] / 8
        return (found[:, :, :, None] / (1 + steps)).reshape(*found.shape[:2], -1, *found.shape[3:])


class ShadeOnDevice(Shade):
    """The same on a device, which is the processor's memory here, and may be a card's."""

    device = torch.device("cpu")

    def __call__(self, images):
        if isinstance(images, np.ndarray):
            return super().__call__(images)
        return torch.from_numpy(super().__call__(images.numpy()))


def inference(shape, batch=2, permuted=4, labels=(0, 2), factor=1, shade=Shade):
    grid = WindowGrid(shape, (6, 8, 8), (3, 4, 5), (1, 1, 1))
    turns = permutations((4.0, 1.0, 1.0), grid.window)[:permuted]
    return Inference(shade(grid.window, batch, factor), grid, NORMALIZATION, turns, labels, factor)


def image_of(shape):
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def reader(array):
    def read(box):
        assert Box.of(array.shape).contains(box)
        return array[box.slices]

    return read


def layers_of(found, box, read, inside=None):
    """Return all layers put together; each is copied, since the next overwrites it."""
    parts = [(part, host(values).copy()) for part, values in found.layers(box, read, inside)]
    assert [part.start[0] for part, _ in parts] == [box.start[0], *(part.stop[0] for part, _ in parts[:-1])]
    assert parts[-1][0].stop[0] == box.stop[0]
    return np.concatenate([values for _, values in parts], 1)


@settings(max_examples=60)
@given(
    st.tuples(*3 * [st.integers(1, 22)]),
    st.integers(1, 3),
    st.sampled_from([1, 1, 2, 3]),
    st.sampled_from([Shade, ShadeOnDevice]),
    st.data(),
)
def test_any_box_has_the_bits_of_the_whole(shape, batch, factor, shade, data):
    image = image_of(shape)
    made = (factor * (shape[0] - 1) + 1, *shape[1:])
    whole = layers_of(inference(shape, factor=factor, permuted=12), Box.of(made), reader(image))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in made)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, made, strict=True))
    box = Box(start, stop)
    found = layers_of(inference(shape, batch, factor=factor, permuted=12, shade=shade), box, reader(image))
    assert np.array_equal(found, whole[(slice(None), *box.slices)])
    assert 0 <= found.min() <= found.max() <= 1.0001


@settings(max_examples=30)
@given(st.integers(1, 22), st.integers(1, 9), st.sampled_from([quantized, NORMALIZATION.grey]), st.data())
def test_what_is_stored_has_the_same_bytes_from_a_device(depth, cell, finish, data):
    """However layers of cells lie beside those of windows, and though a device is ahead of what is taken from it."""
    shape = (depth, 9, 14)
    image = image_of(shape)
    top = data.draw(st.integers(0, depth - 1))
    layers = cut(Box((top, 2, 1), shape), cell)
    found = {}
    for shade in (Shade, ShadeOnDevice):
        parts = inference(shape, permuted=2, shade=shade).finished(layers, reader(image), None, finish)
        found[shade] = list(parts)
        assert [layer for layer, _ in found[shade]] == layers
    for (_, expected), (_, values) in zip(found[Shade], found[ShadeOnDevice], strict=True):
        assert expected.dtype == values.dtype == np.uint8
        assert np.array_equal(expected, values)


def test_a_card_without_room_for_a_layer_leaves_its_sums_to_the_host(monkeypatch):
    shape = (12, 20, 20)
    read = reader(image_of(shape))
    expected = layers_of(inference(shape), Box.of(shape), read)
    found = inference(shape, shade=ShadeOnDevice)
    found.predictor.device = torch.device("cuda")
    free = 0
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**10)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    assert np.array_equal(layers_of(found, Box.of(shape), read), expected)
    free = 2**30
    assert found._device(Box.of(shape)) == torch.device("cuda")


def test_memory_that_does_not_suffice_is_told_in_one_line():
    class Full(ShadeOnDevice):
        numerics = SimpleNamespace(batch=2, window=(6, 8, 8))

        def __call__(self, images):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 3 GiB")

    found = inference((12, 20, 20), shade=Full)
    found.predictor.numerics = Full.numerics
    with pytest.raises(NeuroKubeError, match=r"^out of memory with windows of \(6, 8, 8\) in batches of 2: [^\n]*$"):
        list(found.layers(Box.of((12, 20, 20)), reader(image_of((12, 20, 20)))))


def test_windows_without_anything_wanted_are_not_predicted():
    shape = (12, 20, 20)
    image, wanted = image_of(shape) | 1, np.zeros(shape, bool)
    wanted[2, 3, 4] = True
    everything, some = inference(shape, permuted=1), inference(shape, permuted=1)
    whole = layers_of(everything, Box.of(shape), reader(image))
    found = layers_of(some, Box.of(shape), reader(image), reader(wanted))
    assert everything.predictor.windows == len(everything.grid)
    assert 0 < some.predictor.windows < len(some.grid)
    assert np.array_equal(found[:, wanted], whole[:, wanted])
    assert not found[:, :, -1, -1].any()


def test_labels_come_in_the_order_asked_for():
    shape = (8, 10, 10)
    read = reader(image_of(shape))
    every = layers_of(inference(shape, labels=(0, 1, 2)), Box.of(shape), read)
    assert np.array_equal(layers_of(inference(shape, labels=(2, 0)), Box.of(shape), read), every[[2, 0]])
    assert np.abs(inference(shape, labels=(2, 0)).predict(Box.of(shape), read) - 255 * every[[2, 0]]).max() <= 0.501


def test_an_error_of_a_reader_comes_through():
    def broken(box):
        raise OSError("no such shard")

    with pytest.raises(OSError, match="no such shard"):
        list(inference((8, 10, 10)).layers(Box.of((8, 10, 10)), broken))


def test_a_writer_raises_what_went_wrong_before():
    def fail():
        raise OSError("disk full")

    done = []
    with Writer() as writer:
        writer.write(lambda: done.append(1))
        writer.write(fail)
        with pytest.raises(OSError, match="disk full"):
            writer.wait()
    assert done == [1]


@pytest.mark.parametrize("sides", [(22, 22, 22), (3, 4, 5), (7, 9, 22)])
def test_recomputation_counts_the_windows_that_blocks_predict(sides):
    shape = (22, 22, 22)
    grid = inference(shape).grid
    cuts = [[(a, min(a + side, n)) for a in range(0, n, side)] for n, side in zip(shape, sides, strict=True)]
    boxes = [Box(*zip(z, y, x, strict=True)) for z in cuts[0] for y in cuts[1] for x in cuts[2]]
    computed = sum(len(list(grid.touching(box))) for box in boxes)
    assert recomputation(grid, cuts) == pytest.approx(computed / len(grid))
