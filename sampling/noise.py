"""Noise that belongs to a sample, not to its place in a batch.

Row i's numbers come from ``fold_in(key, sample id)``, those of a step from ``fold_in(that, step)``: the same for every
batch size, order, padding and device count.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp


def sample_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
    """One key per sample id: [b]."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(ids, jnp.uint32))


def start_noise(key: jax.Array, ids: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Standard normal numbers [b, *shape].

    A longer first axis only appends numbers (JAX's default generator counts positions), so a sequence padded to another
    bucket keeps the noise of its real frames; ``tests/sampling`` holds it to that.
    """
    return jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(sample_keys(key, ids))


class Noise(Protocol):
    """Where a stochastic solver's normal numbers come from; a pytree."""

    def check(self, steps: int, shape: tuple[int, ...]) -> None:
        """Raises ValueError unless it has numbers for the first ``steps`` steps of states ``shape`` [b, ...]."""
        ...

    def at(self, step: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """The numbers [b, ...] of one step, inside the scan."""
        ...


@jax.tree_util.register_pytree_node_class
class Keyed:
    """Numbers made where they are needed: row i of step k from ``fold_in(fold_in(key, ids[i]), k)``."""

    def __init__(self, key: jax.Array, ids: jax.Array):
        self.keys = sample_keys(key, ids)

    @classmethod
    def of(cls, keys: jax.Array) -> "Keyed":
        """From a key for each row [b]."""
        return cls.tree_unflatten(None, (keys,))

    def check(self, steps: int, shape: tuple[int, ...]) -> None:
        if self.keys.shape[0] != shape[0]:
            raise ValueError(f"noise has {self.keys.shape[0]} sample ids for {shape[0]} rows")

    def at(self, step: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, step), shape[1:], dtype))(self.keys)

    def tree_flatten(self) -> tuple[tuple[jax.Array], None]:
        return (self.keys,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[jax.Array]) -> "Keyed":
        noise = object.__new__(cls)
        (noise.keys,) = children
        return noise


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stored:
    """Given numbers [steps, b, ...]; row k is step k's, and last steps that draw nothing need none."""

    values: jax.Array

    def check(self, steps: int, shape: tuple[int, ...]) -> None:
        if self.values.shape[0] < steps or self.values.shape[1:] != shape:
            raise ValueError(f"stored noise has shape {self.values.shape}, but {steps} steps draw {shape} each")

    def at(self, step: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jnp.asarray(self.values, dtype)[step]
