"""From a request to what the network is asked for: reference, chunks, durations, seeds.  Pure, and without a network.

``behaviour="release"`` plans what the F5-TTS reference would do, with the defects that its users know:

  the release                                            the default
  keeps one frame of the reference in the new speech     keeps none
  says texts under 10 bytes at speed 0.3, whatever the   obeys the user
  user asked for
  puts two blanks between reference and text             one
  ignores the pause between them in the duration rule    counts it as one byte
  leaves sentences longer than its limit whole; limits   breaks them between words; always leaves room
  of references over 22 s are negative
  cuts references at 12 s, but not their words           refuses references of over 20 s, see data/reference_clip.py
  fades each chunk into the next over all of 0.15 s,     no longer than there is silence
  also where both are loud
  resamples with six zero crossings                      with soxr

What else it does differently is no matter of planning: padded batches (the model's ``padding`` option), rotary phases
in float16 (ours are float32).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.audio import MelSpec, log_mel, read_audio, resample, resample_sinc
from data.errors import UserError
from data.reference_clip import LOUDNESS, prepare_clip
from data.text import Tokenizer
from launch.pipelines import speech_text
from launch.pipelines.speech_durations import DurationPredictor, ReleaseRule
from sampling.infill import least_frames

BEHAVIOURS = ("corrected", "release")
MOST_SECONDS = 90.0  # of reference and new speech in one sequence; attention grows with the square
LEAST_SECONDS = 0.1  # of a reference
SHORT_BYTES, SHORT_SPEED = 10, 0.3  # the release's
Sound = str | Path | np.ndarray | tuple[np.ndarray, int]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to say and in whose voice.

    Attributes:
      text: what to say; a tuple of texts is taken as the chunks to say one by one.
      ref_audio: a sound file, mono samples [n] at the model's sample rate, or (samples [n] or [n, channels], Hz).
        None: no reference; the model invents a voice, and later chunks take that of the first.
      ref_text: what is said in ``ref_audio``.
      duration: seconds of the new speech; None = by the pipeline's predictor.  With ``behaviour="release"``: of
        reference and speech together, for every chunk (its ``fix_duration``).
      speed: divides the predicted duration.
      seed: of the noise of the first chunk, others follow from it; a tuple gives one per chunk.  The same chunks with
        the same seeds sound the same in any batch, streamed or not.
    """

    text: str | tuple[str, ...]
    ref_audio: Sound | None
    ref_text: str
    duration: float | None = None
    speed: float = 1.0
    seed: int | tuple[int, ...] = 0


@dataclasses.dataclass(frozen=True)
class Options:
    """How to say it.

    Attributes:
      steps: of the solver; each costs one network call, with guidance two (``midpoint``: twice that).
      cfg_strength: the release's number, guidance weight − 1; 0 = no guidance, at half the cost.
      sway: coefficient of sway sampling, None = none.
      pruned: the release's EPSS grids, where there is one for ``steps``.
      method: "euler", "midpoint" or another deterministic solver of ``sampling.solvers``.
      behaviour: "corrected" or "release", see this module.
      prepare: cut long pauses and silent edges of the reference, and give its text an end.
      cross_fade: seconds that neighbouring chunks overlap, by default no more than is silent there.
      first_seconds: of the first chunk of a stream, about.
      nbest: candidates per chunk, of which a verifier chooses; each costs a full set of network calls.
    """

    steps: int = 16
    cfg_strength: float = 2.0
    sway: float | None = -1.0
    pruned: bool = True
    method: str = "euler"
    behaviour: str = "corrected"
    prepare: bool = True
    cross_fade: float = 0.15
    first_seconds: float = 2.0
    nbest: int = 1

    def __post_init__(self) -> None:
        if self.behaviour not in BEHAVIOURS:
            raise UserError(f"behaviour is {self.behaviour!r}; expected one of {', '.join(BEHAVIOURS)}")
        if not self.cfg_strength >= 0.0:
            raise UserError(f"cfg_strength is {self.cfg_strength}; expected 0 (no guidance) or more")
        if not 0.0 <= self.cross_fade <= 5.0:
            raise UserError(f"cross_fade is {self.cross_fade} s; expected 0 (none) to 5")
        if not self.first_seconds > 0.0:
            raise UserError(f"first_seconds is {self.first_seconds}; expected more than 0")
        if self.nbest < 1:
            raise UserError(f"nbest is {self.nbest}; expected 1 or more")

    @property
    def release(self) -> bool:
        return self.behaviour == "release"


