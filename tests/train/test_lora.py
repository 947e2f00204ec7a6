"""LoRA: nothing changes until it is trained, only it is trained, and what is saved stands alone."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import UserError
from tests.train.test_checkpoint import arrays_of
from tests.train.toy import ToyTask, assert_close
from tests.train.toy_config import get_config
from train import lora, sharding, trees
from train.checkpoint import read_meta, restore_variables
from train.console import Console
from train.lora import LoraSpec, LoraTask
from train.mesh import build_mesh
from train.preempt import STOPS, Preemption, signal
from train.run import train
from train.task import StepContext, Task

KEY = jax.random.key(0)
SPEC = LoraSpec(rank=4, alpha=8.0, match="blocks/.*/kernel", train="embed/bias")
SECTION = {f"lora.{name}": value for name, value in dataclasses.asdict(SPEC).items()}


@pytest.fixture(scope="module")
def task():
    return ToyTask()


@pytest.fixture(scope="module")
def base(task):
    return jax.jit(task.init)(KEY)


@pytest.fixture(scope="module")
def adapted(task):
    return LoraTask(task, SPEC)


def shaken(variables):
    """The same with factors that do something."""
    noise = np.random.default_rng(0)
    factors = jax.tree.map(
        lambda a: a + 0.1 * noise.normal(size=a.shape).astype(np.float32), variables["params"]["lora"]
    )
    return {**variables, "params": {**variables["params"], "lora": factors}}


def test_a_fresh_update_is_the_base_exactly(task, base, adapted):
    variables = jax.jit(adapted.adapt)(base, KEY)
    assert isinstance(adapted, Task)
    assert sorted(variables["params"]["lora"]["blocks"]) == ["down", "up"]
    assert list(trees.flatten(variables["params"]["own"])) == ["embed/bias"]
    sums = lora.merged(variables, SPEC.scale)
    assert jax.tree.structure(sums) == jax.tree.structure(base)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), sums, base))
    batch = task.make_batch(0)
    ours, theirs = (jax.jit(t.evaluate)(v, batch, KEY) for t, v in ((adapted, variables), (task, base)))
    np.testing.assert_array_equal(ours["error"], theirs["error"])


def test_merging_equals_two_thin_products_beside_the_kernel():
    r = np.random.default_rng(1)
    kernel, a, b, x = (r.normal(size=s).astype(np.float32) for s in ((3, 16, 24), (3, 16, 4), (3, 4, 24), (3, 7, 16)))
    merged = lora.merge({"block": {"kernel": kernel}, "bias": x}, {"block": {"kernel": {"a": a, "b": b}}}, 0.5)
    np.testing.assert_allclose(x @ merged["block"]["kernel"], x @ kernel + 0.5 * (x @ a) @ b, rtol=1e-4, atol=1e-4)
    assert merged["bias"] is x


def test_only_the_update_has_gradients_and_the_models_statistics_move(task, base, adapted):
    variables = shaken(jax.jit(adapted.adapt)(base, KEY))
    context = StepContext(step=jnp.int32(0), ema={})
    batch = task.make_batch(0)

    def loss(params):
        out = adapted.loss({"params": params, "stats": variables["stats"]}, batch, KEY, context)
        return out.terms["fit"].sum, out.stats

    (value, stats), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    plain = jax.jit(lambda v: task.loss(v, batch, KEY, context))(lora.merged(variables, SPEC.scale))
    np.testing.assert_allclose(value, plain.terms["fit"].sum, rtol=1e-5)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
    assert jax.tree.structure(stats) == jax.tree.structure(variables["stats"])
    assert float(stats["model"]["seen"]) == float(plain.stats["seen"]) > 0


def test_factors_and_base_are_split_as_the_kernel_is(adapted):
    variables = jax.eval_shape(adapted.init, KEY)
    mesh = build_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs, coverage = sharding.param_specs(adapted.axes(), variables["params"], mesh)
    assert not coverage.unmatched
    assert tuple(specs["lora"]["blocks"]["up"]["kernel"]["a"]) == (None, "fsdp")
    assert tuple(specs["lora"]["blocks"]["up"]["kernel"]["b"]) == (None, None, "tensor")
    base, _ = sharding.param_specs(adapted.axes(), variables["stats"], mesh)
    assert tuple(base["base"]["blocks"]["up"]["kernel"]) == (None, "fsdp", "tensor")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": -1}, "rank >= 0"),
        ({"match": "nothing"}, "lora.match='nothing' matches no parameter; .* such as embed/kernel"),
        ({"match": "("}, "not a regular expression"),
        ({"match": "embed/bias", "train": ""}, "embed/bias of shape .* no matrix"),
        ({"rank": 9, "match": "embed/kernel"}, "rank=9 is more than embed/kernel"),
        ({"match": "embed/kernel", "train": "embed/.*"}, "embed/kernel is matched by both"),
    ],
)
def test_mistakes_are_named(task, changes, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(LoraTask(task, dataclasses.replace(SPEC, **changes)).init, KEY)


def config(**changes):
    c = get_config()
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base run, and a LoRA run begun from it."""
    base, fine = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("fine")
    assert train(config(steps=6), base, console=Console(io.StringIO())) is None
    assert train(config(steps=10, **SECTION), fine, init_from=base, console=Console(io.StringIO())) is None
    return base, fine


