"""Judges pairs: texts said by a model in given voices, or waves made elsewhere, beside how it was really said.

    pairs.jsonl    {"text": …, "ref_audio": …, "ref_text": …, "truth"?: …}    the model says the text
                   {"generated": …, "truth"?: …, "text"?: …, "ref_audio"?: …}    the wave is judged as it is

Paths are relative to the file.  A folder has such a file in it, or two folders ``generated/`` and ``truth/`` with waves
of the same names (and ``<name>.txt`` beside them for their words).

Three judges stand behind interfaces and can be named on the command line as ``module:function``:

    recogniser    (wave [n] float32, sample rate) -> text
    embedding     (wave [n] float32, sample rate) -> vector [d], alike for waves of one speaker
"""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.audio import AUDIO_SUFFIXES, MelSpec, load_audio, log_mel, resample, save_wav
from data.errors import UserError
from launch.pipelines.speech import Options, Request, SpeechPipeline
from launch.recogniser import Recogniser, error_rate, split_words

Transcriber = Callable[[np.ndarray, int], str]
Embedding = Callable[[np.ndarray, int], np.ndarray]
KEYS = ("text", "ref_audio", "ref_text", "truth", "generated", "name")
LISTED = "pairs.jsonl"
RATE = 24000  # at which waves are compared where no model says otherwise


@dataclasses.dataclass(frozen=True)
class Pair:
    """One line of the list.

    Attributes:
      name: of the results.
      text: what is (to be) said, "" if unknown.
      ref_audio, truth, generated: sound files or None.
      ref_text: words of ``ref_audio``.
    """

    name: str
    text: str = ""
    ref_audio: Path | None = None
    ref_text: str = ""
    truth: Path | None = None
    generated: Path | None = None


def read_pairs(where: str | Path) -> list[Pair]:
    """The pairs of a list or a folder.

    Raises:
      UserError: none there, or a line that is not one.
    """
    where = Path(where)
    if where.is_dir() and not (where / LISTED).is_file():
        return _wave_folders(where)
    path = where / LISTED if where.is_dir() else where
    if not path.is_file():
        raise UserError(f"--pairs={where}: no such file or folder")
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            pairs.append(_pair(line, f"{path}, line {number}", path.parent, len(pairs)))
    if not pairs:
        raise UserError(f"{path} holds no pairs")
    return pairs


def _pair(line: str, where: str, folder: Path, index: int) -> Pair:
    try:
        fields: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise UserError(f"{where}: expected an object of strings, among {', '.join(KEYS)}")
    unknown = [key for key in fields if key not in KEYS]
    if unknown:
        raise UserError(f"{where}: {unknown[0]!r} is not known; choose from {', '.join(KEYS)}")
    if "generated" not in fields and "text" not in fields:
        raise UserError(f"{where}: expected a text to say, or a generated wave")
    if ("ref_audio" in fields) != ("ref_text" in fields) and "generated" not in fields:
        raise UserError(f"{where}: ref_audio and ref_text come together")
    paths = {key: folder / fields[key] for key in ("ref_audio", "truth", "generated") if key in fields}
    name = Path(fields.get("name", f"{index:04d}")).name
    return Pair(name, fields.get("text", ""), ref_text=fields.get("ref_text", ""), **paths)


def _wave_folders(folder: Path) -> list[Pair]:
    made, true = folder / "generated", folder / "truth"
    if not (made.is_dir() and true.is_dir()):
        raise UserError(f"--pairs={folder}: expected {LISTED} in it, or the folders generated/ and truth/")
    pairs = []
    for path in sorted(p for p in made.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES):
        truth = next((q for q in sorted(true.glob(f"{path.stem}.*")) if q.suffix.lower() in AUDIO_SUFFIXES), None)
        if truth is None:
            raise UserError(f"{path}: there is no {path.stem}.* in {true}")
        words = next((q for q in (path.with_suffix(".txt"), true / f"{path.stem}.txt") if q.is_file()), None)
        text = words.read_text(encoding="utf-8").strip() if words else ""
        pairs.append(Pair(path.stem, text, truth=truth, generated=path))
    if not pairs:
        raise UserError(f"{made} holds no sound files")
    return pairs


def closed_grammar(pairs: Sequence[Pair]) -> Transcriber:
    """The built-in recogniser: pocketsphinx, any sequence of the words of all texts."""
    judge = Recogniser(word for pair in pairs for word in split_words(pair.text))
    return lambda wave, rate: " ".join(judge.transcribe(wave, rate))