@dataclasses.dataclass(frozen=True)
class Reference:
    """A voice, ready for the network.

    Attributes:
      text: its words, with their end.
      wave: [n] float32 at the model's rate, at least as loud as the pipeline asks for.
      mel: [frames, mels], its log-mel.
      gain: by which the recording was made louder; new speech is divided by it.
      seconds: of the prepared recording.
    """

    text: str
    wave: np.ndarray
    mel: np.ndarray
    gain: float = 1.0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Piece:
    """One sequence for the network.

    Attributes:
      text: all of its words, those of the reference first.
      said: the new words.
      ids: symbols of ``text``.
      clip: [k, mels] log-mel of the first frames.
      known: [k] bool, which of them are given; all others are to be made.
      asked: frames by the duration rule.
      frames: those, but at least one more than symbols and known frames.
      start: the first frame that belongs to the answer.
      seed: of the noise.
    """

    text: str
    said: str
    ids: list[int]
    clip: np.ndarray
    known: np.ndarray
    asked: int
    frames: int
    start: int
    seed: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """A request as pieces.

    Attributes:
      reference: the voice; without one None.
      chunks: the texts, one per piece.
      max_bytes: limit that they were cut by.
      pieces: what to sample.  Without a reference the first only: the others need its sound.
    """

    reference: Reference | None
    chunks: tuple[str, ...]
    max_bytes: int
    pieces: tuple[Piece, ...]


