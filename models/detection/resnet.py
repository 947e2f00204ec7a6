"""ResNet-50 and -101 with the stride in the 3×3 convolution and frozen batch norms (arXiv:1512.03385).

That is torchvision's network as detectron2 uses it; its statistics, scales and biases are ``stats`` and not trained.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.detection.layers import EPS, conv, inside
from models.layers.axes import Rules, under
from models.layers.conv import zero_outside
from models.layers.stack import run_stack, stacked

_UNIT: Rules = [(r"conv/kernel", ("conv", "conv", None, "embed"))]
AXES: Rules = [
    *under(r"stem", _UNIT),
    *under(r"res\d/first/\w+", _UNIT),
    *under(r"res\d/rest/\w+", _UNIT, stacked=True),
]
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (4, 8, 16, 32)


class Frozen(nnx.Variable):
    """An array that no optimiser sees; in ``functional`` it is one of the ``stats``."""


class FrozenNorm(nnx.Module):
    """Batch norm with fixed statistics: a scale and a shift per channel."""

    def __init__(self, dim: int):
        self.scale, self.bias = Frozen(jnp.ones(dim)), Frozen(jnp.zeros(dim))
        self.mean, self.var = Frozen(jnp.zeros(dim)), Frozen(jnp.ones(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPS)
        return x * scale.astype(x.dtype) + (self.bias[...] - self.mean[...] * scale).astype(x.dtype)


class ConvNorm(nnx.Module):
    """A convolution and its norm."""

    def __init__(self, din: int, dout: int, width: int, *, stride: int = 1, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = conv(din, dout, width, stride=stride, dtype=dtype, rngs=rngs)
        self.norm = FrozenNorm(dout)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """1×1, 3×3, 1×1 around a shortcut, which is learned where the shape changes."""

    def __init__(self, din: int, dout: int, *, stride: int = 1, dtype: DTypeLike, rngs: nnx.Rngs):
        inner = dout // 4
        self.conv1 = ConvNorm(din, inner, 1, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(inner, inner, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.conv3 = ConvNorm(inner, dout, 1, dtype=dtype, rngs=rngs)
        changes = din != dout or stride != 1
        self.shortcut = ConvNorm(din, dout, 1, stride=stride, dtype=dtype, rngs=rngs) if changes else None

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x [b, h, w, din], mask [b, h, w]: real cells -> [b, h', w', dout]."""
        y = zero_outside(jax.nn.relu(self.conv1(x)), mask)
        y = self.conv3(jax.nn.relu(self.conv2(y)))
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Stage(nnx.Module):
    """Blocks at one resolution; all but the first are alike and scanned."""

    def __init__(self, din: int, dout: int, depth: int, *, stride: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.first = Bottleneck(din, dout, stride=stride, dtype=dtype, rngs=rngs)
        rest = depth - 1
        self.rest = stacked(lambda rngs: Bottleneck(dout, dout, dtype=dtype, rngs=rngs), rest, rngs) if rest else None

    def __call__(self, x: jax.Array, before: jax.Array | None, after: jax.Array | None, remat: str) -> jax.Array:
        """x with the masks of its own resolution and of the result's."""
        x = self.first(x, before)
        return x if self.rest is None else run_stack(self.rest, x, lambda block, x, _: block(x, after), remat=remat)


class ResNet(nnx.Module):
    """Images -> maps at strides 4, 8, 16 and 32.

    Args:
      depth: 50 or 101.
      width: channels of the stem; the published networks have 64.
      depths: blocks of each stage, instead of ``depth``.
      freeze_at: how many of the stem (1) and the stages after it (2 = res2, …) get no gradient.
      remat: see ``models/layers/stack.py``.
      dtype: type of the convolutions.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        width: int = 64,
        depths: Sequence[int] = (),
        freeze_at: int = 2,
        remat: str = "none",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not depths and depth not in DEPTHS:
            raise ValueError(f"depth is {depth}; expected one of {', '.join(map(str, DEPTHS))}, or give depths")
        depths = tuple(depths) or DEPTHS[depth]
        self.channels = tuple(4 * width * 2**i for i in range(len(depths)))
        self.strides = STRIDES[: len(depths)]
        self.stem = ConvNorm(3, width, 7, stride=2, dtype=dtype, rngs=rngs)
        din = width
        for i, (dout, blocks) in enumerate(zip(self.channels, depths, strict=True), 2):
            setattr(self, f"res{i}", Stage(din, dout, blocks, stride=1 if i == 2 else 2, dtype=dtype, rngs=rngs))
            din = dout
        self.freeze_at, self.remat = freeze_at, remat

    def __call__(self, images: jax.Array, size: jax.Array | None = None, key: jax.Array | None = None):
        """images [b, H, W, 3] normalised, zero outside ``size`` (see ``layers``) -> a map per stage, finest first."""
        del key  # nothing is random

        def mask(stride):
            return inside(size, stride, (len(images), -(-images.shape[1] // stride), -(-images.shape[2] // stride)))

        x = zero_outside(jax.nn.relu(self.stem(images)), mask(2))
        # nothing is below 0, so the zeros outside never win the maximum
        x = jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
        )
        x = jax.lax.stop_gradient(x) if self.freeze_at >= 1 else x
        out, before = [], mask(STRIDES[0])
        for i, stride in enumerate(self.strides, 2):
            after = mask(stride)
            x = getattr(self, f"res{i}")(x, before, after, self.remat)
            x = jax.lax.stop_gradient(x) if self.freeze_at >= i else x
            out.append(x)
            before = after
        return tuple(out)
