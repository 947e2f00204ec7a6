"""Sound files in and out, and the log-mel spectrogram exactly as the F5-TTS reference computes it, in numpy.

The device version (``models/ops/stft.py``) takes ``window(spec)`` and ``filterbank(spec)`` as arrays, so both paths
share one definition.  Wave arrays are float32 in -1..1, ``[samples]`` or ``[batch, samples]``; mel arrays put time
first: ``[..., frames, n_mels]``.
"""

import dataclasses
import functools
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus")


@dataclasses.dataclass(frozen=True)
class MelSpec:
    """What turns a wave into a log-mel spectrogram, and what a vocoder must be able to invert.

    Attributes:
      kind: "vocos" (HTK scale, plain triangles, centred frames, magnitude) or "bigvgan" (Slaney scale and area
        normalisation, frames not centred, sqrt(power + 1e-9)).
      sample_rate: Hz.
      n_fft, hop, win: samples; the window is periodic Hann, centred in ``n_fft``.
      n_mels: number of bands between 0 and sample_rate / 2.
    """

    kind: str = "vocos"
    sample_rate: int = 24000
    n_fft: int = 1024
    hop: int = 256
    win: int = 1024
    n_mels: int = 100

    def __post_init__(self) -> None:
        if self.kind not in ("vocos", "bigvgan"):
            raise UserError(f"mel.kind={self.kind!r} is not known: expected 'vocos' or 'bigvgan'")
        if not 0 < self.hop <= self.win <= self.n_fft:
            raise UserError(f"mel: expected 0 < hop <= win <= n_fft, got {self.hop}, {self.win}, {self.n_fft}")

    @property
    def padding(self) -> int:
        """Samples reflected at each end before framing."""
        return self.n_fft // 2 if self.kind == "vocos" else (self.n_fft - self.hop) // 2

    def frames(self, samples: int) -> int:
        """Number of frames of a wave of this many samples."""
        return (samples + 2 * self.padding - self.n_fft) // self.hop + 1

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def save_mel(folder: str | os.PathLike[str], spec: MelSpec, mean: float = 0.0, std: float = 1.0) -> None:
    """Writes ``mel.json`` into an assets folder: the spec, and mean and deviation of the training data's log-mel."""
    text = json.dumps(spec.to_dict() | {"mean": mean, "std": std}, indent=1)
    (Path(folder) / "mel.json").write_text(text + "\n", encoding="utf-8")


def load_mel(folder: str | os.PathLike[str]) -> tuple[MelSpec, float, float]:
    """(spec, mean, std) of an assets folder; mean 0 and std 1 where none were measured.

    Raises:
      UserError: the folder has no usable ``mel.json``.
    """
    path = Path(folder) / "mel.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        mean, std = float(fields.pop("mean", 0.0)), float(fields.pop("std", 1.0))
        return MelSpec(**fields), mean, std
    except FileNotFoundError as e:
        raise UserError(f"{path}: not found; expected the mel settings that training or conversion writes") from e
    except (ValueError, TypeError, AttributeError) as e:
        raise UserError(f"{path}: not mel settings written by this program ({e})") from e


def _hz_to_slaney(hz: np.ndarray) -> np.ndarray:
    """Slaney's Auditory Toolbox scale: linear to 1 kHz, logarithmic above."""
    with np.errstate(divide="ignore"):
        return np.where(hz < 1000.0, hz * 3.0 / 200.0, 15.0 + np.log(hz / 1000.0) * 27.0 / np.log(6.4))


def _slaney_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))


def _fma32(a: np.ndarray, b: np.ndarray | float, c: np.ndarray | float) -> np.ndarray:
    """a * b + c in float32 with one rounding, as the vector units of every current CPU do it."""
    return (a.astype(np.float64) * b + c).astype(np.float32)


