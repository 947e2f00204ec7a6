"""Every config builds: all keys are read, all parameters are covered by a sharding rule, nothing is allocated."""

import json
import math
import re
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import digits_flow, e2_tts, f5_tts
from data.audio import save_wav
from data.errors import UserError
from models.convert.f5_tts import official_shapes
from train.assemble import Parts, RunConfig, assemble, build_data, plain
from train.components import call
from train.mesh import build_mesh
from train.workdir import write_assets

# Parameters and tensors (the rotary buffer among them) of the releases, at their vocabulary of 2545 symbols.
RELEASED = {
    (f5_tts, "v1_base"): (337_096_804, 364),
    (f5_tts, "v0_base"): (337_096_804, 364),
    (f5_tts, "v1_small"): (159_228_772, 308),
    (f5_tts, "v0_small"): (159_228_772, 308),
    (e2_tts, "base"): (333_470_444, 363),
    (e2_tts, "small"): (157_161_708, 305),
}


@pytest.fixture(scope="module")
def speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of noise in LJSpeech layout, and a vocabulary of the released size."""
    folder = tmp_path_factory.mktemp("speech")
    (folder / "wavs").mkdir()
    lines = []
    for i, text in enumerate(("one two", "two three", "three four", "four five", "five six", "six seven")):
        wave = 0.1 * np.random.default_rng(i).standard_normal(24_000 + 2400 * i).astype(np.float32)
        save_wav(folder / "wavs" / f"{i}.wav", wave, 24_000)
        lines.append(f"{i}|{text}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    symbols = [" ", *"abcdefghijklmnopqrstuvwxyz"]
    symbols += [f"sym{i}" for i in range(2545 - len(symbols))]
    (folder / "vocab.txt").write_text("\n".join(symbols) + "\n")
    return folder


def build(config: ConfigDict, speech_folder: Path, assets: Path) -> Parts:
    """Everything of a run except its parameters, on a mesh of eight devices."""
    with config.unlocked():
        config.data.dir = str(speech_folder)
        config.data.eval_fraction = 0.3
        config.data.frames_per_batch, config.data.max_batch, config.data.buckets = 4096, 8, 1
    values = json.loads(json.dumps(plain(config)))
    run = call(RunConfig, values, "")
    mesh = build_mesh({"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1})
    data = build_data(run, mesh)
    return assemble(run, mesh, data.shapes, write_assets(assets, data.write_assets, check=False))


@pytest.mark.parametrize(("family", "variant"), [(f, v) for f in (f5_tts, e2_tts) for v in f.VARIANTS])
def test_variant_builds_abstractly(family: ModuleType, variant: str, speech_folder: Path, tmp_path: Path):
    config = family.get_config(variant)
    if config.model.dim > 512:
        config.data.tokenizer, config.data.vocab = "vocab", str(speech_folder / "vocab.txt")
    parts = build(config, speech_folder, tmp_path)
    found = re.search(r"sharding rules cover (\d+) of (\d+)", parts.summary)
    assert found and found[1] == found[2], parts.summary
    leaves = jax.tree.leaves(parts.abstract)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None for leaf in leaves)
    if (family, variant) in RELEASED:
        shapes = official_shapes(parts.abstract.params)
        assert (sum(map(math.prod, shapes.values())), len(shapes) + 1) == RELEASED[family, variant]


@pytest.mark.parametrize("variant", digits_flow.VARIANTS)
def test_digits_build_abstractly(variant: str, tmp_path: Path):
    config = digits_flow.get_config(variant)
    with config.unlocked():
        config.task.teacher = "folder" if variant == "cd" else ""
    run = call(RunConfig, json.loads(json.dumps(plain(config))), "")
    mesh = build_mesh({"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1})
    data = build_data(run, mesh)
    parts = assemble(run, mesh, data.shapes, write_assets(tmp_path, data.write_assets, check=False))
    found = re.search(r"sharding rules cover (\d+) of (\d+)", parts.summary)
    assert found and found[1] == found[2], parts.summary
    assert 0 < parts.task.flops(parts.task.example()) < 1e10


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match="no variant 'huge'; choose one of demo, spoken"):
        f5_tts.get_config("huge")


@pytest.mark.parametrize("section", ["model", "task", "data", "optim", "ema", "precision"])
def test_a_key_nobody_reads_is_an_error(section: str, speech_folder: Path, tmp_path: Path):
    config = f5_tts.get_config("tiny")
    with config.unlocked():
        config[section].colour = "blue"
    with pytest.raises(UserError, match="colour"):
        build(config, speech_folder, tmp_path)


def test_configs_are_locked():
    config = f5_tts.get_config("demo")
    with pytest.raises(AttributeError):
        config.learning_rate = 1.0
    with pytest.raises(TypeError):
        config.steps = "many"
