"""Counter-based randomness in numpy: every draw is a hash of (seed, what, where), so it can be made on its own.

This is what makes a batch a function of its step: nothing has to be replayed or saved.  The functions use 64-bit
integer arithmetic only, so they give the same bits on every machine and in every numpy version (``np.random`` promises
less).
"""

import zlib

import numpy as np

Key = int | str | np.integer | np.ndarray
_GOLDEN, _MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def _scramble(x):  # int -> int or uint64 array -> uint64 array
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words without visible order."""
    if isinstance(x, int):  # plain integers are several times faster than numpy's scalars
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        return x ^ (x >> 31)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix(word, key: Key):
    """One more key into a word; stays a plain integer until an array comes."""
    if isinstance(key, str):
        key = zlib.crc32(key.encode())
    value = key.astype(np.uint64) if isinstance(key, np.ndarray) and key.ndim else int(key) & _MASK
    word = (word + _GOLDEN) & _MASK if isinstance(word, int) else word + np.uint64(_GOLDEN)
    if isinstance(word, int) and isinstance(value, int):
        return _scramble(word ^ value)
    return _scramble(np.bitwise_xor(word, value, dtype=np.uint64))


def _hash(keys: tuple[Key, ...]):
    word = 0
    for key in keys:
        word = _mix(word, key)
    return word


def bits(*keys: Key) -> np.ndarray:
    """Random uint64 words that depend on every key; integer arrays broadcast, strings name streams."""
    return np.asarray(_hash(keys), np.uint64)


def uniform(*keys: Key) -> np.ndarray:
    """Float64 in [0, 1), one per broadcast entry of the keys."""
    return (bits(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index: np.ndarray, size: int, *keys: Key) -> np.ndarray:
    """Positions ``index`` in 0..size-1 -> where a random permutation of 0..size-1, chosen by the keys, sends them.

    A balanced Feistel network over the next even number of bits, walked until the result is below ``size`` (Black and
    Rogaway 2002): a true permutation, evaluated at single positions without a table.  Ten rounds, because with six the
    permutations of a handful of things are visibly uneven.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    out = np.atleast_1d(np.asarray(index)).astype(np.uint64)
    root = _hash(keys)
    round_keys = [np.asarray(_mix(root, r), np.uint64) for r in range(10)]
    shape = np.broadcast_shapes(out.shape, round_keys[0].shape)
    out = np.broadcast_to(out, shape).copy()
    round_keys = [np.broadcast_to(key, shape) if key.ndim else key for key in round_keys]
    todo = np.ones(shape, bool)
    while todo.any():
        left, right = out[todo] >> shift, out[todo] & mask
        for key in round_keys:
            left, right = right, left ^ (_scramble(right ^ (key[todo] if key.ndim else key)) & mask)
        out[todo] = (left << shift) | right
        todo &= out >= np.uint64(size)
    return out.astype(np.int64)
