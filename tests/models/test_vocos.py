"""Vocos: the golden waves, rows that do not see padding, and names that go there and back."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from launch.verify import f5_vocoders
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.convert import vocoders
from models.functional import functional
from models.vocoders.vocos import LARGEST, Vocos

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "f5_tts"
NAMES = list(json.loads((GOLDEN / "config.json").read_text())["vocos"])


def test_golden_waves():
    report = Report(quiet=True)
    f5_vocoders.check(GoldenFolder(GOLDEN), report)
    assert len(report.rows) == 4 * len(NAMES) and not report.failed, report.failed


@pytest.mark.parametrize("padding, scan", [("center", True), ("same", False)])
def test_a_padded_batch_equals_its_rows_alone(padding, scan):
    model = functional(
        lambda rngs: Vocos(
            mel_dim=6, n_fft=32, hop=8, dim=8, hidden=12, depth=2, padding=padding, scan_layers=scan, rngs=rngs
        )
    )
    r = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: a + 0.3 * r.normal(size=a.shape), jax.jit(model.init)(jax.random.key(0)))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(32) / 32)
    lengths = np.array([20, 11, 1])
    mel = r.normal(size=(3, 20, 6)).astype(np.float32)
    run = jax.jit(lambda v, m, n: model.apply(v, m, n, hann)[0])
    waves = run(variables, mel, lengths)
    other = run(variables, np.where(np.arange(20)[:, None] < lengths[:, None, None], mel, 1e3), lengths)
    np.testing.assert_array_equal(waves, other, "what lies in the padding counts")
    for i, n in enumerate(lengths):
        alone = np.asarray(run(variables, mel[i : i + 1, :n], lengths[i : i + 1]))[0]
        assert len(alone) == ((n - 1) * 8 if padding == "center" else n * 8)
        np.testing.assert_allclose(waves[i, : len(alone)], alone, atol=2e-5 * max(np.abs(waves).max(), 1))
        assert not np.any(waves[i, len(alone) :])


def test_magnitudes_are_clipped_with_finite_gradients():
    model = functional(lambda rngs: Vocos(mel_dim=2, n_fft=8, hop=2, dim=4, hidden=4, depth=1, rngs=rngs))
    params = jax.jit(model.init)(jax.random.key(0))["params"]
    params["head"]["bias"] = jnp.full(10, 200.0)  # exp(200) is beyond float32
    wave = lambda p: model.apply({"params": p}, jnp.ones((1, 5, 2)), None, jnp.ones(8))[0]  # noqa: E731
    assert np.abs(jax.jit(wave)(params)).max() <= LARGEST
    gradients = jax.jit(jax.grad(lambda p: jnp.square(wave(p)).sum()))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", NAMES)
def test_official_names_come_back(name):
    official = load_file(GOLDEN / f"{name}.safetensors")
    model = f5_vocoders.network(json.loads((GOLDEN / "config.json").read_text())["vocos"][name])
    params, report = vocoders.read(GOLDEN / f"{name}.safetensors", model.abstract()["params"])
    again = vocoders.to_official(params)
    assert set(again) == set(report.used) == set(official) - set(report.dropped)
    assert len(report.dropped) == 3
    for key, value in again.items():
        np.testing.assert_array_equal(value, official[key])


def test_what_does_not_fit_is_named():
    official = load_file(GOLDEN / f"{NAMES[0]}.safetensors")
    abstract = f5_vocoders.network(json.loads((GOLDEN / "config.json").read_text())["vocos"][NAMES[0]]).abstract()[
        "params"
    ]
    wrong = official | {"head.out.bias": official["head.out.bias"][1:], "colour": np.ones(1, np.float32)}
    wrong["backbone.norm.weight"] = np.full_like(official["backbone.norm.weight"], np.nan)
    del wrong["backbone.embed.bias"]
    with pytest.raises(ValueError) as error:
        vocoders.from_official(wrong, abstract)
    for part in ("missing backbone.embed.bias", "head.out.bias has shape", "NaN or infinity in backbone.norm.weight"):
        assert part in str(error.value)
    assert "unexpected colour" in str(error.value)


def test_the_released_size():
    from configs.vocos import get_config

    sizes = {k: v for k, v in get_config("mel_24khz").model.items() if k != "type"}
    model = functional(lambda rngs: Vocos(mel_dim=100, n_fft=1024, hop=256, **sizes, rngs=rngs))
    assert sum(leaf.size for leaf in jax.tree.leaves(model.abstract())) == 13_531_650
