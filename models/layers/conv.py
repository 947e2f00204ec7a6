"""Convolutions over time, [b, t, channels].

XLA's grouped convolutions on CPU are slow in places, the gradient of the kernel above all (a hundred times the forward
pass). There the same numbers are computed another way; everything stays differentiable to any order and in both modes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.layers.linear import linear, uniform_init
from models.layers.norm import GRN, LayerNorm
from models.ops.spread import spread


def conv1d(x: jax.Array, kernel: jax.Array, *, groups: int = 1, impl: str = "auto") -> jax.Array:
    """Convolution with stride 1 and zero padding that keeps the length (odd kernel widths).

    Args:
      x: [b, t, c_in].
      kernel: [width, c_in / groups, c_out].
      impl: "lax", "shift" (depthwise, narrow), "blocks" (few channels per group), "gradient" (lax with another kernel
        gradient), or "auto": lax on accelerators, the fastest of them on CPU.

    Returns:
      [b, t, c_out].
    """
    if kernel.shape[0] % 2 == 0:
        raise ValueError(f"kernel width is {kernel.shape[0]}; only odd widths keep the length")
    if impl == "auto":
        impl = _best(kernel, groups)
    if impl == "shift":
        return _shift(x, kernel)
    return {"lax": _lax, "blocks": _blocks, "gradient": _gradient}[impl](x, kernel, groups)


def _best(kernel, groups) -> str:
    _, per_group, c_out = kernel.shape
    if jax.default_backend() != "cpu" or groups == 1:
        return "lax"
    if per_group == 1 and groups == c_out and kernel.shape[0] < 16:
        return "shift"
    return "blocks" if per_group <= 16 else "gradient"  # the Toeplitz matrices grow with the square of a group


def _lax(x, kernel, groups, pad=None):
    pad = kernel.shape[0] // 2 if pad is None else pad
    return jax.lax.conv_general_dilated(
        x, kernel, (1,), [(pad, pad)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _gradient(x, kernel, groups):
    return _lax(x, kernel, groups)


@functools.partial(_gradient.defjvp, symbolic_zeros=True)
def _gradient_jvp(groups, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    (b, t, _), width = x.shape, kernel.shape[0]

    def kernel_gradient(cotangent):
        """Correlates x with the cotangent as one more grouped convolution: input channels as batch, time as width."""
        rows = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
        rows = rows.reshape(b, t + width - 1, groups, -1).transpose(3, 1, 2, 0).reshape(-1, t + width - 1, groups * b)
        return _lax(rows, cotangent.transpose(1, 0, 2), groups, pad=0).transpose(1, 0, 2)

    out = _lax(x, kernel, groups)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx, jax.custom_derivatives.SymbolicZero):
        tangent += _lax(dx, kernel, groups)
    if not isinstance(dkernel, jax.custom_derivatives.SymbolicZero):
        # Linear in dkernel and equal to conv(x, dkernel), but in reverse mode its transpose is kernel_gradient.
        tangent += jax.linear_transpose(kernel_gradient, out)(dkernel)[0]
    return out, tangent


def _shift(x, kernel):
    """Depthwise: sum over taps of the shifted input times the tap's weights."""
    width, t = kernel.shape[0], x.shape[1]
    padded = jnp.pad(x, ((0, 0), (width // 2, width // 2), (0, 0)))
    taps = [padded[:, i : i + t] * spread(kernel[i, 0], x.shape) for i in range(width)]
    return functools.reduce(jnp.add, taps)


def _blocks(x, kernel, groups, block: int = 8):
    """Grouped: outputs in blocks of ``block`` frames, each one product of a window of frames with a Toeplitz matrix.

    A window is block + width - 1 frames for ``block`` outputs, so far less is copied than ``width`` frames per output.
    """
    (width, c_in, c_out), (b, t, _) = kernel.shape, x.shape
    out = c_out // groups
    count = -(-t // block)
    taps = -(-(block + width - 1) // block)  # blocks per window
    window = taps * block
    left = width // 2
    padded = jnp.pad(x, ((0, 0), (left, (count + taps) * block - t - left), (0, 0)))
    padded = padded.reshape(b, count + taps, block, groups, c_in).transpose(3, 0, 1, 2, 4)
    padded = padded.reshape(groups, b, count + taps, block * c_in)
    windows = jnp.concatenate([padded[:, :, i : i + count] for i in range(taps)], -1)
    windows = windows.reshape(groups, b * count, window * c_in)
    shifted = [jnp.pad(kernel, ((j, window - width - j), (0, 0), (0, 0))) for j in range(block)]
    toeplitz = jnp.stack(shifted).reshape(block, window, c_in, groups, out)
    toeplitz = toeplitz.transpose(3, 1, 2, 0, 4).reshape(groups, window * c_in, block * out)
    y = jnp.matmul(windows, toeplitz).reshape(groups, b, count * block, out)
    return y.transpose(1, 2, 0, 3).reshape(b, count * block, c_out)[:, :t]


class Conv1D(nnx.Module):
    """``conv1d`` with learned kernel [width, c_in / groups, c_out] and bias."""

    def __init__(
        self, c_in: int, c_out: int, width: int, *, groups: int = 1, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        if c_in % groups or c_out % groups:
            raise ValueError(f"{groups} groups do not divide {c_in} input and {c_out} output channels")
        init = uniform_init(math.prod((width, c_in // groups)))
        self.kernel = nnx.Param(init(rngs.params(), (width, c_in // groups, c_out)))
        self.bias = nnx.Param(init(rngs.params(), (c_out,)))
        self.groups, self.dtype = groups, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        return conv1d(x.astype(self.dtype), kernel, groups=self.groups) + bias


def mish(x: jax.Array) -> jax.Array:
    """x · tanh(softplus(x))."""
    return x * jnp.tanh(jax.nn.softplus(x))


def zero_outside(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """x [b, t, c] where mask [b, t] is true, else 0; mask None keeps everything."""
    return x if mask is None else jnp.where(mask[..., None], x, 0)


class ConvPositionEmbedding(nnx.Module):
    """Two grouped convolutions, each followed by Mish: relative position from the signal itself (wav2vec 2.0)."""

    def __init__(self, dim: int, *, width: int = 31, groups: int = 16, dtype: DTypeLike, rngs: nnx.Rngs):
        self.first = Conv1D(dim, dim, width, groups=groups, dtype=dtype, rngs=rngs)
        self.second = Conv1D(dim, dim, width, groups=groups, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [b, t, dim], mask [b, t] bool: frames outside are zero before both convolutions and in the result."""
        x = zero_outside(x, mask)
        for conv in (self.first, self.second):
            x = mish(zero_outside(conv(x), mask))  # mish(0) = 0
        return x


class ConvNeXtV2Block(nnx.Module):
    """Depthwise convolution, norm, expand, exact GELU, GRN, contract, residual (arXiv:2301.00808), over time."""

    def __init__(self, dim: int, hidden: int, *, width: int = 7, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv1D(dim, dim, width, groups=dim, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim)
        self.up = linear(dim, hidden, rngs=rngs, dtype=dtype)
        self.grn = GRN(hidden)
        self.down = linear(hidden, dim, rngs=rngs, dtype=dtype)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x [b, t, dim], already zero outside mask [b, t] (the frames whose energy GRN counts) -> [b, t, dim]."""
        y = self.up(self.norm(self.conv(x)))
        return x + self.down(self.grn(jax.nn.gelu(y, approximate=False), mask))
