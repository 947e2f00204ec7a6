"""How intelligible is a speech model?  Word error rates by an independent recogniser, with what frames them.

The model says held-out sentences that it never heard, prompted by another held-out clip.  Beside its error rate stand
those of the original recordings, of Griffin-Lim on their true spectrograms (the vocoder's share), and of sentences
compared with another's transcript (chance).
"""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.speech_corpus import SpeechCorpus
from launch.pipelines.speech import Options, Request, SpeechPipeline, Spoken
from launch.recogniser import ErrorRate, Recogniser, error_rate, split_words

# The axes of the table, and what a name on them means to the pipeline.
AXES: dict[str, dict[str, dict[str, Any]]] = {
    "steps": {str(n): {"steps": n} for n in (4, 8, 16, 32)},
    "grid": {"sway": {"sway": -1.0, "pruned": False}, "uniform": {"sway": None, "pruned": False}},
    "cfg": {"off": {"cfg_strength": 0.0}, "weak": {"cfg_strength": 1.0}, "strong": {"cfg_strength": 2.0}},
}
PLAIN = Options()  # what a user gets who sets nothing


@dataclasses.dataclass(frozen=True)
class Case:
    """One held-out sentence: what to say, what to be prompted with, and how it was really said.

    Attributes:
      text: the sentence.
      prompt, prompt_text: another utterance of the same speaker.
      recording: the sentence as recorded.
      All waves are [samples] at the model's sample rate.
    """

    text: str
    prompt: np.ndarray
    prompt_text: str
    recording: np.ndarray


@dataclasses.dataclass(frozen=True)
class Judged:
    """Results of one setting.

    Attributes:
      options: of the pipeline.
      wer: word error rate.
      chance: the same waves against other sentences' words.
      network_calls: per utterance.
      rtf: seconds of sampling and vocoding per second of speech, in one batch, compilation left out.
      rtf_sampling: the part of it that is sampling.
    """

    options: Options
    wer: ErrorRate
    chance: ErrorRate
    network_calls: int
    rtf: float
    rtf_sampling: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def corpus_of(config: Mapping[str, Any], pipeline: SpeechPipeline, dir: str | None = None) -> SpeechCorpus:
    """The corpus that a run was trained on (or the one in ``dir``), split as it was then, with the run's symbols."""
    section = config.get("data", {})
    keys = ("min_seconds", "max_seconds", "eval_fraction")
    options = {key: section[key] for key in keys if key in section}
    where = section.get("dir", "") if dir is None else dir
    vocab = str(pipeline.task.assets / "tokenizer.json")
    return SpeechCorpus(where, pipeline.task.spec, vocab=vocab, on_bad="skip", **options)


def held_out_cases(corpus: SpeechCorpus, pipeline: SpeechPipeline, judge: Recogniser, words: int) -> list[Case]:
    """Sentences absent from training whose words the judge knows, until there are ``words`` of them.

    Each is prompted by the next held-out utterance of its speaker, or by a training one where that is the only one.

    Raises:
      UserError: there is no such sentence.
    """
    trained = {corpus.utterances[i].text.casefold() for i in corpus.train}
    known = set(judge.words)
    usable = []
    for i in map(int, corpus.held_out):
        text = corpus.utterances[i].text
        said, strange = split_words(text), pipeline.task.tokenizer.unknown_symbols(text)
        if said and set(said) <= known and text.casefold() not in trained and not strange:
            usable.append(i)
    cases: list[Case] = []
    for i in usable:
        if sum(len(split_words(case.text)) for case in cases) >= words:
            break
        prompt = _prompt(corpus, i, usable)
        if prompt is not None:
            target = corpus.utterances[i]
            cases.append(Case(target.text, corpus.wave(prompt), corpus.utterances[prompt].text, corpus.wave(i)))
    if not cases:
        raise UserError(
            "the corpus holds no sentence to judge by: that takes held-out utterances (data.eval_fraction), texts "
            "not in training, words that the recogniser knows, and another utterance of the same speaker"
        )
    return cases


def _prompt(corpus: SpeechCorpus, target: int, held_out: Sequence[int]) -> int | None:
    """The next utterance of the same speaker, held out if possible, that says something else."""
    for pool in (held_out, corpus.train):
        after = [int(i) for i in pool if i > target] + [int(i) for i in pool if i < target]
        for i in after:
            same = corpus.speakers[i] == corpus.speakers[target]
            if same and corpus.utterances[i].text != corpus.utterances[target].text:
                return i
    return None


def judge_waves(judge: Recogniser, texts: Sequence[str], waves: Sequence[np.ndarray], rate: int) -> ErrorRate:
    """Word error rate of waves that should say ``texts``."""
    return error_rate([split_words(t) for t in texts], [judge.transcribe(w, rate) for w in waves])


