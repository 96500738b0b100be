from typing import Any

import numpy as np
from bioimage_cpp.segmentation import label
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from neurokube.blocks import Grid, Vector
from neurokube.evaluation import Components

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
cells = st.tuples(st.integers(1, 10), st.integers(1, 10), st.integers(1, 10))


def by_blocks(labels: NDArray[np.uint64], grid: Grid, order: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the component and, as the class sees it, the label of each voxel."""
    found = Components(grid)
    provisional = np.zeros(labels.shape, np.uint64)
    for cell in order:
        box = grid.box(cell).slices
        provisional[box] = found.add(cell, labels[box])
    names, bodies = found.resolve()
    return names[provisional], bodies[provisional]


def in_order_of_first_voxel(labels: NDArray[Any]) -> NDArray[Any]:
    _, position = np.unique(labels, return_inverse=True)
    return position.reshape(labels.shape)


@given(shapes, cells, st.integers(1, 4), st.randoms(use_true_random=False), st.integers(0, 2**32 - 1))
def test_components_are_those_of_the_whole_volume_for_any_blocks_in_any_order(
    shape: Vector, cell: Vector, highest: int, random: Any, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, highest + 1, shape, np.uint64)
    grid = Grid(shape, cell)
    order = list(range(len(grid)))
    random.shuffle(order)
    components, bodies = by_blocks(labels, grid, order)
    np.testing.assert_array_equal(bodies, labels)
    np.testing.assert_array_equal(
        in_order_of_first_voxel(components) + (0 if (labels == 0).any() else 1), label(labels, connectivity=1)
    )


def test_a_component_is_named_by_its_first_voxel_whatever_the_blocks() -> None:
    labels = np.array([[[7, 7, 0, 7], [0, 7, 7, 0]]], np.uint64)
    expected = [[[1, 1, 0, 4], [0, 1, 1, 0]]]
    for cell in [(1, 2, 4), (1, 1, 1), (1, 2, 3), (1, 1, 4)]:
        grid = Grid((1, 2, 4), cell)
        components, _ = by_blocks(labels, grid, list(range(len(grid))))
        np.testing.assert_array_equal(components, expected)


def test_a_body_that_winds_through_many_blocks_is_one_component() -> None:
    labels = np.zeros((1, 21, 20), np.uint64)
    labels[0, ::2] = 5
    labels[0, 1::4, -1] = 5
    labels[0, 3::4, 0] = 5
    grid = Grid(labels.shape, (1, 3, 4))
    components, _ = by_blocks(labels, grid, list(range(len(grid))))
    assert set(np.unique(components)) == {0, 1}


def test_faces_are_forgotten_once_both_sides_have_been_seen() -> None:
    labels = np.ones((8, 8, 8), np.uint64)
    grid = Grid(labels.shape, (4, 4, 4))
    found = Components(grid)
    waiting = []
    for cell in range(len(grid)):
        found.add(cell, labels[grid.box(cell).slices])
        waiting.append(len(found._faces))
    assert max(waiting) <= 6 and waiting[-1] == 0
