"""The step: the same on every mesh, skips what is not finite, scales float16, donates its state."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import UserError
from tests.train.toy import EMAS, SPEC, ToyTask, assemble, assert_close, run
from train import metrics, sharding
from train.optim import OptimSpec
from train.scaling import adjust
from train.state import FIELDS, from_dict, to_dict
from train.step import make_eval_step, make_train_step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def toy():
    """The task, its step on one device, and a function that gives the first state again and again."""
    task = ToyTask()
    step, state = assemble(task)
    return task, step, lambda: jax.tree.map(jnp.copy, state)


@pytest.fixture(scope="module")
def alone(toy):
    """Three steps on one device."""
    task, step, first = toy
    return run(step, first(), [task.make_batch(n) for n in range(3)])


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 8},
        {"data": 1, "fsdp": 8},
        {"data": 1, "tensor": 8},
        {"data": 1, "sequence": 8},
        {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
    ],
    ids=lambda sizes: "-".join(f"{name}{size}" for name, size in sizes.items() if size > 1),
)
def test_eight_devices_equal_one(alone, sizes):
    task = ToyTask()
    state, history = run(*assemble(task, sizes, devices=8), [task.make_batch(step) for step in range(3)])
    assert_close(history, alone[1], rtol=1e-5, atol=1e-6)
    assert_close(state, alone[0], rtol=1e-5, atol=2e-6)


def test_muon_on_a_mesh_equals_one_device():
    task, spec = ToyTask(), OptimSpec(optimizer="muon", lr=1e-2)
    batches = [task.make_batch(step) for step in range(3)]
    one, _ = run(*assemble(task, spec=spec, ema=()), batches)
    many, _ = run(*assemble(task, {"fsdp": 4, "tensor": 2}, devices=8, spec=spec, ema=()), batches)
    assert_close(many, one, rtol=1e-5, atol=1e-5)


def test_it_learns_and_reports(toy, alone):
    state, history = alone
    assert set(history[0]) == {
        *("loss", "loss/fit", "loss/first", "error_max"),
        *("grad_norm", "lr", "finite", "skipped", "skipped_row"),
    }
    assert int(state.step) == 3 and float(history[2]["lr"]) == pytest.approx(SPEC.lr)
    for record in history:
        mean = metrics.means(record)
        assert mean["loss"] == pytest.approx(mean["loss/fit"] + 0.3 * mean["loss/first"], rel=1e-5)
    task, step, first = toy
    _, longer = run(step, first(), [task.make_batch(n % 2) for n in range(10)])
    assert longer[-1]["loss"][0] < 0.5 * longer[0]["loss"][0]


def test_a_bad_batch_changes_nothing_but_the_counters(toy):
    task, step, first = toy
    batches = [task.make_batch(0), task.make_batch(1, bad=True), task.make_batch(2, bad=True), task.make_batch(3)]
    state, _ = run(step, first(), batches[:1])
    before = jax.device_get(to_dict(state))
    state, history = run(step, state, batches[1:3])
    after = jax.device_get(to_dict(state))
    for name in ("params", "opt_state", "ema", "stats"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
    assert [int(after[name]) for name in ("step", "skipped", "skipped_row")] == [3, 2, 2]
    assert not history[0]["finite"] and math.isnan(metrics.means(history[0])["loss"])
    merged = metrics.means(metrics.merge(history[0], run(step, state, batches[3:])[1][0]))
    assert merged["skipped"] == 2 and merged["skipped_row"] == 0 and math.isfinite(merged["loss"])


def test_without_skipping_a_bad_batch_spoils_the_parameters():
    task = ToyTask()
    state, history = run(*assemble(task, skip_nonfinite=False), [task.make_batch(0, bad=True)])
    assert np.isnan(np.asarray(state.params["out"]["kernel"])).any() and not history[0]["finite"]


def test_bfloat16_keeps_float32_masters(alone):
    task = ToyTask()
    state, history = run(*assemble(task, precision="bfloat16"), [task.make_batch(step) for step in range(3)])
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    assert float(history[2]["loss"][0]) == pytest.approx(float(alone[1][2]["loss"][0]), rel=0.02)


def test_float16_scales_the_loss_and_lowers_the_scale_on_overflow():
    task = ToyTask()
    step, state = assemble(task, precision="float16")
    batches = [task.make_batch(n) for n in range(4)]
    batches[1]["y"] = batches[1]["y"] * 2000  # overflows float16 at scale 2 ** 16, not at 1
    state, history = run(step, state, batches)
    scales = [float(h["loss_scale"]) for h in history]
    assert scales[1] == scales[0] / 2 and int(state.skipped) >= 1
    assert int(state.skipped_row) == 0  # the scaler at work is no reason to abort
    assert float(history[3]["grad_norm"]) < 1e3  # gradients come out unscaled


def test_the_scale_grows_after_many_finite_steps():
    scale = {"scale": jnp.float32(8), "streak": jnp.int32(1999)}
    assert [float(adjust(scale, jnp.array(ok))["scale"]) for ok in (True, False)] == [16, 4]
    assert int(adjust(scale, jnp.array(True))["streak"]) == 0


def test_evaluation_is_exact_under_masks_and_merging(toy):
    task, _, first = toy
    state = first()
    evaluate = jax.jit(make_eval_step(task, seed=3))
    parts = [evaluate(state.variables(), task.make_batch(n), jnp.int32(n)) for n in range(2)]
    merged = metrics.means(metrics.merge(*parts))
    total = sum(float(p["error"][0]) for p in parts) / sum(float(p["error"][1]) for p in parts)
    assert merged["error"] == pytest.approx(total)
    broken = task.make_batch(0)
    broken["x"][-3:] = 1e6  # the masked rows
    np.testing.assert_allclose(evaluate(state.variables(), broken, jnp.int32(0))["error"], parts[0]["error"], rtol=1e-6)
    average = evaluate(state.variables("0.9"), task.make_batch(0), jnp.int32(0))
    np.testing.assert_array_equal(average["error"], parts[0]["error"])  # still the copy
    with pytest.raises(KeyError, match=r"no average named '0\.5'"):
        state.variables("0.5")


def test_the_state_survives_as_a_plain_dict(toy):
    state = toy[2]()
    tree = to_dict(state)
    assert tuple(tree) == FIELDS and from_dict(tree) == state
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert all(isinstance(k, jax.tree_util.DictKey) and isinstance(k.key, str) for k in path)
        assert leaf.dtype in (np.float32, np.int32)
    with pytest.raises(ValueError, match=r"missing \['ema'\]"):
        from_dict({name: value for name, value in tree.items() if name != "ema"})


def test_no_buffer_is_shared_and_all_are_donated(toy):
    task, step, _ = toy
    _, state = assemble(task)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)
    run(step, state, [task.make_batch(0)])
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert step.reports[0].unused_donations == ""


def test_precision_is_checked():
    with pytest.raises(UserError, match="'fp8' is not known"):
        make_train_step(ToyTask(), None, seed=0, precision="fp8")  # type: ignore[arg-type]


def test_nobody_uses_pmap():
    for folder in ("models", "train", "sampling", "data", "launch"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"\bpmap\b", file.read_text()), file


def test_toy_is_covered():
    task = ToyTask()
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    _, coverage = sharding.param_specs(task.axes(), params, assemble(task, ema=EMAS)[0].mesh)
    assert not coverage.unmatched and not coverage.unused
