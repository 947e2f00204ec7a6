"""Text to speech in the voice of a reference clip.

    voice = load("runs/demo")
    wave = voice("four one seven", "ref.wav", "three nine two")
    for part in voice.stream(Request(long_text, "ref.wav", "three nine two")):
        play(part)

A run folder and a converted checkpoint load alike.  A request is planned (reference, chunks, durations, seeds:
``speech_plan``), sampled and vocoded in padded batches of a few static shapes, which changes no output
(``speech_sampler``), and joined (``speech_joining``).  A service compiles a handful of programs and then none.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.audio import log_mel, resample
from data.errors import UserError
from data.reference_clip import LOUDNESS
from launch.pipelines import speech_editing
from launch.pipelines.speech_durations import ByteRule, DurationPredictor, duration_rule
from launch.pipelines.speech_editing import Edit
from launch.pipelines.speech_joining import CrossFade, join
from launch.pipelines.speech_plan import (
    Options,
    Piece,
    Plan,
    Planner,
    Request,
    Sound,
    check_length,
    derived_seed,
    piece_seeds,
    read_sound,
)
from launch.pipelines.speech_sampler import SILENCE, Sampled, Sampler, Voicer, bucket, check_finite, network_calls
from launch.pipelines.speech_text import RELEASE_SECONDS, ids_of
from launch.pipelines.vocoders import Vocoder, load_vocoder
from sampling.ledger import Ledger
from train.checkpoint import restore_variables
from train.components import bind, build
from train.task import Variables
from train.tasks.speech import SpeechTask
from train.workdir import ASSETS, read_config

# (wave [n] at the pipeline's rate, what it should say) -> a score, higher is better
Verifier = Callable[[np.ndarray, str], float]
DEFAULT = Options()


@dataclasses.dataclass(frozen=True)
class Spoken:
    """One answer.

    Attributes:
      wave: [samples] float32, the new speech alone.
      mel: [frames, mels], its log-mel, chunk behind chunk without the cross-fades.
      sample_rate: Hz.
      ledger: network calls (guidance counts twice) and verifier calls that it took.
      chunks: what was said, piece by piece.
      seeds: of the chosen candidates; the same chunks with these seeds give the same sound.
      scores: the verifier's of these, empty without one.
    """

    wave: np.ndarray
    mel: np.ndarray
    sample_rate: int
    ledger: Ledger
    chunks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()


class _Made(NamedTuple):
    """A piece as sound: log-mel [f, m], wave [n], and the seed and score of the chosen candidate."""

    mel: np.ndarray
    wave: np.ndarray
    seed: int
    score: float | None


class _Sent(NamedTuple):
    """A batch on its way: what was sampled, its waves, still on the device."""

    sampled: Sampled
    waves: jax.Array


class SpeechPipeline:
    """A trained speech model, ready to speak.

    Args:
      task: the network with its tokenizer, mel settings and normalisation.
      variables: its parameters.
      vocoder: turns log-mel into sound; Griffin-Lim by default.
      durations: predicts how long a text takes; the byte rule by default.
      rows: the largest batch.
      longest: seconds that the model has learned to make in one sequence; longer texts are said in chunks.

    Attributes:
      sampler: its ``programs`` and ``compile_seconds`` count what was compiled.
      voicer: its ``shapes`` are the vocoder's.
      seconds: spent in sampling and in the vocoder so far, compilation of the former left out; streams do not count.
    """

    def __init__(
        self,
        task: SpeechTask,
        variables: Variables,
        vocoder: Vocoder | None = None,
        *,
        durations: DurationPredictor | None = None,
        rows: int = 8,
        longest: float = RELEASE_SECONDS,
    ):
        self.task, self.rows = task, rows
        spec = task.spec
        # A model that was trained on normalised spectrograms of its own corpus knows that corpus's loudness; the
        # released ones know references of at least LOUDNESS.
        released = task.mean == 0.0 and task.std == 1.0
        rule = durations or ByteRule(spec.sample_rate / spec.hop)
        self.planner = Planner(task.tokenizer, spec, rule, longest, LOUDNESS if released else 0.0)
        self.sampler = Sampler(task, variables, rows)
        self.voicer = Voicer(vocoder or load_vocoder(None, spec))
        self.seconds = {"sampling": 0.0, "vocoder": 0.0}

    @property
    def sample_rate(self) -> int:
        """Hz of what it makes."""
        return self.task.spec.sample_rate

    def __call__(
        self,
        text: str,
        ref_audio: Sound | None,
        ref_text: str,
        options: Options = DEFAULT,
        *,
        speed: float = 1.0,
        duration: float | None = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Says ``text``: [samples] float32 at ``sample_rate``.  See ``Request`` and ``Options`` for the arguments."""
        return self.batch([Request(text, ref_audio, ref_text, duration, speed, seed)], options)[0].wave

    def batch(
        self, requests: Sequence[Request], options: Options = DEFAULT, verifier: Verifier | None = None
    ) -> list[Spoken]:
        """Answers requests: all chunks of all of them, those of like length together.

        Args:
          verifier: chooses among ``options.nbest`` candidates of every chunk.

        Raises:
          UserError: a request that cannot be fulfilled (see ``speech_plan.Planner``), wrong sampling options,
            candidates without a verifier, or NaN in the model.
        """
        _check_verifier(options, verifier)
        plans = [self.planner(request, options) for request in requests]
        made = self._make([plan.pieces for plan in plans], options, verifier)
        later = [i for i, plan in enumerate(plans) if len(plan.pieces) < len(plan.chunks)]
        if later:  # the first chunk has made up a voice for the others
            others = [self.planner.after_first(requests[i], plans[i], made[i][0].mel, options) for i in later]
            for i, more in zip(later, self._make([o.pieces for o in others], options, verifier), strict=True):
                made[i] += more
        return [self._spoken(plan, parts, options) for plan, parts in zip(plans, made, strict=True)]

    def stream(
        self, request: Request, options: Options = DEFAULT, verifier: Verifier | None = None
    ) -> Iterator[np.ndarray]:
        """Says a text chunk by chunk, a short one first, and yields sound as it is certain: [samples] float32 each.

        The next chunk is sampled while the last one is vocoded, fetched and used by the caller.  All parts together are
        what ``batch`` gives for the same chunks and seeds.

        Raises:
          UserError: as ``batch``, before the first part is asked for.
        """
        _check_verifier(options, verifier)
        plan = self.planner(request, options, stream=True)
        return self._stream(request, plan, options, verifier)

    def edit(
        self,
        audio: Sound,
        text: str,
        edits: Sequence[Edit],
        options: Options = DEFAULT,
        *,
        ref_text: str = "",
        seed: int = 0,
        verifier: Verifier | None = None,
    ) -> Spoken:
        """Says parts of a recording anew, as ``text`` (all words of the result) has it.

        Kept mel frames come back bit for bit, kept samples (at ``sample_rate``) exactly, but for 20 ms at each edge.

        Args:
          audio: the recording.
          text: the words of the whole result.
          edits: the spans that change, in order.
          ref_text: the words of the recording; where given, an edit without a length gets it from the bytes gained.

        Raises:
          UserError: a bad recording, text or span.
        """
        _check_verifier(options, verifier)
        spec = self.task.spec
        wave, rate = read_sound(audio, self.sample_rate)
        wave = resample(wave.mean(axis=1) if wave.ndim == 2 else wave, rate, self.sample_rate)
        rms = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0
        if not rms > 1e-5:
            raise UserError("the recording to edit is silent or empty")
        gain = max(1.0, self.planner.loudness / rms)
        lengths = speech_editing.new_lengths(edits, len(wave) / self.sample_rate, ref_text, text)
        mel = log_mel((wave * np.float32(gain)).astype(np.float32), spec)
        line = speech_editing.timeline(mel, len(wave), edits, lengths, spec)
        frames = len(line.mel)
        check_length(frames, spec)
        ids = ids_of(self.task.tokenizer, text, text)
        if not text.strip() or len(ids) >= frames:
            raise UserError(f"the text has {len(ids)} symbols for {frames} frames of sound; expected 1 to {frames - 1}")
        piece = Piece(text, text, ids, line.mel, line.known, frames, frames, 0, piece_seeds(seed, 1)[0])
        fade = round(speech_editing.FADE * self.sample_rate)

        def spliced(made: np.ndarray) -> np.ndarray:
            return speech_editing.splice(wave, made / np.float32(gain), line, fade)

        made = self._best(self._collect(self._send(_candidates(piece, options), options)), piece, verifier, spliced)
        return self._spoken(Plan(None, (text,), 0, (piece,)), [made], options)

    def vocode(self, mels: Sequence[np.ndarray], seeds: Sequence[int] | None = None) -> list[np.ndarray]:
        """Log-mels [frames, mels] of one batch -> waves [samples] float32; ``seeds`` of each one's first phases."""
        start, spec = time.perf_counter(), self.task.spec
        rows = 1 << (len(mels) - 1).bit_length()
        padded = [*mels, *[mels[-1]] * (rows - len(mels))]
        lengths = np.array([len(mel) for mel in padded], np.int32)
        batch = np.full((rows, bucket(int(lengths.max()), 64), spec.n_mels), SILENCE, np.float32)
        for row, mel in zip(batch, padded, strict=True):
            row[: len(mel)] = mel
        ids = np.zeros(rows, np.uint32) if seeds is None else np.resize(np.array(seeds, np.uint32), rows)
        sampled = Sampled(jnp.asarray(batch), lengths, ids, len(mels), 0)
        waves = np.asarray(self.voicer(sampled))
        self.seconds["vocoder"] += time.perf_counter() - start
        return [waves[i, : self.voicer.vocoder.samples(int(lengths[i]))] for i in range(len(mels))]

    def _make(
        self, pieces: Sequence[Sequence[Piece]], options: Options, verifier: Verifier | None
    ) -> list[list[_Made]]:
        """Every piece of every request, the best of its candidates."""
        flat = [candidate for group in pieces for piece in group for candidate in _candidates(piece, options)]
        made: dict[int, _Made] = {}
        for group in self.sampler.groups(flat):
            compiled, begin = self.sampler.compile_seconds, time.perf_counter()
            sampled = self.sampler([flat[i] for i in group], options)
            jax.block_until_ready(sampled.mel)
            middle = time.perf_counter()
            sent = _Sent(sampled, jax.block_until_ready(self.voicer(sampled)))
            self.seconds["sampling"] += middle - begin - (self.sampler.compile_seconds - compiled)
            self.seconds["vocoder"] += time.perf_counter() - middle
            made |= dict(zip(group, self._collect([sent]), strict=True))
        results, place = [], 0
        for group in pieces:
            best = []
            for piece in group:
                candidates = [made[i] for i in range(place, place + options.nbest)]
                best.append(self._best(candidates, piece, verifier))
                place += options.nbest
            results.append(best)
        return results

    def _stream(
        self, request: Request, plan: Plan, options: Options, verifier: Verifier | None
    ) -> Iterator[np.ndarray]:
        gain = 1.0 if plan.reference is None else plan.reference.gain
        fade, pieces = CrossFade(round(options.cross_fade * self.sample_rate), not options.release), plan.pieces
        ahead: tuple[Piece, list[_Sent]] | None = None

        def finish(waiting: tuple[Piece, list[_Sent]]) -> _Made:
            return self._best(self._collect(waiting[1]), waiting[0], verifier)

        if len(pieces) < len(plan.chunks):  # no reference: the others need the voice of the first
            first = finish((pieces[0], self._send(_candidates(pieces[0], options), options)))
            yield from _some(fade.add(first.wave))
            pieces = self.planner.after_first(request, plan, first.mel, options).pieces
        for piece in pieces:
            # Queued behind the chunk before, whose sound is fetched only now: the device never waits for the host.
            sent = piece, self._send(_candidates(piece, options), options)
            if ahead is not None:
                yield from _some(fade.add(finish(ahead).wave / np.float32(gain)))
            ahead = sent
        if ahead is not None:
            last = fade.add(finish(ahead).wave / np.float32(gain))
            yield np.concatenate([last, fade.finish()])

    def _send(self, pieces: Sequence[Piece], options: Options) -> list[_Sent]:
        """Sampling and vocoding of pieces, queued on the device."""
        sent = []
        for i in range(0, len(pieces), self.rows):
            sampled = self.sampler(pieces[i : i + self.rows], options)
            sent.append(_Sent(sampled, self.voicer(sampled)))
        return sent

    def _collect(self, sent: Sequence[_Sent]) -> list[_Made]:
        """Waits for what was sent."""
        made = []
        for sampled, waves in sent:
            mels, sounds = np.asarray(sampled.mel), np.asarray(waves)
            for i in range(sampled.real):
                frames = int(sampled.lengths[i])
                check_finite(mels[i, :frames], self.sampler.variables)
                wave = sounds[i, : self.voicer.vocoder.samples(frames)]
                made.append(_Made(mels[i, :frames], wave, int(sampled.seeds[i]), None))
        return made

    def _best(
        self,
        candidates: Sequence[_Made],
        piece: Piece,
        verifier: Verifier | None,
        finish: Callable[[np.ndarray], np.ndarray] = lambda wave: wave,
    ) -> _Made:
        """The candidate that the verifier likes best, the first of equals; waves go through ``finish`` first."""
        made = [candidate._replace(wave=finish(candidate.wave)) for candidate in candidates]
        if verifier is None:
            return made[0]
        scored = [candidate._replace(score=float(verifier(candidate.wave, piece.said))) for candidate in made]
        return max(scored, key=lambda candidate: candidate.score or 0.0)

    def _spoken(self, plan: Plan, made: Sequence[_Made], options: Options) -> Spoken:
        gain = np.float32(1.0 if plan.reference is None else plan.reference.gain)
        scores = tuple(part.score for part in made if part.score is not None)
        runs = options.nbest * len(made)
        return Spoken(
            wave=join(
                [part.wave / gain for part in made],
                round(options.cross_fade * self.sample_rate),
                spare=not options.release,
            ),
            mel=np.concatenate([part.mel for part in made]),
            sample_rate=self.sample_rate,
            ledger=Ledger(network_calls=runs * network_calls(options), verifier_calls=runs if scores else 0),
            chunks=plan.chunks,
            seeds=tuple(part.seed for part in made),
            scores=scores,
        )


