"""Optimiser: AdamW's arithmetic against float64, groups, clips, decay, and the errors of a wrong table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import UserError
from tests.train.toy import ToyTask
from train.optim import OptimSpec, make_optimizer
from train.schedule import make_schedule
from train.trees import flatten

CONSTANT = OptimSpec(lr=0.1, schedule="constant", clip_norm=0.0)


@pytest.fixture(scope="module")
def params():
    """The toy task's parameters."""
    return ToyTask().init(jax.random.key(0))["params"]


def gradients(params, step, size=1.0):
    """Random gradients with some tiny entries, where Adam divides by almost nothing."""
    r = np.random.default_rng([step, 11])
    return jax.tree.map(
        lambda p: jnp.float32(size * r.normal(size=p.shape) * 10.0 ** r.integers(-6, 1, p.shape)), params
    )


def torch_adamw(p, grads, lrs, *, decay, clip, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.AdamW after clip_grad_norm_, written out in float64 over flat dicts."""
    p = {k: np.float64(v) for k, v in p.items()}
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v = {k: np.zeros_like(x) for k, x in p.items()}
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        g = {k: np.float64(x) for k, x in g.items()}
        norm = np.sqrt(sum((x**2).sum() for x in g.values()))
        factor = min(1.0, clip / (norm + 1e-6))
        for k in p:
            x = g[k] * factor
            p[k] = p[k] * (1 - lr * decay)
            m[k] = b1 * m[k] + (1 - b1) * x
            v[k] = b2 * v[k] + (1 - b2) * x**2
            p[k] = p[k] - lr / (1 - b1**t) * m[k] / (np.sqrt(v[k] / (1 - b2**t)) + eps)
    return p


def test_six_updates_equal_torch(params):
    """The release's recipe: clip 1, decay 0.01 on everything, warm-up of 3 from 1e-8, linear to 1e-8 at 9."""
    spec = OptimSpec(lr=1e-3, weight_decay=0.01, clip_norm=1.0, schedule="linear", warmup_steps=3, final_lr_ratio=1e-8)
    optimizer = make_optimizer(spec, params, steps=9)
    update = jax.jit(optimizer.update)
    state, p, history = optimizer.init(params), params, []
    for step in range(6):
        grads = gradients(params, step)
        updates, state, info = update(grads, state, p, jnp.int32(step))
        p = jax.tree.map(jnp.add, p, updates)
        history.append(flatten(grads))
    lr = make_schedule("linear", 1e-3, total=9, warmup=3, final_ratio=1e-8)
    expected = torch_adamw(flatten(params), history, [lr(n) for n in range(6)], decay=0.01, clip=1.0)
    for path, value in flatten(p).items():
        np.testing.assert_allclose(value, expected[path], atol=2e-7, err_msg=path)
    assert float(info["lr"]) == pytest.approx(6.6666667e-4, rel=1e-5)


def test_state_is_plain_dicts_of_arrays(params):
    optimizer = make_optimizer(OptimSpec(optimizer="muon"), params, steps=5, axes=ToyTask().axes())
    state = optimizer.init(params)
    paths = set(flatten(state))
    assert {"default/muon/mu/blocks/up/kernel", "default/adamw/mu/embed/bias", "default/adamw/count"} <= paths
    _, new, _ = jax.eval_shape(optimizer.update, gradients(params, 0), state, params, jnp.int32(0))
    assert jax.tree.structure(new) == jax.tree.structure(state) and isinstance(new["default"]["adamw"], dict)


def test_groups_have_their_own_rule_rate_and_clip(params):
    groups = {
        "blocks": {"match": "blocks/.*", "optimizer": "muon", "lr": 0.02, "muon_scale": "shape"},
        "head": {"match": "out/.*", "optimizer": "sgd", "momentum": 0.0, "lr": 0.5, "clip_norm": 0.1},
    }
    optimizer = make_optimizer(CONSTANT, params, steps=5, groups=groups, axes=ToyTask().axes())
    grads = gradients(params, 0, size=5.0)
    updates, _, info = jax.jit(optimizer.update)(grads, optimizer.init(params), params, jnp.int32(0))
    assert [float(info[k]) for k in ("lr", "lr/blocks", "lr/head")] == pytest.approx([0.1, 0.02, 0.5])
    # SGD without momentum: minus the rate times the gradient, clipped by the group's own norm.
    head = np.asarray(grads["out"]["kernel"])
    assert float(info["grad_norm/head"]) == pytest.approx(np.linalg.norm(head), rel=1e-6)
    np.testing.assert_allclose(updates["out"]["kernel"], -0.5 * head * 0.1 / np.linalg.norm(head), rtol=1e-4)
    # Muon: orthogonal directions of length lr * sqrt(out / in) in every layer of the stack.
    values = np.linalg.svd(np.asarray(updates["blocks"]["up"]["kernel"]), compute_uv=False)
    assert values.shape == (2, 16) and (values > 0.5 * 0.02 * 2**0.5).all() and (values < 1.3 * 0.02 * 2**0.5).all()
    # Everything else by AdamW, whose first update has the size of the rate.
    assert float(jnp.abs(updates["embed"]["bias"]).max()) == pytest.approx(0.1, rel=1e-3)
    assert "blocks/up/bias      blocks   adamw  no decay" in optimizer.report and "group head:" in optimizer.summary


def test_groups_without_own_clip_are_clipped_together(params):
    spec = dataclasses.replace(CONSTANT, optimizer="sgd", momentum=0.0, clip_norm=1.0)
    split = make_optimizer(spec, params, steps=5, groups={"b": {"match": "blocks/.*"}})
    whole = make_optimizer(spec, params, steps=5)
    grads = gradients(params, 0)
    one, *_ = jax.jit(split.update)(grads, split.init(params), params, jnp.int32(0))
    two, *_ = jax.jit(whole.update)(grads, whole.init(params), params, jnp.int32(0))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    norm = np.sqrt(sum(float((u**2).sum()) for u in jax.tree.leaves(one)))
    assert norm == pytest.approx(0.1, rel=1e-5)


def test_decay_by_path(params):
    spec = dataclasses.replace(CONSTANT, weight_decay=0.5, decay_match=".*kernel")
    optimizer = make_optimizer(spec, params, steps=5)
    zero = jax.tree.map(jnp.zeros_like, params)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, *_ = jax.jit(optimizer.update)(zero, optimizer.init(ones), ones, jnp.int32(0))
    for path, u in flatten(updates).items():
        np.testing.assert_allclose(u, -0.05 if path.endswith("kernel") else 0.0, rtol=1e-6, err_msg=path)


def test_muon_leaves_embeddings_convolutions_and_vectors_to_adamw():
    params = {
        name: jnp.ones(shape) for name, shape in [("a", (4, 6)), ("s", (3, 4, 6)), ("c", (3, 4, 6)), ("v", (9, 4))]
    }
    axes = [
        ("a", ("embed", "mlp")),
        ("s", ("layers", "embed", "mlp")),
        ("c", ("conv", "embed", "embed")),
        ("v", ("vocab", "embed")),
    ]
    (group,) = make_optimizer(OptimSpec(optimizer="muon"), params, steps=5, axes=axes).groups
    assert group.rules == {"muon": ("a", "s"), "adamw": ("c", "v")}
    (group,) = make_optimizer(OptimSpec(optimizer="muon", muon_lr_ratio=2.0), params, steps=5).groups
    assert group.rules == {"muon": ("a", "v"), "adamw": ("s", "c")}  # without axes: matrices only


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": {"match": "blocks/.*"}, "b": {"match": ".*bias"}}, "blocks/up/bias is matched by a and b"),
        ({"a": {"match": "block"}}, "matches no parameter"),
        ({"a": {"match": "blocks/.*", "learning_rate": 1.0}}, "a.learning_rate is not a key"),
        ({"a": {"match": "("}}, "not a regular expression"),
        ({"a": {"match": "blocks/.*", "optimizer": "adam"}}, "'adam' is not known"),
        ({"default": {"match": "blocks/.*"}}, "name is taken"),
    ],
)
def test_mistakes_are_named(params, groups, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(CONSTANT, params, steps=5, groups=groups)


def test_a_decay_regex_that_matches_nothing_is_an_error(params):
    with pytest.raises(UserError, match="decay_match='kernel' matches no parameter"):
        make_optimizer(dataclasses.replace(CONSTANT, weight_decay=0.1, decay_match="kernel"), params, steps=5)
