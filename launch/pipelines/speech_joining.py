"""Chunks of speech made into one wave, all at once or as they come."""

from collections.abc import Iterable

import numpy as np

STEP = 64  # samples in which silence at an edge is measured
QUIET = 0.01  # root mean square of what counts as silence, full scale 1
LEAST = 2 * STEP  # samples of a cross-fade between loud edges, so that nothing clicks


class CrossFade:
    """Joins waves with linear cross-fades and hands out what no later wave can change.

    The parts that ``add`` and ``finish`` return are together what ``join`` returns.

    Args:
      overlap: samples; less where a wave is shorter.
      spare: overlap no more than the silence at the two edges.  The release always overlaps all of ``overlap``, and so
        lays the last sound of a sentence over the first one of the next where a model leaves no silence around them.
    """

    def __init__(self, overlap: int, spare: bool = False):
        self.overlap, self.spare = overlap, spare
        self._tail = np.zeros(0, np.float32)

    def add(self, wave: np.ndarray) -> np.ndarray:
        """Takes the next wave [n], returns what is now certain."""
        n = min(self.overlap, len(self._tail), len(wave))
        if self.spare and n:
            n = min(n, max(silence(self._tail[::-1]) + silence(wave[: self.overlap]), LEAST))
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


def silence(wave: np.ndarray) -> int:
    """Samples of silence at the front, in whole steps."""
    steps = wave[: len(wave) // STEP * STEP].reshape(-1, STEP)
    loud = np.flatnonzero(np.sqrt(np.mean(np.square(steps), axis=1)) > QUIET)
    return int(loud[0]) * STEP if len(loud) else len(wave)


def join(waves: Iterable[np.ndarray], overlap: int, spare: bool = False) -> np.ndarray:
    """Waves one after the other, each fading into the next, see ``CrossFade``: [samples] float32."""
    fade = CrossFade(overlap, spare)
    parts = [fade.add(np.asarray(wave, np.float32)) for wave in waves]
    return np.concatenate([*parts, fade.finish()])
