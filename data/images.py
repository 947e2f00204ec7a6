"""Batches of labelled images (arrays of one shape) as a pure function of the step, and the numbers that scale them."""

import json
import sys
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.keyed import permute
from data.pipeline import Batch, host_rows

ASSET = "images.json"


class Shuffled:
    """``source[step]`` -> this host's rows of the global batch of that step: every image once in each pass.

    Args:
      images, labels: [n, ...], [n].
      rows: of the global batch.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, rows: int, seed: int, host_index: int = 0, host_count: int = 1
    ):
        self._images, self._labels, self._rows, self._seed = images, labels, rows, seed
        self._place = host_index, host_count

    def __len__(self) -> int:
        return sys.maxsize  # endless; grain wants a length

    def __getitem__(self, step: int) -> Batch:
        rows, size = np.array(host_rows(self._rows, *self._place)), len(self._images)
        number = int(step) * self._rows + rows
        chosen = permute(number % size, size, self._seed, "image", number // size)
        real = np.ones(len(rows), np.float32)
        return {
            "image": self._images[chosen],
            "label": self._labels[chosen],
            "index": rows.astype(np.int32),
            "mask": real,
        }


def in_order(
    images: np.ndarray, labels: np.ndarray, rows: int, host_index: int = 0, host_count: int = 1
) -> list[Batch]:
    """Every image once; the last batch is filled up with rows of mask 0, which repeat the last image."""
    mine = np.array(host_rows(rows, host_index, host_count))
    batches = []
    for start in range(0, len(images), rows):
        place = start + mine
        real, chosen = place < len(images), np.minimum(place, len(images) - 1)
        batch = {"image": images[chosen], "label": labels[chosen]}
        batches.append(batch | {"index": mine.astype(np.int32), "mask": real.astype(np.float32)})
    return batches


def save_statistics(folder: str | Path, images: np.ndarray, classes: int) -> None:
    """Writes ``images.json``: shape, number of classes, mean and deviation of the pixels [n, ...]."""
    # Six digits: enough, and the same on machines whose libraries round differently.
    mean, std = (round(float(number), 6) for number in (images.mean(dtype=np.float64), images.std(dtype=np.float64)))
    content = {"shape": images.shape[1:], "classes": classes, "mean": mean, "std": std}
    (Path(folder) / ASSET).write_text(json.dumps(content) + "\n", encoding="utf-8")


def load_statistics(folder: str | Path) -> tuple[tuple[int, ...], int, float, float]:
    """(shape of an image, number of classes, mean, deviation) that ``save_statistics`` wrote.

    Raises:
      UserError: there is no such file, or it is not one.
    """
    path = Path(folder) / ASSET
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return tuple(content["shape"]), int(content["classes"]), float(content["mean"]), float(content["std"])
    except FileNotFoundError:
        raise UserError(f"{path}: not found; is this the assets folder of a run on images?") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what a run on images writes: {error}") from error