def load(
    folder: str | Path,
    *,
    params: str = "ema",
    vocoder: Vocoder | str | Path | None = None,
    durations: DurationPredictor | str = "rule",
) -> SpeechPipeline:
    """A pipeline from a run folder or a converted checkpoint.

    Args:
      folder: has config.json, assets/ and checkpoints/.
      params: "ema" (what the run evaluated with), "raw", or "ema/<decay>".
      vocoder: one, or the folder of one; None = Griffin-Lim.
      durations: a predictor, "rule", "learned" (with the model), or "fixed" or "fixed:<bytes per second>".

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
    if vocoder is None or isinstance(vocoder, str | Path):
        vocoder = load_vocoder(vocoder, task.spec)
    variables, _ = restore_variables(folder, task.abstract(), params=params)
    if durations == "learned":
        durations = task.duration_predictor(variables)
    elif isinstance(durations, str):
        durations = duration_rule(durations, task.spec.sample_rate / task.spec.hop)
    longest = trained_seconds(config.get("data") or {})
    return SpeechPipeline(task, variables, vocoder, durations=durations, longest=longest)


def trained_seconds(data: Mapping[str, Any]) -> float:
    """The longest sequence of a run's data section, at most what the release puts into one."""
    longest = data.get("max_seconds") or RELEASE_SECONDS
    if data.get("pairs"):
        longest = data.get("pair_seconds") or 2 * longest
    return min(float(longest), RELEASE_SECONDS)


def _candidates(piece: Piece, options: Options) -> list[Piece]:
    """The piece with as many seeds as candidates are wanted, its own first."""
    others = [dataclasses.replace(piece, seed=derived_seed(piece.seed, 0, i)) for i in range(1, options.nbest)]
    return [piece, *others]


def _check_verifier(options: Options, verifier: Verifier | None) -> None:
    if options.nbest > 1 and verifier is None:
        raise UserError(f"nbest is {options.nbest}, but there is no verifier to choose with")


def _some(wave: np.ndarray) -> list[np.ndarray]:
    return [wave] if len(wave) else []
