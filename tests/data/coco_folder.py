"""Small COCO folders for tests: flat images in which each class is a colour, so that pixels tell boxes."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from data.pixels import encode_png

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)  # of classes 0, 1, 2
IDS = (3, 7, 90)  # their ids in the json, with gaps


def paint(height: int, width: int, boxes, labels) -> np.ndarray:
    """[height, width, 3]: grey, with boxes (whole pixels, corners) in their class's colour."""
    image = np.full((height, width, 3), 90, np.uint8)
    for (x1, y1, x2, y2), label in zip(np.asarray(boxes, int), labels, strict=True):
        image[y1:y2, x1:x2] = COLOURS[label]
    return image


def find(image: np.ndarray, label: int) -> np.ndarray:
    """Corners of what has the colour of a class."""
    ys, xs = np.nonzero((np.abs(image.astype(int) - COLOURS[label]) < 100).all(-1))
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def content(sizes, boxes: list[list[tuple[int, list[float]]]], **more: Any) -> dict[str, Any]:
    """A COCO json: image i has (height, width) ``sizes[i]`` and ``boxes[i]``, (class, corners) each."""
    images = [{"id": 10 + 3 * i, "height": h, "width": w, "file_name": f"{i}.png"} for i, (h, w) in enumerate(sizes)]
    annotations = [
        {
            "id": 1000 * i + j,
            "image_id": images[i]["id"],
            "category_id": IDS[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for i, own in enumerate(boxes)
        for j, (label, (x1, y1, x2, y2)) in enumerate(own)
    ]
    categories = [{"id": id, "name": name} for id, name in zip(IDS, ("red", "green", "blue"), strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories[::-1]} | more


def write(folder: Path, what: dict[str, Any], pictures: bool = True) -> Path:
    """The json and its images; returns the json's path."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = [c["id"] for c in sorted(what["categories"], key=lambda c: c["id"])]
    for image in what["images"] if pictures else ():
        own = [a for a in what["annotations"] if a["image_id"] == image["id"]]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        labels = [ids.index(a["category_id"]) for a in own]
        (folder / image["file_name"]).write_bytes(encode_png(paint(image["height"], image["width"], boxes, labels)))
    path = folder / "boxes.json"
    path.write_text(json.dumps(what))
    return path


def random_set(folder: Path, count: int = 12, seed: int = 0) -> Path:
    """Wide, tall and square images with up to four separate boxes; every fifth has none."""
    rng = np.random.default_rng(seed)
    sizes = [[(60, 96), (96, 60), (64, 64), (50, 90)][i % 4] for i in range(count)]
    boxes = []
    for i, (h, w) in enumerate(sizes):
        own = []
        for j in range(0 if i % 5 == 4 else 1 + i % 4):  # one in each quarter
            x, y = (j % 2) * w // 2 + rng.integers(2, 8), (j // 2) * h // 2 + rng.integers(2, 8)
            bw, bh = rng.integers(8, 16, size=2)
            own.append((int(rng.integers(3)), [int(v) for v in (x, y, x + bw, y + bh)]))
        boxes.append(own)
    return write(folder, content(sizes, boxes))
