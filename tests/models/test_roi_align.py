"""ROIAlign against a float64 loop, the stored numbers, finite differences; its two forms against each other."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.ops.roi_align import assign_levels, roi_align

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "consistency_det"
STRIDES, SHAPES = (4, 8), ((9, 11), (5, 6))
FORMS = ("dense", "gather")
# Inside, at the borders, across them, outside, as points, inverted (both sides: mirrored; one: nothing), huge.
BOXES = np.float32([
    [3, 2, 30, 31], [-1.9, -1.9, 1.9, 1.9], [36, 30, 44, 36], [40, 34, 52, 44], [-9, -30, -5, -20], [60, 60, 90, 90],
    [8, 8, 8, 8], [5, 5, 5.5, 5.5], [30, 28, 6, 4], [30, 4, 6, 28], [-200, -200, 300, 300], [0, 0, 16, 16],
])  # fmt: skip


def pyramid(batch: int = 1, seed: int = 0, channels: int = 3) -> list[np.ndarray]:
    r = np.random.default_rng(seed)
    return [r.normal(size=(batch, *shape, channels)).astype(np.float32) for shape in SHAPES]


def bilinear(level: np.ndarray, y: float, x: float) -> np.ndarray:
    height, width, channels = level.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    out, y, x = np.zeros(channels), max(y, 0.0), max(x, 0.0)
    for i in (0, 1):
        for j in (0, 1):
            share = (1 - abs(min(y, height - 1) - (row := min(int(y), height - 1) + i))) * (
                1 - abs(min(x, width - 1) - (column := min(int(x), width - 1) + j))
            )
            out += share * level[min(row, height - 1), min(column, width - 1)]
    return out


def point(low: float, high: float, index: int, share: float) -> float:
    return (low + share * (high - low)) / STRIDES[index] - 0.5


def loop(levels, boxes, resolution, samples, canonical) -> np.ndarray:
    """One image."""
    out = np.zeros((len(boxes), resolution, resolution, levels[0].shape[-1]))
    for n, (x1, y1, x2, y2) in enumerate(boxes.astype(float)):
        area = (x2 - x1) * (y2 - y1)
        if area < 0:
            continue
        index = math.floor(4 + math.log2(math.sqrt(area) / canonical + 1e-8)) - 2
        index = min(max(index, 0), len(levels) - 1)
        for row in range(resolution):
            for column in range(resolution):
                for i in range(samples):
                    for j in range(samples):
                        y = point(y1, y2, index, (row + (i + 0.5) / samples) / resolution)
                        x = point(x1, x2, index, (column + (j + 0.5) / samples) / resolution)
                        out[n, row, column] += bilinear(levels[index][0].astype(float), y, x) / samples**2
    return out


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("resolution, samples", [(3, 2), (2, 3)])
def test_equals_a_float64_loop(impl, resolution, samples):
    levels = pyramid()
    pool = functools.partial(roi_align, strides=STRIDES, resolution=resolution, samples=samples, canonical_size=48.0)
    got = jax.jit(functools.partial(pool, impl=impl))(levels, BOXES[None])
    np.testing.assert_allclose(got[0], loop(levels, BOXES, resolution, samples, 48.0), atol=2e-5)


@pytest.mark.parametrize("impl", FORMS)
def test_equals_the_stored_numbers(impl):
    stored, features = np.load(GOLDEN / "roi_align.npz"), np.load(GOLDEN / "features.npz")
    levels = [features[f"p{i}"].transpose(0, 2, 3, 1) for i in range(2, 6)]
    strides = [features["padded_hw"][0] // level.shape[1] for level in levels]
    boxes = np.stack([stored["boxes"]] * 2)
    pooled = jax.jit(lambda levels, boxes: roi_align(levels, boxes, strides, impl=impl))(levels, boxes)
    pooled = pooled[stored["image_index"], np.arange(len(stored["boxes"]))]
    np.testing.assert_allclose(pooled.transpose(0, 3, 1, 2), stored["pooled_ref_f64"], atol=2e-5)
    one = [stored["single_feature"].transpose(0, 2, 3, 1)]
    for samples, aligned in ((1, True), (2, True), (3, True), (2, False)):
        pool = functools.partial(roi_align, strides=[1], samples=samples, aligned=aligned, impl=impl)
        wanted = stored[f"single_sr{samples}_al{int(aligned)}"]
        got = jax.jit(pool)(one, stored["single_boxes"][None])[0].transpose(0, 3, 1, 2)
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_levels_equal_the_stored_ones_and_change_exactly_at_the_limits():
    stored = np.load(GOLDEN / "roi_align.npz")
    index, exists = assign_levels(stored["boxes"], (4, 8, 16, 32))
    np.testing.assert_array_equal(np.where(exists, index, -1), stored["levels"])
    sides = np.float32([111.99, 112, 223.99, 224, 447.9, 448, 1e5])
    squares = np.stack([0 * sides, 0 * sides, sides, sides], -1)
    np.testing.assert_array_equal(assign_levels(squares, (4, 8, 16, 32))[0], [0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(assign_levels(squares, (8,))[0], 0)


def test_forms_agree_in_values_and_gradients():
    """By features and by boxes; a gradient equals a finite difference."""
    levels, cotangent = pyramid(2, 1), np.random.default_rng(2).normal(size=(2, 8, 3, 3, 3)).astype(np.float32)
    r = np.random.default_rng(3)
    low = r.uniform(-8, 30, (2, 8, 2))
    boxes = np.concatenate([low, low + r.uniform(2, 40, (2, 8, 2))], -1).astype(np.float32)

    def total(impl, levels, boxes):
        return (roi_align(levels, boxes, STRIDES, resolution=3, canonical_size=48.0, impl=impl) * cotangent).sum()

    with jax.enable_x64(True):
        levels, boxes = [jnp.asarray(a, jnp.float64) for a in levels], jnp.asarray(boxes, jnp.float64)
        (dense, by_dense), (gather, by_gather) = (
            jax.jit(jax.value_and_grad(functools.partial(total, impl), (0, 1)))(levels, boxes) for impl in FORMS
        )
        np.testing.assert_allclose(dense, gather, rtol=1e-6)
        for one, other in zip(jax.tree.leaves(by_dense), jax.tree.leaves(by_gather), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        step = 1e-6
        f = jax.jit(functools.partial(total, "dense"))
        for image, box, side in ((0, 1, 0), (1, 4, 3)):
            moved = [f(levels, boxes.at[image, box, side].add(sign * step)) for sign in (1, -1)]
            assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(float(by_dense[1][image, box, side]), abs=1e-3)
        along = [jnp.asarray(r.normal(size=level.shape)) for level in levels]
        ends = [f([a + sign * step * d for a, d in zip(levels, along, strict=True)], boxes) for sign in (1, -1)]
        slope = sum((g * d).sum() for g, d in zip(by_dense[0], along, strict=True))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(slope), rel=1e-5)


@pytest.mark.parametrize("impl", FORMS)
def test_padding_behind_the_extents_is_a_border(impl):
    """Junk right of and below the real cells changes nothing."""
    levels = pyramid()
    padded = [np.pad(a, ((0, 0), (0, 3), (0, 2), (0, 0)), constant_values=50.0) for a in levels]
    extents = [np.int32([a.shape[1:3]]) for a in levels]
    pool = functools.partial(roi_align, strides=STRIDES, resolution=3, canonical_size=48.0, impl=impl)
    wanted = jax.jit(pool)(levels, BOXES[None])
    np.testing.assert_allclose(jax.jit(pool)(padded, BOXES[None], extents=extents), wanted, atol=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="impl is 'fast'"):
        roi_align(pyramid(), BOXES[None], STRIDES, impl="fast")
    with pytest.raises(ValueError, match="2 levels of features and 3 strides"):
        roi_align(pyramid(), BOXES[None], (4, 8, 16))
