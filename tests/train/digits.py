"""Small networks for digits, as the configs of ``configs/digits_flow.py`` build them."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import digits_flow
from train.assemble import plain
from train.components import bind, build
from train.task import Variables
from train.tasks.images import ImageTask


def make(variant: str, assets: Path, **task: Any) -> tuple[ImageTask, Variables]:
    """The task of a variant with a tiny network and random numbers for all parameters.

    Args:
      task: keys of the config's task section to replace.
    """
    config = digits_flow.get_config(variant)
    with config.unlocked():
        config.model.dim, config.model.depth, config.model.heads = 16, 1, 2
        config.task.update(task)
    config = json.loads(json.dumps(plain(config)))
    built = build(config["task"], "task", model=bind(config["model"], "model"), assets=str(assets))
    random = np.random.default_rng(0)  # zero-initialised parts would hide mistakes
    params = jax.tree.map(lambda p: jnp.asarray(0.2 * random.normal(size=p.shape), p.dtype), built.abstract()["params"])
    return built, {"params": params, "stats": {}}
