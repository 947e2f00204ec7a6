"""BigVGAN against its definition written out in numpy (float64, one loop per tap), and the promises beyond it."""

import jax
import numpy as np
import pytest

from models.convert import vocoders
from models.functional import functional
from models.vocoders import bigvgan
from models.vocoders.bigvgan import BigVGAN
from tests.models.torch_archive import write_torch

SMALL = {"mel_dim": 5, "n_fft": 16, "hop": 8, "channels": 8, "rates": (4, 2), "rate_widths": (8, 4), "widths": (3, 5),
         "dilations": (1, 3)}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    model = functional(lambda rngs: BigVGAN(**SMALL, rngs=rngs))
    r = np.random.default_rng(0)
    variables = jax.jit(model.init)(jax.random.key(0))
    return model, jax.tree.map(lambda a: np.asarray(a + 0.1 * r.normal(size=a.shape), np.float32), variables)


def conv(x, weight, bias, dilation=1, stride=1, pad=None):
    """x [c_in, t], weight [c_out, c_in, k] -> [c_out, t']: torch's conv1d."""
    k = weight.shape[-1]
    pad = (k - 1) * dilation // 2 if pad is None else pad
    x = np.pad(x, ((0, 0), (pad, pad)))
    size = (x.shape[1] - (k - 1) * dilation - 1) // stride + 1
    out = np.zeros((weight.shape[0], size))
    for n in range(size):
        for j in range(k):
            out[:, n] += weight[:, :, j] @ x[:, n * stride + j * dilation]
    return out + (0 if bias is None else bias[:, None])


def transposed(x, weight, bias, stride, pad):
    """x [c_in, t], weight [c_in, c_out, k] -> [c_out, (t - 1)·stride - 2·pad + k]: torch's conv_transpose1d."""
    out = np.zeros((weight.shape[1], (x.shape[1] - 1) * stride + weight.shape[2]))
    for n in range(x.shape[1]):
        for j in range(weight.shape[2]):
            out[:, n * stride + j] += weight[:, :, j].T @ x[:, n]
    return out[:, pad : out.shape[1] - pad] + bias[:, None]


def activation(x, alpha, beta):
    """Up by two, snake, down by two, with the padding and cropping of the published filters."""
    taps = bigvgan.kaiser_sinc().astype(np.float64)
    channels = np.eye(len(x))
    wide = np.pad(x, ((0, 0), (5, 5)), mode="edge")
    up = 2 * transposed(wide, channels[:, :, None] * taps, np.zeros(len(x)), 2, 0)[:, 15:-15]
    alpha, beta = np.exp(alpha.astype(np.float64)), np.exp(beta.astype(np.float64))
    up = up + np.sin(alpha[:, None] * up) ** 2 / (beta[:, None] + 1e-9)
    return conv(np.pad(up, ((0, 0), (5, 6)), mode="edge"), channels[:, :, None] * taps, None, stride=2, pad=0)


