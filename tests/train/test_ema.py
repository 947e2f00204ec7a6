"""Averages: the release's decays and order of operations, exact copies, several rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.errors import UserError
from train import ema
from train.ema import EmaSpec

RELEASE = EmaSpec(0.9999, update_after_step=100, update_every=10)


def test_decays_of_the_release():
    golden = {
        **dict.fromkeys((0, 1, 50, 100, 101), 0.0),
        102: 0.3700394630432129,
        103: 0.5192501544952393,
        110: 0.78455650806427,
        200: 0.9535841345787048,
        1000: 0.9892723560333252,
        5000: 0.9965336918830872,
        20000: 0.9986382722854614,
        100000: 0.9995355606079102,
        400000: 0.9998157620429993,
        1000000: 0.9998999834060669,
        2000000: 0.9998999834060669,
    }
    traced = jax.jit(lambda n: ema.decay_at(RELEASE, n))
    for counter, expected in golden.items():
        assert float(ema.decay_at(RELEASE, counter)) == pytest.approx(expected, abs=1e-6), counter
        assert float(traced(np.int32(counter))) == pytest.approx(expected, abs=1e-6), counter


def reference(spec, values):
    """ema-pytorch's ``update`` in float64: reads its counter, increments it, copies or moves on multiples."""
    average, history = None, []
    for n, value in enumerate(values):
        if n % spec.update_every == 0:
            if average is None or n <= spec.update_after_step:
                average = value
            else:
                decay = ema.decay_at(spec, n + 1)
                average = decay * average + (1 - decay) * value
        history.append(average)
    return history


@pytest.mark.parametrize(
    "spec", [EmaSpec(0.9), EmaSpec(0.5, 3, 2), EmaSpec(0.9999, 1, 2), EmaSpec(0.99, 4, 1, 0.75, 2.0)]
)
def test_equals_the_reference_loop(spec):
    values = np.random.default_rng(0).normal(size=12)
    state = ema.init({"w": jnp.float32(0)}, [spec])
    step = jax.jit(lambda s, p, n: ema.update(s, p, n, [spec]))
    for n, (value, expected) in enumerate(zip(values, reference(spec, values), strict=True)):
        state = step(state, {"w": jnp.float32(value)}, jnp.int32(n))
        assert float(state[spec.name]["w"]) == pytest.approx(expected, abs=1e-6)
        if n <= spec.update_after_step and n % spec.update_every == 0:
            assert state[spec.name]["w"] == jnp.float32(value)  # a copy, to the last bit


def test_copies_are_real():
    params = {"w": jnp.ones(3)}
    copies = ema.init(params, [EmaSpec(0.9), EmaSpec(0.99)])
    addresses = {x.unsafe_buffer_pointer() for x in [params["w"], *(tree["w"] for tree in copies.values())]}
    assert sorted(copies) == ["0.9", "0.99"] and len(addresses) == 3


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"decays holds 1\.5"):
        EmaSpec(1.5)
    with pytest.raises(UserError, match="update_every"):
        EmaSpec(0.9, update_every=0)
