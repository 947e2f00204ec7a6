"""Conditional flow matching on a masked span of a sequence: F5-TTS's objective (https://arxiv.org/abs/2410.06885).

Of every clip a contiguous span (70-100 % of it) is hidden; the network sees the rest, the text of all of it and x_t,
and predicts the flow inside the span.  Sometimes the visible audio is dropped, sometimes audio and text both, which is
what guidance needs later.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sampling.paths import FlowPath, Path, expand
from sampling.prediction import basis, coefficients
from train import rng

Predict = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
TIMES = ("uniform", "release", "logit_normal")
BUCKETS = 5  # of t, for the logged loss


class Draws(NamedTuple):
    """Every random number of one batch; tests and golden files put their own here.

    Attributes:
      noise: [b, t, m] standard normal.
      time: [b] in [0, 1].
      span: [b, t] bool, the hidden frames; may run past a row's length.
      drop_audio, drop_text: [b] bool.
    """

    noise: jax.Array
    time: jax.Array
    span: jax.Array
    drop_audio: jax.Array
    drop_text: jax.Array


class FlowLoss(NamedTuple):
    """``sum`` of squared velocity errors over hidden entries and their number ``weight``; the same by bucket of t."""

    sum: jax.Array
    weight: jax.Array
    buckets: dict[str, tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """The objective's settings.

    Attributes:
      prediction: what the network outputs: "velocity" as the release, or "data", whose error is weighted into velocity
        space (× 1/(1 − t) for the straight path), so both are the same objective.
      max_weight: bound of that weight, which grows without limit towards the data.
      time: "uniform" spreads t evenly over the batch (a golden-ratio sequence with a common random offset: uniform for
        each row, less noise in the batch's gradient); "release" draws each row's t on its own; "logit_normal" maps the
        evenly spread numbers to sigmoid(N(time_mean, time_std²)), most of them in the middle.
      span: range of the hidden fraction.
      drop_audio: probability that the visible audio is dropped.
      drop_both: probability that audio and text are dropped (so audio in 0.3 + 0.7 · 0.2 = 44 % of the rows).
      drop_per: "sample", or "batch" as the release: one decision for all rows.
    """

    prediction: str = "velocity"
    max_weight: float = 20.0
    time: str = "uniform"
    time_mean: float = 0.0
    time_std: float = 1.0
    span: tuple[float, float] = (0.7, 1.0)
    drop_audio: float = 0.3
    drop_both: float = 0.2
    drop_per: str = "sample"
    path: Path = FlowPath()  # noqa: RUF009, a frozen dataclass without fields

    def __post_init__(self) -> None:
        if self.prediction not in ("velocity", "data"):
            raise ValueError(f'prediction must be "velocity" or "data", got {self.prediction!r}')
        if self.time not in TIMES:
            raise ValueError(f"time must be one of {', '.join(TIMES)}, got {self.time!r}")
        if self.drop_per not in ("sample", "batch"):
            raise ValueError(f'drop_per must be "sample" or "batch", got {self.drop_per!r}')
        low, high = self.span
        if not 0.0 < low <= high <= 1.0:
            raise ValueError(f"span must be a range inside (0, 1], got {tuple(self.span)}")
        for name in ("drop_audio", "drop_both"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")

    def draw(self, key: jax.Array, index: jax.Array, lengths: jax.Array, frames: int, mel: int) -> Draws:
        """All random numbers of the rows with global numbers ``index`` [b]; ``lengths`` [b] are their real frames.

        A row draws the same numbers in any microbatch, on any device and in any bucket (``frames`` only adds padding).
        """
        batch_key, rows_key = jax.random.split(key)

        def row(k: jax.Array) -> tuple[jax.Array, jax.Array]:
            k_noise, k_rest = jax.random.split(k)
            return jax.random.normal(k_noise, (frames, mel)), jax.random.uniform(k_rest, (5,))

        noise, u = jax.vmap(row)(rng.per_example(rows_key, index))
        low, high = self.span
        span = span_mask(low + (high - low) * u[:, 0], u[:, 1], lengths, frames)
        time_key, drop_key = jax.random.split(batch_key)
        drops = u[:, 3:5]
        if self.drop_per == "batch":
            drops = jnp.broadcast_to(jax.random.uniform(drop_key, (2,)), drops.shape)
        return Draws(noise, self._times(time_key, index, u[:, 2]), span, *self.drops(drops[:, 0], drops[:, 1]))

    def drops(self, u_audio: jax.Array, u_both: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(drop audio, drop text) for uniform numbers: the second drops both."""
        both = u_both < self.drop_both
        return (u_audio < self.drop_audio) | both, both

    def _times(self, key: jax.Array, index: jax.Array, own: jax.Array) -> jax.Array:
        if self.time == "release":
            return own
        even = even_times(key, index)
        if self.time == "uniform":
            return even
        return jax.nn.sigmoid(self.time_mean + self.time_std * jax.scipy.special.ndtri(even))

    def loss(self, predict: Predict, data: jax.Array, lengths: jax.Array, rows: jax.Array, draws: Draws) -> FlowLoss:
        """The summed squared error in velocity space over the hidden, valid entries.

        Args:
          predict: (x_t [b, t, m], visible clip [b, t, m], time [b], drop_audio [b], drop_text [b]) -> [b, t, m].
          data: [b, t, m].
          lengths: [b] real frames.
          rows: [b] weight of each row, 0 for rows that only pad the batch.
          draws: see ``draw``.
        """
        frames = data.shape[1]
        hidden = draws.span & (jnp.arange(frames) < lengths[:, None])
        clip = jnp.where(hidden[..., None], 0.0, data)
        x = self.path.interpolate(data, draws.noise, draws.time)
        output = predict(x, clip, draws.time, draws.drop_audio, draws.drop_text).astype(jnp.float32)
        a, b = basis(self.path, draws.time, self.prediction)
        truth = expand(a, data) * data + expand(b, data) * draws.noise
        # A prediction's error times this is the error of the velocity that it stands for.
        _, scale = coefficients(self.path, draws.time, self.prediction, "velocity")
        scale = jnp.minimum(jnp.abs(scale), self.max_weight)
        # where, not ×: padding may hold anything, NaN included, and must not reach the gradient either.
        error = jnp.where(hidden[..., None], output - truth, 0.0) * expand(scale, data)
        row_sum = jnp.square(error).sum((1, 2)) * rows
        row_weight = hidden.sum(1) * rows * data.shape[-1]
        return FlowLoss(row_sum.sum(), row_weight.sum(), by_time(row_sum, row_weight, draws.time))


def span_mask(fraction: jax.Array, place: jax.Array, lengths: jax.Array, frames: int) -> jax.Array:
    """Hidden frames [b, frames] bool: ⌊fraction · length⌋ of them, starting at ⌊place · (length − that)⌋."""
    size = jnp.floor(fraction * lengths).astype(jnp.int32)
    start = jnp.floor(place * (lengths - size)).astype(jnp.int32)
    position = jnp.arange(frames)
    return (position >= start[:, None]) & (position < (start + size)[:, None])


def even_times(key: jax.Array, index: jax.Array) -> jax.Array:
    """Numbers in (0, 1) for rows ``index`` [b], each uniform, together evenly spread: frac(offset + index / φ).

    In integers, so that row 10⁶ is as exact as row 0; strictly inside, so that a quantile function can follow.
    """
    offset = jax.random.bits(key, (), jnp.uint32)
    place = index.astype(jnp.uint32) * jnp.uint32(2654435769) + offset  # 2³² / φ, wrapping around
    return ((place >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def by_time(sums: jax.Array, weights: jax.Array, time: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Sums and weights of rows [b] by equal buckets of t: {"t0.0-0.2": (sum, weight), …}."""
    bucket = jnp.minimum((time * BUCKETS).astype(jnp.int32), BUCKETS - 1)
    inside = jax.nn.one_hot(bucket, BUCKETS, dtype=sums.dtype)
    names = [f"t{i / BUCKETS:.1f}-{(i + 1) / BUCKETS:.1f}" for i in range(BUCKETS)]
    return {name: (sums @ inside[:, i], weights @ inside[:, i]) for i, name in enumerate(names)}
