"""Scenes to learn detection from on any machine: real handwritten digits on photographs, written as a COCO folder.

The digits are scikit-learn's (``data.digits``), the photographs its two sample images.  Held-out scenes are made of
held-out digits, on a part of the photographs that training scenes do not show.  Everything random is a keyed hash of
(seed, split, number), so the same scenes come out on every machine.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.boxes import pairwise_iou, to_xywh
from data.cache import cache_root, made_once
from data.detection import DetectionData
from data.digits import CLASSES, load_split
from data.errors import UserError
from data.keyed import bits, uniform
from data.pixels import encode_png, resized

SPLITS = {"train": "train", "held_out": "test"}  # of scenes -> of digits
_SHOWN = 0.7  # share of the photographs' height, from the top, that training scenes show; held-out ones show the rest
_INK = 0.25  # what is less opaque does not count as part of the digit
_TRIES = 40  # places tried for a digit before it is left out


@dataclasses.dataclass(frozen=True)
class SceneSpec:
    """What scenes look like.

    Attributes:
      sizes: height and width are drawn from these, each for itself.
      digit: smallest and largest side of a digit's square, pixels; the box around its ink is narrower.
      objects: fewest and most digits.
      overlap: most that the boxes of two digits overlap (intersection over union).
      seed: of everything.
    """

    sizes: tuple[int, ...] = (64,)
    digit: tuple[int, int] = (14, 28)
    objects: tuple[int, int] = (1, 5)
    overlap: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.digit
        fewest, most = self.objects
        if not self.sizes or not 8 <= low <= high <= min(self.sizes):
            raise UserError(
                f"digits of {low} to {high} pixels in scenes of {self.sizes}: expected 8 <= low <= high <= size"
            )
        if not 0 <= fewest <= most or most < 1 or not 0 <= self.overlap <= 1:
            raise UserError(
                f"{fewest} to {most} digits, overlapping up to {self.overlap}: expected 0 <= fewest <= most, most > 0 "
                "and an overlap of 0 to 1"
            )


class Composer:
    """Draws the scenes of one split.

    Args:
      spec: what they look like.
      split: "train" or "held_out".
    """

    def __init__(self, spec: SceneSpec, split: str):
        images, self._labels = load_split(SPLITS[split])
        self._glyphs = (images[..., 0] + 1.0) / 2.0  # opacity
        self._photos = [_part(photo, split) for photo in _photographs()]
        self._spec, self._split = spec, split

    def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scene ``number``: [height, width, 3] uint8, boxes [n, 4] (whole pixels, corners) and labels [n]."""
        spec = self._spec
        draw = _draws("scene", spec.seed, self._split, number)
        height, width = (spec.sizes[int(next(draw) * len(spec.sizes))] for _ in range(2))
        picture = self._background(height, width, draw)
        boxes, labels = np.zeros((0, 4)), []
        fewest, most = spec.objects
        for _ in range(fewest + int(next(draw) * (most - fewest + 1))):
            which = int(next(draw) * len(self._glyphs))
            glyph = _glyph(self._glyphs[which], spec.digit[0] + int(next(draw) * (spec.digit[1] - spec.digit[0] + 1)))
            box = self._place(glyph.shape, height, width, boxes, draw)
            if box is None:
                continue
            colour = 0.7 + 0.3 * np.array([next(draw) for _ in range(3)])
            x1, y1, x2, y2 = box
            picture[y1:y2, x1:x2] += glyph[..., None] * (colour - picture[y1:y2, x1:x2])
            boxes = np.concatenate([boxes, [box]])
            labels.append(int(self._labels[which]))
        return np.rint(picture * 255).astype(np.uint8), boxes.astype(np.int64), np.array(labels, np.int64)

    def _place(
        self, size: tuple[int, ...], height: int, width: int, others: np.ndarray, draw: Iterator[float]
    ) -> tuple[int, int, int, int] | None:
        """A box of this (height, width) that does not cover another too much."""
        for _ in range(_TRIES):
            y, x = (int(next(draw) * (limit - side + 1)) for limit, side in zip((height, width), size, strict=True))
            box = x, y, x + size[1], y + size[0]
            if not (pairwise_iou(np.array([box], np.float64), others) > self._spec.overlap).any():
                return box
        return None

    def _background(self, height: int, width: int, draw: Iterator[float]) -> np.ndarray:
        """[height, width, 3] of 0..1: a piece of a photograph, darkened so that bright ink stands out."""
        photo = self._photos[int(next(draw) * len(self._photos))]
        zoom = 1.0 + next(draw)
        h, w = min(height * zoom, photo.shape[0]), min(width * zoom, photo.shape[1])
        top, left = next(draw) * (photo.shape[0] - h), next(draw) * (photo.shape[1] - w)
        piece = resized(photo, (left, top, left + w, top + h), height, width)
        return piece / 255.0 * (0.25 + 0.35 * next(draw))


