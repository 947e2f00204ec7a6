"""A sampler whose particles are spread over the devices of a mesh axis.

def run(x, ids, group):                                                # k particles of each swarm, on one device
    resampling = Resample(uniforms=KeyedUniforms(key, swarm_ids), group=group)
    return sample(guide, x, grid, noise=Keyed(key, ids), particles=k, corrector=FeynmanKac(), resampling=resampling)

result = jax.jit(shard(run, mesh, "data", Exact))(x, ids)              # [swarms, particles, ...]
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sampling.sample import Sample
from sampling.smc.devices import Together
from sampling.smc.protocol import Weights


def shard(
    run: Callable[[jax.Array, jax.Array, Together], Sample], mesh: Mesh, axis: str, group: Callable[[str], Together]
) -> Callable[[jax.Array, jax.Array], Sample]:
    """Spreads the particles of every swarm over ``axis`` of ``mesh``.

    Args:
      run: (x [swarms·k, ...], sample ids [swarms·k], group) -> a ``Sample`` with weights, of k particles a swarm; it
        hands the group to its resampling.  Arrays it closes over are the same on all devices.
      group: ``Exact`` or ``Island``.

    Returns:
      (x [swarms, particles, ...], ids [swarms, particles]) -> the ``Sample`` of all, swarm-major like on one device.

    Raises:
      ValueError: particles that the devices cannot share equally, before anything is compiled.
    """
    size = mesh.shape[axis]

    def local(x: jax.Array, ids: jax.Array) -> Sample:
        swarms = x.shape[0]
        done = run(x.reshape(-1, *x.shape[2:]), ids.reshape(-1), group(axis))
        states = None if done.states is None else done.states.reshape(len(done.states), swarms, -1, *x.shape[2:])
        return Sample(done.x.reshape(swarms, -1, *x.shape[2:]), states, done.ledger, done.weights)

    def sharded(x: jax.Array, ids: jax.Array) -> Sample:
        if x.shape[1] % size:
            raise ValueError(
                f"{x.shape[1]} particles cannot be shared equally by the {size} devices of mesh axis {axis!r}; "
                f"use a multiple of {size}"
            )
        column: Any = P(None, axis)  # [swarms, particles, ...]
        later: Any = P(None, None, axis)  # [n, swarms, particles, ...]
        same: Any = P()
        weights = Weights(logw=column, log_z=same, ess=same, resampled=same, alive=same, history=later)
        specs = Sample(x=column, states=later, ledger=same, weights=weights)
        mapped = jax.shard_map(local, mesh=mesh, in_specs=(column, column), out_specs=specs, check_vma=False)
        done = mapped(x, ids)
        states = None if done.states is None else done.states.reshape(len(done.states), -1, *x.shape[2:])
        return Sample(done.x.reshape(-1, *x.shape[2:]), states, done.ledger, done.weights)

    return sharded