@dataclasses.dataclass(frozen=True)
class Planner:
    """What a model needs its requests planned for.

    Attributes:
      tokenizer, spec: of the model.
      durations: the predictor.
      longest: seconds of a sequence that the model was trained on.
      loudness: root mean square that quieter references are raised to; 0 = none.
    """

    tokenizer: Tokenizer
    spec: MelSpec
    durations: DurationPredictor
    longest: float = speech_text.RELEASE_SECONDS
    loudness: float = LOUDNESS

    def __call__(self, request: Request, options: Options, *, stream: bool = False) -> Plan:
        """Loads, cuts and measures; everything that can be wrong with a request is found here.

        Args:
          stream: make the first chunk short.

        Raises:
          UserError: an unreadable, silent or too short reference, an empty text, symbols without an id, a wrong
            duration, speed or seed, or a chunk that would be too long.
        """
        if not request.speed > 0:
            raise UserError(f"speed is {request.speed}; expected more than 0 (1 = the reference's pace)")
        if request.duration is not None and not request.duration > 0:
            raise UserError(f"duration is {request.duration} s; expected more than 0")
        if not any(text.strip() for text in _texts(request)):
            raise UserError("there is no text to say; give --text")
        reference = None if request.ref_audio is None else self.reference(request.ref_audio, request.ref_text, options)
        texts, limit = self._chunks(request, reference, options, stream)
        return self.pieces(request, reference, texts, limit, options)

    def reference(self, sound: Sound, text: str, options: Options) -> Reference:
        """A recording and its words as the network takes them."""
        if not text.strip():
            raise UserError("the reference clip needs its words; give --ref_text")
        wave, rate = read_sound(sound, self.spec.sample_rate)
        if len(wave) < LEAST_SECONDS * rate:
            raise UserError(
                f"the reference clip has {len(wave)} samples at {rate} Hz, less than {LEAST_SECONDS} s; "
                "give 3 to 12 seconds of speech"
            )
        if not np.abs(wave).max() > 1e-4:
            raise UserError("the reference clip is silent; give a recording of 3 to 12 seconds of speech")
        if options.prepare:
            if options.release and wave.dtype != np.int16:
                wave = np.clip(np.rint(wave * 32768.0), -32768, 32767).astype(np.int16)
            wave, rate = prepare_clip(wave, rate, options.behaviour)
            text = speech_text.release_ending(text) if options.release else text
        if wave.dtype == np.int16:
            wave = wave.astype(np.float32) / 32768.0
        if not options.release:
            text = self._finished(text)
        mono = wave.mean(axis=1) if wave.ndim == 2 else wave
        seconds = len(mono) / rate
        rms = float(np.sqrt(np.mean(np.square(mono, dtype=np.float64))))
        gain = self.loudness / rms if rms < self.loudness else 1.0
        to_rate = resample_sinc if options.release else resample
        mono = to_rate((mono * gain).astype(np.float32), rate, self.spec.sample_rate)
        return Reference(text, mono, log_mel(mono, self.spec), gain, seconds)

    def pieces(
        self, request: Request, reference: Reference | None, texts: Sequence[str], limit: int, options: Options
    ) -> Plan:
        """The plan of texts that are cut already; the reference's words come first in every piece."""
        seeds = piece_seeds(request.seed, len(texts))
        now = texts if reference is not None else texts[:1]
        asked = self._frames(request, reference, texts, options)
        made = []
        for text, frames, seed in zip(now, asked, seeds, strict=False):
            made.append(self._piece(text, frames, seed, reference, options))
        return Plan(reference, tuple(texts), limit, tuple(made))

    def after_first(self, request: Request, plan: Plan, mel: np.ndarray, options: Options) -> Plan:
        """Without a reference: the other chunks, in the voice of the first one, whose log-mel [f, m] is given."""
        seconds = len(mel) * self.spec.hop / self.spec.sample_rate
        voice = Reference(plan.chunks[0], np.zeros(0, np.float32), mel, seconds=seconds)
        seeds = piece_seeds(request.seed, len(plan.chunks))
        duration = None
        if request.duration is not None:
            duration = max(request.duration - seconds, LEAST_SECONDS)
        rest = dataclasses.replace(request, duration=duration, seed=tuple(seeds[1:]))
        return self.pieces(rest, voice, plan.chunks[1:], plan.max_bytes, options)

    def _chunks(
        self, request: Request, reference: Reference | None, options: Options, stream: bool
    ) -> tuple[list[str], int]:
        ref_text, seconds = ("", 0.0) if reference is None else (reference.text, reference.seconds)
        if isinstance(request.text, tuple):
            texts, limit = list(request.text), 0
        elif options.release and reference is not None:
            texts, limit = speech_text.release_chunks(request.text, ref_text, seconds, request.speed)
        else:
            first = options.first_seconds if stream else None
            texts, limit = speech_text.chunks(
                request.text, ref_text, seconds, request.speed, self.longest, first_seconds=first
            )
        return (texts if options.release else [self._finished(text) for text in texts if text.strip()]), limit

    def _finished(self, text: str) -> str:
        return speech_text.finished(text, stop=not self.tokenizer.unknown_symbols("."))

    def _frames(
        self, request: Request, reference: Reference | None, texts: Sequence[str], options: Options
    ) -> list[int]:
        """Frames of every chunk, the reference's included."""
        spec, ref_text = self.spec, "" if reference is None else reference.text
        if options.release and reference is not None:
            return [self._release_frames(request, reference, text) for text in texts]
        known = 0 if reference is None else len(reference.mel)
        ref_ids = self.tokenizer.encode(ref_text)
        paces = [self.durations(known, ref_ids, self.tokenizer.encode(t), (ref_text, t)) / request.speed for t in texts]
        if request.duration is not None:
            overlap = (len(texts) - 1) * options.cross_fade
            new = (request.duration + overlap) * spec.sample_rate / spec.hop
            paces = [new * pace / sum(paces) for pace in paces]
        return [known + max(2, round(pace)) for pace in paces]

    def _release_frames(self, request: Request, reference: Reference, text: str) -> int:
        spec = self.spec
        if request.duration is not None:
            return int(request.duration * spec.sample_rate / spec.hop)
        known = len(reference.wave) // spec.hop
        ref_text = speech_text.joined(reference.text, "", release=True)
        speed = SHORT_SPEED if len(text.encode()) < SHORT_BYTES else request.speed
        return known + int(ReleaseRule()(known, (), (), (ref_text, text)) / speed)

    def _piece(self, said: str, asked: int, seed: int, reference: Reference | None, options: Options) -> Piece:
        spec = self.spec
        ref_text = "" if reference is None else reference.text
        text = speech_text.joined(ref_text, said, options.release and reference is not None)
        ids = speech_text.ids_of(self.tokenizer, text, said)
        clip = np.zeros((0, spec.n_mels), np.float32) if reference is None else reference.mel
        start = len(clip)
        if options.release and reference is not None:
            start = len(reference.wave) // spec.hop  # one frame less than there are: it stays in the answer
        frames = int(least_frames(np.array([asked]), np.array([len(ids)]), np.array([len(clip)]))[0])
        check_length(frames, spec)
        return Piece(text, said, ids, clip, np.ones(len(clip), bool), asked, frames, start, seed)


