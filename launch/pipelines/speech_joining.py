"""Chunks of speech made into one wave, all at once or as they come."""

from collections.abc import Iterable

import numpy as np


class CrossFade:
    """Joins waves with linear cross-fades and hands out what no later wave can change.

    The parts that ``add`` and ``finish`` return are together what ``join`` returns.

    Args:
      overlap: samples; less where a wave is shorter.
    """

    def __init__(self, overlap: int):
        self.overlap = overlap
        self._tail = np.zeros(0, np.float32)

    def add(self, wave: np.ndarray) -> np.ndarray:
        """Takes the next wave [n], returns what is now certain."""
        n = min(self.overlap, len(self._tail), len(wave))
        falling, rising = np.linspace(1.0, 0.0, n), np.linspace(0.0, 1.0, n)
        mixed = self._tail[len(self._tail) - n :] * falling + wave[:n] * rising
        whole = np.concatenate([self._tail[: len(self._tail) - n], mixed.astype(np.float32), wave[n:]])
        certain = max(len(whole) - self.overlap, 0)
        self._tail = whole[certain:]
        return whole[:certain]

    def finish(self) -> np.ndarray:
        """The rest."""
        tail, self._tail = self._tail, np.zeros(0, np.float32)
        return tail


def join(waves: Iterable[np.ndarray], overlap: int) -> np.ndarray:
    """Waves one after the other, each fading into the next over ``overlap`` samples: [samples] float32."""
    fade = CrossFade(overlap)
    parts = [fade.add(np.asarray(wave, np.float32)) for wave in waves]
    return np.concatenate([*parts, fade.finish()])
