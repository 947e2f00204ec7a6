"""The functional edge: plain dicts in, plain dicts out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.functional import functional


class Net(nnx.Module):
    """A list of layers, running statistics, two methods."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def first(self, x, *, scale):
        return self.layers[0](x) * scale


MODEL = functional(Net)


def test_plain_string_keyed_dicts_whose_shapes_are_known_without_allocating():
    variables = MODEL.init(jax.random.key(0))
    assert set(variables) == {"params", "stats"}
    assert set(variables["params"]["layers"]) == {"0", "1"}
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), variables)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), MODEL.abstract())
    assert all(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(MODEL.abstract()))


def test_calls_are_pure_and_return_new_statistics():
    variables = MODEL.init(jax.random.key(0))
    before = jax.tree.map(np.array, variables)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    out, stats = jax.jit(MODEL.apply)(variables, x)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    y = x
    for i in "01":
        y = y @ before["params"]["layers"][i]["kernel"] + before["params"]["layers"][i]["bias"]
    np.testing.assert_allclose(stats["norm"]["mean"], y.mean(0) / 2, atol=1e-6)
    again, _ = MODEL.apply(variables, x)
    np.testing.assert_allclose(again, out, atol=1e-6)


def test_methods_by_name_and_same_key_same_variables():
    variables = MODEL.init(jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, variables, MODEL.init(jax.random.key(1)))
    x = jnp.ones((2, 3))
    out, _ = MODEL.apply(variables, x, method="first", scale=2.0)
    first = variables["params"]["layers"]["0"]
    np.testing.assert_allclose(out, (x @ first["kernel"] + first["bias"]) * 2, atol=1e-6)


def test_foreign_variables_are_refused_by_name():
    variables = MODEL.init(jax.random.key(0))
    del variables["params"]["layers"]["1"]["bias"]
    with pytest.raises(ValueError, match="params/layers/1/bias is missing"):
        MODEL.apply(variables, jnp.ones((2, 3)))
    variables = MODEL.init(jax.random.key(0))
    variables["params"]["extra"] = jnp.ones(1)
    with pytest.raises(ValueError, match="no variable params/extra"):
        MODEL.apply(variables, jnp.ones((2, 3)))


def test_random_state_in_a_module_is_refused():
    with pytest.raises(ValueError, match="random state"):
        functional(lambda rngs: nnx.Dropout(0.5, rngs=rngs)).abstract()
