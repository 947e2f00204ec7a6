"""Counter-based randomness in numpy: every draw is a hash of (seed, what, where), so it can be made on its own.

This is what makes a batch a function of its step: nothing has to be replayed or saved.  The functions use 64-bit
integer arithmetic only, so they give the same bits on every machine and in every numpy version (``np.random`` promises
less).
"""

import zlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words without visible order."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(*keys: int | str | np.ndarray) -> np.ndarray:
    """Random uint64 words that depend on every key; integer arrays broadcast, strings name streams."""
    with np.errstate(over="ignore"):
        word = np.zeros((), np.uint64)
        for key in keys:
            value = zlib.crc32(key.encode()) if isinstance(key, str) else key
            word = _scramble((word + _GOLDEN) ^ np.asarray(value).astype(np.uint64))
        return _scramble(word + _GOLDEN)


def uniform(*keys: int | str | np.ndarray) -> np.ndarray:
    """Float64 in [0, 1), one per broadcast entry of the keys."""
    return (bits(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index: np.ndarray, size: int, *keys: int | str | np.ndarray) -> np.ndarray:
    """Positions ``index`` in 0..size-1 -> where a random permutation of 0..size-1, chosen by the keys, sends them.

    A balanced Feistel network over the next even number of bits, walked until the result is below ``size`` (Black and
    Rogaway 2002): a true permutation, evaluated at single positions without a table.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    round_keys = [bits(*keys, r) for r in range(6)]
    out = np.atleast_1d(np.asarray(index)).astype(np.uint64)
    shape = np.broadcast_shapes(out.shape, round_keys[0].shape)
    out, round_keys = np.broadcast_to(out, shape).copy(), [np.broadcast_to(k, shape) for k in round_keys]
    todo = np.ones(shape, bool)
    while todo.any():
        left, right = out[todo] >> shift, out[todo] & mask
        for key in round_keys:
            left, right = right, left ^ (bits(right, key[todo]) & mask)
        out[todo] = (left << shift) | right
        todo &= out >= np.uint64(size)
    return out.astype(np.int64)
