"""Average velocities: exact ones arrive in any number of steps; guide and grid must belong together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.few_step import AverageVelocity
from sampling.grids import uniform
from sampling.paths import FlowPath
from sampling.sample import sample
from sampling.solvers import Heun

MEAN, STD = 1.5, 0.4


def marginal(t):
    return jnp.sqrt((t * STD) ** 2 + (1.0 - t) ** 2)


def average(x, t, end, shift):
    """Of Gaussian data N(MEAN + shift, STD²) on F5's flow."""
    mean = MEAN + shift[:, None]
    there = end * mean + (x - t * mean) * marginal(end) / marginal(t)
    return (there - x) / (end - t)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_exact_averages_arrive_in_any_number_of_steps(steps):
    with jax.enable_x64(True):
        x, shift = jax.random.normal(jax.random.key(0), (6, 3)), jnp.arange(6.0)
        grid = uniform(steps)
        run = jax.jit(lambda x: sample(AverageVelocity(average, shift, grid), x, grid, keep="all"))
        result = run(x)
        np.testing.assert_allclose(result.x, MEAN + shift[:, None] + STD * x, rtol=1e-12)
        assert result.ledger.network_calls == steps and result.states.shape == (steps + 1, 6, 3)


def test_another_direction_of_time_is_the_same():
    with jax.enable_x64(True):
        x, shift, grid = jax.random.normal(jax.random.key(0), (6, 3)), jnp.zeros(6), uniform(2, 1.0, 0.0)
        back = AverageVelocity(lambda x, t, end, c: -average(x, 1.0 - t, 1.0 - end, c), shift, grid)
        result = jax.jit(lambda x: sample(back, x, grid, path=FlowPath(data_time=0.0)))(x)
        np.testing.assert_allclose(result.x, MEAN + STD * x, rtol=1e-12)


def test_other_solvers_and_other_grids_are_refused():
    x, guide = jnp.ones((2, 3)), AverageVelocity(average, jnp.zeros(2), uniform(4))
    with pytest.raises(ValueError, match="Euler's steps"):
        sample(guide, x, uniform(4), solver=Heun())
    with pytest.raises(ValueError, match="Euler's steps"):
        sample(guide, x, uniform(2))
