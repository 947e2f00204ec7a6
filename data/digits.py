"""scikit-learn's handwritten digits, 8 x 8 pixels: the smallest images worth generating, inside an installed package.

1797 images of the UCI optical digits (Alpaydin and Kaynak 1998), 16 grey levels.  Which of them are held out is fixed
for ever, so that every model and every judge of models was trained on the same 1200 and the others are new to all.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data.cache import cache_root, made_once
from data.errors import UserError
from data.images import Shuffled, in_order, save_statistics
from data.keyed import permute

SHAPE, CLASSES = (8, 8, 1), 10
TRAIN = 1200  # the other 597 are held out
WHITE = 16  # the largest grey level


class Digits(tfds.core.GeneratorBasedBuilder):
    """``{"image" uint8 [8, 8, 1] of 0..16, "label" int64}`` in splits "train" and "test", without TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, **kwargs: Any):
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=SHAPE, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
        features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=CLASSES)})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        images, labels = _installed()
        order = permute(np.arange(len(images)), len(images), "digits")
        parts = {"train": np.sort(order[:TRAIN]), "test": np.sort(order[TRAIN:])}
        return {name: self._generate_examples(images[part], labels[part]) for name, part in parts.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}


def load_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 8, 8, 1] float32 in [-1, 1] (ink is 1) and labels [n] int32 of "train" (1200) or "test" (597).

    Raises:
      UserError: scikit-learn is not installed, or the cache cannot be written.
    """
    folder = made_once(cache_root() / "digits", f"digits/{Digits.VERSION}/dataset_info.json", _write)
    builder: Any = Digits(data_dir=str(folder))
    records = list(builder.as_data_source(split=split))
    images = np.stack([record["image"] for record in records]).astype(np.float32)
    return images * (2.0 / WHITE) - 1.0, np.array([record["label"] for record in records], np.int32)


@dataclasses.dataclass(frozen=True)
class Report:
    """What the data holds; ``str`` of it is for people."""

    train: int
    held_out: int
    rows: int

    def __str__(self) -> str:
        return (
            f"digits of scikit-learn: {self.train} images to train on, {self.held_out} held out\n"
            f"  batches of {self.rows}; a pass over the data is {self.train / self.rows:.1f} steps"
        )


class DigitsData:
    """Batches ``{"image" [B, 8, 8, 1] float32 in [-1, 1], "label" [B] int32, "index" [B] int32, "mask" [B] float32}``.

    Args:
      batch: rows of a global batch.
      seed: of the order.
      host_index, host_count: this process's part of every global batch.
      row_multiple: the rows of every global batch must be a multiple of this.

    Attributes:
      train: ``train[step]`` is this host's part of the batch of that step.
      evaluation: this host's parts of the held-out batches, filling rows marked by mask 0.
      shapes, report: see ``train.assemble.Data``.

    Raises:
      UserError: scikit-learn is missing, or rows that cannot be divided.
    """

    def __init__(
        self, batch: int = 128, seed: int = 0, host_index: int = 0, host_count: int = 1, row_multiple: int = 1
    ):
        if batch < 1 or batch % row_multiple or batch % host_count:
            raise UserError(f"config.data.batch={batch}: expected a multiple of {row_multiple} (devices x accumulate)")
        images, labels = load_split("train")
        held_out = load_split("test")
        place, self._images = (host_index, host_count), images
        self.train = Shuffled(images, labels, batch, seed, *place)
        self.evaluation = in_order(*held_out, batch, *place)
        whole = {"image": (batch, *images.shape[1:]), "label": (batch,), "index": (batch,), "mask": (batch,)}
        types = {name: array.dtype for name, array in self.train[0].items()}
        self.shapes = [{name: (shape, types[name]) for name, shape in whole.items()}]
        self.report = Report(len(images), len(held_out[0]), batch)

    def write_assets(self, folder: str) -> None:
        """Writes ``images.json``: shape, number of classes, mean and deviation of the training pixels."""
        save_statistics(folder, self._images, CLASSES)


def _installed() -> tuple[np.ndarray, np.ndarray]:
    """All images uint8 [1797, 8, 8, 1] and labels, in the package's order."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise UserError(
            'the digits are inside scikit-learn, which is not installed: pip install -e ".[images]"'
        ) from None
    found: Any = load_digits()
    return found.images.astype(np.uint8)[..., None], found.target


def _write(folder: Path) -> None:
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it announces a download
        Digits(data_dir=str(folder)).download_and_prepare()
