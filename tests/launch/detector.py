"""A stand-in for a trained detector: it finds the painted boxes of ``tests.data.coco_folder`` by their colour."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.detection_spec import DetectionSpec
from launch.conversion.folder import write_folder
from tests.data.coco_folder import COLOURS


class Detections(NamedTuple):
    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array


class ColourTask:
    """``detect`` like that of a real task.  Boxes are off by up to the parameter's number of pixels, less with more
    steps; without merging a false detection is added."""

    def __init__(self, assets: str):
        self.spec = DetectionSpec.load(assets)

    def abstract(self):
        return {"params": {"shift": jax.ShapeDtypeStruct((), jnp.float32)}, "stats": {}}

    def detect(self, variables, images, sizes, keys, *, steps: int, proposals: int, merge: bool) -> Detections:
        close = jnp.abs(images[:, None].astype(jnp.int32) - COLOURS[:, None, None].astype(np.int32)).max(-1) < 128
        across, down = close.any(2), close.any(3)  # [b, K, W], [b, K, H]
        first, last = (lambda a: a.argmax(-1)), (lambda a: a.shape[-1] - a[..., ::-1].argmax(-1))
        boxes = jnp.stack([first(across), first(down), last(across), last(down)], axis=-1).astype(jnp.float32)
        # A key's own bits are random enough, and compile at once.
        noise = jax.random.key_data(keys).astype(jnp.float32) / 2.0**31 - 1.0
        boxes += variables["params"]["shift"] / steps * jnp.tile(noise, 2)[:, None]
        valid = close.any((2, 3))
        scores = jnp.where(valid, 0.9 - 0.1 * jnp.arange(3), 0.0)
        wrong = jnp.broadcast_to(jnp.array([-5.0, -5.0, 9.0, 9.0]), (len(boxes), 1, 4))
        scores = jnp.pad(scores, ((0, 0), (0, 1)), constant_values=0.95)
        valid = jnp.pad(valid, ((0, 0), (0, 1)), constant_values=not merge)
        labels = jnp.broadcast_to(jnp.array([0, 1, 2, 0]), scores.shape)
        found = (jnp.concatenate([boxes, wrong], axis=1), scores, labels, valid)
        return Detections(*(jnp.pad(a, [(0, 0), (0, proposals - 4), (0, 0)][: a.ndim]) for a in found))


def network() -> None:
    """The run folder's model section has to name something."""


def make_workdir(folder: Path, spec: DetectionSpec, shift: float = 0.0, data: dict | None = None) -> Path:
    """A run folder of the stand-in."""
    config = {
        "task": {"type": "tests.launch.detector:ColourTask"},
        "model": {"type": "tests.launch.detector:network"},
        "data": data or {},
    }
    variables = {"params": {"shift": np.float32(shift)}, "stats": {}}
    write_folder(folder, json.loads(json.dumps(config)), spec.save, variables, step=1)
    return folder
