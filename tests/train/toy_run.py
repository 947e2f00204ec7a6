"""Data and components around the toy task, as a config names them."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.train.toy import ToyTask


class ToyModel:
    """Stands for a model: constructor arguments and nothing else."""

    def __init__(self, hidden: int, dim: int) -> None:
        self.hidden, self.dim = hidden, dim


class ToyRunTask(ToyTask):
    """The toy task, built as ``train/assemble.py`` builds a task."""

    def __init__(self, model: Any, assets: str, shapes: Any) -> None:
        dim = json.loads((Path(assets) / "toy.json").read_text())["dim"]
        rows, length, _ = shapes[0]["x"].shape
        super().__init__(batch=rows, length=length, dim=dim, hidden=model(dim=dim).hidden)


class ToyData:
    """Batches of two lengths.

    The environment variable TOY_SIGNAL="9@13" sends this process signal 9 when batch 13 is asked for, and not before
    the file TOY_AWAIT is there.

    Args:
      rows: of the global batch.
      bad_from: from this step on every batch holds a NaN; -1 = never.
    """

    def __init__(self, rows: int, bad_from: int, seed: int, host_index: int, host_count: int) -> None:
        self._task = ToyTask(batch=rows)
        self._bad_from, self._seed = bad_from, seed
        self._part = slice(host_index * rows // host_count, (host_index + 1) * rows // host_count)
        self.train = self
        self.evaluation = [self._local(self._task.make_batch(1000 + i)) for i in range(2)]
        self.shapes = [self._shapes(8), self._shapes(4)]
        self.report = f"toy data: {rows} rows"

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        _maybe_strike(step)
        bad = 0 <= self._bad_from <= step
        return self._local(self._task.make_batch(step + 100 * self._seed, bad=bad, length=4 if step % 3 == 2 else 8))

    def __len__(self) -> int:
        return sys.maxsize

    def write_assets(self, folder: str) -> None:
        """One number."""
        (Path(folder) / "toy.json").write_text(json.dumps({"dim": self._task.dim}))

    def _local(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: x[self._part] for name, x in batch.items()}

    def _shapes(self, length: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        return {name: (x.shape, x.dtype) for name, x in self._task.make_batch(0, length=length).items()}


def _maybe_strike(step: int) -> None:
    number, _, at = os.environ.get("TOY_SIGNAL", "").partition("@")
    if at and step == int(at):
        awaited, patience = Path(os.environ.get("TOY_AWAIT", "/")), time.monotonic() + 60
        while not awaited.exists() and time.monotonic() < patience:
            time.sleep(0.01)
        os.kill(os.getpid(), int(number))
        time.sleep(1.0)  # the handler runs in the main thread; the run must not be over before
