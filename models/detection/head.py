"""The dynamic head: boxes attend to each other, each filters what it sees by its own weights and moves, stage by stage
(Sparse R-CNN, arXiv:2011.12450; with a time, DiffusionDet, arXiv:2211.09788).

Shapes: b images, n boxes, d width, p = resolution² points per box, S stages, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.detection.layers import EPS, Attention, extent, xavier
from models.layers.axes import ATTENTION, FEED_FORWARD, TIME, Rules, under
from models.layers.embed import time_sinusoid
from models.layers.linear import uniform_init
from models.layers.norm import LayerNorm
from models.layers.stack import scan_stack, stacked
from models.ops.boxes import apply_deltas
from models.ops.precision import accumulation_dtype
from models.ops.roi_align import roi_align

_STAGE: Rules = [
    *under("attn", ATTENTION),
    (r"filter/make/kernel", ("embed", "mlp")),
    (r"filter/make/bias", ("mlp",)),
    (r"filter/out/kernel", ("mlp", "embed")),
    (r"filter/out/bias", ("norm",)),
    *FEED_FORWARD,
    (r"time/kernel", (None, "embed")),
    (r"time/bias", ("norm",)),
    (r"(cls|reg)/\d+/linear/kernel", ("embed", None)),
    (r"(logits|deltas)/kernel", ("embed", None)),
    (r"(logits|deltas)/bias", ("norm",)),
    (r"(.*/)?norm\w*/(scale|bias)", ("norm",)),
]
# Path of a parameter -> logical axis of each dimension; ``train/sharding.py`` maps those to mesh axes.
AXES: Rules = [*under("time", TIME), *under("stages", _STAGE, stacked=True)]

PRIOR = 0.01  # probability that a fresh classifier gives to every class
ACTIVATIONS = {"relu": jax.nn.relu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}


def _linear(din: int, dout: int, *, use_bias: bool = True, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
    init = xavier(din, dout)
    return nnx.Linear(
        din, dout, use_bias=use_bias, kernel_init=init, bias_init=uniform_init(din), dtype=dtype, rngs=rngs
    )


class TimeMLP(nnx.Module):
    """Sinusoid of the time and a perceptron: [b] -> [b, 4d]."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.up = _linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.down = _linear(4 * dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.dim = dim

    def __call__(self, time: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(time_sinusoid(time, self.dim, scale=1.0)), approximate=False))