def _linspace32(start: float, stop: float, count: int) -> np.ndarray:
    """``torch.linspace`` in float32: steps counted from the nearer end, which rounds unlike numpy's."""
    low, high = np.float32(start), np.float32(stop)
    step = float((high - low) / np.float32(count - 1))
    index = np.arange(count, dtype=np.float32)
    return np.where(index < count // 2, _fma32(index, step, float(low)), _fma32(index[::-1], -step, float(high)))


def _pow10_32(x: np.ndarray) -> np.ndarray:
    """10 ** x in float32 with the polynomial (and so the last bit) of PyTorch's vector library, Sleef."""
    exponent = x.astype(np.float64) * np.log(10.0)
    whole = np.rint(exponent / np.log(2.0))
    rest = exponent - whole * np.log(2.0)
    poly = np.full(x.shape, 0.00136324646882712841033936, np.float32)
    for c in (0.00836596917361021041870117, 0.0416710823774337768554688, 0.166665524244308471679688, 0.499999850988388):
        poly = _fma32(poly, rest.astype(np.float32).astype(np.float64), float(np.float32(c)))
    return np.ldexp((1.0 + (rest + rest * rest * poly)).astype(np.float32), whole.astype(np.int32))


@functools.lru_cache(maxsize=8)
def filterbank(spec: MelSpec) -> np.ndarray:
    """Triangular mel filters [n_fft // 2 + 1, n_mels] float32 (read only)."""
    bins, top = spec.n_fft // 2 + 1, spec.sample_rate / 2
    if spec.kind == "vocos":
        # Bit for bit what torchaudio builds in float32.  It matters: one last bit of an edge at 10 kHz is 1e-3 Hz,
        # which moves weights by 1e-5 and loud bands by three times the tolerance of the golden numbers.
        freqs = _linspace32(0.0, spec.sample_rate // 2, bins)
        edges = _linspace32(0.0, 2595.0 * np.log10(1.0 + top / 700.0), spec.n_mels + 2)
        points = np.float32(700.0) * (_pow10_32(edges / np.float32(2595.0)) - np.float32(1.0))
    else:
        freqs = np.linspace(0.0, top, bins)
        points = _slaney_to_hz(np.linspace(0.0, float(_hz_to_slaney(np.asarray(top))), spec.n_mels + 2))
    widths = np.diff(points)
    slopes = points[None, :] - freqs[:, None]
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    bank = np.maximum(0.0, np.minimum(rising, falling))
    if spec.kind == "bigvgan":
        bank = bank * (2.0 / (points[2:] - points[:-2]))
    bank = bank.astype(np.float32)
    bank.setflags(write=False)
    return bank


@functools.lru_cache(maxsize=8)
def window(spec: MelSpec) -> np.ndarray:
    """Periodic Hann window of ``win`` samples, zero-padded on both sides to [n_fft] float32 (read only)."""
    left = (spec.n_fft - spec.win) // 2
    hann = np.zeros(spec.n_fft, np.float32)
    hann[left : left + spec.win] = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(spec.win) / spec.win)
    hann.setflags(write=False)
    return hann


def magnitude(wave: np.ndarray, spec: MelSpec) -> np.ndarray:
    """Magnitude of the short-time Fourier transform: [..., samples] -> [..., frames, n_fft // 2 + 1] float32."""
    wave = np.asarray(wave, np.float32)
    if wave.shape[-1] <= spec.padding:
        raise UserError(
            f"a clip of {wave.shape[-1]} samples is too short for a spectrogram: it needs more than {spec.padding}"
        )
    padded = np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(spec.padding, spec.padding)], mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, spec.n_fft, axis=-1)[..., :: spec.hop, :]
    spectrum = np.fft.rfft(frames * window(spec), axis=-1)
    if spec.kind == "bigvgan":
        return np.sqrt(spectrum.real**2 + spectrum.imag**2 + np.float32(1e-9))
    return np.abs(spectrum)


def log_mel(wave: np.ndarray, spec: MelSpec) -> np.ndarray:
    """Natural logarithm of the mel spectrogram, floored at 1e-5: [..., samples] -> [..., frames, n_mels] float32.

    Raises:
      UserError: the wave is too short to be padded by reflection.
    """
    return np.log(np.maximum(magnitude(wave, spec) @ filterbank(spec), np.float32(1e-5)))


def resample(wave: np.ndarray, rate: int, target: int) -> np.ndarray:
    """[samples] at ``rate`` Hz -> [samples'] at ``target`` Hz, float32, by soxr's high-quality band-limited filter."""
    if rate == target:
        return np.asarray(wave, np.float32)
    import soxr

    return soxr.resample(np.asarray(wave, np.float32), rate, target, quality="HQ")


def resample_sinc(wave: np.ndarray, rate: int, target: int, width: int = 6, rolloff: float = 0.99) -> np.ndarray:
    """[..., samples] at ``rate`` Hz -> ``target`` Hz by torchaudio's default, a sinc of few zero crossings under a Hann
    window: what the F5-TTS release hears.  ``resample`` is better.

    Args:
      width: zero crossings on each side.
      rolloff: cut-off as a share of the lower Nyquist frequency.
    """
    wave = np.asarray(wave, np.float32)
    if rate == target:
        return wave
    divisor = math.gcd(rate, target)
    old, new = rate // divisor, target // divisor
    cutoff = min(old, new) * rolloff
    reach = math.ceil(width * old / cutoff)
    # One filter per output phase; output k of a block of ``new`` lies at k / new of a block of ``old`` samples.
    time = np.arange(-reach, reach + old) / old - np.arange(new)[:, None] / new
    time = np.clip(time * cutoff, -width, width)
    filters = (np.sinc(time) * np.cos(time * np.pi / width / 2) ** 2 * (cutoff / old)).astype(np.float32)
    padded = np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(reach, reach + old)])
    blocks = np.lib.stride_tricks.sliding_window_view(padded, filters.shape[1], axis=-1)[..., ::old, :]
    out = (blocks @ filters.T).reshape(*wave.shape[:-1], -1)
    return out[..., : math.ceil(new * wave.shape[-1] / old)]


def read_audio(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """A sound file as it is: ([samples, channels] float32, Hz).

    Raises:
      UserError: the file is missing, is not sound that libsndfile reads, is empty, or holds NaN or infinity.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such audio file")
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as e:
        raise UserError(f"{path}: cannot be read as audio ({e}); expected an intact wav, flac, ogg or opus file") from e
    if wave.shape[0] == 0:
        raise UserError(f"{path}: the audio file holds no samples")
    if not np.isfinite(wave).all():
        raise UserError(f"{path}: the audio holds NaN or infinite samples")
    return wave, rate


def load_audio(path: str | os.PathLike[str], sample_rate: int) -> np.ndarray:
    """A sound file of any rate and channel count -> mono [samples] float32 at ``sample_rate``; channels are averaged.

    Raises:
      UserError: see ``read_audio``.
    """
    wave, rate = read_audio(path)
    return resample(wave.mean(axis=1), rate, sample_rate)


def save_wav(path: str | os.PathLike[str], wave: np.ndarray, sample_rate: int) -> None:
    """Writes mono [samples] as 16-bit wav; complete or not at all, since it is renamed into place."""
    import soundfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".wav", prefix=".", dir=path.parent)
    os.close(handle)
    try:
        soundfile.write(temporary, np.clip(wave, -1.0, 1.0), sample_rate, subtype="PCM_16", format="WAV")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
