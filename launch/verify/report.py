"""Rows of a verification and how they are counted."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One checked output.

    Attributes:
      name: file and array.
      mode: "exact" (padding changes nothing), "reference" (the release's batched behaviour), "host" or "device" for
        what has no padding.
      error: the largest error found; for things that must be equal, how many are not.
      tolerance: the largest error allowed.
      note: what went wrong, where it is not a number.
    """

    name: str
    mode: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.tolerance)  # not for NaN

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        note = f"  {self.note}" if self.note else ""
        return f"{self.name:<76} {self.mode:<9} {self.error:9.2e} {self.tolerance:9.2e}  {verdict}{note}"


class Report:
    """Collects rows and prints each as it comes."""

    def __init__(self, quiet: bool = False):
        self.rows: list[Row] = []
        self.unchecked: list[str] = []
        self._quiet = quiet

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if not self._quiet:
            print(row, flush=True)

    def close(self, name: str, mode: str, got: Any, want: Any, tolerance: float, *, relative: bool = False) -> None:
        """Largest absolute error, or largest error relative to the largest wanted magnitude."""
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        if got.shape != want.shape:
            self.add(Row(name, mode, np.inf, tolerance, f"shape {got.shape}, expected {want.shape}"))
            return
        error = np.abs(got - want).max(initial=0.0)
        if relative:
            error /= max(np.abs(want).max(initial=0.0), np.finfo(np.float32).tiny)
        self.add(Row(name, mode, float(error), tolerance))

    def equal(self, name: str, got: Any, want: Any, mode: str = "host") -> None:
        """How many items of two sequences differ (a differing length counts as well); none may."""
        got, want = list(got), list(want)
        wrong = sum(not _same(a, b) for a, b in zip(got, want, strict=False)) + abs(len(got) - len(want))
        first = next((f"{a!r}, expected {b!r}" for a, b in zip(got, want, strict=False) if not _same(a, b)), "")
        self.add(Row(name, mode, float(wrong), 0.0, first[:120]))

    @contextlib.contextmanager
    def guard(self, name: str, mode: str = "host") -> Iterator[None]:
        """An error inside is a failed row, so that one bad file does not hide the others."""
        try:
            yield
        except (ValueError, KeyError, TypeError, ArithmeticError, NotImplementedError) as error:
            self.add(Row(name, mode, np.inf, 0.0, f"{type(error).__name__}: {str(error)[:400]}"))

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if not row.passed]

    def summary(self) -> str:
        """Everything that was not checked, then one line of counts."""
        lines = [f"not checked: {what}" for what in self.unchecked]
        ok = len(self.rows) - len(self.failed)
        return "\n".join([*lines, f"{ok} of {len(self.rows)} rows ok, {len(self.unchecked)} things not checked"])

    def write(self, path: str | Path) -> None:
        rows = [dataclasses.asdict(row) | {"passed": row.passed} for row in self.rows]
        for row in rows:
            row["error"] = row["error"] if np.isfinite(row["error"]) else None
        content = {"rows": rows, "failed": len(self.failed), "not_checked": self.unchecked}
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else a == b
