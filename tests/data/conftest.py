"""A tiny speech folder: tones of different pitch and length that stand for words."""

from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MURMURATION_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def write_folder(folder: Path, texts: dict[str, tuple[str, float]], rate: int = 16000, extra: str = "") -> Path:
    """``{id: (text, seconds)}`` -> a speech folder of noisy tones in LJSpeech layout."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, (name, (_, seconds)) in enumerate(texts.items()):
        n = int(seconds * rate)
        tone = 0.3 * np.sin(2 * np.pi * (200 + 20 * i) * np.arange(n) / rate) + 0.01 * rng.normal(size=n)
        soundfile.write(folder / "wavs" / f"{name}.wav", tone, rate)
    lines = [f"{name}|{text}" for name, (text, _) in texts.items()]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n" + extra, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty utterances of 0.4 to 1.4 seconds."""
    rng = np.random.default_rng(1)
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    texts = {
        f"u{i:02d}": (" ".join(rng.choice(words, 1 + i % 4)) + " " + words[i % 10], 0.4 + 1.0 * float(rng.random()))
        for i in range(40)
    }
    return write_folder(tmp_path_factory.mktemp("speech"), texts)
