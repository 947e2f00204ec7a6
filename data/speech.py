"""Speech for training: a folder becomes batches of log-mel and text, a held-out set, and the assets of a run."""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.audio import MelSpec, load_mel, save_mel
from data.buckets import Bucket, batch_rows, optimal_bounds
from data.errors import UserError
from data.keyed import uniform
from data.pipeline import Batch, Example, Examples, Pairing, StepSource, fixed_batches
from data.problems import Problems
from data.speech_corpus import SpeechCorpus
from data.text import ASSET, pad_ids, script_report

KEPT = "kept"
_ROUND = 8  # frames and symbols of a batch are multiples of this


@dataclasses.dataclass(frozen=True)
class Report:
    """What the data holds and what was left out; ``str`` of it is for people.

    Attributes:
      source: where it came from.
      train, held_out: utterances.
      minutes: of training speech.
      speakers: how many.
      left_out: what could not be used.
      symbols: how often each symbol of each script occurs in the texts.
      vocabulary: number of ids.
      buckets: batch shapes.
      padding: share of padding among the frames of training batches.
      steps_per_pass: updates in which as many examples go by as there are.
    """

    source: str
    train: int
    held_out: int
    minutes: float
    speakers: int
    left_out: Problems
    symbols: dict[str, dict[str, int]]
    vocabulary: int
    buckets: list[Bucket]
    padding: float
    steps_per_pass: float

    def __str__(self) -> str:
        voices = f"{self.speakers} speakers" if self.speakers > 1 else "one speaker"
        scripts = ", ".join(f"{len(chars)} {name}" for name, chars in self.symbols.items())
        shapes = ", ".join(f"{b.rows} x {b.frames}" for b in self.buckets)
        lines = [
            f"speech from {self.source}: {self.train} utterances to train on ({self.minutes:.1f} min, {voices}), "
            f"{self.held_out} held out",
            f"  {self.vocabulary} text ids; symbols in the texts: {scripts}",
            f"  batches of {shapes} frames, {self.padding:.1%} padding; a pass over the data is "
            f"{self.steps_per_pass:.1f} steps",
        ]
        scripts_used = {name: chars for name, chars in self.symbols.items() if name != "other"}
        rare = [c for chars in scripts_used.values() if sum(chars.values()) < 5 for c in chars]
        if rare and len(scripts_used) > 1:
            lines.append(f"  hardly used scripts, perhaps look-alikes: {' '.join(rare[:10])}")
        if self.left_out:
            lines.append(f"  left out {self.left_out.describe()}")
        return "\n".join(lines)


