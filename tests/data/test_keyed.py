"""Keyed randomness: true permutations, even draws, and no dependence on how many are made at once."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.keyed import bits, permute, uniform


@given(st.integers(1, 700), st.integers(0, 2**63 - 1))
@settings(deadline=None, max_examples=40)
def test_permute_is_a_permutation_evaluated_pointwise(size: int, seed: int):
    whole = permute(np.arange(size), size, seed, "x")
    assert sorted(whole) == list(range(size))
    assert permute(np.array([size // 2]), size, seed, "x")[0] == whole[size // 2]


def test_permutations_are_even_and_differ_by_key():
    keys = np.arange(6000)[:, None]
    perms = permute(np.arange(5)[None, :], 5, keys, "even")
    assert (np.sort(perms, axis=1) == np.arange(5)).all()
    counts = np.stack([(perms == v).sum(axis=0) for v in range(5)])
    assert np.abs(counts / 6000 - 0.2).max() < 0.02  # standard deviation 0.005
    assert len({tuple(p) for p in perms}) == 120
    order = permute(np.arange(1000), 1000, 0)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.1


def test_uniform_is_uniform_and_streams_are_apart():
    u = uniform(3, "a", np.arange(20000))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.002
    v = uniform(3, "b", np.arange(20000))
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.03
    assert uniform(3, "a", 77) == u[77]
    assert bits(1, 2) != bits(2, 1)


def test_bits_never_change_between_versions():
    """Resuming on another machine must give the same batches, so these values are part of the file format."""
    assert [int(w) for w in bits(7, "order", np.arange(2))] == [12308699390581307252, 5269380539342218698]
    assert permute(np.arange(8), 8, 7).tolist() == [3, 0, 2, 6, 7, 1, 5, 4]
