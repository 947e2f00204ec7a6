"""A vocoder against Griffin-Lim, side by side on the same held-out recordings.

Both are given the true log-mel.  How much a recogniser still understands, how far the spectra are from the recordings',
and what it costs; where the vocoder loses, the table says so.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.audio import MelSpec, load_mel, log_mel, save_wav, window
from data.errors import UserError
from data.speech_corpus import SpeechCorpus
from launch.pipelines.vocoders import GriffinLim, Vocoder, load_vocoder
from launch.recogniser import ErrorRate, Recogniser, error_rate, split_words
from train.objectives.spectral import log_spectral_distance, stft_distance
from train.tasks.vocoder import SIZES
from train.workdir import ASSETS, read_config

ROWS = 8  # utterances per batch
BASELINE = "Griffin-Lim"


@dataclasses.dataclass(frozen=True)
class Judged:
    """One vocoder.

    Attributes:
      wer: word error rate of its waves.
      stft: multi-resolution STFT distance to the recordings (``train.objectives.spectral``).
      lsd: log-spectral distance in dB, n_fft 1024.
      mel: mean absolute difference of the log-mel.
      speed: samples made per second of CPU time, all threads together, compilation left out.
      rtf: wall seconds per second of speech.
    """

    wer: ErrorRate
    stft: float
    lsd: float
    mel: float
    speed: float
    rtf: float

    def __str__(self) -> str:
        return (
            f"WER {self.wer}  STFT {self.stft:.3f}  LSD {self.lsd:.2f} dB  mel {self.mel:.3f}  "
            f"{self.speed:,.0f} samples/CPU-s  RTF {self.rtf:.4f}"
        )


def run(workdir: str, data: str | None, words: int, out: Path, wavs: int) -> None:
    """Prints the table and writes ``<out>/eval.json`` and the first ``wavs`` of each vocoder.

    Args:
      workdir: a vocoder's run folder or converted checkpoint.
      data: speech folder; None = the run's own.
      words: judge utterances until there are this many.

    Raises:
      UserError: no such vocoder, nothing held out, or words that the recogniser does not know.
    """
    spec, _, _ = load_mel(Path(workdir) / ASSETS)
    vocoder = load_vocoder(workdir, spec)
    texts, waves = held_out(read_config(workdir), spec, data, words)
    judge = Recogniser(word for text in texts for word in split_words(text))
    recorded = error_rate([split_words(t) for t in texts], [judge.transcribe(w, spec.sample_rate) for w in waves])
    print(f"{'recordings':<12} WER {recorded}", flush=True)
    results, name = {}, Path(workdir).absolute().name
    for title, one in ((BASELINE, GriffinLim(spec)), (name, vocoder)):
        made, speed, rtf = vocode(one, [log_mel(w, spec) for w in waves], spec)
        heard = [judge.transcribe(w, spec.sample_rate) for w in made]
        wer = error_rate([split_words(t) for t in texts], heard)
        results[title] = Judged(wer, *distances(made, waves, spec), speed, rtf)
        print(f"{title:<12} {results[title]}", flush=True)
        for i, wave in enumerate(made[:wavs]):
            save_wav(out / f"{i}.{'griffin_lim' if title == BASELINE else 'vocoder'}.wav", wave, spec.sample_rate)
    verdicts = compare(results[name], results[BASELINE])
    print("\n".join(f"{metric}: {verdict}" for metric, verdict in verdicts.items()))
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {title: dataclasses.asdict(result) for title, result in results.items()}
    report |= {"recordings": recorded.to_dict(), "verdicts": verdicts, "texts": texts}
    (out / "eval.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(texts)} held-out utterances; {out}/eval.json")


def held_out(config: dict[str, Any], spec: MelSpec, data: str | None, words: int) -> tuple[list[str], list[np.ndarray]]:
    """Texts and recordings [samples] that were not in training, until there are ``words`` words."""
    section = config.get("data", {})
    options = {key: section[key] for key in ("min_seconds", "max_seconds", "eval_fraction") if key in section}
    corpus = SpeechCorpus(section.get("dir", "") if data is None else data, spec, "byte", on_bad="skip", **options)
    texts: list[str] = []
    waves: list[np.ndarray] = []
    for i in map(int, corpus.held_out):
        if sum(len(split_words(text)) for text in texts) >= words:
            break
        texts.append(corpus.utterances[i].text)
        waves.append(corpus.wave(i))
    if not texts:
        raise UserError("the corpus holds nothing out (data.eval_fraction), so there is nothing to judge by")
    return texts, waves


def vocode(vocoder: Vocoder, mels: Sequence[np.ndarray], spec: MelSpec) -> tuple[list[np.ndarray], float, float]:
    """Waves of log-mels [frames, mels]; samples per CPU second and wall seconds per second of speech when compiled."""
    longest = max(map(len, mels))
    keys = jax.random.split(jax.random.key(0), ROWS)
    batches = []
    for start in range(0, len(mels), ROWS):
        group = list(mels[start : start + ROWS])
        group += [group[-1]] * (ROWS - len(group))
        batch = np.zeros((ROWS, longest, spec.n_mels), np.float32)
        for row, mel in zip(batch, group, strict=True):
            row[: len(mel)] = mel
        batches.append((batch, np.array([len(mel) for mel in group], np.int32)))
    jax.block_until_ready(vocoder(batches[0][0], batches[0][1], keys))  # compiled
    cpu, wall = time.process_time(), time.perf_counter()
    waves = [np.asarray(vocoder(mel, lengths, keys)) for mel, lengths in batches]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    rows = [row[: vocoder.samples(int(n))] for w, (_, lengths) in zip(waves, batches, strict=True)
            for row, n in zip(w, lengths, strict=True)]  # fmt: skip
    made = sum(len(row) for row in rows)  # the rows that fill up the last batch are made as well
    return rows[: len(mels)], made / cpu, wall * spec.sample_rate / made


def distances(made: Sequence[np.ndarray], truth: Sequence[np.ndarray], spec: MelSpec) -> tuple[float, float, float]:
    """(STFT distance, log-spectral distance in dB, log-mel distance) of waves one after the other."""
    sizes = [min(len(a), len(b)) for a, b in zip(made, truth, strict=True)]
    pair = [np.concatenate([w[:n] for w, n in zip(waves, sizes, strict=True)]) for waves in (made, truth)]
    windows = [jnp.asarray(window(MelSpec(n_fft=n, hop=n // 4, win=n))) for n in (*SIZES, 1024)]

    def measure(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        return stft_distance(a, b, windows[:-1])[0], log_spectral_distance(a, b, windows[-1])[0]

    stft, lsd = jax.jit(measure)(pair[0][None], pair[1][None])
    return float(stft), float(lsd), float(np.abs(log_mel(pair[0], spec) - log_mel(pair[1], spec)).mean())


def compare(ours: Judged, baseline: Judged) -> dict[str, str]:
    """How the vocoder stands to the baseline, metric by metric; error rates are compared within their intervals."""
    out = {}
    apart = ours.wer.low > baseline.wer.high or ours.wer.high < baseline.wer.low
    better = ours.wer.rate <= baseline.wer.rate
    out["WER"] = ("better" if better else "LOSS") if apart else "no difference within the intervals"
    for name, lower in (("stft", True), ("lsd", True), ("mel", True), ("speed", False)):
        a, b = getattr(ours, name), getattr(baseline, name)
        word = "better" if (a < b) == lower else "LOSS"
        out[name] = f"{word}, {a / b:.2f} x that of {BASELINE}"
    return out