def check_length(frames: int, spec: MelSpec) -> None:
    """Raises UserError where one sequence would be longer than MOST_SECONDS."""
    seconds = frames * spec.hop / spec.sample_rate
    if seconds > MOST_SECONDS:
        raise UserError(
            f"reference and speech would last {seconds:.0f} s together, more than {MOST_SECONDS:.0f}: "
            "shorten the text or the reference, or say it in parts"
        )


def piece_seeds(seed: int | tuple[int, ...], count: int) -> list[int]:
    """One 32-bit seed per chunk: the given ones, or the given one and what follows from it.

    Raises:
      UserError: too few seeds, or one outside 0 to 2³² − 1.
    """
    given = [seed] if isinstance(seed, int | np.integer) else list(seed)
    wrong = [s for s in given if not 0 <= s < 2**32]
    if wrong:
        raise UserError(f"seed is {wrong[0]}; expected 0 to {2**32 - 1}")
    if not isinstance(seed, int | np.integer) and len(given) < count:
        raise UserError(f"{len(given)} seeds for {count} chunks; give one seed, or one per chunk")
    return [int(s) for s in given[:count]] + [derived_seed(int(given[0]), i) for i in range(len(given), count)]


def derived_seed(seed: int, *place: int) -> int:
    """An independent 32-bit seed for a place (chunk, candidate) under ``seed``."""
    return int(np.random.SeedSequence([seed, *place]).generate_state(1)[0])


def _texts(request: Request) -> tuple[str, ...]:
    return request.text if isinstance(request.text, tuple) else (request.text,)


def read_sound(sound: Sound, sample_rate: int) -> tuple[np.ndarray, int]:
    """([n] or [n, channels], Hz) of a file, of samples at ``sample_rate`` or of samples with their rate.

    Raises:
      UserError: an unreadable file, or samples that are not finite.
    """
    if isinstance(sound, str | Path):
        return read_audio(sound)
    wave, rate = sound if isinstance(sound, tuple) else (sound, sample_rate)
    wave = np.asarray(wave) if np.asarray(wave).dtype == np.int16 else np.asarray(wave, np.float32)
    if wave.ndim not in (1, 2) or not np.isfinite(wave).all():
        raise UserError("ref_audio: expected finite samples [n] or [n, channels]")
    return wave, rate
