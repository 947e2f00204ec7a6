"""Text to speech in the voice of a reference clip.

    voice = load("runs/demo")
    wave = voice("four one seven", "ref.wav", "three nine two")

A run folder and a converted checkpoint load alike.  Requests are padded to a few static shapes, which changes no output
(``padding="exact"``), so a service compiles a handful of programs and then none.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.audio import load_audio, log_mel
from data.errors import UserError
from data.text import pad_ids
from sampling.grids import flow_grid
from sampling.infill import infill, least_frames
from sampling.noise import sample_keys, start_noise
from sampling.solvers import solver
from train.checkpoint import restore_variables
from train.components import bind, build
from train.task import Variables
from train.tasks.speech import SpeechTask
from train.workdir import ASSETS, read_config

Vocoder = Callable[[np.ndarray, np.ndarray, jax.Array], jax.Array]  # log-mel [b, t, m], lengths [b], keys [b] -> waves
Settings = tuple[tuple[float, ...], str, bool]  # times, solver, guided
SPARE = 1.5  # a compiled shape is used again if it costs at most that many times the work
MOST_SECONDS = 90.0  # of reference and new speech together; attention grows with the square


@dataclasses.dataclass(frozen=True)
class Request:
    """What to say and in whose voice.

    Attributes:
      text: what to say.
      ref_audio: a sound file, or mono samples [n] at the model's sample rate.
      ref_text: what is said in ``ref_audio``.
      duration: seconds of the new speech; None = by the number of UTF-8 bytes, at the reference's pace.
      speed: divides the duration.
      seed: of the noise; the same request with the same seed sounds the same in any batch.
    """

    text: str
    ref_audio: str | Path | np.ndarray
    ref_text: str
    duration: float | None = None
    speed: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Spoken:
    """One answer.

    Attributes:
      wave: [samples] float32, the new speech alone.
      mel: [frames, mels], its log-mel.
      sample_rate: Hz.
      network_calls: that it took, guidance counting twice.
    """

    wave: np.ndarray
    mel: np.ndarray
    sample_rate: int
    network_calls: int


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A request as arrays: reference log-mel [f, m], ids of both texts, frames in all, seed."""

    clip: np.ndarray
    ids: list[int]
    frames: int
    seed: int


