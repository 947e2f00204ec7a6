"""F5-TTS golden rows of the data side: mel spectrograms, text, batches."""

import dataclasses
import importlib.util
import re
from typing import Any

import jax.numpy as jnp
import numpy as np

from data.audio import MelSpec, filterbank, log_mel, magnitude, resample_sinc, window
from data.buckets import dynamic_batches
from data.pinyin import pinyin_tokens
from data.text import Tokenizer, pad_ids, read_vocab
from data.text_chunks import chunk_text
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.ops import stft

LOG_MEL, MEL = 2e-4, 2e-5  # of the logarithm where it is above QUIET; of its exponential everywhere
QUIET = -7.0  # near the floor of 1e-5 a logarithm magnifies rounding
FILTERS, WINDOW, MAGNITUDE, RESAMPLED = 1e-6, 1e-6, 1e-4, 1e-5
SMALL = {"sample_rate": 16000, "n_fft": 512, "hop": 128, "win": 400}  # of the `_small` spectrogram


def check(folder: GoldenFolder, report: Report) -> None:
    """``mel.npz``, ``resample.npz``, ``text.json`` and ``dynamic_batches.json``."""
    for name, _ in folder.names(r"mel\.npz"):
        mel(name, folder.arrays(name), folder.config["mel_dim"], report)
    for name, _ in folder.names(r"resample\.npz"):
        resampled(name, folder.arrays(name), report)
    for name, _ in folder.names(r"text\.json"):
        text(name, folder, report)
    for name, _ in folder.names(r"dynamic_batches\.json"):
        with report.guard(name):
            batches(name, folder.json(name), report)


def mel(file: str, stored: Any, small_mels: int, report: Report) -> None:
    """``<kind>_logmel_<bands|small>`` and their ingredients."""
    for key in stored:
        with report.guard(f"{file}:{key}"):
            if match := re.fullmatch(r"(vocos|bigvgan)_logmel_(\d+|small)", key):
                kind, bands = match.groups()
                small = SMALL | {"n_mels": small_mels}
                spec = MelSpec(kind, **small) if bands == "small" else MelSpec(kind, n_mels=int(bands))
                spectrogram(f"{file}:{key}", spec, stored["wave"], stored[key], report)
            elif match := re.fullmatch(r"(vocos|bigvgan)_filterbank(_fb)?", key):
                bins = stored[key] if match[2] else stored[key].T
                bank = filterbank(MelSpec(match[1], n_mels=bins.shape[1]))
                report.close(f"{file}:{key}", "host", bank, bins, FILTERS)
            elif key == "hann_window":
                spec = dataclasses.replace(MelSpec(), win=len(stored[key]))
                report.close(f"{file}:{key}", "host", window(spec), stored[key], WINDOW)
            elif match := re.fullmatch(r"vocos_mag_first_wave_first(\d+)frames", key):
                got = magnitude(stored["wave"][0], MelSpec())[: int(match[1])].T
                report.close(f"{file}:{key}", "host", got, stored[key], MAGNITUDE)


def spectrogram(name: str, spec: MelSpec, wave: np.ndarray, want: np.ndarray, report: Report) -> None:
    """A log-mel [batch, mel, frames] by the host path and by the device path."""
    want = want.transpose(0, 2, 1)
    eps = 1e-9 if spec.kind == "bigvgan" else 0.0
    arrays = (jnp.asarray(a) for a in (wave, window(spec), filterbank(spec)))
    on_device = stft.log_mel(*arrays, hop=spec.hop, pad=spec.padding, eps=eps)
    for mode, got in (("host", log_mel(wave, spec)), ("device", np.asarray(on_device))):
        loud = np.where(want > QUIET, got, want) if got.shape == want.shape else got
        report.close(f"{name} above {QUIET:g}", mode, loud, want, LOG_MEL)
        report.close(f"exp({name})", mode, np.exp(got), np.exp(want), MEL)


def resampled(file: str, stored: Any, report: Report) -> None:
    """``resample_<from>_<to>`` of ``wave``."""
    for key in stored:
        if match := re.fullmatch(r"resample_(\d+)_(\d+)", key):
            with report.guard(f"{file}:{key}"):
                got = resample_sinc(stored["wave"], int(match[1]), int(match[2]))
                report.close(f"{file}:{key}", "host", got, stored[key], RESAMPLED)


def text(file: str, folder: GoldenFolder, report: Report) -> None:
    """Symbols, ids and chunks; all must be equal."""
    stored = folder.json(file)
    for key in stored:
        with report.guard(f"{file}:{key}"):
            if match := re.fullmatch(r"pinyin(_polyphone_false)?", key):
                if not all(importlib.util.find_spec(name) for name in ("rjieba", "pypinyin")):
                    continue  # stays listed as not checked
                cases = stored[key]
                got = [pinyin_tokens(case["text"], polyphone=not match[1]) for case in cases]
                report.equal(f"{file}:{key}", got, [case["tokens"] for case in cases])
            elif key.startswith("vocab_"):
                case = stored[key]
                symbols = read_vocab(folder.file(case["file"]), eat_last=True)
                report.equal(f"{file}:{key} size", [len(symbols)], [case["size"]])
                table = {symbol: i for i, symbol in enumerate(symbols)}
                got = pad_ids([[table.get(s, 0) for s in sequence] for sequence in case["sequences"]])
                report.equal(f"{file}:{key} ids", got.tolist(), case["ids"])
            elif key == "byte":
                got = [Tokenizer("byte").encode(sentence) for sentence in stored[key]["texts"]]
                want = [[i for i in row if i >= 0] for row in stored[key]["ids"]]
                report.equal(f"{file}:{key}", got, want)
            elif key == "chunk_text":
                got = [chunk_text(case["text"], case["max_chars"]) for case in stored[key]]
                report.equal(f"{file}:{key}", got, [case["chunks"] for case in stored[key]])


def batches(file: str, stored: Any, report: Report) -> None:
    """The release's batches of a list of durations."""
    frames = [seconds * stored["sample_rate"] / stored["hop_length"] for seconds in stored["durations_sec"]]
    for i, case in enumerate(stored["cases"]):
        got = dynamic_batches(frames, case["frames_threshold"], case["max_samples"], case["drop_residual"])
        report.equal(f"{file}:cases[{i}]", got, case["batches"])
