"""A flow whose exact network is known, with prompts that differ, for tests of searches."""

import jax
import jax.numpy as jnp
import numpy as np

from sampling.analytic import Mixture
from sampling.grids import uniform
from sampling.guidance import Conditional
from sampling.noise import Keyed
from sampling.paths import FlowPath
from sampling.sample import sample

PATH = FlowPath()
LAW = Mixture([0.5, 0.3, 0.2], [[-2.0, 0.0], [2.0, 0.5], [0.0, 2.0]], [0.3 * np.eye(2), 0.1 * np.eye(2), np.eye(2)])
GUIDE = Conditional(LAW.denoiser(PATH, "velocity"))
GRID = uniform(6, end=0.99)
SHAPE = (3, 2)
TARGETS = jnp.array([[2.0, 0.5], [-2.0, 1.0], [0.0, 3.0]])


def run(start, number):
    return sample(GUIDE, start, GRID, path=PATH)


def solve(x, grid, number):
    return sample(GUIDE, x, grid, path=PATH)


def near(x, targets):
    """A verifier: minus the squared distance to each prompt's own target."""
    return -((x - targets) ** 2).sum(-1)


def noise(seed=0, ids=(0, 1, 2)):
    return Keyed(jax.random.key(seed), jnp.asarray(ids))
