"""Stopping in good order: SIGTERM and Ctrl-C are noticed between two steps, the state is saved, the exit code says why.

Exit codes of ``run_train``:
  0    done.
  2    bad input, or a checkpoint that could not be written; one message says what.
  85   preempted by SIGTERM, state saved: queue the same command again.
  86   diverged, too many non-finite steps in a row: do not queue it again.
  130  Ctrl-C, state saved; a second Ctrl-C leaves at once and saves nothing.
"""

import dataclasses
import signal
import threading
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

USER_ERROR = 2
PREEMPTED = 85
DIVERGED = 86
INTERRUPTED = 130


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why the run ends early."""

    code: int
    reason: str


STOPS = {
    signal.SIGTERM: Stop(PREEMPTED, "SIGTERM"),
    signal.SIGINT: Stop(INTERRUPTED, "Ctrl-C"),
}


class Diverged(RuntimeError):
    """Too many steps in a row had non-finite gradients."""


class Preemption:
    """Context that turns the two signals into an answer of ``check``.

    Several processes must leave the loop at the same step, so they agree by a collective, every ``agree_every`` steps.
    """

    def __init__(self, agree_every: int = 10) -> None:
        self._agree_every = max(agree_every, 1)
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in STOPS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self, step: int) -> Stop | None:
        """Whether to stop now; the same answer in every process."""
        if jax.process_count() == 1:
            return STOPS[self._received] if self._received else None
        if step % self._agree_every:
            return None
        flags = multihost_utils.process_allgather(np.int32(self._received or 0))
        return STOPS[signal.Signals(int(flags.max()))] if flags.any() else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)