def mel_statistics(wave: np.ndarray, rate: int) -> np.ndarray:
    """The built-in embedding, a WEAK one: how level and its spread are distributed over 24 mel bands.

    It hears the timbre of a voice and of its recording alike, and knows nothing of speakers; use a trained
    speaker-verification network for figures that are compared with anybody's.
    """
    spec = MelSpec(sample_rate=16000, n_fft=512, hop=160, win=400, n_mels=24)
    mel = log_mel(resample(wave, rate, spec.sample_rate), spec)
    loud = mel[mel.mean(axis=1) >= np.quantile(mel.mean(axis=1), 0.3)]  # pauses say nothing of a voice
    mean = loud.mean(axis=0)
    return np.concatenate([mean - mean.mean(), loud.std(axis=0)])


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two embeddings."""
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))


def aligned_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference of log-mels [n, m], [k, m] along their best alignment (dynamic time warping).

    A fast and a slow reading of the same sounds are near each other.
    """
    cost = np.abs(a[:, None] - b[None]).mean(axis=2, dtype=np.float64)
    n, k = cost.shape
    total, steps = np.full((n, k), np.inf), np.ones((n, k))
    total[0, 0] = cost[0, 0]
    for diagonal in range(1, n + k - 1):
        i = np.arange(max(0, diagonal - k + 1), min(n, diagonal + 1))
        j = diagonal - i
        candidates = np.full((3, len(i)), np.inf)
        lengths = np.zeros((3, len(i)))
        for row, (di, dj) in enumerate(((1, 1), (1, 0), (0, 1))):
            ok = (i >= di) & (j >= dj)
            candidates[row, ok] = total[i[ok] - di, j[ok] - dj]
            lengths[row, ok] = steps[i[ok] - di, j[ok] - dj]
        best = candidates.argmin(axis=0)
        total[i, j] = cost[i, j] + candidates[best, np.arange(len(i))]
        steps[i, j] = lengths[best, np.arange(len(i))] + 1
    return float(total[-1, -1] / steps[-1, -1])


def say(voice: SpeechPipeline, pairs: Sequence[Pair], options: Options) -> tuple[list[np.ndarray], dict[str, float]]:
    """Every text in its voice, twice: the first time compiles and warms up, the second is timed.

    Returns:
      the waves; seconds of compilation, of the timed run, and the real-time factors.
    """
    requests = [
        Request(p.text, None if p.ref_audio is None else str(p.ref_audio), p.ref_text, seed=i)
        for i, p in enumerate(pairs)
    ]
    voice.batch(requests, options)
    begin, sampling = time.perf_counter(), voice.seconds["sampling"]
    spoken = voice.batch(requests, options)
    taken = time.perf_counter() - begin
    seconds = sum(len(s.wave) for s in spoken) / voice.sample_rate
    cost = {
        "compile_seconds": voice.sampler.compile_seconds,
        "programs": len(voice.sampler.programs),
        "seconds": taken,
        "speech_seconds": seconds,
        "rtf": taken / seconds,
        "rtf_sampling": (voice.seconds["sampling"] - sampling) / seconds,
        "network_calls": sum(s.ledger.network_calls for s in spoken),
    }
    return [s.wave for s in spoken], cost


def error_rates(said: Sequence[str], heard: Sequence[str]) -> dict[str, Any]:
    """Word and character error rates by jiwer, over lower-case words without punctuation, and the bootstrap interval.

    Raises:
      UserError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError:
        raise UserError("--pairs needs jiwer: pip install 'murmuration[evaluation]'") from None
    said, heard = ([" ".join(split_words(text)) for text in texts] for texts in (said, heard))
    interval = error_rate([s.split() for s in said], [h.split() for h in heard])
    return {
        "wer": float(jiwer.wer(list(said), list(heard))),
        "cer": float(jiwer.cer(list(said), list(heard))),
        "low": interval.low,
        "high": interval.high,
        "words": interval.words,
    }


def judge(
    pairs: Sequence[Pair],
    waves: Sequence[np.ndarray],
    rate: int,
    transcribe: Transcriber | None,
    embed: Embedding,
    spec: MelSpec | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Everything that can be said of the waves: (over all, per pair).

    Args:
      waves: [n] each at ``rate``.
      transcribe: None where nothing is to be recognised.
      spec: of the mel distance; the usual one at ``rate`` by default.
    """
    spec = spec or MelSpec(sample_rate=rate)
    rows: list[dict[str, Any]] = [{"name": p.name, "text": p.text, "seconds": len(w) / rate}
                                  for p, w in zip(pairs, waves, strict=True)]  # fmt: skip
    truths: list[tuple[np.ndarray, np.ndarray]] = []
    for pair, wave, row in zip(pairs, waves, rows, strict=True):
        if transcribe is not None and pair.text:
            row["heard"] = transcribe(wave, rate)
        voice = pair.ref_audio or pair.truth
        if voice is not None:
            row["similarity"] = similarity(embed(wave, rate), embed(load_audio(voice, rate), rate))
        if pair.truth is not None:
            truth = load_audio(pair.truth, rate)
            row["mel_distance"] = aligned_distance(log_mel(wave, spec), log_mel(truth, spec))
            truths.append((wave, truth))
    overall: dict[str, Any] = {"utterances": len(rows)}
    heard = [row for row in rows if "heard" in row and split_words(row["text"])]
    if heard:
        overall |= error_rates([row["text"] for row in heard], [row["heard"] for row in heard])
    for key in ("similarity", "mel_distance"):
        values = [row[key] for row in rows if key in row]
        if values:
            overall[key] = float(np.mean(values))
    if truths:
        from launch.evaluation.vocoders import distances

        made, true = zip(*truths, strict=True)
        overall["stft_distance"] = distances(made, true, spec)[0]
    return overall, rows