class SpeechPipeline:
    """A trained speech model, ready to speak.

    Args:
      task: the network with its tokenizer, mel settings and normalisation.
      variables: its parameters.
      vocoder: turns log-mel into sound; Griffin-Lim by default.
      rows: the largest batch.

    Attributes:
      programs: what has been compiled so far, by settings and shape (rows, frames, symbols).
      seconds: spent in sampling and in the vocoder so far, compilation of the former left out.
    """

    def __init__(self, task: SpeechTask, variables: Variables, vocoder: Vocoder | None = None, rows: int = 8):
        self.task, self.variables, self.rows = task, variables, rows
        self.vocoder = vocoder or task.griffin_lim
        self.programs: dict[tuple[Settings, tuple[int, int, int]], Callable[..., Any]] = {}
        self.seconds = {"sampling": 0.0, "vocoder": 0.0}
        self._run = jax.jit(self._infill, static_argnames=("settings",))

    @property
    def sample_rate(self) -> int:
        """Hz of what it makes."""
        return self.task.spec.sample_rate

    def __call__(
        self,
        text: str,
        ref_audio: str | Path | np.ndarray,
        ref_text: str,
        *,
        steps: int = 16,
        cfg_strength: float = 2.0,
        sway: float | None = -1.0,
        pruned: bool = True,
        method: str = "euler",
        speed: float = 1.0,
        duration: float | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Says ``text``: [samples] float32 at ``sample_rate``.  See ``Request`` and ``batch`` for the arguments."""
        request = Request(text, ref_audio, ref_text, duration, speed, seed)
        options = {"steps": steps, "cfg_strength": cfg_strength, "sway": sway, "pruned": pruned, "method": method}
        return self.batch([request], **options)[0].wave

    def batch(
        self,
        requests: Sequence[Request],
        *,
        steps: int = 16,
        cfg_strength: float = 2.0,
        sway: float | None = -1.0,
        pruned: bool = True,
        method: str = "euler",
    ) -> list[Spoken]:
        """Answers requests, those of like length together.

        Args:
          steps: of the solver; each costs one network call, with guidance two (``midpoint``: twice that).
          cfg_strength: the release's number, guidance weight − 1; 0 = no guidance, at half the cost.
          sway: coefficient of sway sampling, None = none.
          pruned: the release's EPSS grids, where there is one for ``steps``.
          method: "euler" or "midpoint".

        Raises:
          UserError: a missing or unreadable sound file, an empty text, symbols that the model has no id for, a wrong
            duration or speed, more than a minute of speech, or wrong sampling options.
        """
        prepared = [self._prepare(request) for request in requests]
        try:
            grid, _ = flow_grid(steps, sway_coefficient=sway, pruned=pruned), solver(method)
        except ValueError as error:
            raise UserError(str(error)) from error
        if not cfg_strength >= 0.0:
            raise UserError(f"cfg_strength is {cfg_strength}; expected 0 (no guidance) or more")
        settings: Settings = (tuple(grid.tolist()), method, cfg_strength >= 1e-5)

        # The longest first: what is compiled for them often serves the rest.
        order = sorted(range(len(requests)), key=lambda i: -prepared[i].frames)
        answers: dict[int, Spoken] = {}
        for group in (order[i : i + self.rows] for i in range(0, len(order), self.rows)):
            parts = [prepared[i] for i in group]
            mels, calls = self._sample(parts, cfg_strength + 1.0, settings)
            for i, mel, wave in zip(group, mels, self.vocode(mels, [p.seed for p in parts]), strict=True):
                answers[i] = Spoken(wave, mel, self.sample_rate, calls)
        return [answers[i] for i in range(len(requests))]

    def vocode(self, mels: Sequence[np.ndarray], seeds: Sequence[int] | None = None) -> list[np.ndarray]:
        """Log-mels [frames, mels] of one batch -> waves [samples] float32; ``seeds`` of each one's first phases."""
        start, spec = time.perf_counter(), self.task.spec
        rows = 1 << (len(mels) - 1).bit_length()
        padded = [*mels, *[mels[-1]] * (rows - len(mels))]
        lengths = np.array([len(mel) for mel in padded], np.int32)
        batch = np.full((rows, bucket(int(lengths.max()), 64), spec.n_mels), np.log(1e-5), np.float32)
        for row, mel in zip(batch, padded, strict=True):
            row[: len(mel)] = mel
        ids = np.zeros(rows, np.uint32) if seeds is None else np.resize(np.array(seeds, np.uint32), rows)
        waves = np.asarray(self.vocoder(batch, lengths, sample_keys(jax.random.key(1), jnp.asarray(ids))))
        self.seconds["vocoder"] += time.perf_counter() - start
        samples = spec.hop * (lengths - 1) + spec.n_fft - 2 * spec.padding
        return [waves[i, : samples[i]] for i in range(len(mels))]

    def _prepare(self, request: Request) -> _Prepared:
        """Loads, encodes and measures; everything that can be wrong with a request is found here."""
        if not request.text.strip():
            raise UserError("there is no text to say; give --text")
        if not request.ref_text.strip():
            raise UserError("the reference clip needs its words; give --ref_text")
        spec, tokenizer = self.task.spec, self.task.tokenizer
        stop = not tokenizer.unknown_symbols(".")
        text, ref_text = finished(request.text, stop), finished(request.ref_text, stop)
        ids = tokenizer.encode(f"{ref_text} {text}")
        audio = request.ref_audio
        wave = audio if isinstance(audio, np.ndarray) else load_audio(audio, spec.sample_rate)
        clip = log_mel(np.asarray(wave, np.float32), spec)
        if request.duration is None:
            new = spoken_frames(len(clip), ref_text, text, request.speed)
        elif request.duration > 0:
            new = max(2, round(request.duration * spec.sample_rate / spec.hop))
        else:
            raise UserError(f"duration is {request.duration} s; expected more than 0")
        least = least_frames(np.array([len(clip) + new]), np.array([len(ids)]), np.array([len(clip)]))
        seconds = int(least[0]) * spec.hop / spec.sample_rate
        if seconds > MOST_SECONDS:
            raise UserError(
                f"reference and speech would last {seconds:.0f} s together, more than {MOST_SECONDS:.0f}: "
                "shorten the text or the reference, or say it in parts"
            )
        return _Prepared(clip, ids, int(least[0]), request.seed)

    def _sample(self, group: Sequence[_Prepared], weight: float, settings: Settings) -> tuple[list[np.ndarray], int]:
        """Log-mels of the new speech of one padded batch, and network calls per row."""
        shape = self._shape(len(group), max(p.frames for p in group), max(len(p.ids) for p in group), settings)
        rows, frames, symbols = shape
        padded = [*group, *[group[-1]] * (rows - len(group))]
        clip = np.zeros((rows, frames, self.task.spec.n_mels), np.float32)
        for row, p in zip(clip, padded, strict=True):
            row[: len(p.clip)] = p.clip
        arrays = (
            clip,
            np.array([len(p.clip) for p in padded], np.int32),
            pad_ids([p.ids for p in padded], symbols),
            np.array([p.frames for p in padded], np.int32),
            np.array([p.seed for p in padded], np.uint32),
            np.float32(weight),
        )
        if (settings, shape) not in self.programs:
            lowered = self._run.lower(self.variables, *arrays, settings=settings)
            self.programs[settings, shape] = lowered.compile()
        start = time.perf_counter()
        mel, calls = self.programs[settings, shape](self.variables, *arrays)
        mel = np.asarray(mel)
        self.seconds["sampling"] += time.perf_counter() - start
        return [mel[i, len(p.clip) : p.frames] for i, p in enumerate(group)], int(calls)

    def _shape(self, rows: int, frames: int, symbols: int, settings: Settings) -> tuple[int, int, int]:
        """The smallest compiled shape that fits without much waste, or the one to compile."""
        new = (1 << (rows - 1).bit_length(), bucket(frames, 64), bucket(symbols, 32))
        compiled = [shape for known, shape in self.programs if known == settings]
        fitting = [
            s for s in compiled if all(have >= need for have, need in zip(s, (rows, frames, symbols), strict=True))
        ]
        best = min(fitting, key=lambda s: s[0] * s[1], default=new)
        return best if best[0] * best[1] <= SPARE * new[0] * new[1] else new

    def _infill(
        self,
        variables: Variables,
        clip: jax.Array,
        known: jax.Array,
        text: jax.Array,
        lengths: jax.Array,
        seeds: jax.Array,
        weight: jax.Array,
        *,
        settings: Settings,
    ) -> tuple[jax.Array, jax.Array]:
        """The whole of sampling as one program: log-mel [b, t, m]."""
        times, method, guided = settings
        frames = clip.shape[1]
        result = infill(
            self.task.infill_network(variables, frames),
            self.task.normalise(clip, known),
            jnp.arange(frames) < known[:, None],
            text,
            lengths,
            start_noise(jax.random.key(0), seeds, clip.shape[1:]),
            np.array(times),
            weight=weight if guided else None,
            solver=solver(method),
        )
        return self.task.denormalise(result.out), jnp.asarray(result.ledger.network_calls)


def load(folder: str | Path, *, params: str = "ema", vocoder: Vocoder | None = None) -> SpeechPipeline:
    """A pipeline from a run folder or a converted checkpoint.

    Args:
      folder: has config.json, assets/ and checkpoints/.
      params: "ema" (what the run evaluated with), "raw", or "ema/<decay>".
      vocoder: see ``SpeechPipeline``.

    Raises:
      UserError: not such a folder, no checkpoint in it yet, or a damaged one; a run of something other than speech.
    """
    config = read_config(folder)
    for section in ("task", "model"):
        if section not in config:
            raise UserError(f"{Path(folder) / 'config.json'} has no section {section!r}")
    assets = Path(folder) / ASSETS
    if not assets.is_dir():
        raise UserError(f"{folder} has no {ASSETS}/; has its training begun?")
    model = bind(config["model"], "model")
    precision = config.get("precision", {}).get("compute", "float32")
    task = build(config["task"], "task", model=model, assets=str(assets), shapes=(), precision=precision)
    if not isinstance(task, SpeechTask):
        raise UserError(f"{folder} is a run of {type(task).__name__}, not of speech")
    variables, _ = restore_variables(folder, task.network.abstract(), params=params)
    return SpeechPipeline(task, variables, vocoder)


def finished(text: str, stop: bool = True) -> str:
    """``text`` as one sentence: no blanks around it and, with ``stop``, a full stop where it ends without a sign.

    The release does so with reference texts: without it a model cannot know where the reference ends.
    """
    text = text.strip()
    return f"{text}." if stop and text[-1:].isalnum() else text


def spoken_frames(ref_frames: int, ref_text: str, text: str, speed: float = 1.0) -> int:
    """Frames of ``text`` at the pace of the reference: proportional to UTF-8 bytes (F5-TTS's rule).

    Each text counts one byte more, for the pause that separates it from the next.

    Raises:
      UserError: ``speed`` is not positive.
    """
    if not speed > 0:
        raise UserError(f"speed is {speed}; expected more than 0 (1 = the reference's pace)")
    return max(2, round(ref_frames * (len(text.encode()) + 1) / (len(ref_text.encode()) + 1) / speed))


@functools.cache
def bucket(n: int, smallest: int) -> int:
    """The next of a few sizes: ``smallest``, then four per octave, so that at most a quarter is padding."""
    if n <= smallest:
        return smallest
    step = 1 << max((n - 1).bit_length() - 3, 0)
    return -(-n // step) * step
