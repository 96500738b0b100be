from io import BytesIO

import numpy as np
from PIL import Image

from neurokube.evaluation.overlays import blend, boundaries_of, label_colours, overlay, png

PREDICTION = np.array([[1, 1], [0, 0]], bool)
TRUTH = np.array([[1, 0], [1, 0]], bool)


def test_overlay_shows_right_yellow_wrong_red_missed_green_and_the_rest_black() -> None:
    rgb = overlay(PREDICTION, TRUTH)
    assert rgb.dtype == np.uint8
    assert rgb.tolist() == [[[255, 255, 0], [255, 0, 0]], [[0, 255, 0], [0, 0, 0]]]


def test_overlay_takes_masks_of_any_non_zero_value() -> None:
    np.testing.assert_array_equal(overlay(PREDICTION * np.uint8(255), TRUTH * np.uint64(9)), overlay(PREDICTION, TRUTH))


def test_overlay_over_an_image_shows_the_image_where_neither_mask_is() -> None:
    rgb = overlay(PREDICTION, TRUTH, np.full((2, 2), 100, np.uint8), alpha=0.5)
    assert rgb[1, 1].tolist() == [100, 100, 100]
    assert rgb[0, 1].tolist() == [178, 50, 50]


def test_a_label_has_one_colour_wherever_it_appears_and_zero_is_black() -> None:
    labels = np.array([[0, 5, 2**63], [5, 7, 0]], np.uint64)
    rgb = label_colours(labels)
    assert rgb.shape == (2, 3, 3) and rgb.dtype == np.uint8
    assert rgb[0, 0].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(rgb[0, 1], rgb[1, 0])
    np.testing.assert_array_equal(label_colours(labels[1:, :1])[0, 0], rgb[0, 1])
    assert (label_colours(labels, seed=1)[0, 1] != rgb[0, 1]).any()


def test_neighbouring_labels_get_colours_that_are_bright_and_distinct() -> None:
    rgb = label_colours(np.arange(1, 1001, dtype=np.int32).reshape(10, 100)).reshape(-1, 3)
    assert len(np.unique(rgb, axis=0)) > 990
    assert rgb.max(axis=1).min() >= 150
    steps = np.abs(np.diff(rgb.astype(int), axis=0)).sum(axis=1)
    assert np.median(steps) > 150


def test_blend_lays_colours_over_the_image_and_black_lets_it_through() -> None:
    image = np.array([[40, 80]], np.uint8)
    rgb = np.array([[[0, 0, 0], [200, 0, 100]]], np.uint8)
    assert blend(image, rgb, 0.25).tolist() == [[[40, 40, 40], [110, 60, 85]]]
    assert blend(image, rgb, 1.0).tolist() == [[[40, 40, 40], [200, 0, 100]]]


def test_boundaries_are_the_pixels_whose_lower_or_right_neighbour_differs() -> None:
    labels = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]])
    assert boundaries_of(labels).tolist() == [[False, True, False], [True, True, True], [False, False, False]]


def test_png_holds_the_picture_without_loss() -> None:
    rgb = label_colours(np.arange(12).reshape(3, 4))
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(png(rgb[:, ::-1])))), rgb[:, ::-1])
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(png(rgb[..., 0])))), rgb[..., 0])