class DynamicConv(nnx.Module):
    """The points of a box through two small layers whose weights come from the box's own vector."""

    def __init__(self, dim: int, hidden: int, points: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.make = _linear(dim, 2 * dim * hidden, dtype=dtype, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = (
            LayerNorm(hidden, eps=EPS),
            LayerNorm(dim, eps=EPS),
            LayerNorm(dim, eps=EPS),
        )
        self.out = _linear(points * dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, objects: jax.Array, seen: jax.Array) -> jax.Array:
        """objects [b, n, d], seen [b, n, p, d] -> [b, n, d]."""
        b, n, p, d = seen.shape
        down, up = jnp.split(self.make(objects).reshape(b * n, -1), 2, -1)
        x = seen.reshape(b * n, p, d).astype(down.dtype)
        x = jax.nn.relu(self.norm1(x @ down.reshape(b * n, d, -1)))
        x = jax.nn.relu(self.norm2(x @ up.reshape(b * n, -1, d)))
        return jax.nn.relu(self.norm3(self.out(x.reshape(b, n, p * d))))


class Tower(nnx.Module):
    """One layer before a prediction."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.linear = _linear(dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.norm(self.linear(x)))


class Stage(nnx.Module):
    """Boxes attend to each other, then each to its own points; only the predictions know the time."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        heads: int,
        hidden: int,
        dynamic_dim: int,
        class_layers: int,
        box_layers: int,
        points: int,
        activation: str,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.attn = Attention(dim, heads, dtype=dtype, rngs=rngs)
        self.filter = DynamicConv(dim, dynamic_dim, points, dtype=dtype, rngs=rngs)
        self.up = _linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.down = _linear(hidden, dim, dtype=dtype, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = (LayerNorm(dim, eps=EPS) for _ in range(3))
        self.time = _linear(4 * dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.cls = nnx.List([Tower(dim, dtype=dtype, rngs=rngs) for _ in range(class_layers)])
        self.reg = nnx.List([Tower(dim, dtype=dtype, rngs=rngs) for _ in range(box_layers)])
        self.logits = _linear(dim, num_classes, dtype=dtype, rngs=rngs)
        # This bias alone: by shape it cannot be told from others, with 4 classes not even from the boxes' own.
        self.logits.bias = nnx.Param(jnp.full(num_classes, -math.log((1 - PRIOR) / PRIOR)))
        self.deltas = _linear(dim, 4, dtype=dtype, rngs=rngs)
        self.activation = ACTIVATIONS[activation]

    def __call__(self, objects: jax.Array, seen: jax.Array, time: jax.Array) -> dict[str, jax.Array]:
        """objects [b, n, d] from the stage before, seen [b, n, p, d], time [b, 4d] ->

        "objects" [b, n, d], "logits" [b, n, K], "deltas" [b, n, 4], and on the way "attention", "filtered" [b, n, d].
        """
        found = {"attention": self.attn(objects)}
        x = self.norm1(objects + found["attention"])
        found["filtered"] = self.filter(x, seen)
        x = self.norm2(x + found["filtered"])
        x = found["objects"] = self.norm3(x + self.down(self.activation(self.up(x))))
        scale, shift = jnp.split(self.time(jax.nn.silu(time))[:, None], 2, -1)
        timed = x * (1 + scale) + shift
        for name, tower, last in (("logits", self.cls, self.logits), ("deltas", self.reg, self.deltas)):
            y = timed
            for layer in tower:
                y = layer(y)
            y = last(y)
            found[name] = y.astype(accumulation_dtype(y.dtype))
        return found


class DynamicHead(nnx.Module):
    """Boxes, time and a pyramid -> classes and better boxes, once per stage.

    Args:
      num_classes: one sigmoid each.
      dim: width, and that of the pyramid.
      stages: rounds, each with its own weights; ``heads``, ``hidden``: attention heads, width of the feed-forward.
      dynamic_dim: inner width of the filters that a box makes itself.
      class_layers, box_layers: layers before the predictions.
      strides: pixels per cell of the pyramid's levels.
      resolution, samples, canonical_size, roi_impl: see ``models.ops.roi_align.roi_align``.
      box_weights: what predicted (dx, dy, dw, dh) are divided by.
      activation: of the feed-forward, "relu" or "gelu".
      remat, scan_layers: see ``models/layers/stack.py``.
      dtype: type of matrix products; parameters, boxes and logits are float32.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int = 256,
        stages: int = 6,
        heads: int = 8,
        hidden: int = 2048,
        dynamic_dim: int = 64,
        class_layers: int = 1,
        box_layers: int = 3,
        strides: Sequence[int] = (4, 8, 16, 32),
        resolution: int = 7,
        samples: int = 2,
        canonical_size: float = 224.0,
        box_weights: Sequence[float] = (2.0, 2.0, 1.0, 1.0),
        activation: str = "relu",
        roi_impl: str = "auto",
        remat: str = "none",
        scan_layers: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
        self.time = TimeMLP(dim, dtype=dtype, rngs=rngs)

        def stage(rngs):
            return Stage(
                dim,
                num_classes,
                heads=heads,
                hidden=hidden,
                dynamic_dim=dynamic_dim,
                class_layers=class_layers,
                box_layers=box_layers,
                points=resolution**2,
                activation=activation,
                dtype=dtype,
                rngs=rngs,
            )

        self.stages = stacked(stage, stages, rngs)
        self.strides, self.box_weights = tuple(strides), tuple(box_weights)
        self.resolution, self.samples, self.canonical_size = resolution, samples, canonical_size
        self.impl, self.scan, self.remat, self.dim, self.dtype = roi_impl, scan_layers, remat, dim, dtype

    def __call__(
        self, features: Sequence[jax.Array], boxes: jax.Array, time: jax.Array, size: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What every stage finds; the last is the answer.

        Args:
          features: levels [b, H_l, W_l, d], finest first.
          boxes: [b, n, 4] corners in pixels of the padded image, float32.
          time: [b]; whatever scale the weights were trained with.
          size: [b, 2] real (height, width) of the images; None = the padding belongs to the image.

        Returns:
          logits [S, b, n, K] and boxes [S, b, n, 4].  The boxes that a stage starts from carry no gradient.
        """
        found = self.parts(features, boxes, time, size)
        return found["logits"], found["boxes"]

    def parts(
        self,
        features: Sequence[jax.Array],
        boxes: jax.Array,
        time: jax.Array,
        size: jax.Array | None = None,
        objects: jax.Array | None = None,
        *,
        keep_layers: bool = False,
    ) -> dict[str, Any]:
        """``__call__`` ("logits", "boxes") and what led to it.

        Args:
          objects: [b, n, d] what a stage of another head left, if these stages follow upon it.
          keep_layers: adds to the result, stacked by stage, "seen" [S, b, n, p, d], "attention", "filtered", "objects"
            [S, b, n, d] and "deltas" [S, b, n, 4].  "time" [b, 4d] is in it always.
        """
        if len(features) != len(self.strides):
            raise ValueError(f"{len(features)} levels of features, but strides are {self.strides}")
        if features[0].shape[-1] != self.dim:
            raise ValueError(f"features have {features[0].shape[-1]} channels, expected {self.dim}")
        extents = None if size is None else [extent(size, stride) for stride in self.strides]
        features = [level.astype(self.dtype) for level in features]
        embedded = self.time(time)

        def stage(stage, carry, index, _):
            boxes, before = carry
            boxes = jax.lax.stop_gradient(boxes)
            seen = self.look(features, boxes, extents)
            if objects is None:
                before = jnp.where(index == 0, seen.mean(2), before)
            found = {"seen": seen, **stage(before, seen, embedded)}
            found["boxes"] = apply_deltas(boxes, found["deltas"], self.box_weights)
            left = found if keep_layers else {name: found[name] for name in ("logits", "boxes")}
            return (found["boxes"], found["objects"]), left

        start = jnp.zeros((*boxes.shape[:2], self.dim), self.dtype) if objects is None else objects
        _, found = scan_stack(self.stages, (boxes, start), stage, scan=self.scan, remat=self.remat)
        return {"time": embedded, **found}

    def look(
        self, features: Sequence[jax.Array], boxes: jax.Array, extents: Sequence[jax.Array] | None = None
    ) -> jax.Array:
        """The points of every box, [b, n, p, d], row by row."""
        seen = roi_align(
            features,
            boxes,
            self.strides,
            resolution=self.resolution,
            samples=self.samples,
            canonical_size=self.canonical_size,
            extents=extents,
            impl=self.impl,
        )
        return seen.reshape(*boxes.shape[:2], self.resolution**2, -1)
