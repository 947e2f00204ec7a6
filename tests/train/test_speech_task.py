"""The speech task: nothing but real, hidden frames counts, rows are their own, and it learns to speak."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.speech import FRAMES_PER_SYMBOL, make_batch, make_task
from train import sharding
from train.ema import EmaSpec
from train.mesh import build_mesh
from train.optim import OptimSpec, make_optimizer
from train.state import create
from train.step import make_train_step
from train.task import StepContext, Task

TEXTS = ["ab cd ef", "gh ab", "cd", "ef gh ab c"]
KEY = jax.random.key(3)
CONTEXT = StepContext(step=jnp.int32(0), ema={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("assets")


@pytest.fixture(scope="module")
def task(folder):
    return make_task(folder)


@pytest.fixture(scope="module")
def variables(task):
    """Fresh weights, shaken so that zero-initialised layers do something."""
    fresh = jax.jit(task.init)(KEY)
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(KEY, len(leaves))
    return jax.tree.unflatten(
        tree, [a + 0.2 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    )


@pytest.fixture(scope="module")
def loss(task):
    """(variables, batch, key) -> the flow term and the metrics; compiled once for each shape."""
    compiled = jax.jit(lambda variables, batch, key: task.loss(variables, batch, key, CONTEXT))

    def run(variables, batch, key=KEY):
        output = compiled(variables, batch, key)
        return output.terms["flow"], output.metrics

    return run


@pytest.fixture(scope="module")
def evaluate(task):
    return jax.jit(task.evaluate)


def test_it_is_a_task_whose_every_parameter_has_a_rule(task):
    assert isinstance(task, Task) and task.unit == "frames"
    abstract = task.network.abstract()["params"]
    _, coverage = sharding.param_specs(task.axes(), abstract, build_mesh({"data": -1}))
    assert not coverage.unmatched


def test_loss_does_not_depend_on_padding(loss, variables, folder):
    short, _ = loss(variables, make_batch(folder, TEXTS))
    long, _ = loss(variables, make_batch(folder, TEXTS, frames=72, symbols=20))
    np.testing.assert_allclose(long.sum, short.sum, rtol=1e-5)
    assert float(long.weight) == float(short.weight)


def test_microbatches_and_order_add_up_to_the_whole(loss, variables, folder):
    batch = make_batch(folder, TEXTS)
    whole, metrics = loss(variables, batch)
    parts = [loss(variables, {k: v[rows] for k, v in batch.items()})[0] for rows in ([2, 0], [1, 3])]
    np.testing.assert_allclose(sum(p.sum for p in parts), whole.sum, rtol=1e-5)
    assert float(sum(p.weight for p in parts)) == float(whole.weight)
    np.testing.assert_allclose(sum(pair[0] for pair in metrics.values()), whole.sum, rtol=1e-5)


def test_filling_rows_count_nothing(loss, evaluate, variables, folder):
    batch = make_batch(folder, TEXTS)
    batch["mask"] = np.array([1, 0, 1, 0], np.float32)
    other = {k: v.copy() for k, v in batch.items()}
    other["mel"][[1, 3]] = 5.0
    other["mel_lengths"][[1, 3]] = 7
    results = [(loss(variables, b)[0], evaluate(variables, b, KEY)["loss"]) for b in (batch, other)]
    for (a_sum, a_weight, *_), (b_sum, b_weight, *_) in zip(*results, strict=True):
        np.testing.assert_allclose(a_sum, b_sum, rtol=1e-6)
        assert float(a_weight) == float(b_weight) > 0


def test_evaluation_is_the_mean_over_its_buckets_and_repeats_itself(evaluate, variables, folder):
    batch = make_batch(folder, TEXTS)
    first, again = evaluate(variables, batch, KEY), evaluate(variables, batch, KEY)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, again))
    assert len(first) == 6 and all(float(v[1]) > 0 for v in first.values())
    means = [float(v[0] / v[1]) for name, v in first.items() if name != "loss"]
    assert float(first["loss"][0] / first["loss"][1]) == pytest.approx(np.mean(means), rel=1e-5)


def test_a_network_that_knows_nothing_has_the_loss_of_chance(task, loss, folder):
    """Fresh output layers are zero, so the velocity's mean square is what is left: about Var(data) + Var(noise)."""
    batch, fresh = make_batch(folder, TEXTS), jax.jit(task.init)(KEY)
    terms = [loss(fresh, batch, jax.random.key(i))[0] for i in range(12)]
    inside = np.arange(batch["mel"].shape[1]) < batch["mel_lengths"][:, None]
    square = np.square((batch["mel"][inside] - task.mean) / task.std).mean()
    assert float(sum(t.sum for t in terms) / sum(t.weight for t in terms)) == pytest.approx(square + 1.0, rel=0.05)


