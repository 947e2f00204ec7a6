"""An independent judge of speech: how many words does a recogniser that never saw our model understand?

pocketsphinx with its own English model (inside its wheel) and a closed grammar: any sequence of the words given.  A
closed grammar is fair between systems, not a measure of open-vocabulary recognition, so every report also states what
the judge makes of the original recordings and of chance.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from data.audio import resample
from data.errors import UserError

RATE = 16000  # of the recogniser's acoustic model
MARGIN = 0.15  # seconds of silence put around a wave: the decoder needs some to find the first and last word


class Recogniser:
    """Transcribes waves as sequences of known words.

    Args:
      words: the vocabulary; words that the recogniser's dictionary lacks are left out and listed in ``unknown``.

    Raises:
      UserError: pocketsphinx is not installed, or it knows none of the words.
    """

    def __init__(self, words: Iterable[str]):
        try:
            import pocketsphinx as ps
        except ImportError:
            raise UserError("the recogniser needs pocketsphinx: pip install 'murmuration[speech]'") from None
        self._decoder = ps.Decoder(
            samprate=RATE,
            lm=None,
            cmn="batch",
            loglevel="FATAL",
            hmm=ps.get_model_path("en-us/en-us"),
            dict=ps.get_model_path("en-us/cmudict-en-us.dict"),
        )
        wanted = sorted(set(words))
        self.words = [w for w in wanted if self._decoder.lookup_word(w) is not None]
        self.unknown = [w for w in wanted if w not in set(self.words)]
        if not self.words:
            raise UserError(f"the recogniser's English dictionary has none of the words {', '.join(wanted[:10])}")
        grammar = f"#JSGF V1.0;\ngrammar words;\npublic <words> = ({' | '.join(self.words)})+;"
        self._decoder.add_jsgf_string("words", grammar)
        self._decoder.activate_search("words")

    def transcribe(self, wave: np.ndarray, sample_rate: int) -> list[str]:
        """The words heard in ``wave`` [n] float in −1..1; nothing in silence."""
        wave = resample(np.asarray(wave, np.float32), sample_rate, RATE)
        margin = np.zeros(int(MARGIN * RATE), np.float32)
        if not np.abs(wave).max(initial=0.0) > 1e-4:
            return []  # digital silence, in which the grammar would still find a word
        samples = np.clip(np.concatenate([margin, wave, margin]), -1.0, 1.0) * 32767.0
        self._decoder.reinit_feat()  # forget the last wave: what is heard must not depend on the order of waves
        self._decoder.start_utt()
        self._decoder.process_raw(samples.astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return heard.hypstr.split() if heard and heard.hypstr else []


class WordVerifier:
    """Chooses among candidates of one text by how many of its words are heard: a verifier of the speech pipeline.

    Args:
      words: what the recogniser may hear, the words of all texts at least.
      sample_rate: Hz of the waves.

    Raises:
      UserError: see ``Recogniser``.
    """

    def __init__(self, words: Iterable[str], sample_rate: int):
        self.recogniser, self.sample_rate = Recogniser(words), sample_rate

    def __call__(self, wave: np.ndarray, text: str) -> float:
        """Minus the word errors, of words that the recogniser knows."""
        said = [word for word in split_words(text) if word not in set(self.recogniser.unknown)]
        return float(-len(align(said, self.recogniser.transcribe(wave, self.sample_rate))))


@dataclasses.dataclass(frozen=True)
class ErrorRate:
    """Word error rate over a set of utterances.

    Attributes:
      rate: (substitutions + deletions + insertions) / words; may exceed 1.
      low, high: 95 % bootstrap interval over utterances.
      words, utterances: how much was judged.
      confusions: the commonest (said, heard, count); "" stands for nothing.
    """

    rate: float
    low: float
    high: float
    words: int
    utterances: int
    confusions: tuple[tuple[str, str, int], ...]

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}] over {self.words} words"

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def split_words(text: str) -> list[str]:
    """Lower-case words without punctuation; apostrophes inside words stay."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower())


def align(said: Sequence[str], heard: Sequence[str]) -> list[tuple[str, str]]:
    """The edits of a cheapest alignment, as (said, heard) pairs that differ; "" on either side is a deletion or an
    insertion.  Their number is the Levenshtein distance."""
    n, m = len(said), len(heard)
    cost = np.zeros((n + 1, m + 1), int)
    cost[:, 0], cost[0, :] = np.arange(n + 1), np.arange(m + 1)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            replace = cost[i - 1, j - 1] + (said[i - 1] != heard[j - 1])
            cost[i, j] = min(replace, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    edits, i, j = [], n, m
    while i or j:
        if i and j and cost[i, j] == cost[i - 1, j - 1] + (said[i - 1] != heard[j - 1]):
            i, j = i - 1, j - 1
            if said[i] != heard[j]:
                edits.append((said[i], heard[j]))
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
            edits.append((said[i], ""))
        else:
            j -= 1
            edits.append(("", heard[j]))
    return edits[::-1]


def error_rate(
    said: Sequence[Sequence[str]], heard: Sequence[Sequence[str]], *, seed: int = 0, resamples: int = 2000
) -> ErrorRate:
    """Error rate of aligned utterances with a bootstrap interval: whole utterances are drawn again with replacement.

    Raises:
      ValueError: lists of different lengths, or no words to judge.
    """
    edits = [align(s, h) for s, h in zip(said, heard, strict=True)]
    errors, words = np.array([len(e) for e in edits]), np.array([len(s) for s in said])
    if not words.sum():
        raise ValueError("there are no words to judge")
    draws = np.random.default_rng(seed).integers(0, len(words), (resamples, len(words)))
    rates = errors[draws].sum(1) / np.maximum(words[draws].sum(1), 1)
    low, high = np.quantile(rates, [0.025, 0.975])
    common = collections.Counter(pair for e in edits for pair in e).most_common(10)
    return ErrorRate(
        rate=float(errors.sum() / words.sum()),
        low=float(low),
        high=float(high),
        words=int(words.sum()),
        utterances=len(words),
        confusions=tuple((a, b, n) for (a, b), n in common),
    )