def write_scenes(
    out: Path, counts: dict[str, int], spec: SceneSpec, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Writes ``<split>.json`` and ``<split>/<number>.png`` for each split; category ids are 1..10, named "0".."9".

    Args:
      out: new or empty folder.
      counts: scenes of "train" and "held_out".
      progress: called with the number of scenes done.

    Raises:
      UserError: there are scenes already, or scikit-learn is missing.
    """
    names = [out / f"{split}.json" for split in counts]
    if there := next((name for name in names if name.exists()), None):
        raise UserError(f"{there} exists; choose another --out or remove it")
    done, written = 0, {}
    for split, count in counts.items():
        (out / split).mkdir(parents=True, exist_ok=True)
        compose = Composer(spec, split)

        def one(number: int, split: str = split, compose: Composer = compose) -> dict[str, Any]:
            pixels, boxes, labels = compose(number)
            name = f"{split}/{number:06d}.png"
            (out / name).write_bytes(encode_png(pixels))
            return {"name": name, "size": pixels.shape[:2], "boxes": to_xywh(boxes).tolist(), "labels": labels.tolist()}

        rows = []
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for row in pool.map(one, range(count)):
                rows.append(row)
                done += 1
                progress(done)
        written[split] = coco_json(rows)
    for split, content in written.items():  # last: their presence means that everything is there
        (out / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def coco_json(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A COCO-format json of images with name, size (height, width), boxes (left, top, width, height) and labels."""
    images, annotations = [], []
    for i, row in enumerate(rows):
        height, width = row["size"]
        images.append({"id": i + 1, "file_name": row["name"], "height": height, "width": width})
        for box, label in zip(row["boxes"], row["labels"], strict=True):
            about = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": label + 1}
            annotations.append(about | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


class DigitScenes(DetectionData):
    """Batches of scenes that are made on first use and kept in the cache; see ``DetectionData`` for what they hold.

    Args:
      train_scenes, held_out_scenes: how many.
      sizes, digit, objects, overlap, scene_seed: see ``SceneSpec``.
      batch, shapes, workers, seed, host_index, host_count, row_multiple: see ``DetectionData``.
      short, longest: too; by default the largest of ``sizes``, so that no scene is shrunk.  Nothing is mirrored or cut,
        since digits would become others.
    """

    def __init__(
        self,
        train_scenes: int = 6000,
        held_out_scenes: int = 300,
        sizes: Sequence[int] = (64,),
        digit: Sequence[int] = (14, 28),
        objects: Sequence[int] = (1, 5),
        overlap: float = 0.15,
        scene_seed: int = 0,
        batch: int = 16,
        short: Sequence[int] = (),
        longest: int = 0,
        shapes: int = 1,
        workers: int = 0,
        seed: int = 0,
        host_index: int = 0,
        host_count: int = 1,
        row_multiple: int = 1,
    ):
        (low, high), (fewest, most) = digit, objects
        spec = SceneSpec(tuple(sizes), (low, high), (fewest, most), overlap, scene_seed)
        folder = scene_folder({"train": train_scenes, "held_out": held_out_scenes}, spec)
        super().__init__(
            coco_json=str(folder / "train.json"),
            eval_json=str(folder / "held_out.json"),
            batch=batch,
            short=short or (max(sizes),),
            longest=longest or max(sizes),
            flip=0.0,
            crop=0.0,
            shapes=shapes,
            workers=workers,
            seed=seed,
            host_index=host_index,
            host_count=host_count,
            row_multiple=row_multiple,
        )


def scene_folder(counts: dict[str, int], spec: SceneSpec) -> Path:
    """The COCO folder of these scenes, from the cache or made now."""
    key = f"{bits('scenes 1', json.dumps([counts, dataclasses.astuple(spec)])):016x}"
    return made_once(cache_root() / "scenes" / key, "held_out.json", lambda out: write_scenes(out, counts, spec))


def _draws(*keys: int | str) -> Iterator[float]:
    """An endless row of numbers in [0, 1)."""
    block = 0
    while True:
        yield from uniform(*keys, block, np.arange(256)).tolist()
        block += 1


def _glyph(opacity: np.ndarray, side: int) -> np.ndarray:
    """[8, 8] opacity at [side, side] by smooth interpolation, cut to its ink."""
    from PIL import Image

    large = Image.fromarray(opacity.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    glyph = np.clip(np.asarray(large), 0.0, 1.0)
    rows, columns = (np.flatnonzero((glyph > _INK).any(axis)) for axis in (1, 0))
    return glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _photographs() -> list[np.ndarray]:
    """scikit-learn's two sample photographs, [427, 640, 3] uint8; ``data.digits`` has asked for the package."""
    from sklearn.datasets import load_sample_images

    found: Any = load_sample_images()
    return list(found.images)


def _part(photo: np.ndarray, split: str) -> np.ndarray:
    """What scenes of a split may show of a photograph."""
    edge = int(len(photo) * _SHOWN)
    return photo[:edge] if split == "train" else photo[edge:]
