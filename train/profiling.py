"""Traces of a few steps, at a step chosen beforehand or when somebody touches ``<workdir>/PROFILE``.

Open them with ``tensorboard --logdir`` (profile plugin) or at https://ui.perfetto.dev.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

TRIGGER = "PROFILE"
TRIGGERED_STEPS = 5  # of a trace that the file asks for, unless the config names a number
POLL = 10  # steps between two looks for the file: on a network file system a look is not free


class Profiler:
    """Hook that writes traces to ``<workdir>/profile/<step>``.

    Args:
      workdir: the run's folder.
      start: the window's first step; counts only where ``steps`` > 0.
      steps: the window's length; 0 = no window.
      note: prints a line.
    """

    def __init__(self, workdir: str | Path, start: int, steps: int, note: Callable[[str], None]) -> None:
        self._workdir = Path(workdir)
        self._start, self._steps = start, steps
        self._note = note
        self._until: int | None = None

    def due(self, step: int) -> bool:
        """Whether a trace begins or ends here."""
        if self._until is not None:
            return step >= self._until
        return self._in_window(step) or (step % POLL == 0 and (self._workdir / TRIGGER).exists())

    def __call__(self, step: int, state: Any) -> None:
        """Begins or ends a trace; nothing is in flight now."""
        del state
        if self._until is not None:
            self._stop()
            return
        length = self._steps if self._in_window(step) else self._steps or TRIGGERED_STEPS
        (self._workdir / TRIGGER).unlink(missing_ok=True)
        folder = self._workdir / "profile" / str(step)
        jax.profiler.start_trace(folder)
        self._until = step + length
        self._note(f"tracing {length} steps into {folder}")

    def finish(self, step: int, state: Any) -> None:
        """Ends a trace that the run's end has cut short."""
        del step, state
        self.close()

    def close(self) -> None:
        """Ends a trace under way, if any."""
        if self._until is not None:
            self._stop()

    def _in_window(self, step: int) -> bool:
        return self._steps > 0 and step == self._start

    def _stop(self) -> None:
        self._until = None
        jax.profiler.stop_trace()