def oracle(w, mel):
    """w: official tensors in float64; mel [t, m] -> wave [samples]."""
    x = conv(mel.T, w["conv_pre.weight"], w["conv_pre.bias"])
    widths = len(SMALL["widths"])
    for i, (rate, k) in enumerate(zip(SMALL["rates"], SMALL["rate_widths"], strict=True)):
        x = transposed(x, w[f"ups.{i}.0.weight"], w[f"ups.{i}.0.bias"], rate, (k - rate) // 2)
        total = 0.0
        for j in range(widths):
            block, y = f"resblocks.{i * widths + j}", x
            for n, dilation in enumerate(SMALL["dilations"]):
                act = [[w[f"{block}.activations.{2 * n + m}.act.{p}"] for p in ("alpha", "beta")] for m in range(2)]
                z = activation(y, *act[0])
                z = conv(z, w[f"{block}.convs1.{n}.weight"], w[f"{block}.convs1.{n}.bias"], dilation)
                z = activation(z, *act[1])
                y = y + conv(z, w[f"{block}.convs2.{n}.weight"], w[f"{block}.convs2.{n}.bias"])
            total = total + y
        x = total / widths
    x = activation(x, w["activation_post.act.alpha"], w["activation_post.act.beta"])
    return np.clip(conv(x, w["conv_post.weight"], None)[0], -1.0, 1.0)


def test_it_computes_its_definition(small):
    model, variables = small
    mel = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    official = {k: v.astype(np.float64) for k, v in vocoders.to_official(variables["params"]).items()}
    want = oracle(official, mel.astype(np.float64))
    got = np.asarray(jax.jit(lambda v, m: model.apply(v, m, None)[0])(variables, mel[None]))[0]
    assert got.shape == want.shape == (72,)
    assert np.abs(want).max() > 0.05 and (np.abs(want) < 1).mean() > 0.5, "a wave that is neither silent nor clipped"
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_a_padded_batch_equals_its_rows_alone(small):
    model, variables = small
    r, lengths = np.random.default_rng(2), np.array([12, 7, 1])
    mel = r.normal(size=(3, 12, 5)).astype(np.float32)
    run = jax.jit(lambda v, m, n: model.apply(v, m, n)[0])
    waves = np.asarray(run(variables, mel, lengths))
    for i, n in enumerate(lengths):
        alone = np.asarray(run(variables, mel[i : i + 1, :n], lengths[i : i + 1]))[0]
        np.testing.assert_allclose(waves[i, : 8 * n], alone, atol=1e-5)
        assert not waves[i, 8 * n :].any()


def test_filters_pass_low_tones_and_stop_what_would_fold():
    """Doubling then halving keeps a tone of a tenth of the rate; halving removes one that half the rate cannot hold."""
    taps, t = bigvgan.kaiser_sinc(), np.arange(400)
    assert taps.sum() == pytest.approx(1, abs=1e-6) and np.allclose(taps, taps[::-1])
    inner = slice(20, -20)
    low = np.sin(2 * np.pi * 0.1 * t).astype(np.float32)[None, :, None]
    again = np.asarray(bigvgan.halve(bigvgan.twice(low, taps), taps))
    np.testing.assert_allclose(again[0, inner], low[0, inner], atol=0.02)
    high = np.sin(2 * np.pi * 0.45 * t).astype(np.float32)[None, :, None]
    assert np.abs(np.asarray(bigvgan.halve(high, taps))[0, inner]).max() < 0.02
    np.testing.assert_allclose(bigvgan.twice(np.ones((1, 6, 2), np.float32), taps), np.ones((1, 12, 2)), atol=1e-3)


@pytest.mark.parametrize("names", [("weight_g", "weight_v"), vocoders.NORMED[1], None])
def test_released_files_are_read_with_weight_norm_folded(small, tmp_path, names):
    model, variables = small
    official = vocoders.to_official(variables["params"])
    stored, r = dict(official), np.random.default_rng(3)
    if names is not None:
        for name in [n for n in official if n.endswith(".weight")]:
            weight = stored.pop(name)
            size = np.sqrt(np.square(weight).sum((1, 2), keepdims=True))
            base = name.removesuffix("weight")
            stored |= {base + names[0]: size, base + names[1]: (weight * r.uniform(0.5, 2)).astype(np.float32)}
    stored["activation_post.upsample.filter"] = np.ones((1, 1, 12), np.float32)
    stored["resblocks.0.activations.0.downsample.lowpass.filter"] = np.ones((1, 1, 12), np.float32)
    params, report = vocoders.read(
        write_torch(tmp_path / "bigvgan_generator.pt", {"generator": stored}), model.abstract()["params"]
    )
    assert len(report.dropped) == 2 and set(report.used) == set(official)
    for key, value in vocoders.to_official(params).items():
        np.testing.assert_allclose(value, official[key], rtol=1e-6, atol=1e-9)


def test_the_released_size():
    """From the layers by hand: c_in · c_out · k + c_out for convolutions, two numbers per channel for activations."""
    from configs.vocos import get_config

    sizes = {k: v for k, v in get_config("bigvgan_v2").model.items() if k != "type"}
    model = functional(lambda rngs: BigVGAN(mel_dim=100, n_fft=1024, hop=256, **sizes, rngs=rngs))
    c, total = 1536, 100 * 1536 * 7 + 1536
    for k in (8, 8, 4, 4, 4, 4):
        total += c * (c // 2) * k + c // 2
        c //= 2
        total += sum(6 * (c * c * w + c) + 6 * 2 * c for w in (3, 7, 11))
    total += 2 * c + c * 7
    assert sum(leaf.size for leaf in jax.tree.leaves(model.abstract())) == total
    assert total == 112_414_512
