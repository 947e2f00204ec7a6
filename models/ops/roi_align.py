"""ROIAlign over a pyramid of feature maps (arXiv:1703.06870), equal to detectron2's ROIAlignV2 at every border.

A box is cut into resolution × resolution bins, every bin is sampled at samples × samples points, each point is bilinear
between four cells, and a bin is the mean of its points.  Both axes obey one rule, so the whole is a product of an
interpolation along y and one along x:

    y = start + (bin + (i + 1/2) / samples) · extent / resolution      the point, in cells
    outside, and worth 0, where y < -1 or y > H; else clipped to [0, H - 1]

Between -1 and 0 the border cell is therefore repeated, and then it drops to 0.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models.ops.boxes import area

IMPLEMENTATIONS = ("auto", "dense", "gather")
DENSE_CELLS = 400  # of an image; pyramids of more are pooled faster by reading than by matrix products, but for TPUs


def roi_align(
    levels: Sequence[jax.Array],
    boxes: jax.Array,
    strides: Sequence[int],
    *,
    resolution: int = 7,
    samples: int = 2,
    aligned: bool = True,
    canonical_size: float = 224.0,
    extents: Sequence[jax.Array] | None = None,
    impl: str = "auto",
) -> jax.Array:
    """Features of every box, from the level that fits its size.

    Args:
      levels: [b, H_l, W_l, c], finest first.
      boxes: [b, n, 4] corners in pixels of the image.
      strides: pixels per cell of each level, powers of two.
      samples: points per bin and axis.
      aligned: pixel centres lie at half-integers (V2); else V1, whose boxes are at least one cell large.
      canonical_size: see ``assign_levels``.
      extents: per level [b, 2] real (rows, columns), so that padding behind them acts as the border does; None = all.
      impl: "dense": two products with interpolation matrices per level; its gradient has no scatter.
        "gather": reads the cells that the points touch, from one level per box; work does not grow with the image.
        "auto": dense on TPU and for small pyramids, else gather.

    Returns:
      [b, n, resolution, resolution, c].  The grid is mirrored along an inverted side; but where there are several
      levels, a box with exactly one side inverted belongs to none of them and has zeros.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"roi_align impl is {impl!r}; expected one of {', '.join(IMPLEMENTATIONS)}")
    if len(levels) != len(strides):
        raise ValueError(
            f"{len(levels)} levels of features and {len(strides)} strides {tuple(strides)}; expected as many"
        )
    if impl == "auto":
        cells = sum(level.shape[1] * level.shape[2] for level in levels)
        impl = "dense" if jax.default_backend() == "tpu" or cells <= DENSE_CELLS else "gather"
    chosen, exists = assign_levels(boxes, strides, canonical_size)
    stack = _describe(levels, strides, extents)
    pool = _dense if impl == "dense" else _gather
    grid = _Grid(resolution, samples, aligned)
    return jax.vmap(functools.partial(pool, grid=grid))(tuple(levels), boxes, chosen, exists, stack)


def assign_levels(
    boxes: jax.Array, strides: Sequence[int], canonical_size: float = 224.0
) -> tuple[jax.Array, jax.Array]:
    """Which level a box is pooled from (arXiv:1612.03144): stride 16 at the size where a classifier sees an object
    whole, one level coarser per doubling, clipped to what there is.

    Returns:
      index into ``strides`` [...] int32, and whether the box has a level at all [...] bool: with a negative area it has
      none, unless there is only one.
    """
    whole = area(boxes)
    size = jnp.sqrt(jnp.maximum(whole, 0))
    # floor(4 + log2(size / 224)) as comparisons, which know no rounding; detectron2's sum in float32 rounds up to the
    # next integer from the very number below a limit on.
    limits = [np.nextafter(np.float32(canonical_size * stride / 16), np.float32(0)) for stride in strides[1:]]
    index = sum((size >= limit).astype(jnp.int32) for limit in limits) if limits else jnp.zeros(size.shape, jnp.int32)
    return jnp.asarray(index, jnp.int32), (whole >= 0) | (len(strides) == 1)


class _Grid(NamedTuple):
    resolution: int
    samples: int
    aligned: bool


class _Levels(NamedTuple):
    """Of one image, an entry per level: pixels per cell, rows and columns that count, columns stored, first cell."""

    stride: jax.Array  # [l]
    extent: jax.Array  # [l, 2]
    width: jax.Array  # [l]
    start: jax.Array  # [l]


def _describe(levels, strides, extents) -> _Levels:
    """Of a batch: everything has a leading axis of images."""
    shapes = np.array([level.shape[1:3] for level in levels], np.int32)
    starts = np.cumsum(shapes.prod(1), dtype=np.int32) - shapes.prod(1, dtype=np.int32)

    def every(a):
        return jnp.broadcast_to(a, (len(levels[0]), *a.shape))

    extent = every(shapes) if extents is None else jnp.stack(list(extents), 1)
    return _Levels(every(np.asarray(strides, np.float32)), extent, every(shapes[:, 1]), every(starts))


