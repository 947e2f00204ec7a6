"""What a person sees: lasting notes, and one live line that is rewritten on a terminal and repeated in a log file."""

import shutil
import sys
import time
from typing import TextIO

REFRESH = 0.5  # seconds between rewrites on a terminal


class Console:
    """Prints to one stream; silent in processes other than the first.

    Args:
      stream: defaults to standard output.
      enabled: False prints nothing.
    """

    def __init__(self, stream: TextIO | None = None, enabled: bool = True) -> None:
        self._stream = stream or sys.stdout
        self._enabled = enabled
        self._live = enabled and self._stream.isatty()
        self._width = 0
        self._next = 0.0

    def note(self, text: str) -> None:
        """Prints lines that stay."""
        self._clear()
        self._write(text + "\n")

    def line(self, text: str, lasting: bool) -> None:
        """Shows the state of the run.

        Args:
          text: one line.
          lasting: whether this moment belongs into a log; on a terminal every moment only replaces the one before.
        """
        if not self._live:
            if lasting:
                self._write(text + "\n")
        elif lasting or time.monotonic() >= self._next:
            self._next = time.monotonic() + REFRESH
            text = text[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + text.ljust(self._width))
            self._width = len(text)

    def close(self) -> None:
        """Leaves the live line standing and ends it."""
        if self._width:
            self._write("\n")
            self._width = 0

    def _clear(self) -> None:
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _write(self, text: str) -> None:
        if self._enabled:
            self._stream.write(text)
            self._stream.flush()


def duration(seconds: float) -> str:
    """``75`` -> ``"1:15"``, ``3675`` -> ``"1:01:15"``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def short(value: float) -> str:
    """Three figures with a suffix: ``12345`` -> ``"12.3k"``."""
    for suffix in ("", "k", "M"):
        if abs(value) < 999.5:
            return f"{value:.3g}{suffix}"
        value /= 1000
    return f"{value:.3g}G"