def speak(pipeline: SpeechPipeline, cases: Sequence[Case], options: Options = PLAIN) -> list[Spoken]:
    """Every case by the model; each has its own noise."""
    requests = [Request((c.text,), c.prompt, c.prompt_text, seed=i) for i, c in enumerate(cases)]
    return pipeline.batch(requests, options)


def evaluate(pipeline: SpeechPipeline, judge: Recogniser, cases: Sequence[Case], options: Options = PLAIN) -> Judged:
    """One setting of the sampler."""
    spoken = speak(pipeline, cases, options)
    said = [split_words(case.text) for case in cases]
    heard = [judge.transcribe(s.wave, s.sample_rate) for s in spoken]
    rtf, rtf_sampling = _real_time_factors(pipeline, cases[: pipeline.rows], options)
    return Judged(
        options=options,
        wer=error_rate(said, heard),
        chance=chance(said, heard),
        network_calls=spoken[0].ledger.network_calls,
        rtf=rtf,
        rtf_sampling=rtf_sampling,
    )


def _real_time_factors(pipeline: SpeechPipeline, cases: Sequence[Case], options: Options) -> tuple[float, float]:
    """Of one batch, the second time, when everything is compiled: as a whole, and its sampling alone."""
    speak(pipeline, cases, options)
    start, sampling = time.perf_counter(), pipeline.seconds["sampling"]
    spoken = speak(pipeline, cases, options)
    taken = time.perf_counter() - start, pipeline.seconds["sampling"] - sampling
    seconds = sum(len(s.wave) / s.sample_rate for s in spoken)
    return taken[0] / seconds, taken[1] / seconds


def chance(said: Sequence[Sequence[str]], heard: Sequence[Sequence[str]]) -> ErrorRate:
    """What a model that ignores its text would score: each transcript against the next sentence that differs."""
    other = []
    for i, words in enumerate(said):
        rest = [*said[i + 1 :], *said[:i]]
        other.append(next((w for w in rest if w != words), words))
    return error_rate(other, heard)


def references(pipeline: SpeechPipeline, judge: Recogniser, cases: Sequence[Case]) -> dict[str, ErrorRate]:
    """What the judge makes of the recordings themselves, and of the vocoder on their true spectrograms."""
    from data.audio import log_mel

    rate, texts, waves = pipeline.sample_rate, [c.text for c in cases], [c.recording for c in cases]
    mels = [log_mel(wave, pipeline.task.spec) for wave in waves]
    vocoded = [w for i in range(0, len(mels), pipeline.rows) for w in pipeline.vocode(mels[i : i + pipeline.rows])]
    return {
        "original recordings": judge_waves(judge, texts, waves, rate),
        "vocoder on their true spectrograms": judge_waves(judge, texts, vocoded, rate),
    }


def settings(axes: Sequence[str]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """(names on the axes, pipeline options) of every cell of a table.

    Raises:
      UserError: an axis that does not exist.
    """
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown:
        raise UserError(f"--table={unknown[0]} is not known; choose from {', '.join(AXES)}")
    cells = []
    for names in itertools.product(*(AXES[axis] for axis in axes)):
        chosen = dict(zip(axes, names, strict=True))
        options: dict[str, Any] = {}
        for axis, name in chosen.items():
            options |= AXES[axis][name]
        cells.append((chosen, options))
    return cells


def draw(path: str | Path, rows: Sequence[Mapping[str, Any]], known: Mapping[str, ErrorRate]) -> None:
    """A PNG of error rate against network calls, a line for each grid and guidance, references as levels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    lines: dict[str, list[Judged]] = {}
    for row in rows:
        name = ", ".join(f"{a} {v}" for a, v in row["names"].items() if a != "steps") or "default"
        lines.setdefault(name, []).append(row["result"])
    for name, results in lines.items():
        results = sorted(results, key=lambda r: r.network_calls)
        rate = np.array([r.wer.rate for r in results])
        spread = np.maximum([rate - [r.wer.low for r in results], [r.wer.high for r in results] - rate], 0.0)
        axis.errorbar([r.network_calls for r in results], rate, yerr=spread, marker="o", capsize=3, label=name)
    for level, (name, rate) in enumerate(known.items()):
        axis.axhline(rate.rate, linestyle="--", linewidth=1, color=f"C{7 + level}", label=name)
    axis.set(xlabel="network calls per utterance", ylabel="word error rate", xscale="log", ylim=(0, None))
    calls = sorted({row["result"].network_calls for row in rows})
    axis.set_xticks(calls, [str(n) for n in calls])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
