"""A usable corpus of speech: every utterance has sound, a length within bounds, and a text with ids."""

from collections.abc import Sequence

import numpy as np

from data.audio import MelSpec, log_mel
from data.errors import UserError
from data.problems import Problems
from data.speech_builder import SpeechStore, prepare
from data.speech_source import CORPUS, Utterance, read_source, split_by_text
from data.text import Tokenizer, UnknownSymbols, describe, make_tokenizer

_CACHE_BYTES = 2**30
_STATISTICS_FRAMES = 400_000  # over an hour of speech: more changes no digit that matters


class SpeechCorpus:
    """Utterances with random access to their waves, spectrograms and ids.

    Args:
      dir: speech folder or manifest (``data.speech_source``); "" = the shipped corpus.
      spec: how spectrograms are made.
      tokenizer, vocab: see ``data.text.make_tokenizer``; a table made from the data covers held-out texts too.
      min_seconds, max_seconds: shorter and longer utterances cannot be used.
      eval_fraction: held out where the source has no split of its own.
      on_bad: "error" = an utterance that cannot be used is an error; "skip" = it is left out and noted in ``problems``.

    Attributes:
      utterances: the usable ones, in the source's order.
      frames: [n] int64, length of their spectrograms.
      speakers: [n] int64, 0, 1, … in alphabetical order.
      train, held_out: positions in ``utterances``.
      tokenizer: for these texts.
      problems: what was left out, and why.

    Raises:
      UserError: nothing is usable, or something is not and ``on_bad`` is "error".
    """

    def __init__(
        self,
        dir: str,
        spec: MelSpec,
        tokenizer: str = "char",
        vocab: str = "",
        min_seconds: float = 0.3,
        max_seconds: float = 30.0,
        eval_fraction: float = 0.0,
        on_bad: str = "error",
    ):
        self.spec = spec
        found, problems = read_source(dir)
        total = len(found) + len(problems)
        self._store = prepare(found, spec.sample_rate)
        kept = _audible(found, self._store, spec, min_seconds, max_seconds, problems)
        self.tokenizer = make_tokenizer(tokenizer, vocab, (found[i].text for i in kept))
        kept = _readable(found, kept, self._store, spec, self.tokenizer, problems)
        problems.settle(on_bad, dir or "the shipped corpus", total)
        if not kept:
            raise UserError(f"{dir or CORPUS}: no usable utterance; {problems.describe() or 'the table is empty'}")

        self.problems = problems
        self.utterances = [found[i] for i in kept]
        self.train, self.held_out = split_by_text(self.utterances, eval_fraction)
        self.speakers = np.unique([u.speaker for u in self.utterances], return_inverse=True)[1]
        self.frames = np.array([spec.frames(int(self._store.samples[i])) for i in kept])
        self._records = kept
        small = int(self.frames.sum()) * spec.n_mels * 4 <= _CACHE_BYTES
        self._mels: dict[int, np.ndarray] | None = {} if small else None

    def seconds(self, positions: np.ndarray) -> float:
        """Duration of these utterances together."""
        return float(sum(self._store.samples[self._records[i]] for i in positions)) / self.spec.sample_rate

    def wave(self, i: int) -> np.ndarray:
        """[samples] float32 at the spec's rate."""
        return self._store.wave(self._records[i])

    def mel(self, i: int) -> np.ndarray:
        """[frames, n_mels] natural log-mel; small corpora keep it in memory."""
        if self._mels is None:
            return log_mel(self.wave(i), self.spec)
        if i not in self._mels:
            self._mels[i] = log_mel(self.wave(i), self.spec)
        return self._mels[i]

    def ids(self, positions: Sequence[int]) -> list[int]:
        """Text ids of utterances said one after the other, a space between them."""
        return self.tokenizer.encode(" ".join(self.utterances[i].text for i in positions))

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the log-mel over training frames (evenly picked where there are many)."""
        frames = self.frames[self.train]
        step = max(1, int(frames.sum()) // _STATISTICS_FRAMES)
        count = total = squares = 0.0
        for i in self.train[::step]:
            mel = self.mel(int(i)).astype(np.float64)
            count, total, squares = count + mel.size, total + mel.sum(), squares + np.square(mel).sum()
        mean = total / count
        # Six digits: enough, and the same on machines whose libraries round differently.
        return round(mean, 6), round(float(np.sqrt(max(squares / count - mean**2, 1e-6))), 6)


def _audible(
    utterances: Sequence[Utterance],
    store: SpeechStore,
    spec: MelSpec,
    min_seconds: float,
    max_seconds: float,
    problems: Problems,
) -> list[int]:
    """Positions of utterances whose sound can be used."""
    kept = []
    for i, u in enumerate(utterances):
        samples = int(store.samples[i])
        seconds = samples / spec.sample_rate
        if i in store.failed:
            problems.add("unusable audio", store.failed[i])
        elif seconds > max_seconds:
            problems.add(f"longer than data.max_seconds={max_seconds:g}", f"{u.id} has {seconds:.2f} s")
        elif seconds < min_seconds or samples <= spec.padding:
            problems.add(f"shorter than data.min_seconds={min_seconds:g}", f"{u.id} has {seconds:.2f} s")
        else:
            kept.append(i)
    return kept


def _readable(
    utterances: Sequence[Utterance],
    positions: Sequence[int],
    store: SpeechStore,
    spec: MelSpec,
    tokenizer: Tokenizer,
    problems: Problems,
) -> list[int]:
    """Positions of utterances whose text has ids, and no more of them than the sound has frames."""
    kept = []
    for i in positions:
        u, frames = utterances[i], spec.frames(int(store.samples[i]))
        try:
            ids = tokenizer.encode(u.text)
        except UnknownSymbols as e:
            problems.add("with unknown symbols", f"{u.id}: {' '.join(map(describe, e.symbols))}")
            continue
        if len(ids) + 1 > frames:  # one more, so that a joined pair with its space fits as well
            problems.add("with more symbols than frames", f"{u.id}: {len(ids)} symbols, {frames} frames")
        else:
            kept.append(i)
    return kept
