"""Durations: padding changes nothing, a linear rule is learned, and the reference's pace carries over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from models.duration import DurationModel, log_error
from models.functional import functional

MODEL = functional(lambda rngs: DurationModel(6, dim=32, layers=1, width=3, rngs=rngs))


def total(variables, text):
    return MODEL.apply(variables, text, method="total")[0]


def texts(seed, rows, symbols, vocab=6):
    """Rows of random symbols, of random lengths from 4 on, padded with -1."""
    r = np.random.default_rng(seed)
    lengths = r.integers(4, symbols + 1, rows)
    ids = r.integers(0, vocab, (rows, symbols))
    return np.where(np.arange(symbols) < lengths[:, None], ids, -1).astype(np.int32)


@pytest.fixture(scope="module")
def learned():
    """Trained where every symbol takes its own number of frames and 5 are silence."""
    rule = np.array([2.0, 4.0, 7.0, 9.0, 12.0, 20.0], np.float32)

    def frames(text):
        return np.where(text >= 0, rule[np.maximum(text, 0)], 0.0).sum(-1) + 5.0

    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, 400))
    variables = jax.jit(MODEL.init)(jax.random.key(0))

    def step(carry, batch):
        params, state = carry
        grads = jax.grad(lambda p: jnp.square(log_error(total({"params": p, "stats": {}}, batch[0]), batch[1])).mean())(
            params
        )
        updates, state = optimiser.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    text = texts(0, 400 * 32, 16)
    batches = (text.reshape(400, 32, 16), frames(text).reshape(400, 32).astype(np.float32))
    params = variables["params"]
    (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, optimiser.init(p)), batches))(params)
    return {"params": params, "stats": {}}, frames


def test_a_linear_rule_is_learned(learned):
    variables, frames = learned
    text = texts(1, 64, 16)
    before = np.asarray(total(MODEL.init(jax.random.key(0)), text)) / frames(text)
    after = np.asarray(total(variables, text)) / frames(text)
    assert np.abs(np.log(after)).mean() < 0.03 < 0.1 < np.abs(np.log(before)).mean()


def test_padding_changes_nothing(learned):
    variables, _ = learned
    text = texts(2, 8, 10)
    longer = np.pad(text, ((0, 0), (0, 7)), constant_values=-1)
    np.testing.assert_allclose(total(variables, longer), total(variables, text), rtol=1e-6)
    frames = np.asarray(MODEL.apply(variables, longer)[0])
    assert (frames[longer < 0] == 0).all() and (frames[longer >= 0] > 0).all()


def test_a_slow_reference_gives_slow_speech(learned):
    variables, frames = learned
    text = texts(3, 8, 12)
    symbols = (text >= 0).sum(-1) // 2
    known = frames(np.where(np.arange(12) < symbols[:, None], text, -1))
    pace = jax.jit(lambda f: MODEL.apply(variables, text, symbols, f, method="pace")[0])
    new = np.asarray(pace(known))
    np.testing.assert_allclose(new, frames(text) - known, rtol=0.15)
    np.testing.assert_allclose(pace(2.0 * known), 2.0 * new, rtol=1e-5)
    np.testing.assert_allclose(pace(0.0 * known), frames(text) - known, rtol=0.15)
