"""A spoken corpus from free synthetic voices: random word sequences, spoken, trimmed, and kept at an even pace.

An even pace (a fixed time per character) makes a small corpus easier to learn and exact to time: natural voices need
.035 s per letter for "eight" and .082 s for "six", so a duration guessed from the number of letters would be far off.
"""

import math
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile

from data.audio import resample
from data.errors import UserError

MARGIN = 0.05  # seconds of near silence kept around the speech
_TOLERANCE = 0.01  # seconds by which a margin may differ from that where the pace is fixed
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
# libsndfile's scale from 0 (256 kbit/s) to 1: about 19 kbit/s at 16 kHz, where a recogniser still notices nothing.
_OPUS_LEVEL = 0.97

Speak = Callable[[str, str, float, Path], None]  # text, voice, stretch of time, wav file to write


def flite(text: str, voice: str, stretch: float, out: Path) -> None:
    """Speaks with one of flite's voices (or a .flitevox file)."""
    _run("flite", "-voice", voice, "--setf", f"duration_stretch={stretch:.4f}", "-t", text, "-o", str(out))


def espeak(text: str, voice: str, stretch: float, out: Path) -> None:
    """Speaks with one of espeak-ng's voices; its default pace is 175 words a minute."""
    _run("espeak-ng", "-v", voice, "-s", str(max(80, round(175 / stretch))), "-w", str(out), text)


BACKENDS: dict[str, Speak] = {"flite": flite, "espeak-ng": espeak}


def check_backend(backend: str, voices: Sequence[str]) -> None:
    """Says what is missing before any work is done.

    Raises:
      UserError: unknown backend or voice, or the program is not installed.
    """
    if backend not in BACKENDS:
        raise UserError(f"--backend={backend!r} is not known; expected one of {', '.join(BACKENDS)}")
    if shutil.which(backend) is None:
        raise UserError(f"{backend} is not installed: apt-get install {backend}")
    if not voices:
        raise UserError("--voices names no voice; for example --voices=slt,rms")
    if backend == "flite":
        known = _run("flite", "-lv").partition(":")[2].split()
        strange = [v for v in voices if v not in known and not Path(v).is_file()]
        if strange:
            raise UserError(f"flite has no voice {strange[0]!r}; it has {', '.join(known)}")


def draw_texts(
    words: Sequence[str], count: int, min_words: int, max_words: int, seed: int, ending: str = "."
) -> list[str]:
    """``count`` different sequences of words: the length uniform in the given range, the words uniform.

    Args:
      ending: put behind each.  It tells a model that the pause of an utterance's end is due, which a space would not.

    Raises:
      UserError: the words do not give that many, or the range is empty.
    """
    words = list(dict.fromkeys(words))
    if not 0 < min_words <= max_words or not words or any(not w or set(w) & set("| \n") for w in words):
        raise UserError(f"expected words and 0 < min_words <= max_words, got {words[:5]}, {min_words} and {max_words}")
    lengths = range(min_words, max_words + 1)
    if sum(len(words) ** n for n in lengths) < 2 * count:
        raise UserError(f"{len(words)} words in sequences of {min_words} to {max_words} are too few for {count} texts")
    rng, texts = random.Random(seed), {}
    for _ in range(1000 * count):  # ends long before, unless nearly all sequences are of one short length
        if len(texts) == count:
            return list(texts)
        texts[" ".join(rng.choices(words, k=rng.choice(lengths))) + ending] = None
    raise UserError(f"sequences of {min_words} to {max_words} of {len(words)} words repeat too often for {count} texts")


