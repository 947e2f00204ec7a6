"""A recording made into a reference clip: long pauses and silent edges cut away, a length that the model can use.

``behaviour="release"`` is the F5-TTS reference's preparation to the last sample (16-bit sound cut by milliseconds, as
pydub does it).  Its defects, corrected by default:

  the release                                             here
  cuts a clip at 12 s and keeps all of its text, so the   keeps the whole clip and refuses one that is too long
  missing words are said once more in the new speech
  takes a quiet recording for silence                     measures levels as if the recording were at LOUDNESS
  stretches rates below 11,025 Hz linearly to that rate   keeps the rate
"""

import itertools
from collections.abc import Sequence

import numpy as np

from data.errors import UserError

LONG_PAUSE = (1000, -50.0)  # ms, dBFS: what separates the pieces of a recording
SHORT_PAUSE = (100, -40.0)  # where those leave too much
KEPT = 1000  # ms of a pause that stay at each of its ends
SEEK = 10  # ms between the places where a pause may begin
LEAST, MOST = 6000, 12000  # ms: more than LEAST is enough, more than MOST is too much
EDGE, EDGE_STEP = -42.0, 10  # dBFS, ms: of the trimming
TAIL = 50  # ms of silence at the end
LEAST_RATE = 11025  # Hz of the release's silence, and so of everything that is joined to it
LOUDNESS = 0.1  # root mean square, full scale 1
LONGEST = 20.0  # seconds; with new speech behind it, still within the 30 s of the release's training


class _Sound:
    """Samples [n, channels] that are cut by the millisecond; levels are those of 16-bit sound, rounded down."""

    def __init__(self, wave: np.ndarray, rate: int, gain: float = 1.0):
        self.wave, self.rate, self.gain = wave, rate, gain
        self.ms = round(1000 * (len(wave) / rate))
        self.missing = max(self.at(self.ms) - len(wave), 0)  # the last millisecond may be filled up with silence
        if wave.dtype == np.int16 and gain == 1.0:
            scaled = wave.astype(np.int64)
        else:
            full = gain * (1.0 if wave.dtype == np.int16 else 32768.0)
            scaled = np.rint(np.clip(wave.astype(np.float64) * full, -32768, 32767)).astype(np.int64)
        energy = np.append((scaled**2).sum(axis=1), np.zeros(self.missing, np.int64))
        self._energy = np.concatenate([[0], np.cumsum(energy)])

    def at(self, ms: int) -> int:
        """The sample at a time."""
        return int(ms * (self.rate / 1000.0))

    def cut(self, start: int, stop: int) -> "_Sound":
        """From ``start`` to ``stop`` ms."""
        a, b = self.at(max(start, 0)), self.at(min(stop, self.ms))
        part = self.wave[a:b]
        silence = np.zeros((b - a - len(part), self.wave.shape[1]), self.wave.dtype)
        return _Sound(np.concatenate([part, silence]), self.rate, self.gain)

    def silent(self, starts: Sequence[int] | np.ndarray, length: int, level: float) -> np.ndarray:
        """Whether the ``length`` ms from each of ``starts`` have a level of at most ``level`` dBFS: bool."""
        a = np.array([self.at(ms) for ms in starts])
        b = np.array([self.at(min(ms + length, self.ms)) for ms in starts])
        mean = (self._energy[b] - self._energy[a]) / np.maximum((b - a) * self.wave.shape[1], 1)
        return np.floor(np.sqrt(mean)) <= 32768.0 * 10.0 ** (level / 20.0)


def prepare_clip(wave: np.ndarray, rate: int, behaviour: str = "corrected") -> tuple[np.ndarray, int]:
    """A recording -> what of it the model hears, with 50 ms of silence at the end.

    Args:
      wave: [samples] or [samples, channels], int16 or float in -1..1.
      rate: Hz.
      behaviour: "corrected" or "release", see above.

    Returns:
      the clip, of the same type and channels, and its rate.

    Raises:
      UserError: it is silent, or (unless ``behaviour`` is "release") lasts more than LONGEST seconds.
    """
    sound = wave if wave.ndim == 2 else wave[:, None]
    release = behaviour == "release"
    whole = _Sound(sound, rate, 1.0 if release else _gain(sound))
    clip = _shorten(whole) if release else _join(split(whole, *LONG_PAUSE), whole)
    clip = trim(clip)
    if not len(clip.wave):
        raise UserError("the reference clip is silent; give a recording of 3 to 12 seconds of speech")
    seconds = len(clip.wave) / clip.rate
    if not release and seconds > LONGEST:
        raise UserError(
            f"the reference clip lasts {seconds:.1f} s without its silence, more than {LONGEST:.0f} s: "
            "cut it (3 to 12 s are best) and give the words of that part only"
        )
    out = np.concatenate([clip.wave, np.zeros((tail_samples(clip.rate), clip.wave.shape[1]), clip.wave.dtype)])
    return out if wave.ndim == 2 else out[:, 0], clip.rate


