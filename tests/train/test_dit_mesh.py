"""The F5-TTS network on every mesh: three steps on eight fake devices equal three steps on one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.dit import AXES, DiT
from models.functional import functional
from tests.train.toy import assemble, assert_close, run
from train import rng, sharding
from train.mesh import build_mesh
from train.optim import OptimSpec
from train.task import LossOutput, Term

SIZES = {"dim": 32, "depth": 2, "heads": 8, "dim_head": 8, "ff_mult": 2, "mel_dim": 8, "text_num_embeds": 15}
OPTIONS = {"text_dim": 16, "conv_layers": 2, "conv_pos_groups": 4, "qk_norm": "rms_norm", "dropout": 0.1}
ROWS, FRAMES = 8, 32


class DiTTask:
    """Predicts the noise in a noisy mel; variable lengths, padded rows of text, dropout."""

    def __init__(self) -> None:
        self.model = functional(lambda rngs: DiT(**SIZES, **OPTIONS, rngs=rngs))

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Parameters moved away from AdaLN-zero, where most gradients vanish."""
        variables = self.model.init(key)
        leaves, tree = jax.tree.flatten(variables)
        keys = jax.random.split(key, len(leaves))
        moved = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(tree, moved)

    def axes(self) -> Any:
        """The model's own rules."""
        return AXES

    def loss(self, variables: Any, batch: Any, key: jax.Array, ctx: Any) -> LossOutput:
        """Mean squared error over the frames of each row's own length."""
        keys = jax.vmap(functools.partial(jax.random.split, num=2))(rng.per_example(key, batch["index"]))
        noise = jax.vmap(lambda k: jax.random.normal(k, batch["mel"].shape[1:]))(keys[:, 0])
        time = jax.vmap(jax.random.uniform)(keys[:, 1])
        x = batch["mel"] + noise
        out, stats = self.model.apply(variables, x, batch["mel"], batch["text"], time, batch["lengths"])
        inside = jnp.arange(x.shape[1]) < batch["lengths"][:, None]
        error = jnp.where(inside[..., None], out - noise, 0.0)
        return LossOutput({"noise": Term(jnp.square(error).sum(), inside.sum() * x.shape[-1])}, {}, stats)


def batch(step: int) -> dict[str, np.ndarray]:
    """Random mels and texts."""
    r = np.random.default_rng(step)
    text = r.integers(0, SIZES["text_num_embeds"], (ROWS, 12))
    text[np.arange(12) >= r.integers(3, 13, (ROWS, 1))] = -1
    return {
        "mel": r.normal(size=(ROWS, FRAMES, SIZES["mel_dim"])).astype(np.float32),
        "text": text.astype(np.int32),
        "lengths": r.integers(FRAMES // 2, FRAMES + 1, ROWS).astype(np.int32),
        "index": np.arange(ROWS, dtype=np.int32),
    }


@functools.cache
def three_steps(optimizer: str, sizes: tuple[tuple[str, int], ...], accumulate: int = 1) -> Any:
    """State and metrics on the host."""
    spec = OptimSpec(optimizer=optimizer, lr=1e-3, schedule="constant", weight_decay=0.01)
    devices = int(np.prod([size for _, size in sizes]))
    step, state = assemble(DiTTask(), dict(sizes), devices=devices, spec=spec, ema=(), accumulate=accumulate)
    return jax.device_get(run(step, state, [batch(n) for n in range(3)]))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((("data", 8),), marks=pytest.mark.slow),
        pytest.param((("fsdp", 8),), marks=pytest.mark.slow),
        pytest.param((("tensor", 8),), marks=pytest.mark.slow),
        pytest.param((("data", 1), ("sequence", 8)), marks=pytest.mark.slow),
        pytest.param((("fsdp", 2), ("tensor", 2), ("sequence", 2)), marks=pytest.mark.slow),
    ],
    ids=lambda sizes: "-".join(f"{name}{size}" for name, size in sizes if size > 1),
)
def test_eight_devices_equal_one(sizes):
    """Adam divides by the gradients' size, so near-zero gradients keep their direction only to rounding: hence atol."""
    state, history = three_steps("adamw", sizes)
    one, expected = three_steps("adamw", (("data", 1),))
    assert_close(history, expected, rtol=1e-5, atol=1e-6)
    assert_close(state.params, one.params, rtol=1e-5, atol=2e-5)


@pytest.mark.slow
def test_muon_and_accumulation_on_a_mesh_equal_one_device():
    state, history = three_steps("muon", (("data", 2), ("fsdp", 2), ("tensor", 2)), 2)
    one, expected = three_steps("muon", (("data", 1),))
    assert_close(history, expected, rtol=1e-5, atol=1e-6)
    assert_close(state.params, one.params, rtol=1e-5, atol=2e-5)


def test_every_parameter_has_a_rule():
    params = jax.eval_shape(DiTTask().init, jax.random.key(0))["params"]
    _, coverage = sharding.param_specs(AXES, params, build_mesh({"fsdp": 2, "tensor": 4}, jax.devices()[:8]))
    assert not coverage.unmatched
    assert set(coverage.unused) == {"long_skip/kernel"}  # an option that is off here
