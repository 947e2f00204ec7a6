"""Recipes reproduce what they are named after, written out by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.guidance import ClassifierFree, Conditional
from sampling.noise import start_noise
from sampling.prediction import Prediction
from sampling.recipes import beso


@pytest.mark.parametrize(
    "schedule, middle", [("exponential", 0.005**0.5), ("karras", ((1 + 0.005**0.2) / 2) ** 5), ("linear", 1.005 / 2)]
)
def test_beso_takes_three_calls_from_one_to_zero(schedule, middle):
    recipe = beso(schedule=schedule)
    np.testing.assert_allclose(recipe.grid, [1.0, middle, 0.005, 0.0], rtol=1e-9)
    assert beso(sigma_min=0.05).grid[2] == pytest.approx(0.05)

    weights = jax.random.normal(jax.random.key(0), (7, 3)) / 3
    condition = {"seen": jax.random.normal(jax.random.key(1), (5, 2)), "goal": jnp.ones((5, 2))}
    null = condition | {"goal": jnp.zeros((5, 2))}
    asked = []

    def inner(x, sigma, c):
        asked.append(c["seen"].shape)
        return jnp.tanh(jnp.concatenate([x, c["seen"], c["goal"]], axis=1) @ weights)

    def preconditioned(x, t, c):  # F(c_in·x); the table adds c_skip and c_out
        return Prediction(inner(x / jnp.sqrt(t**2 + 0.25), t, c), "F")

    start = start_noise(jax.random.key(2), jnp.arange(5), (3,))
    plain = recipe(Conditional(preconditioned, condition), start)
    guided = recipe(ClassifierFree(preconditioned, condition, null, 1.5), start)
    assert int(plain.ledger.network_calls) == 3 and int(guided.ledger.network_calls) == 6

    def denoised(x, sigma, c):
        total = np.sqrt(sigma**2 + 0.25)
        return 0.25 / total**2 * x + 0.5 * sigma / total * inner(x / total, sigma, c)

    for scale, result in ((1.0, plain), (1.5, guided)):
        x = 1.0 * start
        for sigma, to in itertools.pairwise(recipe.grid):
            free = denoised(x, sigma, null)
            data = free + scale * (denoised(x, sigma, condition) - free)
            x = data if to == 0 else to / sigma * x + (1 - to / sigma) * data  # k-diffusion's form in log σ
        np.testing.assert_allclose(result.x, x, atol=1e-5)
    with pytest.raises(ValueError, match="schedule of BESO's"):
        beso(schedule="cosine")
