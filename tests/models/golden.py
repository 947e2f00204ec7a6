"""The golden F5-TTS models, rebuilt from their config and weights."""

import functools
import json
from pathlib import Path

import jax
import numpy as np

from models.convert import f5_tts
from models.functional import Functional

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "f5_tts"
VARIANTS = ("dit_v1", "dit_v0", "dit_extra", "dit_avgup", "dit_noconv")
OTHERS = ("unett", "unett_add", "mmdit")


def config() -> dict:
    return json.loads((GOLDEN / "config.json").read_text())


def load(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    return load("inputs")


@functools.cache
def build(name: str, padding: str = "exact", **options) -> tuple[Functional, dict]:
    """(model, variables) of a golden variant."""
    variant = config()["variants"][name]
    model = f5_tts.network(variant["backbone"], variant["kwargs"], padding, **options)
    params, _ = f5_tts.read(GOLDEN / variant["weights"], model.abstract()["params"])
    return model, {"params": jax.tree.map(jax.numpy.asarray, params)}


@functools.cache
def forward(name: str, padding: str = "exact"):
    """The jitted call of a golden variant, variables bound."""
    model, variables = build(name, padding)
    run = jax.jit(lambda v, *args: model.apply(v, *args)[0])
    return lambda *args: np.asarray(run(variables, *args))
