"""Public vocoders become folders that the pipelines load, and what does not fit leaves nothing behind."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from configs import vocos
from data.audio import MelSpec
from data.errors import UserError
from launch.conversion.vocoder import convert_vocoder
from launch.pipelines.vocoders import load_vocoder
from models.convert.vocoders import to_official
from models.functional import functional
from tests.models.torch_archive import Raw, write_torch
from train.components import bind

ROOT = Path(__file__).parents[2]


def config(variant: str) -> ConfigDict:
    """A released variant, made small."""
    c = vocos.get_config(variant)
    if variant == "bigvgan_v2":
        c.model.channels = 64
        c.model.widths, c.model.dilations = (3,), (1,)
    else:
        c.model.dim, c.model.hidden, c.model.depth = 8, 12, 2
    return c


def weights(c: ConfigDict) -> dict[str, np.ndarray]:
    model, r = bind(c.model.to_dict(), "model"), np.random.default_rng(0)
    network = functional(lambda rngs: model(mel_dim=100, n_fft=1024, hop=256, rngs=rngs))
    random = jax.tree.map(lambda a: (0.1 * r.normal(size=a.shape)).astype(np.float32), network.abstract()["params"])
    return to_official(random)


@pytest.mark.parametrize("variant, kind, samples", [("mel_24khz", "vocos", 2304), ("bigvgan_v2", "bigvgan", 2560)])
def test_a_released_file_becomes_a_folder_that_loads(tmp_path, variant, kind, samples):
    tensors = weights(config(variant))
    if kind == "vocos":
        tensors["head.istft.window"] = np.ones(1024, np.float32)
        file = write_torch(tmp_path / "pytorch_model.bin", tensors)
    else:
        file = write_torch(tmp_path / "bigvgan_generator.pt", {"generator": tensors})
    lines = convert_vocoder(config(variant), str(file), str(tmp_path / "out"))
    assert lines[0].startswith("used ") and f"mel type {kind}" in lines[1]
    vocoder = load_vocoder(tmp_path / "out", MelSpec(kind))
    assert vocoder.samples(10) == samples
    mel, keys = np.random.default_rng(1).normal(size=(1, 10, 100)), jax.random.split(jax.random.key(0), 1)
    waves = np.asarray(vocoder(mel, np.array([10]), keys))
    assert waves.shape == (1, samples) and waves.any() and np.isfinite(waves).all()
    with pytest.raises(UserError, match="another mel, with kind"):
        load_vocoder(tmp_path / "out", MelSpec("vocos" if kind == "bigvgan" else "bigvgan"))


def test_what_does_not_fit_leaves_nothing_behind(tmp_path):
    tensors = weights(config("mel_24khz"))
    out = tmp_path / "out"
    for name, broken in (
        ("missing head.out.bias", {k: v for k, v in tensors.items() if k != "head.out.bias"}),
        ("backbone.embed.weight has shape", tensors | {"backbone.embed.weight": np.ones((8, 80, 7), np.float32)}),
        ("NaN or infinity in backbone.norm.bias", tensors | {"backbone.norm.bias": np.full(8, np.nan, np.float32)}),
    ):
        save_file(broken, tmp_path / "a.safetensors")
        with pytest.raises(UserError, match=name):
            convert_vocoder(config("mel_24khz"), str(tmp_path / "a.safetensors"), str(out))
    evil = write_torch(tmp_path / "evil.pt", {"generator": Raw(b"cos\nsystem\n(X\x02\x00\x00\x00lstR")})
    with pytest.raises(UserError, match=r"asks for os\.system"):
        convert_vocoder(config("bigvgan_v2"), str(evil), str(out))
    with pytest.raises(UserError, match="no such file"):
        convert_vocoder(config("bigvgan_v2"), str(tmp_path / "none.pt"), str(out))
    assert not out.exists()


@pytest.mark.slow
def test_the_command(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file(weights(config("mel_24khz")), file)
    small = ["--config.model.dim=8", "--config.model.hidden=12", "--config.model.depth=2"]
    command = [sys.executable, "-m", "launch.run_convert", "--config=configs/vocos.py:mel_24khz", *small]
    done = subprocess.run(
        [*command, f"--checkpoint={file}", f"--out={tmp_path / 'out'}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "missing 0" in done.stdout and (tmp_path / "out" / "assets" / "mel.json").is_file()
