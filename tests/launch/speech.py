"""A run folder of the tiny speech model, untrained, as training would leave it."""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from data.audio import save_wav
from tests.train.speech import SPEC, WORDS, write_assets
from train.checkpoint import CheckpointStore
from train.components import bind
from train.tasks.speech import SpeechTask

CONFIG = {
    "task": {"type": "train.tasks.speech:SpeechTask", "normalise": True, "prediction": "data"},
    "model": {
        "type": "models.dit:DiT", "dim": 32, "depth": 1, "heads": 2, "dim_head": 16, "ff_mult": 2, "text_dim": 16,
        "conv_layers": 1, "conv_pos_kernel": 7, "conv_pos_groups": 32, "text_average_upsampling": True,
    },
    "data": {"type": "data.speech:SpeechData"},
    "precision": {"compute": "float32"},
}  # fmt: skip


def make_workdir(folder: Path, *, checkpoint: bool = True, texts: Sequence[str] = WORDS) -> Path:
    """config.json, assets/ for the symbols of ``texts`` and, if asked for, checkpoints/7 with shaken random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_assets(folder / "assets", texts)
    if checkpoint:
        task = SpeechTask(bind(CONFIG["model"], "model"), folder / "assets", **_options())
        r = np.random.default_rng(0)
        fresh = jax.jit(task.init)(jax.random.key(0))
        shaken = jax.tree.map(lambda a: np.asarray(a) + 0.1 * r.normal(size=a.shape).astype(np.float32), fresh)
        store = CheckpointStore(folder / "checkpoints")
        store.save(7, {"params": shaken["params"], "stats": shaken["stats"]}, {"evaluate_with": "raw"})
        store.close()
    return folder


def make_clip(path: Path, seconds: float = 0.6) -> Path:
    """A wav with some structure."""
    t = np.arange(int(seconds * SPEC.sample_rate)) / SPEC.sample_rate
    save_wav(path, 0.3 * np.sin(2 * np.pi * 440 * t * (1 + 0.2 * t)), SPEC.sample_rate)
    return path


def _options() -> dict:
    return {key: value for key, value in CONFIG["task"].items() if key != "type"}
