"""Layers against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.layers import conv, dropout, embed, norm, rope, stack
from models.layers.text import spread_symbols
from models.ops import precision
from models.ops.spread import spread


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("impl", "t", "c_in", "c_out", "width", "groups"),
    [
        ("shift", 9, 6, 6, 7, 6),
        ("blocks", 1, 8, 8, 5, 4),
        ("blocks", 13, 8, 12, 31, 4),
        ("blocks", 16, 6, 6, 3, 1),
        ("gradient", 13, 8, 12, 31, 4),
        ("gradient", 6, 4, 4, 3, 2),
        ("auto", 5, 4, 6, 3, 2),
    ],
)
def test_convolutions_equal_lax_with_gradients(impl, t, c_in, c_out, width, groups):
    x, kernel = normal(2, t, c_in), normal(width, c_in // groups, c_out, seed=1)
    weight = normal(2, t, c_out, seed=2)

    def run(impl):
        def loss(x, kernel):
            out = conv.conv1d(x, kernel, groups=groups, impl=impl)
            return (out * weight).sum(), out

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), run(impl), run("lax"))


def test_convolution_with_its_own_gradient_takes_every_transformation():
    x, kernel = normal(2, 9, 4), normal(3, 2, 6, seed=1)
    own, lax = (lambda x, k, i=i: conv.conv1d(x, k, groups=2, impl=i) for i in ("gradient", "lax"))

    def results(f):
        squared = jax.grad(lambda k: jnp.square(f(x, k)).sum())
        return (
            jax.jvp(f, (x, kernel), (x * 2, kernel * 3)),
            jax.jvp(lambda x: f(x, kernel), (x,), (x,)),
            jax.vmap(jax.grad(lambda x, k: jnp.sin(f(x[None], k)).sum(), 1), (0, None))(x, kernel),
            jax.jvp(squared, (kernel,), (kernel,)),
            jax.jit(jax.grad(jax.checkpoint(lambda k: jnp.square(f(x, k)).sum())))(kernel),
        )

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), results(own), results(lax))


def test_grn_definition_mask_and_zero_gradient():
    x = normal(2, 5, 4)
    module = norm.GRN(4)
    module.gamma[...], module.beta[...] = normal(4, seed=1), normal(4, seed=2)
    energy = np.sqrt(np.square(x).sum(1, keepdims=True))
    wanted = module.gamma[...] * x * energy / (energy.mean(-1, keepdims=True) + 1e-6) + module.beta[...] + x
    np.testing.assert_allclose(module(x), wanted, rtol=1e-5, atol=1e-6)
    mask = jnp.arange(5) < jnp.asarray([[5], [3]])
    np.testing.assert_allclose(module(x, mask)[1, :3], module(x[1:, :3])[0], rtol=1e-5)
    assert np.isfinite(jax.grad(lambda x: module(x).sum())(x * 0)).all()


def test_spread_is_a_broadcast_with_its_gradient():
    weight = normal(2, 5, 3)
    for vector in (normal(3, seed=1), normal(2, 1, 3, seed=1)):
        got, back = jax.vjp(lambda v: spread(v, (2, 5, 3)), vector)
        wanted, back_wanted = jax.vjp(lambda v: jnp.broadcast_to(v, (2, 5, 3)), vector)
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_allclose(back(weight)[0], back_wanted(weight)[0], rtol=1e-5, atol=1e-6)


def test_norms_are_scale_invariant_and_float32_inside():
    x = normal(3, 64) * 100 + 1000
    y = norm.layer_norm(x)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-4)
    np.testing.assert_allclose(norm.rms_norm(x, jnp.ones(64)), norm.rms_norm(x * 7, jnp.ones(64)), rtol=1e-5)
    assert norm.layer_norm(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_rope_scores_depend_on_distance_only():
    q, k = normal(1, 1, 2, 8), normal(1, 1, 2, 8, seed=1)

    def score(i, j):
        rotated = [rope.apply_rope(a, *rope.rope_phases(jnp.asarray([p]), 8)) for a, p in ((q, i), (k, j))]
        return (rotated[0] * rotated[1]).sum(-1)

    np.testing.assert_allclose(score(5, 2), score(1003, 1000), atol=2e-3)
    x = normal(2, 6, 3, 8)
    phases = rope.rope_phases(jnp.arange(6), 8)
    turned = rope.apply_rope(x, *phases)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    first = rope.apply_rope(x, *phases, heads=1)
    np.testing.assert_array_equal(first[:, :, 1:], x[:, :, 1:])
    np.testing.assert_allclose(first[:, :, 0], turned[:, :, 0], atol=1e-6)
    pair = x[..., 2:4] @ jnp.asarray([1, 1j])  # rotation by position · frequency in the complex plane
    angle = np.arange(6)[:, None] * 10000 ** (-2 / 8)
    np.testing.assert_allclose(turned[..., 2:4] @ jnp.asarray([1, 1j]), pair * np.exp(1j * angle), atol=1e-5)


def test_sinusoids():
    time = embed.time_sinusoid(jnp.asarray([0.0, 0.5]), 8)
    np.testing.assert_allclose(time[0], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(time[1, 3], np.sin(0.05), rtol=1e-4)  # last frequency is 1/10000: divisor half - 1
    wanted = [*np.cos([2, 0.02]), *np.sin([2, 0.02])]
    np.testing.assert_allclose(embed.position_sinusoid(3, 4)[2], wanted, rtol=1e-5)


def test_spread_symbols_equals_the_loop():
    """For every small count and length: the last ``length mod count`` symbols get the extra frame."""
    pairs = [(n, length) for length, n in itertools.product(range(9), range(9)) if n <= length]
    x = jnp.broadcast_to(jnp.arange(1.0, 9.0)[:, None], (len(pairs), 8, 1))
    got = spread_symbols(x, *(jnp.asarray(column) for column in zip(*pairs, strict=True)))
    for row, (n, length) in zip(got[..., 0], pairs, strict=True):
        times, extra = divmod(length, n) if n else (0, 0)
        wanted = [i + 1 for i in range(n) for _ in range(times + (i >= n - extra))]
        np.testing.assert_array_equal(row, wanted + [0] * (8 - len(wanted)))


def test_dropout_keeps_the_mean_and_the_prefix():
    x = jnp.ones((2, 4000))
    keys = jax.random.split(jax.random.key(0), 2)
    y = dropout.dropout(x, 0.25, keys)
    assert abs(float(y.mean()) - 1) < 0.05
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    frames = dropout.dropout(jnp.ones((2, 9, 3)), 0.5, keys)
    np.testing.assert_array_equal(frames[:, :5], dropout.dropout(jnp.ones((2, 5, 3)), 0.5, keys))
    assert dropout.dropout(x, 0.5, None) is x and dropout.dropout(x, 0.0, keys) is x


def test_stack_equals_its_layers_one_by_one():
    def layer(rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    module = stack.stacked(layer, 3, nnx.Rngs(0))
    x, wanted = normal(2, 4), normal(2, 4)
    for i in range(3):
        wanted = wanted @ module.kernel[i] + module.bias[i] + i
    for scan, remat in itertools.product([True, False], ["none", *stack.REMAT]):
        got = stack.run_stack(module, x, lambda m, x, i: m(x) + i, scan=scan, remat=remat)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert np.abs(module.kernel[0] - module.kernel[1]).max() > 0


def test_precision():
    tree = {"a": jnp.ones(2), "n": jnp.ones(2, jnp.int32), "flag": True}
    cast = precision.cast_floating({"a": tree["a"], "n": tree["n"]}, jnp.bfloat16)
    assert cast["a"].dtype == jnp.bfloat16 and cast["n"].dtype == jnp.int32
    assert precision.accumulation_dtype(jnp.float16) == jnp.float32
    with pytest.raises(ValueError, match="float8"):
        precision.compute_dtype("float8")