def split(sound: _Sound, least: int, level: float) -> list[_Sound]:
    """The pieces between pauses of at least ``least`` ms below ``level`` dBFS, with up to KEPT ms of pause around."""
    pauses = _pauses(sound, least, level)
    if not pauses:
        return [sound.cut(0, sound.ms)]
    if pauses[0] == (0, sound.ms):
        return []
    edges = [0, *[ms for pause in pauses for ms in pause], sound.ms]
    spans = [[a - KEPT, b + KEPT] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    if pauses[-1][1] == sound.ms:
        del spans[-1]
    if pauses[0][0] == 0:
        del spans[0]
    for left, right in itertools.pairwise(spans):
        if right[0] < left[1]:  # a pause of less than twice KEPT is shared
            left[1] = right[0] = (left[1] + right[0]) // 2
    return [sound.cut(start, stop) for start, stop in spans]


def _pauses(sound: _Sound, least: int, level: float) -> list[tuple[int, int]]:
    """(start, stop) in ms of every pause."""
    if sound.ms < least:
        return []
    last = sound.ms - least
    starts = list(range(0, last + 1, SEEK))
    if last % SEEK:
        starts.append(last)
    found = [s for s, quiet in zip(starts, sound.silent(starts, least, level), strict=True) if quiet]
    if not found:
        return []
    pauses, first, previous = [], found[0], found[0]
    for start in found[1:]:
        if start != previous + SEEK and start > previous + least:  # windows that overlap make one pause
            pauses.append((first, previous + least))
            first = start
        previous = start
    return [*pauses, (first, previous + least)]


def _shorten(whole: _Sound) -> _Sound:
    """The release's rule: pieces up to LEAST to MOST ms, by long pauses, then by short ones, then by force."""
    clip = _gather(split(whole, *LONG_PAUSE), whole)
    if clip.ms > MOST:
        clip = _gather(split(whole, *SHORT_PAUSE), whole)
    return clip.cut(0, MOST) if clip.ms > MOST else clip


def _gather(pieces: Sequence[_Sound], whole: _Sound) -> _Sound:
    """Pieces from the front until there are LEAST ms, unless the next one fits as well."""
    rate = max(whole.rate, LEAST_RATE)
    taken = _join([], whole, rate)
    for piece in pieces:
        piece = _Sound(stretch(piece.wave, piece.rate, rate), rate, whole.gain)
        longer = _join([taken, piece], whole, rate)
        if taken.ms > LEAST and longer.ms > MOST:
            break
        taken = longer
    return taken


def _join(pieces: Sequence[_Sound], whole: _Sound, rate: int | None = None) -> _Sound:
    waves = [whole.wave[:0], *[piece.wave for piece in pieces]]
    return _Sound(np.concatenate(waves), whole.rate if rate is None else rate, whole.gain)


def trim(sound: _Sound) -> _Sound:
    """Without the silence at both edges, in steps of 10 ms."""
    sound = sound.cut(_leading(sound), sound.ms)
    backwards = _Sound(sound.wave[::-1], sound.rate, sound.gain)
    return sound.cut(0, sound.ms - _leading(backwards))


def _leading(sound: _Sound) -> int:
    """Milliseconds of silence at the front; all of it where there is nothing else."""
    steps = range(0, sound.ms, EDGE_STEP)
    if not sound.ms:
        return 0
    loud = np.flatnonzero(~sound.silent(steps, EDGE_STEP, EDGE))
    return steps[loud[0]] if len(loud) else sound.ms


def tail_samples(rate: int) -> int:
    """Samples of the silence at the end: 50 ms at 11,025 Hz, stretched to ``rate``."""
    silence = np.zeros((int(LEAST_RATE * (TAIL / 1000.0)), 1), np.int16)
    return len(stretch(silence, LEAST_RATE, rate))


def stretch(wave: np.ndarray, rate: int, target: int) -> np.ndarray:
    """[n, channels] at ``rate`` -> ``target`` Hz by linear interpolation, which stops at the last sample.

    16-bit sound is computed in 32 bits and rounded towards zero, then cut to its upper half, as Python's audioop did.
    """
    if rate == target or not len(wave):
        return wave
    divisor = np.gcd(rate, target)
    rate, target = int(rate // divisor), int(target // divisor)
    place = np.arange((len(wave) - 1) * target // rate + 1, dtype=np.int64) * rate
    right = -(-place // target)
    weight = (right * target - place).astype(np.float64)[:, None]  # of the sample on the left
    scale = 65536.0 if wave.dtype == np.int16 else 1.0
    left = wave[np.maximum(right - 1, 0)] * scale
    mixed = (left * weight + wave[right] * scale * (target - weight)) / target
    if wave.dtype == np.int16:
        return (np.trunc(mixed).astype(np.int64) >> 16).astype(np.int16)
    return mixed.astype(wave.dtype)


def _gain(wave: np.ndarray) -> float:
    full = wave.astype(np.float64) / (32768.0 if wave.dtype == np.int16 else 1.0)
    rms = float(np.sqrt(np.mean(full**2))) if full.size else 0.0
    return max(1.0, LOUDNESS / rms) if rms > 1e-5 else 1.0
