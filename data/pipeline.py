"""Training batches as a pure function of the step: frame budgets, few shapes, any number of hosts, instant resume.

An example is a target utterance, optionally behind another of the same speaker that serves as its prompt; a batch holds
examples of one length class (``data.buckets``).  Which class step ``s`` takes, which examples fill it and which prompt
each gets are keyed hashes of (seed, s, row), so there is no iterator state: the position is the step.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data.buckets import Bucket
from data.keyed import permute, uniform

Batch = dict[str, np.ndarray]
Example = tuple[int, ...]  # positions of utterances: (target,) or (prompt, target)
Collate = Callable[[Sequence[Example], int], Batch]  # examples, frames to pad to -> arrays


class Pairing:
    """Which utterances may stand before which: same speaker, the sum of the lengths in a given range.

    Args:
      lengths: [n] frames.
      speakers: [n] integers.
    """

    def __init__(self, lengths: np.ndarray, speakers: np.ndarray):
        self.lengths = np.asarray(lengths, np.int64)
        # One sorted array serves all speakers: a speaker's lengths lie in a window of their own.
        self._stride = int(self.lengths.max()) + 1
        ids = np.unique(speakers, return_inverse=True)[1].astype(np.int64)
        keys = ids * self._stride + self.lengths
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        self._rank = np.argsort(self._order, kind="stable")
        self._base = ids * self._stride

    def window(self, targets: np.ndarray, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """First rank and number of prompts with low < prompt + target <= high, the target itself included."""
        room = self.lengths[targets]
        ends = [np.clip(limit - room, -1, self._stride - 1) for limit in (low, high)]
        first, last = (np.searchsorted(self._sorted, self._base[targets] + end, side="right") for end in ends)
        return first, np.maximum(last - first, 0)

    def count(self, targets: np.ndarray, low: int, high: int) -> np.ndarray:
        """How many prompts each target has in the range, itself left out."""
        first, count = self.window(targets, low, high)
        rank = self._rank[targets]
        return count - ((rank >= first) & (rank < first + count))

    def prompt(self, targets: np.ndarray, low: int, high: int, u: np.ndarray) -> np.ndarray:
        """One prompt per target, even over those in the range by ``u`` in [0, 1); -1 where there is none."""
        first, count = self.window(targets, low, high)
        rank = self._rank[targets]
        inside = (rank >= first) & (rank < first + count)
        choices = count - inside
        pick = first + (u * choices).astype(np.int64)
        pick += inside & (pick >= rank)  # step over the target itself
        return np.where(choices > 0, self._order[np.minimum(pick, len(self._order) - 1)], -1)


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The endless sequence of examples of one bucket.

    Attributes:
      cumulative: [n] running sum of the weight with which each utterance is a target here.
      low, high: frames of an example, low < length <= high.
    """

    cumulative: np.ndarray
    low: int
    high: int

    @property
    def total(self) -> float:
        return float(self.cumulative[-1])