class SpeechData:
    """Batches ``{"mel" [B, T, M] float32, "mel_lengths" [B], "text" [B, N] (-1 padded), "index" [B], "mask" [B]}``.

    The mel is the natural log-mel of ``data.audio``, not normalised, 0 past a row's length; "mask" is float32 (1 = a
    real row), the others are int32.

    Args:
      dir: speech folder or manifest (``data.speech_source``); "" = the shipped corpus.
      tokenizer: "char", "vocab", "pinyin" or "byte"; or "kept": vocabulary, mel settings and their mean and deviation
        of what the run began from, so that a trained network goes on meaning the same by its numbers.
      vocab: the file of "vocab" and "pinyin"; or the ``tokenizer.json`` of an earlier run, to keep its ids.
      min_seconds, max_seconds: shorter and longer utterances cannot be used.
      frames_per_batch: most frames of a global batch, padding included.
      max_batch: most rows of a global batch, 0 = any number.
      buckets: how many batch shapes at most.
      eval_fraction: held out by a hash of the text where the source has no split of its own.
      on_bad: "error" = an utterance that cannot be used is an error; "skip" = it is left out and reported.
      pairs: examples are two utterances of one speaker, prompt and target, their texts joined by a space.
      pair_seconds: most seconds of such a pair, 0 = any.
      mel: fields of ``MelSpec``; with "kept" None, or the same ones.
      seed: of order and pairs.
      host_index, host_count: this process's part of every global batch.
      row_multiple: the rows of every global batch are a multiple of this.
      kept: the assets that "kept" takes.

    Attributes:
      train: ``train[step]`` is this host's part of the batch of that step.
      evaluation: this host's parts of the held-out batches, filling rows marked by mask 0.
      shapes: of every global batch there will be, ``{name: (shape, dtype)}``.
      report: counts, for people.
      corpus: the utterances themselves.

    Raises:
      UserError: see ``SpeechCorpus`` and ``data.buckets.batch_rows``; "kept" with nothing to keep, or with another mel.
    """

    def __init__(
        self,
        dir: str = "",
        tokenizer: str = "char",
        vocab: str = "",
        min_seconds: float = 0.3,
        max_seconds: float = 30.0,
        frames_per_batch: int = 4096,
        max_batch: int = 0,
        buckets: int = 4,
        eval_fraction: float = 0.02,
        on_bad: str = "error",
        pairs: bool = False,
        pair_seconds: float = 0.0,
        mel: Mapping[str, Any] | None = None,
        seed: int = 0,
        host_index: int = 0,
        host_count: int = 1,
        row_multiple: int = 1,
        kept: str = "",
    ):
        spec, self._statistics = _mel_spec(mel or {}), None
        if tokenizer == KEPT:
            vocab, spec, self._statistics = _keep(kept, mel)
        self.corpus = corpus = SpeechCorpus(
            dir, spec, tokenizer, vocab, min_seconds, max_seconds, eval_fraction, on_bad
        )
        table = Path(kept) / "vocab.txt" if tokenizer == KEPT else Path(vocab)
        self._vocab = table if table.suffix == ".txt" and table.is_file() else None
        symbols = max(len(corpus.ids([i])) for i in range(len(corpus.utterances)))
        self._symbols = 2 * symbols + 2 if pairs else symbols

        lengths = corpus.frames[corpus.train]
        pairing = Pairing(lengths, corpus.speakers[corpus.train]) if pairs else None
        longest = int(corpus.frames.max())
        limit = max(longest, spec.frames(int(pair_seconds * spec.sample_rate)) if pair_seconds else 2 * longest)
        sample = lengths if pairing is None else _pair_lengths(pairing, limit, seed)
        bounds = optimal_bounds(sample, buckets, _ROUND)
        bounds[-1] = max(bounds[-1], _round_up(longest, _ROUND))  # held-out utterances must fit as well
        rows = [batch_rows(bound, frames_per_batch, max_batch, row_multiple) for bound in bounds]
        if pairing is None:  # a batch larger than its bucket would hold examples twice
            members = np.bincount(np.searchsorted(bounds, lengths), minlength=len(bounds))
            rows = [min(r, _round_up(int(n), row_multiple)) for r, n in zip(rows, members, strict=True)]
        shapes = [Bucket(bound, r) for bound, r in zip(bounds, rows, strict=True)]

        examples = Examples(lengths, shapes, pairing, seed)
        self.train = StepSource(examples, shapes, self._collate_train, seed, host_index, host_count)
        held_out = self._held_out(bounds[-1] if pairs else 0)
        self.evaluation = fixed_batches(held_out, corpus.frames, shapes, self.collate, host_index, host_count)
        self.shapes = [self._shape(bucket) for bucket in shapes]
        self.report = Report(
            source=dir or "the shipped corpus",
            train=len(corpus.train),
            held_out=len(corpus.held_out),
            minutes=corpus.seconds(corpus.train) / 60,
            speakers=int(corpus.speakers.max()) + 1,
            left_out=corpus.problems,
            symbols=script_report(u.text for u in corpus.utterances),
            vocabulary=corpus.tokenizer.size,
            buckets=shapes,
            padding=self.train.padding(lengths, min(500, math.ceil(self.train.steps_per_pass))),
            steps_per_pass=self.train.steps_per_pass,
        )

    def collate(self, examples: Sequence[Example], frames: int) -> Batch:
        """Examples of corpus positions -> padded arrays."""
        corpus = self.corpus
        mel = np.zeros((len(examples), frames, corpus.spec.n_mels), np.float32)
        for row, example in zip(mel, examples, strict=True):
            whole = np.concatenate([corpus.mel(i) for i in example])
            row[: len(whole)] = whole
        lengths = np.array([sum(int(corpus.frames[i]) for i in e) for e in examples], np.int32)
        text = pad_ids([corpus.ids(e) for e in examples], self._text_length(frames))
        return {"mel": mel, "mel_lengths": lengths, "text": text}

    def write_assets(self, folder: str) -> None:
        """Writes ``tokenizer.json``, ``mel.json`` with the mean and deviation of the training frames, ``vocab.txt``."""
        self.corpus.tokenizer.save(folder)
        save_mel(folder, self.corpus.spec, *(self._statistics or self.corpus.statistics()))
        if self._vocab is not None:
            shutil.copyfile(self._vocab, Path(folder) / "vocab.txt")

    def _collate_train(self, examples: Sequence[Example], frames: int) -> Batch:
        train = self.corpus.train
        return self.collate([tuple(int(train[i]) for i in e) for e in examples], frames)

    def _text_length(self, frames: int) -> int:
        """Symbols of a batch: one number for the data, less where even that many frames are not there."""
        return min(_round_up(self._symbols, _ROUND), frames)

    def _shape(self, bucket: Bucket) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        rows, frames, int32, float32 = bucket.rows, bucket.frames, np.dtype(np.int32), np.dtype(np.float32)
        return {
            "mel": ((rows, frames, self.corpus.spec.n_mels), float32),
            "mel_lengths": ((rows,), int32),
            "text": ((rows, self._text_length(frames)), int32),
            "index": ((rows,), int32),
            "mask": ((rows,), float32),
        }

    def _held_out(self, pair_limit: int) -> list[Example]:
        """Every held-out utterance once; with pairs, behind the same held-out prompt every time."""
        corpus, positions = self.corpus, self.corpus.held_out
        if not pair_limit or not len(positions):
            return [(int(i),) for i in positions]
        pairing = Pairing(corpus.frames[positions], corpus.speakers[positions])
        targets = np.arange(len(positions))
        prompts = pairing.prompt(targets, 0, pair_limit, uniform("held-out prompt", targets))
        return [
            (int(positions[t]),) if p < 0 else (int(positions[p]), int(positions[t]))
            for p, t in zip(prompts, targets, strict=True)
        ]


