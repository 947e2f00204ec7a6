"""Pieces of speech sampled in padded batches of a few static shapes, each compiled once."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import UserError
from data.text import pad_ids
from launch.pipelines.speech_plan import Options, Piece
from launch.pipelines.vocoders import Vocoder
from sampling.grids import flow_grid
from sampling.infill import infill
from sampling.noise import sample_keys, start_noise
from sampling.paths import FlowPath
from sampling.solvers import solver
from train import trees
from train.task import Variables
from train.tasks.speech import SpeechTask

Settings = tuple[tuple[float, ...], str, bool]  # times, solver, guided
SPARE = 1.5  # a compiled shape is used again if it costs at most that many times the work
SILENCE = float(np.log(1e-5))


class Sampled(NamedTuple):
    """One batch, perhaps still being computed.

    Attributes:
      mel: [rows, t, mels] on the device, log-mel with what is asked for at the front.
      lengths: [rows] its frames.
      seeds: [rows].
      real: how many rows are no padding.
      calls: network calls per row.
    """

    mel: jax.Array
    lengths: np.ndarray
    seeds: np.ndarray
    real: int
    calls: int


class Sampler:
    """Fills in what pieces leave open.  Nothing here waits for the device.

    Args:
      task: the network with its normalisation.
      variables: its parameters.
      rows: the largest batch.

    Attributes:
      programs: what has been compiled so far, by settings and shape (rows, frames, symbols).
      compile_seconds: that took.
    """

    def __init__(self, task: SpeechTask, variables: Variables, rows: int):
        self.task, self.variables, self.rows = task, variables, rows
        self.programs: dict[tuple[Settings, tuple[int, int, int]], Callable[..., Any]] = {}
        self.compile_seconds = 0.0
        self._run = jax.jit(self._infill, static_argnames=("settings",))

    def groups(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Indices of pieces in batches of like length, the longest first: what is compiled for them serves the rest."""
        order = sorted(range(len(pieces)), key=lambda i: -pieces[i].frames)
        return [order[i : i + self.rows] for i in range(0, len(order), self.rows)]

    def __call__(self, pieces: Sequence[Piece], options: Options) -> Sampled:
        """One batch of at most ``rows`` pieces.

        Raises:
          UserError: wrong sampling options.
        """
        chosen = settings(options)
        shape = self._shape(len(pieces), max(p.frames for p in pieces), max(len(p.ids) for p in pieces), chosen)
        rows, frames, symbols = shape
        padded = [*pieces, *[pieces[-1]] * (rows - len(pieces))]
        clip = np.zeros((rows, frames, self.task.spec.n_mels), np.float32)
        known = np.zeros((rows, frames), bool)
        for i, piece in enumerate(padded):
            clip[i, : len(piece.clip)], known[i, : len(piece.known)] = piece.clip, piece.known
        lengths = np.array([piece.frames for piece in padded], np.int32)
        starts = np.array([piece.start for piece in padded], np.int32)
        seeds = np.array([piece.seed for piece in padded], np.uint32)
        ids = pad_ids([piece.ids for piece in padded], symbols)
        arrays = (clip, known, ids, lengths, starts, seeds, np.float32(options.cfg_strength + 1.0))
        if (chosen, shape) not in self.programs:
            begin = time.perf_counter()
            self.programs[chosen, shape] = self._run.lower(self.variables, *arrays, settings=chosen).compile()
            self.compile_seconds += time.perf_counter() - begin
        mel = self.programs[chosen, shape](self.variables, *arrays)
        return Sampled(mel, lengths - starts, seeds, len(pieces), network_calls(options))

    def _shape(self, rows: int, frames: int, symbols: int, chosen: Settings) -> tuple[int, int, int]:
        """The smallest compiled shape that fits without much waste, or the one to compile."""
        new = (1 << (rows - 1).bit_length(), bucket(frames, 64), bucket(symbols, 32))
        compiled = [shape for known, shape in self.programs if known == chosen]
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
        starts: jax.Array,
        seeds: jax.Array,
        weight: jax.Array,
        *,
        settings: Settings,
    ) -> jax.Array:
        """The whole of sampling as one program: log-mel [b, t, m] from each row's ``starts`` on."""
        times, method, guided = settings
        frames = clip.shape[1]
        result = infill(
            self.task.infill_network(variables, frames),
            self.task.normalise(clip, lengths),
            known,
            text,
            lengths,
            start_noise(jax.random.key(0), seeds, clip.shape[1:]),
            np.array(times),
            weight=weight if guided else None,
            solver=solver(method),
        )
        # Given frames come back bit for bit, not through normalisation and its inverse.
        mel = jnp.where(known[..., None], clip, self.task.denormalise(result.out))
        place = jnp.arange(frames) + starts[:, None]
        return jnp.take_along_axis(mel, jnp.minimum(place, frames - 1)[..., None], axis=1)


class Voicer:
    """The vocoder over what the sampler made, at static shapes of its own.  Nothing here waits for the device.

    Attributes:
      shapes: (rows, frames) that it has seen, each of which it compiled once.
    """

    def __init__(self, vocoder: Vocoder):
        self.vocoder = vocoder
        self.shapes: set[tuple[int, int]] = set()

    def __call__(self, sampled: Sampled) -> jax.Array:
        """Waves [rows, samples] of a batch."""
        frames = min(bucket(int(sampled.lengths.max()), 64), sampled.mel.shape[1])
        self.shapes.add((len(sampled.lengths), frames))
        inside = np.arange(frames) < sampled.lengths[:, None]
        mel = jnp.where(inside[..., None], sampled.mel[:, :frames], SILENCE)
        return self.vocoder(mel, sampled.lengths, sample_keys(jax.random.key(1), jnp.asarray(sampled.seeds)))


def network_calls(options: Options) -> int:
    """Network calls per row under ``options``; guidance counts both of its halves."""
    times, method, guided = settings(options)
    evaluated = np.isfinite(solver(method).plan(FlowPath(), np.array(times)).times)
    return int(evaluated.sum()) * (2 if guided else 1)


def settings(options: Options) -> Settings:
    """What a program is compiled for.

    Raises:
      UserError: wrong sampling options.
    """
    try:
        grid = flow_grid(options.steps, sway_coefficient=options.sway, pruned=options.pruned)
        plan = solver(options.method).plan(FlowPath(), grid)
    except ValueError as error:
        raise UserError(str(error)) from error
    if "spread" in plan.rows:
        raise UserError(f"method={options.method} draws noise at its steps; speech is sampled without, as by euler")
    return tuple(grid.tolist()), options.method, options.cfg_strength >= 1e-5


def check_finite(mel: np.ndarray, variables: Variables) -> None:
    """Names the reason where sampling gave NaN or infinity.

    Raises:
      UserError: it did.
    """
    if np.isfinite(mel).all():
        return
    for path, leaf in trees.flatten(variables["params"]).items():
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise UserError(f"the parameter {path} holds NaN or infinity: the checkpoint is bad; take an earlier one")
    raise UserError(
        "the model made NaN or infinite frames, though its parameters are finite; try float32 (precision.compute) "
        "or a smaller cfg_strength"
    )


@functools.cache
def bucket(n: int, smallest: int) -> int:
    """The next of a few sizes: ``smallest``, then eight per octave, so that at most an eighth is padding.

    On a CPU every padded frame costs its share of the products; a program more is compiled once and kept on disk.
    """
    if n <= smallest:
        return smallest
    step = 1 << max((n - 1).bit_length() - 4, 0)
    return -(-n // step) * step