def stratified(cumulative: np.ndarray, positions: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Which example stands at each position of an endless shuffled stream in which examples have weights.

    A cycle is as many positions as the weights' sum; in each, an example comes as often as its weight says, to within
    one, and exactly once where all weights are one.

    Args:
      cumulative: [n] running sum of the weights.
      positions: [k] from 0 on.
      stream: streams of different numbers are shuffled independently.
    """
    total = float(cumulative[-1])
    cycle = max(1, round(total))
    place = permute(positions % cycle, cycle, seed, "example", stream, positions // cycle)
    # Each position owns an equal part of the total weight, so a weight of one is one example exactly.
    jitter = uniform(seed, "jitter", stream, positions)
    chosen = np.searchsorted(cumulative, (place + jitter) * (total / cycle), side="right")
    return np.minimum(chosen, np.searchsorted(cumulative, total))  # rounding at the very end


class Examples:
    """The endless shuffled streams of examples, one for each bucket.

    Without pairs every utterance occurs once in a cycle of its bucket.  With pairs an utterance is a target once in a
    pass over all buckets, split over them in proportion to how many of its prompts fall into each.

    Args:
      lengths: [n] frames of the training utterances.
      buckets: ascending.
      pairing: None for single utterances.
    """

    def __init__(self, lengths: np.ndarray, buckets: Sequence[Bucket], pairing: Pairing | None, seed: int):
        lows = [0, *(b.frames for b in buckets[:-1])]
        everyone = np.arange(len(lengths))
        alone = [(lengths > low) & (lengths <= b.frames) for low, b in zip(lows, buckets, strict=True)]
        weights = [a.astype(np.float64) for a in alone]
        if pairing is not None:
            counts = [pairing.count(everyone, low, b.frames) for low, b in zip(lows, buckets, strict=True)]
            whole = np.sum(counts, axis=0)
            weights = [np.where(whole > 0, c / np.maximum(whole, 1), a) for c, a in zip(counts, alone, strict=True)]
        self._streams = [_Stream(np.cumsum(w), low, b.frames) for w, low, b in zip(weights, lows, buckets, strict=True)]
        self._pairing, self._seed = pairing, seed

    @property
    def totals(self) -> list[float]:
        """Examples of each bucket in one pass over the data."""
        return [s.total for s in self._streams]

    def draw(self, bucket: int, positions: np.ndarray) -> list[Example]:
        """The examples at these positions of a bucket's stream."""
        stream, seed = self._streams[bucket], self._seed
        targets = stratified(stream.cumulative, positions, seed, bucket)
        if self._pairing is None:
            return [(int(t),) for t in targets]
        u = uniform(seed, "prompt", bucket, positions)
        prompts = self._pairing.prompt(targets, stream.low, stream.high, u)
        return [(int(t),) if p < 0 else (int(p), int(t)) for p, t in zip(prompts, targets, strict=True)]


class Schedule:
    """Which bucket a step takes, and which of its batches: shuffled, each bucket as often as its examples need.

    A round is the fewest whole passes over the data for which whole numbers of batches come within 2 % of every
    bucket's share (at most 32 passes; every bucket has at least one batch).
    """

    def __init__(self, totals: Sequence[float], rows: Sequence[int], seed: int):
        shares = np.array([t / r for t, r in zip(totals, rows, strict=True)])
        for passes in range(1, 33):
            batches = np.maximum(1, np.rint(shares * passes)).astype(np.int64)
            if (np.abs(batches / (shares * passes) - 1.0) < 0.02).all():
                break
        self.steps_per_pass = float(shares.sum())
        self.batches = batches
        self._starts = np.concatenate([[0], np.cumsum(batches)])
        self._seed = seed

    def __call__(self, step: int) -> tuple[int, int]:
        """(bucket, number of the batch within the bucket's stream)."""
        length = int(self._starts[-1])
        rounds, place = divmod(step, length)
        slot = int(permute(np.array([place]), length, self._seed, "order", rounds)[0])
        bucket = int(np.searchsorted(self._starts, slot, side="right")) - 1
        return bucket, rounds * int(self.batches[bucket]) + slot - int(self._starts[bucket])


class StepSource:
    """``source[step]`` -> this host's rows of the global batch of that step.

    Args:
      examples: the streams of examples.
      buckets: shapes, ``rows`` of the global batch.
      collate: turns examples into arrays padded to a number of frames.
      seed: of everything random.
      host_index, host_count: this process and how many share a global batch; concatenating the rows of all hosts gives
        the same global batch for every host count.
    """

    def __init__(
        self,
        examples: Examples,
        buckets: Sequence[Bucket],
        collate: Collate,
        seed: int,
        host_index: int = 0,
        host_count: int = 1,
    ):
        check_hosts(buckets, host_index, host_count)
        self._examples, self._buckets, self._collate = examples, list(buckets), collate
        self._schedule = Schedule(examples.totals, [b.rows for b in buckets], seed)
        self._host = host_index, host_count

    @property
    def steps_per_pass(self) -> float:
        """Steps in which as many examples go by as the data holds."""
        return self._schedule.steps_per_pass

    def __len__(self) -> int:
        return sys.maxsize  # endless; grain wants a length

    def global_examples(self, step: int) -> tuple[Bucket, list[Example]]:
        """Shape and content of a whole global batch."""
        index, number = self._schedule(step)
        bucket = self._buckets[index]
        return bucket, self._examples.draw(index, number * bucket.rows + np.arange(bucket.rows))

    def padding(self, lengths: np.ndarray, steps: int) -> float:
        """Share of the frames of the first ``steps`` global batches that is padding."""
        real = padded = 0
        for bucket, examples in map(self.global_examples, range(steps)):
            real += sum(int(lengths[u]) for example in examples for u in example)
            padded += bucket.frames * bucket.rows
        return 1.0 - real / padded

    def __getitem__(self, step: int) -> Batch:
        bucket, examples = self.global_examples(int(step))
        rows = host_rows(bucket.rows, *self._host)
        batch = self._collate(examples[rows.start : rows.stop], bucket.frames)
        return batch | {
            "index": np.arange(rows.start, rows.stop, dtype=np.int32),
            "mask": np.ones(len(rows), np.float32),
        }


def check_hosts(buckets: Sequence[Bucket], host_index: int, host_count: int) -> None:
    """Raises ValueError where a global batch cannot be divided evenly over the hosts."""
    uneven = [b.rows for b in buckets if b.rows % host_count]
    if uneven or not 0 <= host_index < host_count:
        raise ValueError(
            f"host {host_index} of {host_count} with global batches of {uneven or [b.rows for b in buckets]} rows: "
            "row_multiple must be a multiple of the number of hosts"
        )


def host_rows(rows: int, host_index: int, host_count: int) -> range:
    """Rows of a global batch that belong to a host."""
    each = rows // host_count
    return range(host_index * each, (host_index + 1) * each)


def fixed_batches(
    examples: Sequence[Example],
    lengths: np.ndarray,
    buckets: Sequence[Bucket],
    collate: Collate,
    host_index: int = 0,
    host_count: int = 1,
) -> list[Batch]:
    """Every example once, in batches of the buckets' shapes; the last of each shape is filled up with rows of mask 0.

    Filling rows repeat a real example, since an empty one could turn into NaN somewhere.

    Args:
      examples: all of them.
      lengths: [n] frames of the utterances that the examples name.
    """
    check_hosts(buckets, host_index, host_count)
    total = np.array([sum(int(lengths[u]) for u in e) for e in examples])
    belongs = np.searchsorted([b.frames for b in buckets], total)
    if (belongs == len(buckets)).any():
        raise ValueError(f"an example of {total.max()} frames is longer than the largest shape, {buckets[-1].frames}")
    batches = []
    for i, bucket in enumerate(buckets):
        members = [e for e, j in zip(examples, belongs, strict=True) if j == i]
        for start in range(0, len(members), bucket.rows):
            group = members[start : start + bucket.rows]
            rows = host_rows(bucket.rows, host_index, host_count)
            local = [group[min(r, len(group) - 1)] for r in rows]
            real = np.array([r < len(group) for r in rows], np.float32)
            batches.append(collate(local, bucket.frames) | {"index": np.array(rows, np.int32), "mask": real})
    return batches


class Loader:
    """Batches from ``start_step`` on, made ahead by threads; ``close()`` ends the threads.

    Closing also happens on leaving a ``with`` block, so a failing loop does not hang at exit.
    """

    def __init__(self, source: Any, start_step: int, threads: int, ahead: int):
        import grain

        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead if threads else 0)
        self._iterator: Any = iter(grain.MapDataset.source(source).to_iter_dataset(options))
        self._iterator.set_state({"next_index": start_step})

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        self._iterator.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def loader(source: Any, start_step: int = 0, threads: int = 1, ahead: int = 4) -> Loader:
    """Iterates over ``source[start_step], source[start_step + 1], …`` through grain.

    Args:
      source: anything with ``__getitem__(step)`` and ``__len__``, for example a ``StepSource``.
      start_step: first step, the resumed one.
      threads: how many make batches ahead of time; 0 = make each when asked.  The batches do not depend on it.
      ahead: how many batches may wait.
    """
    return Loader(source, start_step, threads, ahead)
