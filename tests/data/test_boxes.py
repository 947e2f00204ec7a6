"""Views: a painted box is found where the view says it is, whatever the augmentation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.boxes import Augmentation, View, areas, clip, fit, from_xywh, pairwise_iou, to_xywh, whole
from tests.data.coco_folder import find, paint

IMAGE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
BOXES = np.array([[2, 3, 10, 12], [0, 0, 30, 20], [25, 15, 30, 20]], np.float32)


def test_a_mirror_twice_is_nothing():
    mirror = View((0, 0, 30, 20), 20, 30, mirrored=True)
    once = mirror.pixels(IMAGE)
    assert not np.array_equal(once, IMAGE)
    np.testing.assert_array_equal(mirror.pixels(once), IMAGE)
    moved, there = mirror.boxes(BOXES)
    assert there.all() and not np.array_equal(moved[0], BOXES[0])
    np.testing.assert_array_equal(mirror.boxes(moved)[0], BOXES)


def test_a_view_of_everything_is_the_image_itself():
    view = whole(20, 30, 20, 40)
    np.testing.assert_array_equal(view.pixels(IMAGE), IMAGE)
    np.testing.assert_array_equal(view.boxes(BOXES)[0], BOXES)


@given(st.integers(0, 10**6), st.integers(60, 160), st.integers(60, 160))
@settings(deadline=None, max_examples=150)
def test_boxes_move_with_pixels(seed: int, height: int, width: int):
    """One box with sides of at least 20 pixels, seen through DiffusionDet's augmentation at a tenth of its sizes."""
    rng = np.random.default_rng(seed)
    x1, y1 = rng.integers(0, width - 25), rng.integers(0, height - 25)
    box = np.array([[x1, y1, rng.integers(x1 + 20, width + 1), rng.integers(y1 + 20, height + 1)]])
    augmentation = Augmentation(0.5, (48, 64, 80), 133, 0.7, (40, 50, 60), (38, 60))
    view = augmentation.draw(height, width, (96, 96), seed)
    assert 1 <= view.height <= 96 and 1 <= view.width <= 96
    moved, there = view.boxes(box)
    seen = view.pixels(paint(height, width, box, [1]))
    assert seen.shape == (view.height, view.width, 3)
    if there[0] and (moved[0, 2:] - moved[0, :2] > 3).all():
        # Half a pixel of doubt for where a blurred edge crosses the threshold, in units of the resampled image.
        scale = max(1.0, view.width / (view.window[2] - view.window[0]))
        np.testing.assert_allclose(find(seen, 1), moved[0], atol=1.0 + 0.5 * scale)
    elif not there[0]:
        assert not (np.abs(seen.astype(int) - [0, 255, 0]) < 60).all(-1).any()


@given(st.integers(0, 10**6), st.integers(20, 2000), st.integers(20, 2000))
@settings(deadline=None, max_examples=150)
def test_undo_leads_back_and_views_lie_in_the_image(seed: int, height: int, width: int):
    view = Augmentation().draw(height, width, (800, 1344), seed)
    left, top, right, bottom = view.window
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert max(view.height / 800, view.width / 1333) <= 1 and min(view.height, view.width) <= 800
    # Sides keep their proportion to within rounding to whole pixels.
    ratio = (view.width / (right - left)) / (view.height / (bottom - top))
    assert abs(ratio - 1) <= 1.0 / min(view.width, view.height) + 1e-9 or min(view.height, view.width) <= 2
    rng = np.random.default_rng(seed)
    inside = np.sort(rng.uniform([[left, top]], [[right, bottom]], (2, 2)), axis=0).reshape(1, 4)
    moved, there = view.boxes(inside)
    if there[0]:
        np.testing.assert_allclose(view.undo(moved), inside, atol=1e-3 * max(height, width) / 100 + 1e-2)


def test_augmentation_follows_its_probabilities():
    views = [Augmentation().draw(480, 640, (800, 1088), i) for i in range(2000)]
    assert abs(np.mean([v.mirrored for v in views]) - 0.5) < 0.04
    pieces = [v for v in views if v.window != (0.0, 0.0, 640.0, 480.0)]
    assert abs(len(pieces) / 2000 - 0.5) < 0.04
    entire = {min(v.height, v.width) for v in views if v.window == (0.0, 0.0, 640.0, 480.0)}
    assert entire == set(range(480, 801, 32))
    # 600 / 480 is the largest scale at which a piece is cut, 400 / 480 the smallest; its sides are 384 to 600 there.
    sides = np.array([(v.window[3] - v.window[1], v.window[2] - v.window[0]) for v in pieces])
    assert sides.min() >= 384 / (600 / 480) - 1e-6 and sides[:, 0].max() <= 480 and sides[:, 1].max() <= 640
    assert np.ptp(sides, axis=0).min() > 100
    never = [Augmentation(flip=0.0, crop=0.0).draw(480, 640, (800, 1088), i) for i in range(200)]
    assert not any(v.mirrored or v.window != (0.0, 0.0, 640.0, 480.0) for v in never)


@pytest.mark.parametrize(
    "size, short, longest, expected",
    [((480, 640), 800, 1333, (800, 1067)), ((640, 480), 800, 1333, (1067, 800)), ((100, 400), 800, 1333, (333, 1333))],
)
def test_fit_is_detectron2s(size, short, longest, expected):
    assert fit(*size, short, longest) == expected


def test_small_functions():
    np.testing.assert_array_equal(to_xywh(from_xywh(BOXES)), BOXES)
    np.testing.assert_array_equal(from_xywh(np.array([[1, 2, 3, 4]])), [[1, 2, 4, 6]])
    sides = np.array([10, 20]), np.array([5, 40])
    np.testing.assert_array_equal(clip(np.array([[-1, -1, 9, 99]] * 2), *sides), [[0, 0, 5, 10], [0, 0, 9, 20]])
    np.testing.assert_array_equal(areas(np.array([[0, 0, 2, 3], [5, 5, 1, 1]])), [6, 0])
    iou = pairwise_iou(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2], [5, 5, 6, 6], [1, 1, 1, 1]]))
    np.testing.assert_allclose(iou, [[1 / 3, 0, 0]])
