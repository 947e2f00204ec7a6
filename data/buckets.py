"""Few static shapes for many lengths: optimal bucket bounds, frame-budget batch sizes, the reference's sampler."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bucket:
    """One static batch shape: ``rows`` examples of at most ``frames`` frames (``rows`` counts the global batch)."""

    frames: int
    rows: int


def optimal_bounds(lengths: Sequence[int] | np.ndarray, buckets: int, multiple: int = 1) -> list[int]:
    """Upper bounds of at most ``buckets`` length classes that minimise the total padding, by dynamic programming.

    Args:
      lengths: one positive length per example.
      buckets: how many bounds at most; fewer are returned only if the lengths have fewer distinct values.
      multiple: every bound is a multiple of this (hardware likes round shapes).

    Returns:
      Ascending bounds; an example belongs to the first bound that is not below its length.
    """
    values, counts = np.unique(-(-np.asarray(lengths, np.int64) // multiple) * multiple, return_counts=True)
    if len(values) == 0 or buckets < 1:
        raise ValueError(f"optimal_bounds needs lengths and at least one bucket, got {len(values)} and {buckets}")
    below = np.concatenate([[0], np.cumsum(counts)])  # examples among the first i distinct values
    # cost[i] = fewest padded frames (examples x bound) that cover the first i values with the buckets used so far
    cost = np.concatenate([[0.0], np.full(len(values), np.inf)])
    choices = []
    for _ in range(min(buckets, len(values))):
        best, choice = cost.copy(), np.full(len(values) + 1, -1)
        for i in range(1, len(values) + 1):
            candidates = cost[:i] + (below[i] - below[:i]) * values[i - 1]
            start = int(candidates.argmin())
            if candidates[start] < best[i]:
                best[i], choice[i] = candidates[start], start
        cost = best
        choices.append(choice)
    bounds, i = [], len(values)
    for choice in reversed(choices):
        if i and choice[i] >= 0:  # otherwise the cover with one bucket fewer was as good
            bounds.append(int(values[i - 1]))
            i = int(choice[i])
    return bounds[::-1]


def assign(lengths: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
    """Index of the first bound that is not below each length."""
    return np.searchsorted(np.asarray(bounds), lengths, side="left")


def batch_rows(bound: int, frames_per_batch: int, max_batch: int = 0, multiple: int = 1) -> int:
    """Rows of a batch of ``bound`` frames: as many as the frame budget allows, a multiple of ``multiple``.

    Raises:
      UserError: the budget does not hold ``multiple`` rows, or ``max_batch`` is below it.
    """
    rows = frames_per_batch // bound
    rows = min(rows, max_batch) if max_batch else rows
    if rows < multiple:
        raise UserError(
            f"data.frames_per_batch={frames_per_batch} (data.max_batch={max_batch}) holds {rows} examples of {bound} "
            f"frames, but every global batch must be a multiple of {multiple} (data devices x accumulation): raise "
            "data.frames_per_batch or lower data.max_seconds"
        )
    return rows // multiple * multiple


def make_buckets(
    lengths: Sequence[int] | np.ndarray,
    buckets: int,
    frames_per_batch: int,
    max_batch: int = 0,
    multiple: int = 1,
    frame_multiple: int = 1,
) -> list[Bucket]:
    """Optimal bounds with the batch size that the frame budget allows for each."""
    bounds = optimal_bounds(lengths, buckets, frame_multiple)
    return [Bucket(bound, batch_rows(bound, frames_per_batch, max_batch, multiple)) for bound in bounds]


def dynamic_batches(
    frames: Sequence[float], frames_threshold: float, max_samples: int = 0, drop_residual: bool = False
) -> list[list[int]]:
    """The F5-TTS release's sampler: examples sorted by length, filled greedily up to a sum of unpadded frames.

    Args:
      frames: length per example, seconds x sample rate / hop, not rounded.
      frames_threshold: most frames in a batch; a single example above it is dropped.
      max_samples: most examples in a batch, 0 = any number.
      drop_residual: leave out the last, unfilled batch.

    Returns:
      Batches of example indices, shortest first (the release then shuffles whole batches, we use ``data/pipeline.py``).
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    total = 0.0
    for i in sorted(range(len(frames)), key=lambda i: frames[i]):
        if total + frames[i] <= frames_threshold and (max_samples == 0 or len(batch) < max_samples):
            batch.append(i)
            total += frames[i]
            continue
        if batch:
            batches.append(batch)
        batch, total = ([i], frames[i]) if frames[i] <= frames_threshold else ([], 0.0)
    if batch and not drop_residual:
        batches.append(batch)
    return batches
