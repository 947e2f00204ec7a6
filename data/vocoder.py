"""Waves for training vocoders: random crops of the utterances of a speech folder, a pure function of the step."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.audio import MelSpec, save_mel
from data.errors import UserError
from data.keyed import permute, uniform
from data.pipeline import Batch, host_rows
from data.problems import Problems
from data.speech_corpus import SpeechCorpus


@dataclasses.dataclass(frozen=True)
class Report:
    """What the data holds and what was left out; ``str`` of it is for people."""

    source: str
    train: int
    held_out: int
    minutes: float
    crops: int
    rows: int
    samples: int
    left_out: Problems

    def __str__(self) -> str:
        lines = [
            f"speech from {self.source}: {self.train} utterances to train on ({self.minutes:.1f} min), "
            f"{self.held_out} held out",
            f"  batches of {self.rows} x {self.samples} samples; a pass over the data is "
            f"{self.crops / self.rows:.1f} steps",
        ]
        return "\n".join([*lines, f"  left out {self.left_out.describe()}"] if self.left_out else lines)


class Crops:
    """``crops[step]`` -> this host's rows of the global batch of that step.

    Every utterance is drawn once per begun ``samples`` of its length in each pass; where the crop starts is random.
    An utterance shorter than that is repeated.

    Args:
      corpus: where waves come from.
      positions: utterances in ``corpus``.
      samples, rows: shape of the global batch.
      peak_db: range of the crop's largest absolute sample, in dB below full scale; empty = as recorded.
      seed: of everything random.
    """

    def __init__(
        self,
        corpus: SpeechCorpus,
        positions: np.ndarray,
        samples: int,
        rows: int,
        peak_db: Sequence[float],
        seed: int,
        host_index: int = 0,
        host_count: int = 1,
    ):
        self._corpus, self._samples, self._rows, self._peak, self._seed = corpus, samples, rows, tuple(peak_db), seed
        self._host = host_index, host_count
        begun = [-(-len(corpus.wave(int(i))) // samples) for i in positions]
        self._slots = np.repeat(positions, begun)

    def __len__(self) -> int:
        return sys.maxsize  # endless; grain wants a length

    @property
    def slots(self) -> int:
        """Crops in one pass over the data."""
        return len(self._slots)

    def __getitem__(self, step: int) -> Batch:
        rows = np.array(host_rows(self._rows, *self._host))
        number = int(step) * self._rows + rows
        passes, place = number // self.slots, number % self.slots
        chosen = self._slots[permute(place, self.slots, self._seed, "crop", passes)]
        start, level = uniform(self._seed, "start", number), uniform(self._seed, "level", number)
        waves = [self._crop(int(i), s, u) for i, s, u in zip(chosen, start, level, strict=True)]
        return {"wave": np.stack(waves), "index": rows.astype(np.int32), "mask": np.ones(len(rows), np.float32)}

    def _crop(self, utterance: int, place: float, level: float) -> np.ndarray:
        wave = filled(self._corpus.wave(utterance), self._samples)
        start = int(place * (len(wave) - self._samples + 1))
        crop = wave[start : start + self._samples]
        if self._peak:
            low, high = self._peak
            crop = crop * np.float32(10 ** ((low + (high - low) * level) / 20) / max(np.abs(crop).max(), 1e-4))
        return np.ascontiguousarray(crop, np.float32)


class VocoderData:
    """Batches ``{"wave" [B, S] float32, "index" [B] int32, "mask" [B] float32 (1 = a real row)}``.

    Args:
      dir: speech folder or manifest (``data.speech_source``); "" = the shipped corpus.
      samples: length of a crop, a multiple of the mel's hop.
      batch: rows of a global batch.
      peak_db: see ``Crops``.
      min_seconds, max_seconds, eval_fraction, on_bad: see ``data.speech_corpus.SpeechCorpus``.
      mel: fields of ``MelSpec``.
      seed: of order and crops.
      host_index, host_count: this process's part of every global batch.
      row_multiple: the rows of every global batch must be a multiple of this.

    Attributes:
      train, evaluation, shapes, report: see ``train.assemble.Data``; held-out utterances are cut into crops.

    Raises:
      UserError: see ``SpeechCorpus``; a crop that is not whole frames; rows that cannot be divided.
    """

    def __init__(
        self,
        dir: str = "",
        samples: int = 16_384,
        batch: int = 16,
        peak_db: Sequence[float] = (),
        min_seconds: float = 0.3,
        max_seconds: float = 30.0,
        eval_fraction: float = 0.02,
        on_bad: str = "error",
        mel: Mapping[str, Any] | None = None,
        seed: int = 0,
        host_index: int = 0,
        host_count: int = 1,
        row_multiple: int = 1,
    ):
        spec = MelSpec(**(mel or {}))
        if samples < spec.n_fft or samples % spec.hop:
            raise UserError(
                f"config.data.samples={samples}: expected a multiple of the hop of {spec.hop}, at least {spec.n_fft}"
            )
        if batch < 1 or batch % row_multiple:
            raise UserError(f"config.data.batch={batch}: expected a multiple of {row_multiple} (devices x accumulate)")
        if len(peak_db) not in (0, 2):
            raise UserError(f"config.data.peak_db={tuple(peak_db)}: expected two levels in dB, or none")
        # The words do not matter, and every text has bytes.
        self.corpus = corpus = SpeechCorpus(dir, spec, "byte", "", min_seconds, max_seconds, eval_fraction, on_bad)
        place = host_index, host_count
        self.train = Crops(corpus, corpus.train, samples, batch, peak_db, seed, *place)
        self.evaluation = self._held_out(samples, batch, *place)
        shape = {"wave": ((batch, samples), np.dtype(np.float32)), "index": ((batch,), np.dtype(np.int32))}
        self.shapes = [shape | {"mask": ((batch,), np.dtype(np.float32))}]
        self.report = Report(
            source=dir or "the shipped corpus",
            train=len(corpus.train),
            held_out=len(corpus.held_out),
            minutes=corpus.seconds(corpus.train) / 60,
            crops=self.train.slots,
            rows=batch,
            samples=samples,
            left_out=corpus.problems,
        )

    def write_assets(self, folder: str) -> None:
        """Writes ``mel.json``."""
        save_mel(folder, self.corpus.spec)

    def _held_out(self, samples: int, rows: int, host_index: int, host_count: int) -> list[Batch]:
        """Whole crops of every held-out utterance, one after the other; the last batch is filled up with mask 0."""
        waves = [filled(self.corpus.wave(int(i)), samples) for i in self.corpus.held_out]
        crops = [w[s : s + samples] for w in waves for s in range(0, len(w) - samples + 1, samples)]
        mine = host_rows(rows, host_index, host_count)
        batches = []
        for start in range(0, len(crops), rows):
            group = crops[start : start + rows]
            wave = np.stack([group[min(r, len(group) - 1)] for r in mine]).astype(np.float32)
            real = np.array([r < len(group) for r in mine], np.float32)
            batches.append({"wave": wave, "index": np.array(mine, np.int32), "mask": real})
        return batches


def filled(wave: np.ndarray, samples: int) -> np.ndarray:
    """``wave`` [n], repeated where it is shorter than ``samples``."""
    return wave if len(wave) >= samples else np.resize(wave, samples)
