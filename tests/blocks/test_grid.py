from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neurokube.blocks import Blocks, Box, Grid, WindowGrid

PROPERTY = settings(max_examples=50, deadline=None)


def vectors(low, high):
    return st.tuples(*[st.integers(low, high)] * 3)


GRIDS = st.builds(Grid, vectors(1, 11), vectors(1, 5))


def covered(shape, boxes):
    count = np.zeros(shape, int)
    for box in boxes:
        count[box.slices] += 1
    return count


@PROPERTY
@given(GRIDS)
def test_cells_tile_the_volume_exactly(grid):
    cells = [grid.box(index) for index in range(len(grid))]
    assert (covered(grid.shape, cells) == 1).all()
    assert all(cell.size > 0 for cell in cells)
    assert sum(cell.size for cell in cells) == prod(grid.shape)


@PROPERTY
@given(GRIDS)
def test_index_and_coordinate_are_inverse_and_ordered(grid):
    coordinates = [grid.coordinate(index) for index in range(len(grid))]
    assert [grid.index(coordinate) for coordinate in coordinates] == list(range(len(grid)))
    assert coordinates == sorted(coordinates)


@PROPERTY
@given(GRIDS, vectors(1, 4))
def test_blocks_of_any_shape_partition_the_cells(grid, cells):
    blocks = Blocks(grid, cells)
    members = [blocks.members(block) for block in range(len(blocks))]
    assert sorted(cell for block in members for cell in block) == list(range(len(grid)))
    assert all(block == sorted(block) and block for block in members)
    assert all(blocks.of(cell) == block for block in range(len(blocks)) for cell in members[block])


@PROPERTY
@given(GRIDS, vectors(1, 4))
def test_a_block_is_the_union_of_its_cells(grid, cells):
    blocks = Blocks(grid, cells)
    for block in range(len(blocks)):
        box, members = blocks.box(block), [grid.box(cell) for cell in blocks.members(block)]
        assert all(box.contains(cell) for cell in members)
        assert sum(cell.size for cell in members) == box.size


@PROPERTY
@given(GRIDS, vectors(1, 20))
def test_a_block_asked_for_in_voxels_holds_at_least_as_many_and_less_than_a_cell_more(grid, voxels):
    blocks = Blocks.near(grid, voxels)
    for asked, cells, cell in zip(voxels, blocks.cells, grid.cell, strict=True):
        assert asked <= cells * cell < asked + cell


@PROPERTY
@given(GRIDS)
def test_a_block_is_one_cell_unless_asked_otherwise(grid):
    blocks = Blocks.near(grid, None)
    assert [blocks.members(block) for block in range(len(blocks))] == [[cell] for cell in range(len(grid))]


@st.composite
def window_grids(draw):
    stride, overlap, halo = (tuple(draw(st.integers(least, 4)) for _ in range(3)) for least in (1, 0, 0))
    window = tuple(s + o + 2 * h for s, o, h in zip(stride, overlap, halo, strict=True))
    return WindowGrid(draw(vectors(1, 14)), window, stride, halo)


@PROPERTY
@given(window_grids())
def test_cores_cover_every_voxel_and_lie_in_their_windows(grid):
    cores = [grid.core(index) for index in range(len(grid))]
    assert (covered(grid.shape, cores) > 0).all()
    for index, core in enumerate(cores):
        box = grid.box(index)
        assert box.shape == grid.window
        assert all(b <= max(n, w) for b, n, w in zip(box.stop, grid.shape, grid.window, strict=True))
        assert box.contains(core) and Box.of(grid.shape).contains(core)
        for a, b, c, d, n, h in zip(box.start, core.start, core.stop, box.stop, grid.shape, grid.halo, strict=True):
            assert b - a >= h or a == 0
            assert d - c >= h or d >= n


@PROPERTY
@given(window_grids(), vectors(0, 14), vectors(0, 14))
def test_exactly_the_windows_whose_core_shares_a_voxel_with_a_box_touch_it(grid, a, b):
    box = Box(tuple(map(min, a, b)), tuple(map(max, a, b))).clip(Box.of(grid.shape))
    meeting = [index for index in range(len(grid)) if grid.core(index).clip(box).size]
    assert list(grid.touching(box)) == meeting
