"""Speech decoded once: a TFDS builder (array_record, no TensorFlow) in a cache folder, read at random positions.

Decoding and resampling a corpus takes longer than reading it, so the waves are kept at the model's rate.  The cache is
keyed by what went in, so a changed folder is prepared again and an unchanged one is not.
"""

import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.audio import load_audio
from data.cache import cache_root, made_once
from data.errors import UserError
from data.speech_source import Utterance

FORMAT = 1  # raise it when the stored form changes
_SPLIT = "utterances"
_PCM = np.float32(32768.0)
_log = logging.getLogger(__name__)


class SpeechFolder(tfds.core.GeneratorBasedBuilder):
    """Utterances as ``{"id", "text", "speaker", "pcm" int16 [samples], "wave" float32 [samples]}`` in the order given.

    A wave that 16 bits hold exactly is in ``pcm``, any other in ``wave``; the other array is empty.  Rounding a
    resampled wave to 16 bits would fill its empty upper bands with noise that the log-mel shows.

    TFDS decodes audio only with TensorFlow, hence tensor features; and it must be told ``array_record``.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, examples: Iterable[dict[str, Any]] = (), **kwargs: Any):
        self._examples = examples
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # As bytes: the default encoding is a list of varints, ten times slower to write.
        pcm = tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding=tfds.features.Encoding.BYTES)
        wave = tfds.features.Tensor(shape=(None,), dtype=np.float32, encoding=tfds.features.Encoding.BYTES)
        text = tfds.features.Text()
        features = tfds.features.FeaturesDict({"id": text, "text": text, "speaker": text, "pcm": pcm, "wave": wave})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(self._examples)


class SpeechStore:
    """Random access to the prepared waves.

    Attributes:
      samples: [n] int64, length of every utterance at the store's rate, 0 where its file could not be used.
      failed: why, by position.
    """

    def __init__(self, folder: Path):
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.samples = np.asarray(index["samples"], np.int64)
        self.failed = {int(i): reason for i, reason in index["failed"].items()}
        self._records = None
        if len(self.samples) > len(self.failed):
            builder: Any = SpeechFolder(data_dir=str(folder))
            self._records = builder.as_data_source(split=_SPLIT)
        # Utterances that failed have no record.
        self._position = np.cumsum(self.samples > 0) - 1

    def wave(self, i: int) -> np.ndarray:
        """[samples] float32, exactly as ``data.audio.load_audio`` reads it."""
        if self._records is None or self.samples[i] == 0:
            raise IndexError(f"utterance {i} has no audio: {self.failed.get(i)}")
        record = self._records[int(self._position[i])]
        return record["wave"] if len(record["wave"]) else record["pcm"].astype(np.float32) / _PCM


def fingerprint(utterances: Sequence[Utterance], sample_rate: int) -> str:
    """Hash of everything that decides the prepared content: texts, and name, size and time of every sound file."""
    digest = hashlib.sha256(f"{FORMAT} {sample_rate}".encode())
    for u in utterances:
        stat = u.audio.stat()
        digest.update(f"\n{u.id}|{u.text}|{u.speaker}|{u.audio}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:20]


def prepare(utterances: Sequence[Utterance], sample_rate: int, cache: Path | None = None) -> SpeechStore:
    """The store of these utterances, from the cache or made now; several processes may ask at once.

    Args:
      utterances: what to store; files that cannot be used end up in ``SpeechStore.failed``.
      sample_rate: Hz.
      cache: folder of all prepared corpora, by default ``cache_root()``.

    Raises:
      UserError: the cache cannot be written.
    """
    folder = (cache or cache_root() / "speech") / fingerprint(utterances, sample_rate)
    made_once(folder, "index.json", lambda place: _write(utterances, sample_rate, place))
    return SpeechStore(folder)


def _write(utterances: Sequence[Utterance], sample_rate: int, folder: Path) -> None:
    """Prepares into ``folder``; ``index.json`` comes last, so its presence means the rest is whole."""
    samples: list[int] = []
    failed: dict[int, str] = {}

    def examples() -> Iterator[dict[str, Any]]:
        for i, (utterance, wave) in enumerate(zip(utterances, _decode(utterances, sample_rate), strict=True)):
            if isinstance(wave, UserError):
                failed[i] = str(wave)
                samples.append(0)
                continue
            samples.append(len(wave))
            pcm = np.clip(np.rint(wave * _PCM), -32768, 32767).astype(np.int16)
            exact = np.array_equal(pcm.astype(np.float32) / _PCM, wave)
            sound = {"pcm": pcm if exact else pcm[:0], "wave": wave[:0] if exact else wave}
            yield {"id": utterance.id, "text": utterance.text, "speaker": utterance.speaker, **sound}

    stream = examples()
    first = next(stream, None)
    if first is not None:  # TFDS refuses an empty split
        tfds.disable_progress_bar()
        builder = SpeechFolder(examples=itertools.chain([first], stream), data_dir=str(folder))
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
            builder.download_and_prepare()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "index.json.tmp"
    temporary.write_text(json.dumps({"samples": samples, "failed": failed, "sample_rate": sample_rate}))
    os.replace(temporary, folder / "index.json")


def _decode(utterances: Sequence[Utterance], sample_rate: int, ahead: int = 64) -> Iterator[np.ndarray | UserError]:
    """Waves in order, decoded by threads (libsndfile and soxr release the interpreter), at most ``ahead`` in memory."""

    def load(utterance: Utterance) -> np.ndarray | UserError:
        try:
            return load_audio(utterance.audio, sample_rate)
        except UserError as e:
            return e

    start = last = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i in range(0, len(utterances), ahead):
            yield from pool.map(load, utterances[i : i + ahead])
            if time.monotonic() - last > 5.0:
                last = time.monotonic()
                done = min(i + ahead, len(utterances))
                _log.info("prepared %d of %d utterances in %.0f s", done, len(utterances), last - start)