def _pair_lengths(pairing: Pairing, limit: int, seed: int, each: int = 8) -> np.ndarray:
    """Lengths of a sample of the pairs that training will draw; without a partner, of the utterance alone."""
    targets = np.repeat(np.arange(len(pairing.lengths)), each)
    prompts = pairing.prompt(targets, 0, limit, uniform(seed, "pair lengths", np.arange(len(targets))))
    return pairing.lengths[targets] + np.where(prompts < 0, 0, pairing.lengths[prompts])


def _keep(folder: str, mel: Mapping[str, Any] | None) -> tuple[str, MelSpec, tuple[float, float]]:
    """The tokenizer's file, the mel settings, and mean and deviation of a folder of assets."""
    if not folder:
        raise UserError(f"config.data.tokenizer={KEPT!r} takes the vocabulary from --init_from=DIR; give that")
    spec, mean, std = load_mel(folder)
    asked = _mel_spec(mel).to_dict() if mel else spec.to_dict()
    for key, value in spec.to_dict().items():
        if asked[key] != value:
            raise UserError(
                f"config.data.mel.{key} is {asked[key]!r}, but {folder} was trained with {value!r}; use that"
            )
    return str(Path(folder) / ASSET), spec, (mean, std)


def _mel_spec(fields: Mapping[str, Any]) -> MelSpec:
    known = [f.name for f in dataclasses.fields(MelSpec)]
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise UserError(f"config.data.mel.{unknown[0]} is not a key; it has {', '.join(known)}")
    return MelSpec(**fields)


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
