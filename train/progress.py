"""Metrics of the running steps: fetched one step late, averaged over the logging interval, written, shown.

Waiting for the metrics of step k only after step k+1 was sent keeps the device busy, and since the loop never waits for
less, at most two steps are in flight.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from train import flops, metrics
from train.console import Console, duration, short
from train.feed import Fed
from train.preempt import Diverged
from train.writers import Writers


class Progress:
    """Receives every step's metrics.

    Args:
      start: updates done when the loop begins.
      steps: updates in the whole run.
      every: updates between two records; 0 = no records.
      unit: what throughput is counted in, a plural noun.
      count: host batch -> units in the global batch.
      work: shapes of a global batch -> training FLOPs.
      peak: FLOP/s of all devices together, or None when unknown.
      max_skipped: that many steps in a row without a finite gradient end the run; 0 = never.
    """

    def __init__(
        self,
        *,
        start: int,
        steps: int,
        every: int,
        unit: str,
        count: Callable[[Mapping[str, Any]], float],
        work: Callable[[Mapping[str, jax.ShapeDtypeStruct]], float],
        peak: float | None,
        max_skipped: int,
        writers: Writers,
        console: Console,
    ) -> None:
        self._start, self._steps, self._every, self._max_skipped = start, steps, every, max_skipped
        self._unit, self._count, self._work, self._peak = unit, count, work, peak
        self._writers, self._console = writers, console
        self._pending: tuple[int, Mapping[str, Any], Fed] | None = None
        self._window: metrics.Metrics = {}  # of host floats
        self._began = self._mark = time.perf_counter()
        self._perf = dict.fromkeys(("steps", "seconds", "waited", "units", "flops"), 0.0)

    def push(self, step: int, new: Mapping[str, Any], batch: Fed) -> None:
        """Takes the metrics of the update that led to ``step``, still being computed; settles the one before.

        Raises:
          Diverged: too many steps were skipped in a row.
        """
        previous, self._pending = self._pending, (step, new, batch)
        self._perf["waited"] += batch.waited  # just now: it belongs to the time that ends with the update before
        if previous is not None:
            self._settle(*previous)

    def flush(self) -> None:
        """Waits for the last update and settles it; the clock stands still until ``resume``."""
        previous, self._pending = self._pending, None
        if previous is not None:
            self._settle(*previous)

    def resume(self) -> None:
        """Starts the clock again after something that is not training."""
        self._mark = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """The unwritten part of the interval, for a checkpoint's meta; call after ``flush``."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self._window.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of ``state``: the next record is the one that an uninterrupted run would write."""
        self._window = {name: tuple(v) if isinstance(v, list) else v for name, v in state.items()}

    def _settle(self, step: int, new: Mapping[str, Any], batch: Fed) -> None:
        host = jax.device_get(dict(new))
        now = time.perf_counter()
        values = {n: (float(v[0]), float(v[1])) if isinstance(v, tuple) else float(v) for n, v in host.items()}
        finite = values.pop("finite", 1.0)
        self._window = metrics.merge(self._window, values)
        self._perf["steps"] += 1
        self._perf["seconds"] += now - self._mark
        self._perf["units"] += self._count(batch.host)
        self._perf["flops"] += self._work({n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in batch.arrays.items()})
        self._mark = now
        due = self._every > 0 and (step % self._every == 0 or step == self._steps)
        means, perf = metrics.means(self._window), self._rates()
        self._console.line(self._text(step, means, perf), lasting=due)
        if due:
            self._writers.scalars(step, "train", means | {f"perf/{name}": value for name, value in perf.items()})
            self._window, self._perf = {}, dict.fromkeys(self._perf, 0.0)
        row = int(values.get("skipped_row", 0))  # type: ignore[arg-type]
        if not finite and row and self._max_skipped and row >= self._max_skipped:
            raise Diverged(
                f"{row} steps in a row, up to step {step}, had gradients that are not finite; nothing was learnt from "
                "them. Lower the learning rate, or look at the data of these steps"
            )

    def _rates(self) -> dict[str, float]:
        p = self._perf
        seconds = max(p["seconds"], 1e-9)
        rates = {
            "step_seconds": seconds / p["steps"],
            f"{self._unit}_per_second": p["units"] / seconds,
            "data_wait": p["waited"] / seconds,
        }
        share = flops.utilisation(p["flops"], seconds, 1, self._peak)
        return rates if share is None else rates | {"mfu": share}

    def _text(self, step: int, means: Mapping[str, float], perf: Mapping[str, float]) -> str:
        parts = [f"step {step}/{self._steps}"]
        if "loss" in means:
            parts.append(f"loss {means['loss']:.4f}")
        parts.append(f"{short(perf[f'{self._unit}_per_second'])} {self._unit}/s")
        parts.append(f"data wait {perf['data_wait']:.0%}")
        if "mfu" in perf:
            parts.append(f"MFU {perf['mfu']:.0%}")
        if means.get("skipped"):
            parts.append(f"{means['skipped']:.0f} skipped")
        left = (time.perf_counter() - self._began) / (step - self._start) * (self._steps - step)
        parts.append(f"{duration(left)} left")
        return "  ".join(parts)
