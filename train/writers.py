"""Where scalars go: ``metrics.jsonl`` always, TensorBoard if asked for.

``metrics.jsonl`` is the contract: one object per line with ``step`` (updates done), ``kind`` (train, eval or sample)
and the values; ``time`` and names under ``perf/`` depend on the machine, all others only on the config.  A resumed run
cuts the file back to the step it goes on from, so that the whole of it reads as if nothing had happened.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data.errors import UserError
from train import integrity

JSONL = "metrics.jsonl"


class Writer(Protocol):
    """Takes scalars."""

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes one record."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


class JsonlWriter:
    """Appends to ``<folder>/metrics.jsonl``, flushed record by record.

    Args:
      folder: the run's folder.
      step: records of later steps are cut off, and at this very step those that the loop is about to write again.
    """

    def __init__(self, folder: str | Path, step: int = 0) -> None:
        self._path = Path(folder) / JSONL
        _cut(self._path, step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes one record; NaN and infinities become null, which JSON has.

        Raises:
          UserError: the file cannot be written.
        """
        record = {"step": step, "kind": kind, "time": round(time.time(), 3)}
        record |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardWriter:
    """Event files in ``<folder>/tensorboard``, by tensorboardX, which needs no TensorFlow.

    Raises:
      UserError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path, step: int = 0) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            raise UserError(
                "config.log.tensorboard needs tensorboardX: `pip install -e '.[tensorboard]'`, or set it to False"
            ) from None
        self._writer = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes each value under ``kind/name``."""
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class Writers:
    """Several writers as one; none in processes other than the first."""

    def __init__(self, writers: Sequence[Writer] = ()) -> None:
        self._writers = tuple(writers)

    def scalars(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes one record everywhere."""
        for writer in self._writers:
            writer.scalars(step, kind, values)

    def close(self) -> None:
        """Closes all."""
        for writer in self._writers:
            writer.close()


def read(folder: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Records of ``metrics.jsonl``, of one kind or all; a line torn by a crash is left out."""
    path = Path(folder) / JSONL
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if kind is None or record["kind"] == kind]


def _cut(path: Path, step: int) -> None:
    """Keeps what an uninterrupted run would have written before its hooks at ``step``."""
    if path.exists():
        keep = [r for r in read(path.parent) if r["step"] < step or (r["step"] == step and r["kind"] == "train")]
        integrity.write_atomically(path, "".join(json.dumps(record) + "\n" for record in keep))
