"""The image transformer: forward-mode derivatives are finite differences, positions and labels matter, rules cover."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.functional import functional
from models.image_dit import AXES, ImageDiT, grid_phases
from train import trees

SIZES = {"dim": 16, "depth": 2, "heads": 2, "patch": 4, "shape": (8, 8, 1), "classes": 3, "time_scale": 5.0}


def network(**options):
    """A network with random numbers everywhere: zero-initialised parts would hide what they multiply."""
    model, random = functional(lambda rngs: ImageDiT(**(SIZES | options), rngs=rngs)), np.random.default_rng(0)
    params = jax.tree.map(lambda p: 0.2 * random.normal(size=p.shape).astype(np.float32), model.abstract()["params"])
    return model, {"params": params, "stats": {}}


def inputs(rows=3):
    x = jax.random.normal(jax.random.key(2), (rows, 8, 8, 1))
    return x, jnp.linspace(0.2, 0.7, rows), jnp.arange(rows), jnp.linspace(0.1, 0.3, rows)


def test_forward_mode_equals_finite_differences():
    model, variables = network(span=True, attn_impl="forward")
    x, time, label, span = inputs()
    direction = jax.random.normal(jax.random.key(3), x.shape)

    def along(h):
        return model.apply(variables, x + h * direction, time + h, label, span - 0.5 * h)[0]

    _, derivative = jax.jit(lambda h: jax.jvp(along, (h,), (1.0,)))(0.0)
    h, value = 2e-2, jax.jit(along)  # float32: fourth-order differences, so that a large step will do
    a, b, c, d = (value(k * h) for k in (-2.0, -1.0, 1.0, 2.0))
    np.testing.assert_allclose(derivative, (a - 8 * b + 8 * c - d) / (12 * h), rtol=5e-3, atol=5e-3)
    assert np.abs(derivative).max() > 0.1


def test_everything_that_is_given_matters_and_rows_do_not_mix():
    model, variables = network(span=True)
    call = jax.jit(lambda *a: model.apply(variables, *a)[0])
    x, time, label, span = inputs()
    base = call(x, time, label, span)
    assert base.shape == x.shape
    for other in ((x, time + 0.2, label, span), (x, time, label + 1, span), (x, time, label, span + 0.2)):
        assert np.abs(call(*other) - base).max() > 1e-3
    swapped = x[:, jnp.array([4, 5, 6, 7, 0, 1, 2, 3])]  # patches trade places
    assert np.abs(call(swapped, time, label, span)[:, [4, 5, 6, 7, 0, 1, 2, 3]] - base).max() > 1e-3
    alone = call(x[1:2], time[1:2], label[1:2], span[1:2])
    np.testing.assert_allclose(alone[0], base[1], rtol=1e-5, atol=1e-5)


def test_no_second_time_means_a_span_of_zero():
    model, variables = network(span=True)
    _, time, label, _ = inputs()
    found = [model.apply(variables, time, label, span, method="condition")[0] for span in (None, jnp.zeros(3))]
    np.testing.assert_array_equal(*found)
    plain, own = network()
    with pytest.raises(ValueError, match="span=True"):
        plain.apply(own, time, label, jnp.zeros(3), method="condition")
    with pytest.raises(ValueError, match="uncertainty=True"):
        plain.apply(own, time, method="log_variance")


def test_rotary_phases_of_a_raster_turn_with_row_and_column():
    cos, sin = grid_phases(2, 3, 8)
    assert cos.shape == (6, 4)
    angle = np.arctan2(sin, cos).reshape(2, 3, 4)
    assert np.allclose(angle[:, :, :2], angle[:, :1, :2]), "the first half knows the row alone"
    assert np.allclose(angle[:, :, 2:], angle[:1, :, 2:]), "the second half the column"
    assert np.allclose(angle[1, 0, 0], 1.0) and np.allclose(angle[0, 2, 2], 2.0)


def test_every_parameter_has_a_sharding_rule():
    model, _ = network(span=True, uncertainty=True)
    for path, leaf in trees.flatten(model.abstract()["params"]).items():
        rules = [axes for regex, axes in AXES if re.fullmatch(regex, path)]
        assert len(rules) == 1 and len(rules[0]) == leaf.ndim, path


def test_sizes_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="divisor of height and width"):
        network(patch=3)
    with pytest.raises(ValueError, match="heads of a multiple of 4"):
        network(heads=8)
