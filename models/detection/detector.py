"""A detector that denoises boxes: backbone, pyramid, dynamic head (DiffusionDet, ConsistencyDet)."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from models.detection import fpn, head
from models.detection.fpn import FPN
from models.detection.head import DynamicHead
from models.detection.layers import inside
from models.layers.axes import Rules, under
from models.layers.conv import zero_outside


def axes(backbone: Callable[..., nnx.Module] | None) -> Rules:
    """Logical axes of a detector over this backbone (a class, or a ``functools.partial`` of one, in a module with
    ``AXES``)."""
    rules = [*under("head", head.AXES), *under("fpn", fpn.AXES)]
    if backbone is None:
        return rules
    return [*rules, *under("backbone", sys.modules[getattr(backbone, "func", backbone).__module__].AXES)]


class Detector(nnx.Module):
    """Images once (``features``), then boxes as often as there are steps (``head``).

    Args:
      num_classes: one sigmoid each.
      backbone: constructor of a network (images, size, key) -> maps, with ``channels`` and ``strides``, such as
        ``models.detection.resnet.ResNet``; it is given ``dtype`` and ``rngs``.  None = features come from elsewhere.
      head: constructor of the head, ``DynamicHead`` with options; it is given what it shares with the rest.
      dim: width of pyramid and head.
      levels: how many of the pyramid's levels boxes are pooled from, the finest ones; None = all.
      dtype: type of matrix products; parameters, boxes and logits are float32.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        backbone: Callable[..., Any] | None = None,
        head: Callable[..., DynamicHead] = DynamicHead,
        dim: int = 256,
        levels: int | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"num_classes": num_classes, "dim": dim, "dtype": dtype, "rngs": rngs}
        self.backbone = None if backbone is None else backbone(dtype=dtype, rngs=rngs)
        if self.backbone is None:
            self.fpn = None
        else:
            self.fpn = FPN(self.backbone.channels, dim, levels=levels, dtype=dtype, rngs=rngs)
            options["strides"] = self.backbone.strides[:levels]
        self.head = head(**options)

    def __call__(
        self,
        images: jax.Array,
        boxes: jax.Array,
        time: jax.Array,
        size: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """``features``, then ``head``: logits [S, b, n, K] and boxes [S, b, n, 4] of every stage."""
        return self.head(self.features(images, size, key), boxes, time, size)

    def features(
        self, images: jax.Array, size: jax.Array | None = None, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """The pyramid, which sampling computes once for all steps.

        Args:
          images: [b, H, W, 3] normalised, then zero-padded; H and W multiples of the coarsest stride.
          size: [b, 2] real (height, width): a padded image then has the features, and the boxes, of the image alone.
            None = padding belongs to the image, as in the releases.
          key: of the backbone's randomness, if it has any; one key, or one per row [b].

        Returns:
          levels [b, H/4, W/4, dim], [b, H/8, W/8, dim], …
        """
        if self.backbone is None or self.fpn is None:
            raise ValueError("this detector has no backbone: give features to `head`")
        images = zero_outside(images, inside(size, 1, images.shape))
        return self.fpn(self.backbone(images, size, key), self.backbone.strides, size)
