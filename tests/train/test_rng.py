"""Streams are reproducible, independent of each other, and the same whatever the sharding."""

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from train import rng
from train.mesh import build_mesh


def bits(key):
    """The raw words of a key or of an array of keys."""
    return np.asarray(jax.random.key_data(key))


def test_a_stream_is_a_function_of_seed_name_and_step():
    same = bits(rng.stream(1, "train", 5))
    np.testing.assert_array_equal(same, bits(jax.jit(lambda s: rng.stream(1, "train", s))(5)))
    for other in (rng.stream(2, "train", 5), rng.stream(1, "evaluate", 5), rng.stream(1, "train", 6)):
        assert (bits(other) != same).any()


def test_streams_never_change():
    """Resuming an old run needs these very words."""
    np.testing.assert_array_equal(bits(rng.stream(0, "train", 7)), [1163978374, 237895655])


def test_a_row_draws_the_same_numbers_wherever_it_lies():
    key = rng.stream(0, "train", 0)

    def draw(index):
        return jax.vmap(lambda k: jax.random.normal(k, (3,)))(rng.per_example(key, index))

    index = np.arange(16, dtype=np.int32)
    whole = np.asarray(jax.jit(draw)(index))
    rows = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(np.asarray(jax.jit(draw)(index[rows])), whole[rows])
    mesh = build_mesh({"data": 8}, jax.devices()[:8])
    placed = jax.device_put(index, NamedSharding(mesh, P("data")))
    np.testing.assert_array_equal(np.asarray(jax.jit(draw)(placed)), whole)
    assert len(np.unique(whole)) == whole.size
