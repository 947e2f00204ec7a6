"""Boxes in numpy, and views: what of an image is seen, how large, and where its boxes lie then.

Every augmentation is one ``View``: a window of the stored image, resampled once, perhaps mirrored.  Pixels and boxes go
through the same view, so they cannot part.  Boxes are [n, 4] (left, top, right, bottom) in pixels; the pixel in the
corner covers (0, 0, 1, 1).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from data.keyed import uniform
from data.pixels import resized

SMALLEST = 1e-5  # sides at or below it are none (detectron2's threshold)


def from_xywh(boxes: np.ndarray) -> np.ndarray:
    """(left, top, width, height), as in COCO's files, to corners."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Corners to (left, top, width, height)."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def clip(boxes: np.ndarray, height: float | np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """The part of each box inside the image (or each its own, sides [n]); of a box outside, nothing but border."""
    return np.clip(boxes, 0, np.stack([width, height, width, height], axis=-1))


def areas(boxes: np.ndarray) -> np.ndarray:
    """[n]; 0 where a side is negative."""
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def pairwise_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, m] intersection over union, 0 for boxes without area."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=-1)
    return both / np.maximum(areas(a)[:, None] + areas(b)[None] - both, np.finfo(np.float64).tiny)


def fit(height: int, width: int, short: float, longest: float) -> tuple[int, int]:
    """(height, width) with the shorter side at ``short``, unless the longer one would exceed ``longest``."""
    scale = min(short / min(height, width), longest / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


@dataclasses.dataclass(frozen=True)
class View:
    """A window of an image at a new size.

    Attributes:
      window: (left, top, right, bottom) in pixels of the image.
      height, width: of what is seen.
      mirrored: left and right change places.
    """

    window: tuple[float, float, float, float]
    height: int
    width: int
    mirrored: bool = False

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """[height, width, 3] uint8 out of [h, w, 3] uint8."""
        seen = resized(image, self.window, self.height, self.width)
        return seen[:, ::-1] if self.mirrored else seen

    def boxes(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where boxes [n, 4] lie in the view, cut at its edges: [n, 4] float32; and which are in it at all: [n]."""
        left, top, right, bottom = self.window
        scale = np.array([self.width / (right - left), self.height / (bottom - top)] * 2)
        moved = (boxes - np.array([left, top, left, top])) * scale
        if self.mirrored:
            moved = np.stack([self.width - moved[:, 2], moved[:, 1], self.width - moved[:, 0], moved[:, 3]], axis=1)
        moved = clip(moved, self.height, self.width).astype(np.float32)
        return moved, np.all(moved[:, 2:] - moved[:, :2] > SMALLEST, axis=1)

    def undo(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [..., 4] of the view in pixels of the image; nothing is cut."""
        if self.mirrored:
            x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)
            boxes = np.stack([self.width - x2, y1, self.width - x1, y2], axis=-1)
        left, top, right, bottom = self.window
        scale = np.array([(right - left) / self.width, (bottom - top) / self.height] * 2)
        return boxes * scale + np.array([left, top, left, top])


def whole(height: int, width: int, short: float, longest: float, mirrored: bool = False) -> View:
    """All of an image, at the size that ``fit`` gives."""
    return View((0, 0, width, height), *fit(height, width, short, longest), mirrored)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """DiffusionDet's, which is DETR's: mirrored or not; at a random scale, or that of a random piece.

    Attributes:
      flip: probability of a mirrored view.
      short: sizes that the shorter side may get.
      longest: most that the longer side may get.
      crop: probability of a piece instead of the whole.
      crop_short: sizes of the whole's shorter side from which the piece is cut.
      crop_range: smallest and largest side of the piece at that size.
    """

    flip: float = 0.5
    short: Sequence[int] = tuple(range(480, 801, 32))
    longest: int = 1333
    crop: float = 0.5
    crop_short: Sequence[int] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)

    def draw(self, height: int, width: int, canvas: tuple[int, int], *keys: int | str) -> View:
        """A view of an image of this size that is decided by ``keys`` and fits into ``canvas`` (height, width).

        A tall piece of a wide image may have to be smaller than ``short`` says, to fit.
        """
        u = uniform("view", *keys, np.arange(8))
        window = self._piece(height, width, u[3:]) if u[2] < self.crop else (0.0, 0.0, float(width), float(height))
        h, w = window[3] - window[1], window[2] - window[0]
        short = self.short[int(u[0] * len(self.short))]
        scale = min(short / min(h, w), self.longest / max(h, w), canvas[0] / h, canvas[1] / w)
        size = (min(max(1, int(side * scale + 0.5)), limit) for side, limit in zip((h, w), canvas, strict=True))
        return View(window, *size, mirrored=bool(u[1] < self.flip))

    def _piece(self, height: int, width: int, u: np.ndarray) -> tuple[float, float, float, float]:
        """A random window, in the image's own pixels; its sides are whole numbers where it is cut."""
        size = np.array(fit(height, width, self.crop_short[int(u[0] * len(self.crop_short))], np.inf))
        low, high = (np.minimum(size, limit) for limit in self.crop_range)
        piece = low + (u[1:3] * (high - low + 1)).astype(int)
        start = (u[3:5] * (size - piece + 1)).astype(int)
        own = np.array([height, width])
        top, left = start / size * own
        bottom, right = (start + piece) / size * own
        return float(left), float(top), float(right), float(bottom)
