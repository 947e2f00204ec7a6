"""Particles of a swarm in one place or spread over the devices of a mesh axis.

``Exact`` gathers log-weights (one number a particle) and lets every device compute all parents, so indices are those of
a single device; particles that change device are exchanged.  ``Island`` resamples within each device and never
communicates: a device's particles keep the weight of their island, and only the final estimate looks at all.
``sampling.smc.sharding.shard`` runs a sampler under either.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sampling.smc.uniforms import Uniforms
from sampling.smc.weights import log_mean


@dataclasses.dataclass(frozen=True)
class Together:
    """All particles of a swarm are here."""

    @property
    def size(self) -> int:
        """How many times more particles are resampled together than are here."""
        return 1

    def gather(self, values: jax.Array) -> jax.Array:
        """What resampling looks at: [swarms, k here] -> [swarms, particles resampled together]."""
        return values

    def own(self, values: jax.Array) -> jax.Array:
        """The inverse of ``gather``: the columns of this device."""
        return values

    def share(self, values: jax.Array, particles: int) -> jax.Array:
        """This device's columns of an array [swarms, all particles]; ``particles`` are here."""
        return values

    def take(self, tree: Any, parents: jax.Array) -> Any:
        """Rows [swarms·k, ...] of every array, from the parents [swarms, k] (columns of ``gather``)."""
        return jax.tree.map(lambda a: _rows(_split(a, parents), parents), tree)

    def uniforms(self, source: Uniforms) -> Uniforms:
        return source

    def combine(self, logw: jax.Array, log_z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(log-weights on one scale, log Ẑ [swarms] of all particles) at the end of a run."""
        return logw, log_z + log_mean(self.gather(logw))

    def total(self, values: jax.Array) -> jax.Array:
        """The sum over groups that are resampled apart, here one."""
        return values

    def everywhere(self, flags: jax.Array) -> jax.Array:
        """True where it is on every device."""
        return flags


@dataclasses.dataclass(frozen=True)
class Exact(Together):
    """One device's result on many; inside ``jax.shard_map`` over ``axis``."""

    axis: str

    @property
    def size(self) -> int:
        return jax.lax.axis_size(self.axis)

    def gather(self, values: jax.Array) -> jax.Array:
        return jax.lax.all_gather(values, self.axis, axis=1, tiled=True)

    def own(self, values: jax.Array) -> jax.Array:
        return self.share(values, values.shape[1] // self.size)

    def share(self, values: jax.Array, particles: int) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(values, jax.lax.axis_index(self.axis) * particles, particles, axis=1)

    def take(self, tree: Any, parents: jax.Array) -> Any:
        return jax.tree.map(lambda a: _rows(self.gather(_split(a, parents)), parents), tree)

    def everywhere(self, flags: jax.Array) -> jax.Array:
        return jax.lax.pmin(flags.astype(jnp.int32), self.axis).astype(bool)


@dataclasses.dataclass(frozen=True)
class Island(Together):
    """Every device resamples its own particles; inside ``jax.shard_map`` over ``axis``."""

    axis: str

    def share(self, values: jax.Array, particles: int) -> jax.Array:
        return Exact(self.axis).share(values, particles)

    def uniforms(self, source: Uniforms) -> Uniforms:
        return source.island(jax.lax.axis_index(self.axis))

    def combine(self, logw: jax.Array, log_z: jax.Array) -> tuple[jax.Array, jax.Array]:
        islands = jax.lax.all_gather(log_z + log_mean(logw), self.axis, axis=-1)  # [swarms, islands]
        return logw + (log_z - jax.lax.pmax(log_z, self.axis))[:, None], log_mean(islands)

    def total(self, values: jax.Array) -> jax.Array:
        return jax.lax.psum(values, self.axis)

    def everywhere(self, flags: jax.Array) -> jax.Array:
        return Exact(self.axis).everywhere(flags)


def _split(a: jax.Array, parents: jax.Array) -> jax.Array:
    """[swarms·k, ...] -> [swarms, k, ...]."""
    return a.reshape(parents.shape[0], -1, *a.shape[1:])


def _rows(values: jax.Array, parents: jax.Array) -> jax.Array:
    """[swarms, n, ...] -> the parents' rows, [swarms·k, ...]."""
    taken = jax.vmap(lambda v, i: v[i])(values, parents)
    return taken.reshape(-1, *taken.shape[2:])
