"""A tiny speech set-up for tests: symbols that sound like fixed mel patterns, and the task over it."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.audio import MelSpec, save_mel
from data.text import Tokenizer, pad_ids, tokenizer_from_texts
from models.dit import DiT
from train.tasks.speech import SpeechTask

WORDS = ("ab", "cd", "ef", "gh")
SPEC = MelSpec(n_mels=8, sample_rate=8000, n_fft=256, hop=64, win=256)
FRAMES_PER_SYMBOL = 4


def write_assets(folder: Path, texts: Sequence[str] = WORDS, mean: float = -4.0, std: float = 2.0) -> Path:
    """Assets of a tiny language; the space is always in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_from_texts("char", texts).save(folder)
    save_mel(folder, SPEC, mean, std)
    return folder


def make_task(folder: Path, *, dim: int = 32, depth: int = 1, dropout: float = 0.0, **options) -> SpeechTask:
    """A DiT of a few thousand parameters over the assets in ``folder`` (written if absent)."""
    if not (folder / "mel.json").exists():
        write_assets(folder)
    model = functools.partial(
        DiT, dim=dim, depth=depth, heads=2, dim_head=16, ff_mult=2, text_dim=16, conv_layers=1, dropout=dropout,
        conv_pos_kernel=7, conv_pos_groups=dim, text_average_upsampling=True,
    )  # fmt: skip
    return SpeechTask(model, folder, **options)


def make_batch(folder: Path, texts: list[str], frames: int = 48, symbols: int = 16) -> dict[str, np.ndarray]:
    """One row per text: every symbol sounds for four frames as a peak at its own band."""
    tokenizer = Tokenizer.load(folder)
    mel = np.zeros((len(texts), frames, SPEC.n_mels), np.float32)
    for row, text in zip(mel, texts, strict=True):
        for i, symbol in enumerate(tokenizer.encode(text)):
            peak = np.exp(-0.5 * (np.arange(SPEC.n_mels) - (symbol - 1) % SPEC.n_mels) ** 2)
            row[FRAMES_PER_SYMBOL * i : FRAMES_PER_SYMBOL * (i + 1)] = -7.0 + 6.0 * peak * (symbol > 0)
    return {
        "mel": mel,
        "mel_lengths": np.array([FRAMES_PER_SYMBOL * len(t) for t in texts], np.int32),
        "text": pad_ids([tokenizer.encode(t) for t in texts], symbols),
        "index": np.arange(len(texts), dtype=np.int32),
        "mask": np.ones(len(texts), np.float32),
    }
