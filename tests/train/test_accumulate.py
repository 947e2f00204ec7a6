"""Accumulation is exact, keeps rows on their device, and does not run the network to find the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data.errors import UserError
from tests.train.toy import ToyTask, assemble, assert_close, run
from train.accumulate import gradients, split
from train.mesh import build_mesh
from train.sharding import batch_shardings
from train.task import LossOutput, Term


@pytest.mark.parametrize(("sizes", "devices"), [({}, 1), ({"data": 2, "fsdp": 2}, 4)])
def test_four_microbatches_equal_one(sizes, devices):
    """Rows of unequal lengths, two terms with different weights, padding rows, per-example noise, a running sum."""
    task = ToyTask()
    batches = [task.make_batch(step) for step in range(3)]
    whole, history = run(*assemble(task, {}, accumulate=1), batches)
    parts, other = run(*assemble(task, sizes, devices=devices, accumulate=4), batches)
    assert_close(parts, whole, rtol=1e-5, atol=2e-6)
    assert_close(other, history, rtol=2e-6, atol=2e-6)


def test_two_terms_have_their_own_weights():
    """``sum(a) / weight(a) + 0.5 * sum(b) / weight(b)`` over the whole batch, in closed form."""
    r = np.random.default_rng(0)
    x, a, b = r.normal(size=(8, 3)), r.uniform(0, 9, 8), r.uniform(0, 1, 8)
    batch = {"x": np.float32(x), "a": np.float32(a), "b": np.float32(b)}

    def loss(params, stats, part):
        y = part["x"] @ params["w"]
        terms = {
            "a": Term((part["a"] * y).sum(), part["a"].sum()),
            "b": Term((part["b"] * y**2).sum(), part["b"].sum(), 0.5),
        }
        return LossOutput(terms, {"y": (y.sum(), jnp.float32(y.size))}, stats)

    w = np.array([0.3, -1.0, 2.0])
    y = x @ w
    grad = (a @ x) / a.sum() + 0.5 * ((b * 2 * y) @ x) / b.sum()
    total = (a @ y) / a.sum() + 0.5 * (b @ y**2) / b.sum()
    for count in (1, 2, 4, 8):
        out = jax.jit(gradients, static_argnames=("loss_fn", "microbatches"))(
            loss, {"w": jnp.float32(w)}, {}, batch, microbatches=count
        )
        np.testing.assert_allclose(out.grads["w"], grad, rtol=2e-5)
        np.testing.assert_allclose(out.loss, total, rtol=2e-5)
        np.testing.assert_allclose(out.pairs["y"], (y.sum(), 8), rtol=1e-4)
        np.testing.assert_allclose(out.pairs["loss/b"], (b @ y**2, b.sum()), rtol=2e-5)


def test_a_term_without_weight_counts_nothing():
    def loss(params, stats, part):
        return LossOutput({"none": Term((part["x"] * 0 * params["w"]).sum(), 0 * part["x"].sum())}, {}, stats)

    out = gradients(loss, {"w": jnp.float32(2.0)}, {}, {"x": jnp.ones(4)}, microbatches=2)
    assert out.loss == 0 and out.grads["w"] == 0


def test_the_network_runs_once_per_microbatch():
    """The scan that finds the weights holds no matrix product: as many in four microbatches as in one."""

    def loss(params, stats, part):
        y = jnp.tanh(part["x"] @ params["w"]) @ params["w"]
        return LossOutput({"a": Term((part["a"] * y.sum(1)).sum(), part["a"].sum())}, {}, stats)

    params, batch = {"w": jnp.ones((64, 64))}, {"x": jnp.ones((64, 64)), "a": jnp.arange(64.0)}
    counts = []
    for count in (1, 4):
        lowered = jax.jit(lambda p, b, n=count: gradients(loss, p, {}, b, microbatches=n)).lower(params, batch)
        counts.append((lowered.compile().as_text() or "").count(" dot("))
    assert counts[0] == counts[1] > 0


def test_rows_stay_on_their_device():
    mesh = build_mesh({"data": 2, "fsdp": 4}, jax.devices()[:8])
    batch = {"x": np.arange(64 * 6, dtype=np.float32).reshape(64, 6), "index": np.arange(64, dtype=np.int32)}
    placed = jax.device_put(batch, batch_shardings(batch, mesh))
    compiled = jax.jit(lambda b: split(b, 4, mesh)).lower(placed).compile()
    text = compiled.as_text() or ""
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute", "all-reduce"))
    parts = compiled(placed)
    assert parts["x"].sharding.is_equivalent_to(NamedSharding(mesh, P(None, ("data", "fsdp"))), 3)
    assert sorted(np.asarray(parts["index"]).ravel()) == list(range(64))
    np.testing.assert_array_equal(np.asarray(parts["x"]), batch["x"][np.asarray(parts["index"])])


def test_mistakes_are_named():
    with pytest.raises(UserError, match="6 rows cannot be cut into accumulate=4"):
        split({"x": jnp.zeros((6, 2))}, 4)

    def loss(params, stats, part):
        return LossOutput({"a": Term(params["w"], jnp.float32(1))}, {}, {})

    with pytest.raises(ValueError, match="another structure"):
        gradients(loss, {"w": jnp.float32(1)}, {"seen": jnp.zeros(())}, {"x": jnp.zeros(2)})