def _points(boxes, stride, extent, grid: _Grid):
    """Sample points in cells along both axes, y first, and whether they count.

    Args:
      boxes: [n, 4].
      stride: [n] or scalar.
      extent: [n, 2] or [2] cells.

    Returns:
      [2, n, resolution, samples] clipped into the map, and bool of the same shape.
    """
    corners = boxes.reshape(-1, 2, 2)[..., ::-1].transpose(1, 2, 0) / stride  # [low | high, y | x, n]
    start = corners[0] - 0.5 if grid.aligned else corners[0]
    extent_of_box = corners[1] - corners[0]
    extent_of_box = extent_of_box if grid.aligned else jnp.maximum(extent_of_box, 1)
    bins = (extent_of_box / grid.resolution)[..., None, None]
    steps = (jnp.arange(grid.samples, dtype=boxes.dtype) + 0.5) / grid.samples
    point = start[..., None, None] + jnp.arange(grid.resolution, dtype=boxes.dtype)[:, None] * bins + steps * bins
    limit = jnp.broadcast_to(extent, (boxes.shape[0], 2)).T[..., None, None].astype(boxes.dtype)
    return jnp.clip(point, 0, limit - 1), (point >= -1) & (point <= limit)


def _dense(levels, boxes, chosen, exists, stack: _Levels, grid: _Grid):
    """Hat functions around the points are the rows of the interpolation matrices; other levels' boxes have zeros."""
    parts = []
    for i, level in enumerate(levels):
        point, counts = _points(boxes, stack.stride[i], stack.extent[i], grid)
        counts &= (exists & (chosen == i))[:, None, None]
        along = []
        for axis, size in enumerate(level.shape[:2]):
            hat = jnp.maximum(1 - jnp.abs(point[axis][..., None] - jnp.arange(size, dtype=point.dtype)), 0)
            along.append(jnp.where(counts[axis][..., None], hat, 0).mean(2).astype(level.dtype))
        rows = jnp.einsum("nyh,hwc->nywc", along[0], level)
        parts.append(jnp.einsum("nxw,nywc->nyxc", along[1], rows))
    return functools.reduce(jnp.add, parts)


def _gather(levels, boxes, chosen, exists, stack: _Levels, grid: _Grid):
    """The cells below and above every point, weighted; all levels lie in one table, so a box is read once."""
    table = jnp.concatenate([level.reshape(-1, level.shape[-1]) for level in levels])
    extent, width, start = stack.extent[chosen], stack.width[chosen], stack.start[chosen]
    point, counts = _points(boxes, stack.stride[chosen], extent, grid)
    counts &= exists[:, None, None]
    low = jnp.floor(point)
    limit = extent.T[..., None, None] - 1
    cells = [low.astype(jnp.int32), jnp.minimum(low.astype(jnp.int32) + 1, limit)]
    shares = [jnp.where(counts, share, 0) / grid.samples for share in (1 - (point - low), point - low)]
    # [n, resolution, taps] per axis: the neighbours of all points of a bin
    (rows, columns), (by_row, by_column) = (jnp.concatenate(pair, -1) for pair in (cells, shares))
    rows = start[:, None, None] + rows * width[:, None, None]
    return _interpolate(table, rows, columns, by_row.astype(table.dtype), by_column.astype(table.dtype))


@jax.custom_jvp
def _interpolate(table, rows, columns, by_row, by_column):
    """table [cells, c]; per axis which cells [n, r, taps] and their weights -> [n, r, r, c].

    Tap by tap, which fuses into one loop that stores nothing but the result. Its derivative would be as many scatters
    in a row; so that is taken of ``_interpolate_at_once``, which is one.
    """
    total = jnp.zeros((), table.dtype)
    for i in range(rows.shape[-1]):
        for j in range(columns.shape[-1]):
            cell = rows[:, :, None, i] + columns[:, None, :, j]
            weight = by_row[:, :, None, i] * by_column[:, None, :, j]
            total += weight[..., None] * table.at[cell].get(mode="promise_in_bounds")
    return total


def _interpolate_at_once(table, rows, columns, by_row, by_column):
    cell = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    seen = table.at[cell].get(mode="promise_in_bounds")  # [n, r, r, taps, taps, c]
    return jnp.einsum("nyxijc,nyi,nxj->nyxc", seen, by_row, by_column)


@functools.partial(_interpolate.defjvp, symbolic_zeros=True)
def _interpolate_jvp(primals, tangents):
    out = _interpolate(*primals)
    total = jnp.zeros_like(out)
    for place in (0, 3, 4):  # linear in each of these; boxes mostly carry no gradient, so two of them cost nothing
        if not isinstance(tangents[place], jax.custom_derivatives.SymbolicZero):
            moved = list(primals)
            moved[place] = tangents[place]
            total += _interpolate_at_once(*moved)
    return out, total
