"""A COCO-format json and its folder of images, checked before anything is trained on them.

Wrong, and an error that names the place, because a guess could change what is learnt: not JSON, a key missing, an id
twice, an annotation of an image or category that is not there, a box that is not four finite numbers, no box at all.

Put right and counted in the summary: boxes that reach out of their image are cut; boxes without area, with a negative
side or wholly outside are left out; crowds are left out of training (COCO's evaluation reads the json and ignores what
falls on them).  Images whose file is missing are an error, or left out, as ``on_bad`` says; images without boxes stay.

Ids may have gaps and any order: classes are 0..K-1 in ascending order of the category ids, as the releases count them.
LVIS' json is one of these too: images named by ``coco_url``, how common each category is, federated lists.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from data.boxes import clip, from_xywh
from data.errors import UserError
from data.pixels import Unreadable, stored_size
from data.problems import Problems


@dataclasses.dataclass(frozen=True)
class Categories:
    """The classes 0..K-1.

    Attributes:
      names: [K], for people.
      ids: [K] ascending, what the json calls them.
      images: [K] how many images have each; LVIS' own counts where the json has them.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]
    images: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True)
class CocoImage:
    """One image.

    Attributes:
      id: the json's.
      file: where it is.
      height, width: in pixels.
      boxes: [n, 4] float32 (left, top, right, bottom), inside the image, none empty, no crowds.
      labels: [n] int32, classes.
    """

    id: int
    file: Path
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class CocoSet:
    """All usable images of a json in its order.

    Attributes:
      source: the json.
      problems: images that were left out.
      repairs: annotations that were changed or left out.
    """

    source: Path
    images: tuple[CocoImage, ...]
    categories: Categories
    problems: Problems
    repairs: Problems

    def __str__(self) -> str:
        counts = np.array([len(image.boxes) for image in self.images])
        boxes = np.concatenate([image.boxes for image in self.images])
        sides = np.sort(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)))
        tenth = sides[[len(sides) // 10, len(sides) // 2, len(sides) * 9 // 10]] if len(sides) else np.zeros(3)
        lines = [
            f"{self.source}: {len(self.images)} images ({(counts == 0).sum()} without boxes), {len(boxes)} boxes of "
            f"{len(self.categories)} classes",
            f"  up to {counts.max()} boxes an image, {counts.mean():.1f} on average; sides of about {tenth[0]:.0f} to "
            f"{tenth[2]:.0f} pixels, {tenth[1]:.0f} in the middle",
        ]
        empty = [name for name, n in zip(self.categories.names, self.categories.images, strict=True) if n == 0]
        if empty:
            lines.append(f"  {len(empty)} classes without a box: {', '.join(empty[:5])}{', …' if empty[5:] else ''}")
        if self.repairs:
            lines.append(f"  put right: {self.repairs.describe()}")
        if self.problems:
            lines.append(f"  left out: {self.problems.describe()}")
        return "\n".join(lines)


def read_coco(path: str | Path, images: str | Path = "", on_bad: str = "error") -> CocoSet:
    """Reads and checks a json; image files are looked up but not opened (unless the json does not tell their size).

    Args:
      path: the json, with the keys ``images``, ``annotations`` and ``categories``.
      images: folder that file names are relative to; "" = the json's own.
      on_bad: what happens to images whose file is missing: "error", or "skip" = left out and counted.

    Raises:
      UserError: see the top of this file.
    """
    path = Path(path)
    folder = Path(images) if str(images) else path.parent
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    content = load_json(path)
    repairs, problems = Problems(), Problems()

    names, category_ids = _categories(content["categories"], path)
    image_ids = _integers(content["images"], "id", f"{path}: images", unique=True)
    sizes = [_size(entry, folder, path) for entry in content["images"]]
    owner, labels, boxes = _annotations(content["annotations"], image_ids, category_ids, sizes, path, repairs)
    if not len(boxes):
        more = f" ({repairs.describe()})" if repairs else ""
        raise UserError(f"{path}: none of its {len(content['annotations'])} annotations is a usable box{more}")

    pairs = np.unique(np.stack([owner, labels], axis=1), axis=0)
    counts = np.bincount(pairs[:, 1], minlength=len(names)).tolist()
    known = [entry.get("image_count") for entry in sorted(content["categories"], key=lambda entry: entry["id"])]
    counts = [k if isinstance(k, int) else c for k, c in zip(known, counts, strict=True)]

    starts = np.searchsorted(owner, np.arange(len(sizes) + 1))  # annotations come sorted by image
    found = []
    for i, (entry, size) in enumerate(zip(content["images"], sizes, strict=True)):
        name = _file_name(entry, path)
        file = next((f for f in (folder / name, folder / Path(name).name) if f.is_file()), None)
        if file is None or size is None:
            problems.add("missing files" if file is None else "unreadable files", name)
            continue
        own = slice(starts[i], starts[i + 1])
        found.append(CocoImage(int(image_ids[i]), file, *size, boxes[own], labels[own]))
    problems.settle(on_bad, f"{path} with images in {folder}", len(sizes), "images")
    if not any(len(image.boxes) for image in found):
        raise UserError(f"{path}: no image with a box has a usable file in {folder}; {problems.describe()}")
    return CocoSet(path, tuple(found), Categories(names, category_ids, tuple(counts)), problems, repairs)


def read_categories(path: str | Path) -> Categories:
    """The classes of a json alone; how common they are only where it says so itself, as LVIS' does.

    Raises:
      UserError: see the top of this file.
    """
    entries = load_json(path)["categories"]
    names, ids = _categories(entries, Path(path))
    common = {entry["id"]: int(entry.get("image_count", 0)) for entry in entries}
    return Categories(names, ids, tuple(common[i] for i in ids))


def load_json(path: str | Path) -> dict[str, Any]:
    """The content of a COCO-format json; its three lists are there.

    Raises:
      UserError: no such file, not JSON, or a key is missing or holds something else than a list of objects.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; expected a COCO-format json") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        value = content.get(key) if isinstance(content, dict) else None
        if value is None:
            has = ", ".join(content) if isinstance(content, dict) else f"a {type(content).__name__}"
            raise UserError(f"{path} has no key {key!r} (it has {has or 'nothing'}); expected a COCO-format json")
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise UserError(f"{path}: {key!r} is not a list of objects; expected a COCO-format json")
    return content


def repeat_factors(images: Sequence[CocoImage], classes: int, threshold: float) -> np.ndarray:
    """[n] how often each image is shown in a pass: LVIS' repeat-factor sampling (Gupta et al. 2019).

    max over the image's classes of max(1, sqrt(threshold / share of the images that have the class)).
    """
    sets = [np.unique(image.labels) for image in images]
    share = np.bincount(np.concatenate(sets), minlength=classes) / len(images)
    factor = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1e-12)))
    return np.array([factor[labels].max(initial=1.0) for labels in sets])


def _categories(entries: list[dict[str, Any]], path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids in ascending order of the ids."""
    ids = _integers(entries, "id", f"{path}: categories", unique=True)
    if not entries:
        raise UserError(f"{path}: 'categories' is empty; expected objects with id and name")
    order = np.argsort(ids)
    return tuple(str(entries[i].get("name", ids[i])) for i in order), tuple(int(ids[i]) for i in order)


def _annotations(
    entries: list[dict[str, Any]],
    image_ids: np.ndarray,
    category_ids: Sequence[int],
    sizes: Sequence[tuple[int, int] | None],
    path: Path,
    repairs: Problems,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Usable boxes, sorted by image: place of the image, class, corners."""
    where = f"{path}: annotations"
    owner = _places(entries, "image_id", image_ids, path, "image")
    labels = _places(entries, "category_id", np.array(category_ids), path, "category")
    crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in entries], bool)
    given = np.array([_corners(entry, i, where) for i, entry in enumerate(entries)], np.float64).reshape(-1, 4)
    limits = np.array([size or (0, 0) for size in sizes], np.float64).reshape(-1, 2)[
        owner
    ]  # an unreadable file has 0, 0
    boxes = clip(from_xywh(given), *limits.T)
    flat, gone = (given[:, 2:] <= 0).any(1), (boxes[:, 2:] <= boxes[:, :2]).any(1)
    cut = np.abs(boxes - from_xywh(given)).max(axis=1, initial=0.0) > 1.0  # rounding of the corners is nothing to tell
    kinds = (
        ("crowds left out", crowd),
        ("boxes without area or with a negative side left out", flat & ~crowd),
        ("boxes outside of their image left out", gone & ~flat & ~crowd & (limits > 0).all(1)),
        ("boxes cut at the border of their image", cut & ~gone & ~flat & ~crowd),
    )
    for kind, those in kinds:
        for i in np.flatnonzero(those):
            repairs.add(kind, f"annotation {entries[i].get('id', f'number {i}')}")
    kept = np.flatnonzero(~(crowd | flat | gone))
    kept = kept[np.argsort(owner[kept], kind="stable")]
    return owner[kept], labels[kept].astype(np.int32), boxes[kept].astype(np.float32)


def _corners(entry: dict[str, Any], number: int, where: str) -> list[float]:
    """The box as the json has it: left, top, width, height."""
    box = entry.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < 1e9 for v in box):
        return box
    raise UserError(
        f"{where}[{number}] (id {entry.get('id')}) has bbox {box!r}; expected four finite numbers: left, top, width "
        "and height in pixels"
    )


def _integers(entries: list[dict[str, Any]], key: str, where: str, unique: bool = False) -> np.ndarray:
    """The column ``key`` as [n] int64; the first entry without a whole number, or with an earlier one's, is named."""
    values = [entry.get(key) for entry in entries]
    for i, value in enumerate(values):
        if not (type(value) is int or (type(value) is float and value.is_integer())):
            raise UserError(f"{where}[{i}] has {key} {value!r}; expected a whole number")
    out = np.array(values, np.int64)
    if unique and len(np.unique(out)) < len(out):
        order = np.argsort(out, kind="stable")
        second = int(order[1:][out[order][1:] == out[order][:-1]].min())
        raise UserError(f"{where}[{second}] has {key} {out[second]}, like an earlier one; ids must be unique")
    return out


def _places(entries: list[dict[str, Any]], key: str, ids: np.ndarray, path: Path, what: str) -> np.ndarray:
    """[n] which of ``ids`` each annotation's ``key`` names."""
    values = _integers(entries, key, f"{path}: annotations")
    order = np.argsort(ids)
    place = order[np.minimum(np.searchsorted(ids[order], values), len(ids) - 1)] if len(ids) else values
    strange = np.flatnonzero(ids[place] != values) if len(ids) else np.arange(len(values))
    if len(strange):
        some = ", ".join(map(str, np.sort(ids)[:5]))
        raise UserError(
            f"{path}: annotations[{strange[0]}] is of {what} {values[strange[0]]}, which is not listed "
            f"({len(strange)} such annotations; {what} ids begin with {some or 'none'})"
        )
    return place


def _file_name(entry: dict[str, Any], path: Path) -> str:
    """The image's file; LVIS names it by its address only."""
    if isinstance(name := entry.get("file_name"), str) and name:
        return name
    if isinstance(url := entry.get("coco_url"), str):
        return "/".join(urlparse(url).path.split("/")[-2:])
    raise UserError(f"{path}: image {entry['id']} has neither file_name nor coco_url")


def _size(entry: dict[str, Any], folder: Path, path: Path) -> tuple[int, int] | None:
    """(height, width) from the json, else from the file; None where there is no readable file."""
    sides: list[Any] = [entry.get("height"), entry.get("width")]
    if sides == [None, None]:
        try:
            return stored_size(folder / _file_name(entry, path))
        except Unreadable:
            return None
    for side in sides:
        if type(side) not in (int, float) or not 1 <= side < 2**31:
            raise UserError(f"{path}: image {entry['id']} has height and width {sides}; expected numbers of pixels")
    return int(sides[0]), int(sides[1])
