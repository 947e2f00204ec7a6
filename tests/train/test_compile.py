"""Compilation: one executable per shape, counted and reported; a cache that works; a peak rate for every device."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.toy import ToyTask, assemble, run
from train import flops
from train.compile import CompiledStep
from train.sharding import batch_shardings
from train.step import make_eval_step

ROOT = Path(__file__).resolve().parents[2]


def test_one_executable_per_shape():
    task, seen = ToyTask(), []
    step, state = assemble(task, ema=())
    step.on_compile = seen.append
    short, long = task.make_batch(0, length=8), task.make_batch(0, length=16)
    report = step.compile(jax.eval_shape(lambda: state), short)
    assert step.count == 1 and report.temporary > 0 and report.aliased > 0 and report.flops > 0
    run(step, state, [short, long, short, long])
    assert step.count == 2 and len(seen) == 2
    assert "x 16x16x8" in str(step.reports[1]) and "per device" in str(step.reports[1])
    assert report.peak >= report.arguments


def test_evaluation_takes_variables_and_a_number():
    task = ToyTask()
    step, state = assemble(task, {"data": 2}, devices=2, ema=())
    batch = task.make_batch(0)
    shardings = {"params": step.state_shardings.params, "stats": step.state_shardings.stats}
    evaluate = CompiledStep(make_eval_step(task, seed=0), step.mesh, shardings)
    placed = jax.device_put(batch, batch_shardings(batch, step.mesh))
    first = evaluate(state.variables(), placed, jnp.int32(0))
    second = evaluate(state.variables(), placed, jnp.int32(1))
    assert evaluate.count == 1 and first["error"][0] != second["error"][0]
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))


CACHE = """
import sys, jax, jax.numpy as jnp
from train.compile import enable_compile_cache
folder = enable_compile_cache(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))[0, 0])
"""


def test_the_cache_is_written(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CACHE, str(tmp_path / "xla")]
    subprocess.run(command, check=True, cwd=ROOT, env=env, capture_output=True)
    assert list((tmp_path / "xla").iterdir())


def test_peaks_and_utilisation():
    class Device:
        platform = "gpu"
        device_kind = "NVIDIA H100 PCIe"

    assert flops.peak_flops(Device()) == 756e12  # the longest name wins
    Device.device_kind = "something else"
    assert flops.peak_flops(Device()) is None
    assert (flops.peak_flops() or 0) > 1e7
    assert flops.utilisation(1e12, 0.5, 4, 1e12) == pytest.approx(0.5)
    assert flops.utilisation(1e12, 0.5, 4, None) is None and flops.utilisation(0, 0.5, 4, 1e12) is None
    assert np.isfinite(ToyTask().flops(ToyTask().example()))
