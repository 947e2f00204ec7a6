"""Attention by fused kernels and around a ring of devices; ``models.ops.attention.attend`` picks among them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from models.ops.attention import MaskSpec, normalise, partial_softmax, visible

AXIS = "sequence"  # mesh axis of the ring
FLASH_BLOCK = 128  # the TPU kernel wants multiples of this many rows


def cudnn(q, k, v, mask: MaskSpec, bias, scale):
    """cuDNN's fused attention: NVIDIA GPUs, float16 or bfloat16."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        raise ValueError(f"attention impl 'cudnn' takes bfloat16 or float16, not {q.dtype}; use 'xla' or another dtype")
    seen = visible(mask, jnp.arange(q.shape[1]), jnp.arange(k.shape[1]))
    # Key lengths and causality are native to the kernel; anything else goes in as a dense mask.
    others = (mask.window, mask.q_segments, mask.q_positions, mask.kv_positions)
    native = all(field is None for field in others)
    # The kernel divides by zero where a row has no key at all; such rows are zeroed below.
    lengths = None if mask.kv_lengths is None else jnp.maximum(mask.kv_lengths, 1).astype(jnp.int32)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        mask=None if native else seen,
        scale=scale,
        is_causal=native and mask.causal,
        key_value_seq_lengths=lengths if native else None,
        implementation="cudnn",
    )
    return _zero_blind(out, seen)


