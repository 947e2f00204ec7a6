"""Attention against a float64 oracle written with loops over the mask's definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from models.ops import attention
from models.ops.attention import MaskSpec, attend


def sees(mask: MaskSpec, row: int, i: int, j: int) -> bool:
    """The definition of MaskSpec, one pair at a time."""

    def at(a, t, default):
        return default if a is None else int(a[t] if np.ndim(a) == 1 else a[row % len(a)][t])

    q_position, k_position = at(mask.q_positions, i, i), at(mask.kv_positions, j, j)
    kv_segments = mask.q_segments if mask.kv_segments is None else mask.kv_segments
    return all(
        [
            mask.q_lengths is None or i < mask.q_lengths[row],
            mask.kv_lengths is None or j < mask.kv_lengths[row],
            mask.kv_positions is None or k_position >= 0,
            not mask.causal or k_position <= q_position,
            mask.window is None or abs(q_position - k_position) < mask.window,
            mask.q_segments is None or at(mask.q_segments, i, 0) == at(kv_segments, j, 0),
        ]
    )


def oracle(q, k, v, mask, bias=None, scale=None):
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    b, tq, h, d = q.shape
    out = np.zeros((b, tq, h, v.shape[-1]))
    for row in range(b):
        for i in range(tq):
            keys = [j for j in range(k.shape[1]) if sees(mask, row, i, j)]
            for head in range(h if keys else 0):
                group = head // (h // k.shape[2])
                scores = k[row, keys, group] @ q[row, i, head] * (d**-0.5 if scale is None else scale)
                if bias is not None:
                    scores = scores + np.broadcast_to(bias, (b, h, tq, k.shape[1]))[row, head, i, keys]
                weights = np.exp(scores - scores.max())
                out[row, i, head] = weights @ v[row, keys, group] / weights.sum()
    return out


def tensors(rng, b=2, tq=8, tk=8, h=4, hk=2, d=8):
    shapes = [(b, tq, h, d), (b, tk, hk, d), (b, tk, hk, d)]
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


@st.composite
def masks(draw, b=2, t=8):
    def maybe(strategy):
        return draw(st.one_of(st.none(), strategy))

    def table(low, high):
        return st.lists(st.lists(st.integers(low, high), min_size=t, max_size=t), min_size=b, max_size=b).map(np.int32)

    lengths = st.lists(st.integers(0, t), min_size=b, max_size=b).map(np.int32)
    q_segments = maybe(table(0, 2))
    return MaskSpec(
        q_lengths=maybe(lengths),
        kv_lengths=maybe(lengths),
        causal=draw(st.booleans()),
        window=maybe(st.integers(1, t)),
        q_segments=q_segments,
        kv_segments=None if q_segments is None else maybe(table(0, 2)),
        q_positions=maybe(table(0, 12)),
        kv_positions=maybe(table(-1, 12)),
    )


EVERYTHING = MaskSpec(
    q_lengths=np.int32([8, 5]),
    kv_lengths=np.int32([0, 6]),
    causal=True,
    window=4,
    q_segments=np.int32([[0] * 8, [0, 0, 1, 1, 1, 1, 2, 2]]),
    kv_positions=np.int32([[-1, 0, 1, 2, 3, 4, 5, 6]] * 2),
)


@settings(max_examples=40, deadline=None)
@given(mask=masks(), seed=st.integers(0, 99))
def test_any_mask_equals_the_definition(mask, seed):
    q, k, v = tensors(np.random.default_rng(seed))
    np.testing.assert_allclose(attend(q, k, v, mask=mask), oracle(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize("size", [1, 600, 1200, 4096])
@pytest.mark.parametrize("mask", [MaskSpec(), MaskSpec(causal=True), EVERYTHING], ids=["all", "causal", "everything"])
def test_tiles_of_any_size_equal_the_definition(mask, size, monkeypatch):
    """Heads one by one, a row at a time, rows together: values, gradients and forward mode."""
    monkeypatch.setattr(attention, "TILE_BYTES", size)
    q, k, v = tensors(np.random.default_rng(0), b=2, h=4, hk=2)
    np.testing.assert_allclose(attend(q, k, v, mask=mask, impl="tiled"), oracle(q, k, v, mask), atol=2e-6)

    def derivatives(impl):
        def loss(q, k, v):
            return jnp.sin(attend(q, k, v, mask=mask, impl=impl)).sum()

        return jax.jit(lambda *a: (jax.grad(loss, (0, 1, 2))(*a), jax.jvp(loss, a, a)))(q, k, v)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), derivatives("tiled"),
                 derivatives("xla"))  # fmt: skip


@pytest.mark.parametrize("hk", [1, 2, 4])
def test_grouped_heads_bias_scale_and_other_key_counts(hk):
    rng = np.random.default_rng(0)
    q, k, v = tensors(rng, tq=3, tk=7, hk=hk)
    bias = rng.normal(size=(1, 4, 3, 7)).astype(np.float32)
    mask = MaskSpec(kv_lengths=np.int32([7, 2]))
    got = attend(q, k, v, mask=mask, bias=jnp.asarray(bias), scale=0.7)
    np.testing.assert_allclose(got, oracle(q, k, v, mask, bias, 0.7), atol=2e-6)


def test_order_of_keys_does_not_matter():
    rng = np.random.default_rng(0)
    q, k, v = tensors(rng)
    order = rng.permutation(8)
    positions = np.arange(8, dtype=np.int32)
    mask = MaskSpec(causal=True, window=5, kv_positions=positions)
    shuffled = dataclasses.replace(mask, kv_positions=positions[order])
    np.testing.assert_allclose(
        attend(q, k[:, order], v[:, order], mask=shuffled), attend(q, k, v, mask=mask), atol=1e-6
    )


def test_queries_without_keys_give_zeros_and_finite_gradients():
    q, k, v = tensors(np.random.default_rng(0))
    mask = MaskSpec(kv_lengths=jnp.asarray([0, 3]), q_lengths=jnp.asarray([8, 4]))
    out, back = jax.vjp(lambda *a: attend(*a, mask=mask), q, k, v)
    assert not np.any(out[0]) and not np.any(out[1, 4:]) and np.all(np.abs(out[1, :4]).max(-1) > 0)
    grads = back(jnp.ones_like(out))
    assert all(np.isfinite(g).all() for g in grads)
    assert not np.any(grads[0][0]) and not np.any(grads[1][1, 3:])


def test_large_scores_do_not_overflow():
    q, k, v = tensors(np.random.default_rng(0))
    out = attend(q * 1e4, k * 1e4, v)
    np.testing.assert_allclose(out, oracle(q * 1e4, k * 1e4, v, MaskSpec()), atol=1e-5)


def test_forward_mode_equals_finite_differences():
    q, k, v = tensors(np.random.default_rng(0))
    run = jax.jit(lambda q: attend(q, k, v, mask=EVERYTHING, impl="forward"))
    _, tangent = jax.jvp(run, (q,), (jnp.ones_like(q),))
    np.testing.assert_allclose(tangent, (run(q + 1e-2) - run(q - 1e-2)) / 2e-2, atol=1e-3)
    full = jax.jacfwd(lambda q: run(q)[1, 3, 0])(q)
    np.testing.assert_allclose(full, jax.jacrev(lambda q: run(q)[1, 3, 0])(q), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "mask",
    [MaskSpec(), MaskSpec(causal=True), EVERYTHING, MaskSpec(kv_lengths=np.int32([3, 8]), window=3)],
    ids=["all", "causal", "everything", "window"],
)
def test_ring_equals_dense_with_gradients(shape, mask):
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor", "sequence"), axis_types=(AxisType.Auto,) * 4)
    q, k, v = tensors(np.random.default_rng(1))
    mask = jax.tree.map(jnp.asarray, mask)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), jnp.float32)

    def loss(impl):
        def run(q, k, v, mask):
            out = attend(q, k, v, mask=mask, impl=impl)
            return (out * weight).sum(), out

        return jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))

    with jax.set_mesh(mesh):
        got = loss("ring")(q, k, v, mask)
    wanted = loss("xla")(q, k, v, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("mask", [MaskSpec(), MaskSpec(causal=True), MaskSpec(q_lengths=np.int32([9, 100]),
                                  kv_lengths=np.int32([0, 70]))], ids=["all", "causal", "lengths"])  # fmt: skip
def test_flash_equals_dense_in_the_interpreter(mask):
    """The TPU kernel, run by Pallas' interpreter, forward and backward."""
    from jax.experimental.pallas import tpu as pltpu

    q, k, v = tensors(np.random.default_rng(0), tq=130, tk=100, h=2, hk=1)

    def run(impl):
        out, back = jax.vjp(lambda *a: attend(*a, mask=mask, impl=impl), q, k, v)
        return out, back(jnp.ones_like(out))

    with pltpu.force_tpu_interpret_mode():
        got = run("flash")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, run("xla"))


@pytest.mark.parametrize(
    ("impl", "options", "message"),
    [
        ("best", {}, "expected one of"),
        ("cudnn", {}, "bfloat16"),
        ("ring", {}, "sequence"),
        ("flash", {"mask": MaskSpec(window=2)}, "window"),
    ],
)
def test_what_cannot_be_done_is_said(impl, options, message):
    with pytest.raises(ValueError, match=message):
        attend(*tensors(np.random.default_rng(0)), impl=impl, **options)
    q, k, v = tensors(np.random.default_rng(0), h=3)
    with pytest.raises(ValueError, match="multiple of hk"):
        attend(q, k, v)
