"""What happens between updates: evaluation, samples, checkpoints.

A hook sees the state after ``step`` updates, before the batch of that step is taken.  Whether it is due depends on the
step alone, so that several processes never differ.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from train import metrics, rng
from train import state as states
from train.checkpoint import CheckpointStore
from train.console import Console
from train.feed import HostBatch
from train.state import TrainState
from train.task import Task
from train.writers import Writers


class Hook(Protocol):
    """Called by the loop; nothing is in flight then."""

    def due(self, step: int) -> bool:
        """Whether to call it at this step."""
        ...

    def __call__(self, step: int, state: TrainState) -> None:
        """Does the work."""
        ...

    def finish(self, step: int, state: TrainState) -> None:
        """The run has made all its updates; the state is saved already."""
        ...


def every(step: int, interval: int) -> bool:
    """True at the multiples of ``interval`` other than 0; never where it is 0."""
    return interval > 0 and step > 0 and step % interval == 0


class Evaluate:
    """Exact masked means over the held-out batches.

    Args:
      interval: updates between two evaluations; 0 = none, not even at the end.
      batches: host batches; the same ones every time.
      evaluate: ``(variables, batch, number) -> {name: (sum, weight)}``, compiled.
      ema: name of the average to evaluate, None = the raw parameters.
      put: host batch -> global arrays.
      tell: called with (step, means) after each evaluation.
    """

    def __init__(
        self,
        interval: int,
        batches: Sequence[HostBatch],
        evaluate: Callable[..., Mapping[str, Any]],
        ema: str | None,
        put: Callable[[HostBatch], Mapping[str, jax.Array]],
        tell: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        self._interval, self._batches, self._evaluate = interval, batches, evaluate
        self._ema, self._put, self._tell = ema, put, tell

    def due(self, step: int) -> bool:
        """At its interval."""
        return every(step, self._interval) and len(self._batches) > 0

    def __call__(self, step: int, state: TrainState) -> None:
        """Evaluates and tells."""
        variables = state.variables(self._ema)
        total: metrics.Metrics = {}
        results = [self._evaluate(variables, self._put(b), np.int32(i)) for i, b in enumerate(self._batches)]
        for result in jax.device_get(results):  # sums over batches are made in double precision, in order
            total = metrics.merge(total, {n: (float(v[0]), float(v[1])) for n, v in result.items()})
        self._tell(step, metrics.means(total))

    def finish(self, step: int, state: TrainState) -> None:
        """The final evaluation."""
        if self._interval > 0 and len(self._batches) > 0:
            self(step, state)


class Sample:
    """Samples for a person to look at, in ``<workdir>/samples/<step>``.

    Args:
      interval: updates between two sets of samples; 0 = none, not even at the end.
      task: its ``sample`` is called with global device arrays; process 0 writes into the run's folder.
      batch: a host batch of the held-out part.
      ema: name of the average to sample from, None = the raw parameters.
    """

    def __init__(
        self,
        interval: int,
        task: Task,
        batch: HostBatch | None,
        ema: str | None,
        put: Callable[[HostBatch], Mapping[str, jax.Array]],
        *,
        folder: Path,
        seed: int,
        writers: Writers,
        console: Console,
    ) -> None:
        self._interval, self._task, self._batch, self._ema, self._put = interval, task, batch, ema, put
        self._folder, self._seed, self._writers, self._console = folder, seed, writers, console

    def due(self, step: int) -> bool:
        """At its interval."""
        return every(step, self._interval) and self._batch is not None

    def __call__(self, step: int, state: TrainState) -> None:
        """Samples, and writes the scalars that come with it."""
        assert self._batch is not None
        with tempfile.TemporaryDirectory() as elsewhere:
            folder = self._folder / str(step) if jax.process_index() == 0 else Path(elsewhere)
            folder.mkdir(parents=True, exist_ok=True)
            key = rng.stream(self._seed, "sample", 0)  # the same noise each time: pictures of one run compare
            scalars = self._task.sample(state.variables(self._ema), self._put(self._batch), key, str(folder))
        if scalars:
            self._writers.scalars(step, "sample", scalars)
        self._console.note(f"samples of step {step} in {folder}")

    def finish(self, step: int, state: TrainState) -> None:
        """The final samples."""
        if self._interval > 0 and self._batch is not None:
            self(step, state)


class Save:
    """Checkpoints at an interval, and on demand.

    Args:
      meta: gives what is stored beside the arrays.
    """

    def __init__(self, interval: int, store: CheckpointStore, meta: Callable[[], Mapping[str, Any]]) -> None:
        self._interval, self._store, self._meta = interval, store, meta

    def due(self, step: int) -> bool:
        """At its interval."""
        return every(step, self._interval)

    def __call__(self, step: int, state: TrainState) -> None:
        """Starts a save; does nothing where this step is saved already."""
        self._store.save(step, states.to_dict(state), self._meta())

    def finish(self, step: int, state: TrainState) -> None:
        """Nothing: the loop has saved."""

    def check(self) -> None:
        """Raises ``CheckpointError`` if a save has failed in the background."""
        self._store.check()

    def wait(self) -> None:
        """Blocks until the last save is on disk."""
        self._store.wait()