def speech_bounds(wave: np.ndarray, rate: int) -> tuple[float, float]:
    """Seconds at which the speech in [samples] begins and ends: 10 ms frames within 32 dB of the loudest."""
    step = rate // 100
    frames = wave[: len(wave) // step * step].reshape(-1, step)
    level = np.sqrt(np.mean(np.square(frames, dtype=np.float64), axis=1))
    loud = np.flatnonzero(level > 10 ** (-32 / 20) * level.max(initial=0.05))
    return (loud[0] * step / rate, (loud[-1] + 1) * step / rate) if len(loud) else (0.0, 0.0)


def cut(wave: np.ndarray, rate: int, start: float, seconds: float) -> np.ndarray:
    """``seconds`` of [samples] from ``start`` (may be negative), silence where there is no sound."""
    first, count = round(start * rate), round(seconds * rate)
    out = np.zeros(count, wave.dtype)
    low, high = max(first, 0), min(first + count, len(wave))
    out[low - first : high - first] = wave[low:high]
    return out


def utter(speak: Speak, text: str, voice: str, pace: float) -> tuple[np.ndarray, int]:
    """One clip and its rate: speech with ``MARGIN`` before and after.

    Args:
      speak: the backend.
      text: what to say.
      voice: the backend's name of it.
      pace: seconds per byte of text plus one (the space before the next text); 0 = the voice's own.

    Raises:
      UserError: nothing can be heard, or the pace is beyond what the voice can do.
    """
    wanted = pace * (len(text.encode()) + 1)
    stretch, low, high, best = 1.0, 0.3, 4.0, (math.inf, np.zeros(0, np.float32), 1)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(10):
            speak(text, voice, stretch, Path(folder) / "clip.wav")
            wave, rate = soundfile.read(Path(folder) / "clip.wav", dtype="float32")
            start, end = speech_bounds(wave, rate)
            if end <= start:
                raise UserError(f"voice {voice!r} says nothing audible for {text!r}")
            if not pace:
                return cut(wave, rate, start - MARGIN, end - start + 2 * MARGIN), rate
            margin = (wanted - (end - start)) / 2  # the clip is exactly as long as wanted, the speech in its middle
            miss = abs(margin - MARGIN)
            if miss < best[0]:
                best = (miss, cut(wave, rate, start - margin, wanted), rate)
            if miss < _TOLERANCE / 2:
                break
            # In proportion; by bisection where a faint first or last sound that comes and goes makes that jump about.
            low, high = (stretch, high) if margin > MARGIN else (low, stretch)
            guess = stretch * (wanted - 2 * MARGIN) / (end - start)
            stretch = guess if low < guess < high else math.sqrt(low * high)
    if best[0] > 2 * _TOLERANCE:
        raise UserError(f"voice {voice!r} cannot say {text!r} in {wanted:.2f} s; choose another --pace, or 0")
    return best[1], best[2]


def make(
    out: Path,
    texts: Sequence[str],
    held_out: int,
    voices: Sequence[str],
    backend: str = "flite",
    format: str = "opus",
    pace: float = 0.0615,
    progress: Callable[[int], None] = lambda done: None,
) -> float:
    """Speaks the texts, the voices in turn, into a speech folder; returns its seconds.

    Args:
      out: new folder, gets ``metadata.csv`` (id, text, speaker, split) and ``wavs/``.
      texts: all different; the last ``held_out`` of them are for evaluation.
      progress: called with the number of clips done.

    Raises:
      UserError: the folder holds a corpus already, unknown format or backend, a voice fails.
    """
    if format not in ("opus", "flac", "wav"):
        raise UserError(f"--format={format!r} is not known; expected opus, flac or wav")
    check_backend(backend, voices)
    if not 0 <= held_out < len(texts):
        raise UserError(f"{held_out} held-out texts of {len(texts)} leave none to train on")
    table = out / "metadata.csv"
    if table.exists():
        raise UserError(f"{table} exists; choose another --out or remove it")
    (out / "wavs").mkdir(parents=True, exist_ok=True)

    def one(i: int) -> tuple[str, float]:
        voice = voices[i % len(voices)]
        wave, rate = utter(BACKENDS[backend], texts[i], voice, pace)
        name = f"{Path(voice).stem}-{i:0{len(str(len(texts) - 1))}d}"
        _write(out / "wavs" / f"{name}.{format}", wave, rate)
        split = "train" if i < len(texts) - held_out else "eval"
        return f"{name}|{texts[i]}|{Path(voice).stem}|{split}\n", len(wave) / rate

    rows, seconds = ["id|text|speaker|split\n"], 0.0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for done, (row, length) in enumerate(pool.map(one, range(len(texts))), 1):
                rows.append(row)
                seconds += length
                progress(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    table.write_text("".join(rows), encoding="utf-8")  # last: its presence means the corpus is whole
    return seconds


def _write(path: Path, wave: np.ndarray, rate: int) -> None:
    if path.suffix != ".opus":
        soundfile.write(path, wave, rate, subtype="PCM_16")
        return
    target = rate if rate in _OPUS_RATES else 24000
    soundfile.write(
        path, resample(wave, rate, target), target, format="OGG", subtype="OPUS", compression_level=_OPUS_LEVEL
    )


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise UserError(f"{command[0]} failed ({said[-1] if said else result.returncode}): {' '.join(command)}")
    return result.stdout
