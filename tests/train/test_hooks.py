"""Evaluation and samples in the loop."""

import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train.hooks import Evaluate, Sample, every
from train.writers import Writers


def _state(value: float) -> Any:
    return types.SimpleNamespace(variables=lambda ema=None: {"value": value if ema is None else -value})


def _put(batch) -> Any:
    return dict(batch)


def test_intervals():
    assert [step for step in range(10) if every(step, 3)] == [3, 6, 9]
    assert not any(every(step, 0) for step in range(10))


def test_evaluation_is_the_mean_over_all_rows_not_of_batch_means():
    values = np.random.default_rng(0).normal(size=20).astype(np.float32)
    rows = np.split(values, [3, 4, 11])
    told = []

    def evaluate(variables, batch, number):
        assert number.dtype == np.int32
        return {"value": (np.float32(batch["x"].sum() * variables["value"]), np.float32(len(batch["x"])))}

    for ema, sign in ((None, 1), ("0.9", -1)):
        batches = [{"x": r} for r in rows]
        hook = Evaluate(5, batches, evaluate, ema, _put, lambda step, means: told.append((step, means["value"])))
        assert hook.due(5) and not hook.due(4) and not hook.due(0)
        hook(5, _state(2.0))
        assert told[-1] == (5, pytest.approx(2.0 * sign * values.astype(np.float64).mean(), rel=1e-6))
    count = len(told)
    Evaluate(0, batches, evaluate, None, _put, lambda *a: told.append(a)).finish(7, _state(1.0))
    Evaluate(5, [], evaluate, None, _put, lambda *a: told.append(a)).finish(7, _state(1.0))
    assert len(told) == count, "switched off, or nothing held out"


def test_samples_go_into_a_folder_of_their_step_with_the_same_noise_each_time(tmp_path):
    keys, written = [], []

    def sample(variables, batch, key, folder):
        keys.append(jax.random.key_data(key).tolist())
        Path(folder, "x.txt").touch()
        return {"loudness": 0.5}

    writer: Any = types.SimpleNamespace(scalars=lambda *a: written.append(a), close=lambda: None)
    task: Any = types.SimpleNamespace(sample=sample)
    console: Any = types.SimpleNamespace(note=lambda text: None)
    hook = Sample(
        4, task, {"x": np.zeros(2)}, None, _put, folder=tmp_path, seed=3, writers=Writers([writer]), console=console
    )
    hook(4, _state(1.0))
    hook.finish(9, _state(1.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "9"] and (tmp_path / "9" / "x.txt").exists()
    assert keys[0] == keys[1] and written == [(4, "sample", {"loudness": 0.5}), (9, "sample", {"loudness": 0.5})]