def flash(q, k, v, mask: MaskSpec, bias, scale):
    """The Pallas flash attention for TPU that ships with JAX.  Lengths travel as segment ids."""
    from jax.experimental.pallas.ops.tpu.flash_attention import SegmentIds, flash_attention

    if mask.window is not None or mask.q_positions is not None or mask.kv_positions is not None or bias is not None:
        raise ValueError("attention impl 'flash' takes no bias, window or positions; use 'xla'")
    b, tq, h, _ = q.shape
    tk = k.shape[1]
    k, v = (jnp.repeat(a, h // a.shape[2], axis=2) for a in (k, v))

    def segments(ids, lengths, t, other):
        """[b, padded t]; -1 and -2 stand for rows behind the end and match nothing."""
        ids = jnp.zeros((b, t), jnp.int32) if ids is None else jnp.broadcast_to(ids, (b, t)).astype(jnp.int32)
        if lengths is not None:
            ids = jnp.where(jnp.arange(t) < lengths[:, None], ids, other)
        return jnp.pad(ids, ((0, 0), (0, -t % FLASH_BLOCK)), constant_values=other)

    kv_segments = mask.q_segments if mask.kv_segments is None else mask.kv_segments
    ids = SegmentIds(segments(mask.q_segments, mask.q_lengths, tq, -1), segments(kv_segments, mask.kv_lengths, tk, -2))

    def rows_last(a):  # [b, t, h, d] -> [b, h, padded t, d]
        return jnp.pad(a, ((0, 0), (0, -a.shape[1] % FLASH_BLOCK), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    out = flash_attention(rows_last(q), rows_last(k), rows_last(v), segment_ids=ids, causal=mask.causal, sm_scale=scale)
    return _zero_blind(out.transpose(0, 2, 1, 3)[:, :tq], visible(mask, jnp.arange(tq), jnp.arange(tk)))


def ring(q, k, v, mask: MaskSpec, bias, scale):
    """Devices keep their queries; keys and values go around, and an online softmax adds them up."""
    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names:
        raise ValueError(f"attention impl 'ring' needs a mesh with an axis {AXIS!r}: call it under jax.set_mesh(mesh)")
    size = mesh.shape[AXIS]
    if q.shape[1] % size or k.shape[1] % size:
        raise ValueError(
            f"attention impl 'ring' splits {q.shape[1]} queries and {k.shape[1]} keys over {size} devices of the mesh "
            f"axis {AXIS!r}; pad both to a multiple of {size}"
        )
    if bias is not None:
        raise ValueError("attention impl 'ring' takes no bias; use 'xla'")
    if mask.q_segments is not None and mask.kv_segments is None:
        mask = dataclasses.replace(mask, kv_segments=mask.q_segments)
    batch = _dividing(mesh, ("data", "fsdp"), q.shape[0])
    heads = _dividing(mesh, ("tensor",), q.shape[2], k.shape[2])
    spec = P(batch, AXIS, heads, None)

    def along_time(a):  # positions and segments, [t] or [b, t]
        return a if a is None else P(AXIS) if a.ndim == 1 else P(batch if a.shape[0] > 1 else None, AXIS)

    mask_spec = dataclasses.replace(
        mask,
        q_lengths=None if mask.q_lengths is None else P(batch),
        kv_lengths=None if mask.kv_lengths is None else P(batch),
        **{name: along_time(getattr(mask, name)) for name in (*_OF_QUERIES, *_OF_KEYS)},
    )
    body = functools.partial(_ring_body, size=size, scale=scale)
    return jax.shard_map(body, mesh=mesh, in_specs=(spec, spec, spec, mask_spec), out_specs=spec, check_vma=False)(
        q, k, v, mask
    )


_OF_QUERIES = ("q_segments", "q_positions")
_OF_KEYS = ("kv_segments", "kv_positions")


def _ring_body(q, k, v, mask: MaskSpec, *, size: int, scale: float):
    """What one device does; ``mask`` holds its part of everything that runs along time."""
    here = jax.lax.axis_index(AXIS)
    q_index = here * q.shape[1] + jnp.arange(q.shape[1])
    hops = [(i, (i + 1) % size) for i in range(size)]

    @jax.checkpoint  # keep one block of scores at a time in the backward pass too
    def add(q, travelling, total, step):
        k, v, keys = travelling
        k_index = (here - step) % size * k.shape[1] + jnp.arange(k.shape[1])
        seen = visible(dataclasses.replace(mask, **keys), q_index, k_index)
        return _merge(total, partial_softmax(q, k, v, seen, None, scale))

    def hop(carry, step):
        travelling, total = carry
        total = add(q, travelling, total, step)
        return (jax.lax.ppermute(travelling, AXIS, hops), total), None

    b, tq, h, d = q.shape
    wide = jnp.promote_types(q.dtype, jnp.float32)
    column = (b, h, tq, 1)
    nothing = (jnp.zeros((b, tq, h, d), wide), jnp.full(column, jnp.finfo(wide).min, wide), jnp.zeros(column, wide))
    keys = {name: getattr(mask, name) for name in _OF_KEYS}
    (travelling, total), _ = jax.lax.scan(hop, ((k, v, keys), nothing), jnp.arange(size - 1))
    numerator, _, denominator = add(q, travelling, total, size - 1)  # the last block need not travel on
    return normalise(numerator, denominator).astype(q.dtype)


def _merge(one, two):
    """Joins two results of ``partial_softmax`` over different keys."""
    top = jnp.maximum(one[1], two[1])
    numerator, denominator = 0, 0
    for part, part_top, part_total in (one, two):
        weight = jnp.exp(part_top - top)
        numerator += part * weight.transpose(0, 2, 1, 3)
        denominator += part_total * weight
    return numerator, top, denominator


def _zero_blind(out, seen):
    """Zeros where a query sees no key: kernels leave some average there."""
    if seen is None:
        return out
    sighted = jnp.broadcast_to(seen.any(-1)[:, 0], out.shape[:2])
    return jnp.where(sighted[..., None, None], out, 0)


def _dividing(mesh, axes, *sizes):
    """Those of ``axes`` whose product divides all sizes, as a PartitionSpec entry."""
    chosen, product = [], 1
    for axis in axes:
        if axis in mesh.axis_names and all(size % (product * mesh.shape[axis]) == 0 for size in sizes):
            chosen.append(axis)
            product *= mesh.shape[axis]
    return tuple(chosen) or None