def test_a_run_trains_the_update_alone_and_its_checkpoint_stands_alone(runs, task):
    base, fine = runs
    theirs, ours = arrays_of(base, 6), arrays_of(fine, 10)
    for path in (p for p in ours if p.startswith("stats/base/")):
        np.testing.assert_array_equal(ours[path], theirs[path.replace("stats/base/", "ema/0.9/")])
    moments = {p for p in ours if p.startswith("opt_state/")}
    assert moments and all("/lora/" in p or "/own/" in p or p.endswith("count") for p in moments)
    assert any(np.abs(ours[p]).max() > 0 for p in ours if p.startswith("params/lora") and p.endswith("/b"))
    assert read_meta(fine / "checkpoints" / "10")["lora"] == {"scale": 2.0}

    variables, _ = restore_variables(fine, jax.eval_shape(task.init, KEY))  # as every command does
    held = trees.unflatten(
        {p.replace("ema/0.9", "params"): a for p, a in ours.items() if p.startswith(("ema/0.9/", "stats"))}
    )
    assert_close(variables, lora.merged(held, SPEC.scale))
    raw, _ = restore_variables(fine, params="raw")
    assert (
        float(np.abs(raw["params"]["blocks"]["up"]["kernel"] - variables["params"]["blocks"]["up"]["kernel"]).max()) > 0
    )


def test_it_goes_on_bit_for_bit_without_the_base(runs, tmp_path, monkeypatch):
    base, fine = runs
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "check", lambda self, step: STOPS[signal.SIGTERM] if step == 6 else None)
        assert train(config(steps=10, **SECTION), tmp_path, init_from=base) == STOPS[signal.SIGTERM]
    assert train(config(steps=10, **SECTION), tmp_path) is None
    whole, cut = arrays_of(fine, 10), arrays_of(tmp_path, 10)
    assert whole.keys() == cut.keys()
    for path, a in whole.items():
        assert a.tobytes() == cut[path].tobytes(), path


def test_the_sum_begins_another_run(runs, tmp_path):
    _, fine = runs
    assert train(config(steps=1, **{"optim.lr": 0.0, "optim.warmup_steps": 0}), tmp_path, init_from=fine) is None
    variables, _ = restore_variables(fine)
    assert_close(restore_variables(tmp_path)[0]["params"], variables["params"])


def test_lora_needs_a_base(tmp_path):
    with pytest.raises(UserError, match="--init_from"):
        train(config(**SECTION), tmp_path)
