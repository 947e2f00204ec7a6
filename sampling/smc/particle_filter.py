"""Particle filters over any state: propose, weigh, resample, compiled as one scan.

The state is a pytree of arrays with leading dimension swarms·particles (token buffers, caches, lengths, …); resampling
copies rows of all of them.  Diffusion goes through ``sampling.sample`` instead, with the same policies and weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sampling.smc.protocol import Resampling, Weights

Propose = Callable[[Any, Any], Any]  # (particles, this step's inputs) -> moved particles
Weigh = Callable[[Any, Any], jax.Array]  # (moved particles, this step's inputs) -> Δ log w [swarms·particles]


class Filtered(NamedTuple):
    """The particles after the last step, and their weights."""

    particles: Any
    weights: Weights


def particle_filter(
    propose: Propose, weigh: Weigh, particles: Any, inputs: Any, resampling: Resampling, *, swarms: int = 1
) -> Filtered:
    """Runs one step per row of ``inputs``.

    Args:
      propose: moves every particle; its randomness comes in through the inputs or through keys in the particles.
      weigh: the increment of each particle's log-weight; a particle in an absorbing state returns 0.
      particles: pytree of arrays [swarms·particles, ...], swarm-major.
      inputs: pytree of arrays [n, ...]; for a bare count use ``jnp.arange(n)``.
      resampling: a policy; its window counts finished steps, 1 … n.

    Raises:
      ValueError: rows that swarms cannot share, or increments of another shape.
    """
    rows = jax.tree.leaves(particles)[0].shape[0]
    steps = jax.tree.leaves(inputs)[0].shape[0]
    if rows % swarms:
        raise ValueError(f"{rows} particles cannot be shared by {swarms} swarms")
    plan = resampling.plan(np.arange(steps + 1.0), swarms, rows // swarms)

    def body(carry: tuple[Any, Any], row: tuple[Any, Any]) -> tuple[tuple[Any, Any], Any]:
        (particles, state), (given, planned) = carry, row
        particles = propose(particles, given)
        dlogw = weigh(particles, given)
        if dlogw.shape != (rows,):
            raise ValueError(f"increments must be one number a particle, [{rows}], got shape {dlogw.shape}")
        stepped = resampling.step(state, dlogw.reshape(swarms, -1), planned)
        return (stepped.move(particles), stepped.state), stepped.trace

    start = resampling.init(swarms, rows // swarms, jnp.result_type(float))
    (particles, state), trace = jax.lax.scan(body, (particles, start), (inputs, jax.tree.map(jnp.asarray, plan)))
    weights, particles = resampling.finish(state, trace, particles)
    return Filtered(particles, weights)