def hardware() -> str:
    """What this runs on, for the report."""
    import jax

    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else (platform.processor() or platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{jax.device_count()} × {device.platform} ({kind}), {cores} CPU cores"


def run(
    where: str,
    voice: SpeechPipeline | None,
    options: Options,
    out: Path,
    transcribe: Transcriber | None = None,
    embed: Embedding = mel_statistics,
    wavs: int = 4,
) -> dict[str, Any]:
    """Judges the pairs, prints a table, writes ``<out>/pairs.json`` and the first waves.

    Raises:
      UserError: bad pairs, or texts to say and nothing to say them with.
    """
    pairs = read_pairs(where)
    made = [pair.generated is not None for pair in pairs]
    if any(made) and not all(made):
        raise UserError(f"--pairs={where}: some pairs have generated waves and some have none; judge them apart")
    cost: dict[str, float] = {}
    if all(made):
        rate = RATE if voice is None else voice.sample_rate
        waves = [load_audio(pair.generated, rate) for pair in pairs if pair.generated is not None]
    else:
        if voice is None:
            raise UserError(f"--pairs={where} holds texts to be said; give --workdir")
        rate = voice.sample_rate
        waves, cost = say(voice, pairs, options)
    if transcribe is None and any(split_words(pair.text) for pair in pairs):
        transcribe = closed_grammar(pairs)
    spec = None if voice is None else voice.task.spec
    overall, rows = judge(pairs, waves, rate, transcribe, embed, spec)
    print("\n".join(lines(overall, cost, embed is mel_statistics)), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    for pair, wave in list(zip(pairs, waves, strict=True))[: wavs if cost else 0]:
        save_wav(out / f"{pair.name}.wav", wave, rate)
    report = {"overall": overall, "cost": cost, "hardware": hardware(), "options": dataclasses.asdict(options)}
    text = json.dumps(report | {"pairs": rows}, indent=1, ensure_ascii=False) + "\n"
    temporary = out / ".pairs.json"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, out / "pairs.json")
    return report


def lines(overall: Mapping[str, Any], cost: Mapping[str, float], weak: bool) -> list[str]:
    """The report as text, what was not measured left out."""
    told = [f"{overall['utterances']} pairs on {hardware()}"]
    if "wer" in overall:
        told.append(
            f"WER {overall['wer']:.3f} [{overall['low']:.3f}, {overall['high']:.3f}]  CER {overall['cer']:.3f}  "
            f"over {overall['words']} words"
        )
    if "similarity" in overall:
        kind = "mel statistics, a weak embedding" if weak else "given embedding"
        told.append(f"speaker similarity {overall['similarity']:.3f} ({kind})")
    if "mel_distance" in overall:
        told.append(
            f"against the truth: log-mel distance {overall['mel_distance']:.3f} (aligned), "
            f"multi-resolution STFT distance {overall['stft_distance']:.3f} (not aligned)"
        )
    if cost:
        told.append(
            f"RTF {cost['rtf']:.3f} ({cost['rtf_sampling']:.3f} sampling), {cost['speech_seconds']:.1f} s of speech, "
            f"after a warm-up; {cost['programs']} programs compiled in {cost['compile_seconds']:.1f} s"
        )
    return told
