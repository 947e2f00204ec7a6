"""Small detectors for tests."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.detection.detector import Detector
from models.detection.head import DynamicHead
from models.detection.resnet import ResNet
from models.detection.small import SmallBackbone
from models.detection.swin import Swin
from models.functional import Functional, functional

HEAD = functools.partial(DynamicHead, stages=3, heads=2, hidden=24, dynamic_dim=4, resolution=3, canonical_size=48.0)
BACKBONES: dict[str, Callable[..., Any]] = {
    "resnet": functools.partial(ResNet, depths=(2, 1, 3), width=4, freeze_at=2),
    "swin": functools.partial(Swin, dim=8, depths=(2, 4), heads=(2, 2), window=3, drop_path=0.5),
    "small": functools.partial(SmallBackbone, widths=(8, 12), depths=(1, 1)),
}


def head(**options: Any) -> Functional:
    """Without a backbone; two levels of 16 channels."""
    make = functools.partial(HEAD, **{"num_classes": 5, "dim": 16, "strides": (4, 8), **options})
    return functional(lambda rngs: make(rngs=rngs))


def detector(backbone: str, **options: Any) -> Functional:
    return functional(
        lambda rngs: Detector(num_classes=5, backbone=BACKBONES[backbone], head=HEAD, dim=16, rngs=rngs, **options)
    )


def randomised(model: Functional, seed: int = 0) -> dict[str, Any]:
    """Variables of which no part is silent; variances are positive."""
    r = np.random.default_rng(seed)

    def leaf(path, a):
        name = path[-1].key
        if name == "kernel":
            return jnp.asarray(r.normal(size=a.shape) * (1.5 / a.shape[-2]) ** 0.5, a.dtype)
        value = r.normal(size=a.shape) * 0.2
        return jnp.asarray(np.exp(value) if name in ("scale", "var") else value, a.dtype)

    return jax.tree_util.tree_map_with_path(leaf, model.abstract())


def scene(batch: int = 2, boxes: int = 6, seed: int = 1, size: tuple[int, int] = (48, 64)):
    """(images, boxes, time); every box has an area."""
    r = np.random.default_rng(seed)
    low = r.uniform(-4, 40, (batch, boxes, 2))
    corners = np.concatenate([low, low + r.uniform(3, 30, (batch, boxes, 2))], -1)
    images = r.normal(size=(batch, *size, 3))
    return images.astype(np.float32), corners.astype(np.float32), r.uniform(0, 1000, batch).astype(np.float32)


def pyramid(batch: int = 2, seed: int = 2) -> list[np.ndarray]:
    r = np.random.default_rng(seed)
    return [r.normal(size=(batch, *shape, 16)).astype(np.float32) for shape in ((12, 16), (6, 8))]


def check_axes(rules, params) -> None:
    """Every parameter meets exactly one rule, of its own rank."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name = "/".join(k.key for k in path)
        fitting = [axes for pattern, axes in rules if re.fullmatch(pattern, name)]
        assert len(fitting) == 1, f"{name} matches {len(fitting)} rules"
        assert len(fitting[0]) == leaf.ndim, f"{name} has shape {leaf.shape}, its rule {fitting[0]}"
