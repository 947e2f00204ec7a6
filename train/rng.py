"""Stateless randomness: a key is a function of (seed, stream, step, example), so none is ever saved.

Threefry only: its values do not depend on how an array is sharded, which is what makes one device equal eight and one
microbatch equal four.  ``rbg`` is faster on TPU but gives that up.
"""

import zlib

import jax


def stream(seed: int, name: str, step: int | jax.Array) -> jax.Array:
    """Key of the named stream at a step; the same in every process, on every mesh and after every resume.

    Args:
      seed: the run's seed.
      name: what the randomness is for, e.g. ``"train"``; different names give independent streams.
      step: scalar integer, may be traced.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


def per_example(key: jax.Array, index: jax.Array) -> jax.Array:
    """Keys ``[b]`` for the examples with global numbers ``index [b]`` (``batch["index"]``).

    A row draws the same numbers whichever microbatch, device or host it lands on.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
