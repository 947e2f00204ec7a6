"""What a detector cannot be used without: its classes, and the sizes of the images it was trained on."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.boxes import fit
from data.buckets import optimal_bounds
from data.coco import Categories
from data.errors import UserError

ASSET = "detection.json"
MULTIPLE = 32  # sides of a canvas: the coarsest level of the pyramid has whole pixels

Canvas = tuple[int, int]  # height, width of a static shape that images are put into, in its upper left corner


@dataclasses.dataclass(frozen=True)
class DetectionSpec:
    """Classes and sizes.

    Attributes:
      categories: of the training set.
      short, longest: images are resized until the shorter side is ``short``, unless the longer one would be over
        ``longest``.
      canvases: the static shapes.
    """

    categories: Categories
    short: int
    longest: int
    canvases: tuple[Canvas, ...]

    def save(self, folder: str | Path) -> None:
        """Writes ``detection.json``."""
        content = {
            "classes": [
                {"id": id, "name": name, "images": images}
                for name, id, images in zip(*dataclasses.astuple(self.categories), strict=True)
            ],
            "short": self.short,
            "longest": self.longest,
            "canvases": self.canvases,
        }
        (Path(folder) / ASSET).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "DetectionSpec":
        """What ``save`` wrote into ``folder``.

        Raises:
          UserError: there is no such file, or it is not one.
        """
        path = Path(folder) / ASSET
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            classes = [(str(c["name"]), int(c["id"]), int(c["images"])) for c in content["classes"]]
            canvases = tuple((int(h), int(w)) for h, w in content["canvases"])
            return cls(
                Categories(*zip(*classes, strict=True)), int(content["short"]), int(content["longest"]), canvases
            )
        except FileNotFoundError:
            raise UserError(f"{path}: not found; is this the assets folder of a detector?") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not what a detector's run writes: {error}") from error

    def canvas(self, height: int, width: int) -> Canvas:
        """The smallest of the shapes that holds an image of this size once resized; a new one where none does."""
        size = fit(height, width, self.short, self.longest)
        fitting = [c for c in self.canvases if c[0] >= size[0] and c[1] >= size[1]]
        return min(fitting, key=lambda c: c[0] * c[1]) if fitting else rounded(size)


def choose_canvases(sizes: Sequence[tuple[int, int]], short: int, longest: int, shapes: int) -> list[Canvas]:
    """At most ``shapes`` static shapes for images (height, width), with as little padding as can be.

    Wide and tall images have shapes of their own; the bounds of the longer side are optimal for each of the two
    (``data.buckets``), and how many shapes each gets is the best of all divisions.
    """
    resized = np.array([rounded(fit(*size, short, longest)) for size in sizes])
    wide = resized[:, 1] >= resized[:, 0]
    parts = [part for part in (resized[wide], resized[~wide]) if len(part)]
    shapes = max(shapes, len(parts))
    divisions = [(shapes,)] if len(parts) == 1 else [(k, shapes - k) for k in range(1, shapes)]
    choices = [[c for p, k in zip(parts, ks, strict=True) for c in _bounds(p, k)] for ks in divisions]
    best = min(choices, key=lambda canvases: _area(resized, canvases))
    return [best[i] for i in np.unique(smallest(resized, best))]  # all of one may fit into a smaller other


def smallest(sizes: np.ndarray, canvases: Sequence[Canvas]) -> np.ndarray:
    """[n] which canvas has the least area of those that hold each size [n, 2]; len(canvases) where none does."""
    shapes = np.array(canvases)
    area = np.where((sizes[:, None] <= shapes[None]).all(-1), shapes.prod(-1).astype(float), np.inf)
    return np.where(np.isfinite(area).any(1), area.argmin(1), len(canvases))


def rounded(size: tuple[int, int]) -> Canvas:
    """Both sides up to the next multiple of 32."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in size)
    return height, width


def _bounds(sizes: np.ndarray, shapes: int) -> list[Canvas]:
    """Canvases for sizes [n, 2] that are all wide or all tall, by the longer side."""
    longer = sizes.max(1)
    bounds = optimal_bounds(longer, shapes)
    group = np.searchsorted(bounds, longer)
    return [(int(h), int(w)) for h, w in (sizes[group == i].max(0) for i in range(len(bounds)))]


def _area(sizes: np.ndarray, canvases: Sequence[Canvas]) -> float:
    return float(np.array(canvases).prod(-1)[smallest(sizes, canvases)].sum())
