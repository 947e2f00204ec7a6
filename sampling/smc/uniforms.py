"""Uniform numbers of resampling: keyed by the swarm, or given.  Never the numbers of a solver's noise."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sampling.noise import sample_keys

STREAM = 0x5EED  # folded into the caller's key, who may well use the same one for the noise


class Uniforms(Protocol):
    """Where resampling takes its numbers in [0, 1) from."""

    def check(self, steps: int, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless there are numbers ``shape`` [swarms, ...] for every step."""
        ...

    def at(self, step: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The numbers [swarms, ...] of one step, inside the scan."""
        ...

    def island(self, number: jax.Array) -> "Uniforms":
        """The source of one of several islands, which resample apart."""
        ...


@dataclasses.dataclass(frozen=True)
class KeyedUniforms:
    """Swarm i of step k has its own: the same for any number of swarms and devices.

    Attributes:
      key: a key; the numbers are independent of noise made from the same one.
      ids: [swarms], unsigned.
    """

    key: jax.Array
    ids: jax.Array

    def check(self, steps: int, shape: tuple[int, ...]) -> None:
        if len(self.ids) != shape[0]:
            raise ValueError(f"uniform numbers for {len(self.ids)} swarms, but there are {shape[0]}")

    def at(self, step: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        keys = sample_keys(jax.random.fold_in(self.key, STREAM), self.ids)
        return jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, step), shape[1:], dtype))(keys)

    def island(self, number: jax.Array) -> "KeyedUniforms":
        return KeyedUniforms(jax.random.fold_in(self.key, number), self.ids)


@dataclasses.dataclass(frozen=True)
class StoredUniforms:
    """Given numbers [n, swarms] for one-number schemes, [n, swarms, particles] for the others."""

    values: jax.Array

    def check(self, steps: int, shape: tuple[int, ...]) -> None:
        if self.values.shape != (steps, *shape):
            raise ValueError(f"stored uniform numbers have shape {self.values.shape}, expected {(steps, *shape)}")

    def at(self, step: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.asarray(self.values, dtype)[step]

    def island(self, number: jax.Array) -> "StoredUniforms":
        """The same numbers everywhere: each island stays unbiased, but they no longer differ."""
        return self
