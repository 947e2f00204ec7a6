"""The one attention of the code base.

``attend`` takes queries, keys and values and a ``MaskSpec`` that *describes* which keys a query may see; dense masks
exist only inside this file. Softmax is float32 whatever the compute type.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from models.ops.precision import accumulation_dtype

IMPLEMENTATIONS = ("auto", "xla", "tiled", "forward", "cudnn", "flash", "ring")
TILE_BYTES = 1 << 20  # scores of one tile: small enough for a core's cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """Which keys each query sees: the conjunction of everything that is set.

    Attributes:
      q_lengths: [b] int, queries at index >= length give zeros.
      kv_lengths: [b] int, keys at index >= length are not seen.
      causal: a query sees no key of a larger position.
      window: a query sees only keys at distance < window (with ``causal``: itself and the window - 1 before it).
      q_segments, kv_segments: [b, tq], [b, tk] int; seen only inside one segment. ``kv_segments`` None = the
        queries' own.
      q_positions, kv_positions: [t] or [b, t] int absolute positions for ``causal`` and ``window``; None = the index.
        A negative key position marks an empty slot that nobody sees.
    """

    q_lengths: jax.Array | None = None
    kv_lengths: jax.Array | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    q_segments: jax.Array | None = None
    kv_segments: jax.Array | None = None
    q_positions: jax.Array | None = None
    kv_positions: jax.Array | None = None


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: MaskSpec = MaskSpec(),
    bias: jax.Array | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> jax.Array:
    """softmax(q kᵀ · scale + bias) v, where the mask allows; a query that sees no key gives zeros (and finite
    gradients).

    Args:
      q: [b, tq, h, d].
      k, v: [b, tk, hk, d]; h is a multiple of hk, query head i reads key head i // (h / hk).
      bias: broadcastable to [b, h, tq, tk], added to the scaled scores.
      scale: 1/sqrt(d) by default.
      impl: "auto": the best of the others for the default backend, shapes and mask.
        "xla": plain products, any backend, any mask.
        "tiled": as xla, but a few heads at a time and recomputed in the backward pass: never more than one tile of
        scores in memory. Up to 1.8 times as fast on CPU; elsewhere heads would wait for each other.
        "forward": as xla and certain to stay differentiable in forward mode (``jax.jvp``), which fused kernels are not.
        "cudnn": fused kernel on NVIDIA GPUs, 16-bit types.
        "flash": fused kernel on TPU.
        "ring": keys travel around the mesh axis "sequence" (Ring Attention, arXiv:2310.01889); needs ``jax.set_mesh``.

    Returns:
      [b, tq, h, d] in q's type.

    Raises:
      ValueError: shapes do not fit together, or ``impl`` cannot do what is asked.
    """
    _check(q, k, v, impl)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if impl == "auto":
        impl = _best(q, k, mask, bias)
    if impl in ("xla", "forward"):
        return _dense(q, k, v, mask, bias, scale)
    if impl == "tiled":
        return _tiled(q, k, v, mask, bias, scale)
    from models.ops import attention_kernels as kernels

    run = {"cudnn": kernels.cudnn, "flash": kernels.flash, "ring": kernels.ring}[impl]
    return run(q, k, v, mask, bias, scale)


def visible(mask: MaskSpec, q_index: jax.Array, k_index: jax.Array) -> jax.Array | None:
    """The dense mask for queries and keys at these global indices: bool broadcastable to [b, 1, tq, tk]; None = all
    seen.

    ``positions`` and ``segments`` in ``mask`` must already be those of these queries and keys; lengths are global.
    """
    parts = []

    def rows(a):  # [t] or [b, t] of queries -> [b|1, 1, t, 1]
        return jnp.atleast_2d(a)[:, None, :, None]

    def columns(a):  # the same of keys -> [b|1, 1, 1, t]
        return jnp.atleast_2d(a)[:, None, None, :]

    if mask.q_lengths is not None:
        parts.append(rows(q_index) < mask.q_lengths[:, None, None, None])
    if mask.kv_lengths is not None:
        parts.append(columns(k_index) < mask.kv_lengths[:, None, None, None])
    if mask.kv_positions is not None:
        parts.append(columns(mask.kv_positions) >= 0)
    if mask.causal or mask.window is not None:
        query = rows(q_index if mask.q_positions is None else mask.q_positions)
        key = columns(k_index if mask.kv_positions is None else mask.kv_positions)
        if mask.causal:
            parts.append(key <= query)
        if mask.window is not None:
            parts.append(jnp.abs(query - key) < mask.window)
    if mask.q_segments is not None:
        kv_segments = mask.q_segments if mask.kv_segments is None else mask.kv_segments
        parts.append(rows(mask.q_segments) == columns(kv_segments))
    out = None
    for part in parts:
        out = part if out is None else out & part
    return out


def partial_softmax(q, k, v, seen, bias, scale):
    """Attention over some of the keys, not yet normalised.

    Returns ``(numerator [b, tq, h, d], largest score [b, h, tq, 1], denominator [b, h, tq, 1])`` in float32, which
    ``normalise`` finishes. Where nothing is seen, numerator and denominator are 0 and the largest score
    is finite.
    """
    b, tq, h, d = q.shape
    hk, tk = k.shape[2:0:-1]
    wide = accumulation_dtype(q.dtype)
    # Rows of one key head next to each other: plain batched products, which every backend runs well.
    rows = (q * jnp.asarray(scale, q.dtype)).transpose(0, 2, 1, 3).reshape(b, hk, h // hk * tq, d)
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bhqd,bhkd->bhqk", rows, keys, preferred_element_type=wide).reshape(b, h, tq, tk)
    if bias is not None:
        scores = scores + bias.astype(wide)
    weights, top = _exponentials(scores, seen)
    total = weights.sum(-1, keepdims=True)
    if seen is not None:
        total = jnp.where(top > jnp.finfo(wide).min, total, 0)  # a row without keys has weighed all of them alike
    weights = weights.astype(v.dtype).reshape(b, hk, h // hk * tq, tk)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, values, preferred_element_type=wide).reshape(b, h, tq, d)
    return out.transpose(0, 2, 1, 3), top, total


@jax.custom_jvp
def _exponentials(scores, seen):
    """exp(scores - top) where seen, else 0; and top, the largest seen score of each row.

    Its derivative needs the result only, so the backward pass keeps one array of this size and no mask.
    """
    if seen is not None:
        scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
    top = scores.max(-1, keepdims=True)
    return jnp.exp(scores - top), top


@_exponentials.defjvp
def _exponentials_jvp(primals, tangents):
    weights, top = _exponentials(*primals)
    return (weights, top), (weights * tangents[0], jnp.zeros_like(top))  # top cancels in every normalised result


def normalise(numerator: jax.Array, total: jax.Array) -> jax.Array:
    """numerator [b, tq, h, d] / total [b, h, tq, 1], 0 where the total is 0."""
    total = total.transpose(0, 2, 1, 3)
    return numerator * jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)


def _dense(q, k, v, mask, bias, scale):
    seen = visible(mask, jnp.arange(q.shape[1]), jnp.arange(k.shape[1]))
    numerator, _, total = partial_softmax(q, k, v, seen, bias, scale)
    return normalise(numerator, total).astype(q.dtype)


def _tiled(q, k, v, mask, bias, scale):
    if bias is not None:
        raise ValueError("attention impl 'tiled' takes no bias; use 'xla'")
    (b, tq, h, d), (tk, hk) = q.shape, k.shape[1:3]
    rows, heads = _tile(b, hk, h // hk * tq * tk * 4)
    tiles = (b // rows, rows, hk // heads, heads)
    seen = visible(mask, jnp.arange(tq), jnp.arange(tk))
    q = q.reshape(*tiles[:2], tq, *tiles[2:], h // hk, d).transpose(0, 3, 1, 2, 4, 5, 6)
    k, v = (a.reshape(*tiles[:2], tk, *tiles[2:], d).transpose(0, 3, 1, 2, 4, 5) for a in (k, v))

    def one(carry, tile):
        index, q, k, v = tile  # q [rows, tq, heads, group, d], k and v [rows, tk, heads, d]
        part = seen
        if seen is not None and seen.shape[0] > 1:
            part = jax.lax.dynamic_slice_in_dim(seen, index // tiles[2] * rows, rows)
        numerator, _, total = partial_softmax(q.reshape(rows, tq, -1, d), k, v, part, None, scale)
        return carry, normalise(numerator, total).astype(q.dtype)

    count = tiles[0] * tiles[2]
    queue = (jnp.arange(count), *(a.reshape(count, *a.shape[2:]) for a in (q, k, v)))
    _, out = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), None, queue)
    out = out.reshape(tiles[0], tiles[2], rows, tq, -1, d).transpose(0, 2, 3, 1, 4, 5)
    return out.reshape(b, tq, h, d)


def _tile(batch: int, heads: int, size: int) -> tuple[int, int]:
    """(rows, key heads) of a tile whose scores, ``size`` bytes per row and key head, fit into TILE_BYTES: as many rows
    with all their heads as fit, or else as many heads of one row; both are divisors."""
    fits = max(TILE_BYTES // size, 1)
    if fits >= heads:
        return max(n for n in range(1, batch + 1) if batch % n == 0 and n * heads <= fits), heads
    return 1, max(n for n in range(1, heads + 1) if heads % n == 0 and n <= fits)


def _best(q, k, mask, bias) -> str:
    backend = jax.default_backend()
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    dense_only = mask.window is not None or mask.q_segments is not None or mask.kv_positions is not None
    if backend == "gpu" and half and bias is None and not dense_only and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128:
        return "cudnn"
    if backend == "tpu" and bias is None and mask.window is None and mask.kv_positions is None and k.shape[1] >= 1024:
        return "flash"
    # Tiles run one after the other, so a mesh of CPU devices (in tests) keeps to the form that shards.
    alone = backend == "cpu" and jax.device_count() == 1
    large = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] * 4 > TILE_BYTES
    return "tiled" if alone and large and bias is None else "xla"


def _check(q, k, v, impl) -> None:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"attention impl is {impl!r}; expected one of {', '.join(IMPLEMENTATIONS)}")
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    if not fits or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"attention shapes do not fit: q {q.shape}, k {k.shape}, v {v.shape}; expected q [b, tq, h, d] and "
            "k, v [b, tk, hk, d] with h a multiple of hk"
        )