def test_dropout_changes_the_loss_and_belongs_to_the_row(folder, loss, variables):
    batch = make_batch(folder, TEXTS)
    dropping = jax.jit(lambda batch: make_task(folder, dropout=0.5).loss(variables, batch, KEY, CONTEXT).terms["flow"])
    on, off = dropping(batch), loss(variables, batch)[0]
    assert abs(float(on.sum / off.sum) - 1.0) > 1e-3
    parts = [dropping({k: v[rows] for k, v in batch.items()}) for rows in ([3, 0], [2, 1])]
    np.testing.assert_allclose(sum(p.sum for p in parts), on.sum, rtol=1e-5)


def test_normalised_mel_is_padded_with_zeros_and_comes_back(task, folder):
    batch = make_batch(folder, TEXTS)
    normal = task.normalise(batch["mel"], batch["mel_lengths"])
    outside = np.arange(batch["mel"].shape[1]) >= batch["mel_lengths"][:, None]
    assert float(jnp.abs(normal[outside]).max()) == 0.0
    np.testing.assert_allclose(task.denormalise(normal)[~outside], batch["mel"][~outside], atol=1e-5)
    plain = make_task(folder, normalise=False)
    np.testing.assert_array_equal(plain.normalise(batch["mel"], batch["mel_lengths"]), batch["mel"])


def test_units_are_real_frames_and_flops_are_close_to_the_compilers_count(task, variables, folder):
    batch = make_batch(folder, TEXTS, frames=64)
    batch["mask"][3] = 0.0
    assert task.units(batch) == FRAMES_PER_SYMBOL * sum(len(t) for t in TEXTS[:3])
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
    large = make_task(folder, dim=128)  # large enough for products to outweigh the rest
    forward = jax.jit(lambda v, b: large.infill_network(v, 64).predict(
        b["mel"], b["mel"], jnp.zeros((4, 64, 16)), jnp.float32(0.5), b["mel_lengths"]
    ))  # fmt: skip
    cost = forward.lower(large.network.abstract(), shapes).compile().cost_analysis()
    assert cost is not None
    assert large.flops(shapes) / 3.0 == pytest.approx(cost["flops"], rel=0.35)


def train_step(task, batch, *, steps: int, lr: float):
    spec = OptimSpec(lr=lr, optimizer="muon", schedule="cosine", warmup_steps=10)
    abstract = jax.eval_shape(task.init, KEY)["params"]
    optimizer = make_optimizer(spec, abstract, steps=steps, axes=task.axes())
    averages = [EmaSpec(decay=0.98)]
    step = jax.jit(make_train_step(task, optimizer, seed=0, ema=averages), donate_argnums=0)
    state = jax.jit(lambda: create(task, optimizer, seed=0, ema=averages))()
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_eight_utterances_are_learned_and_spoken(tmp_path, prediction):
    """After two hundred steps on eight clips, infilling from the text gives their mel back."""
    texts = ["ab cd ef", "gh ab cd", "cd ef gh", "ef gh ab", "ab ef cd", "gh cd ab", "cd ab gh", "ef ab gh"]
    task = make_task(tmp_path, dim=64, depth=2, prediction=prediction, max_weight=5.0)
    batch = make_batch(tmp_path, texts, frames=32, symbols=8)
    before = jax.jit(task.evaluate)(jax.jit(task.init)(KEY), batch, KEY)["loss"]
    state, _ = train_step(task, batch, steps=200, lr=4e-3)
    variables = state.variables("0.98")
    after = jax.jit(task.evaluate)(variables, batch, KEY)["loss"]
    assert float(after[0] / after[1]) < 0.2 * float(before[0] / before[1])
    truth, made, known, lengths, _ = task._sample(variables, batch, KEY)
    for i in range(2):
        hidden = slice(int(known[i]), int(lengths[i]))
        assert float(jnp.abs(truth[i, hidden] - made[i, hidden]).mean()) < 0.5, "log-mel, where patterns differ by 6"
