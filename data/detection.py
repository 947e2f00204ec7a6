"""Batches for detectors as a pure function of the step: few static shapes, masked boxes, any number of hosts.

A batch holds images of one canvas (``data.detection_spec``).  Which canvas a step takes, which images fill it and how
each is augmented are keyed hashes of (seed, step, row), so there is no iterator state: the position is the step.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from data.boxes import Augmentation, View, fit, whole
from data.coco import CocoImage, CocoSet, read_coco, repeat_factors
from data.coco_builder import prepare
from data.detection_spec import Canvas, DetectionSpec, choose_canvases, smallest
from data.errors import UserError
from data.keyed import permute
from data.pipeline import Batch, Schedule, host_rows, stratified
from data.pixels import Unreadable, load_pixels

Load = Callable[[int], np.ndarray]  # position of an image -> [height, width, 3] uint8
_CACHE_BYTES = 2**30  # sets that are smaller when decoded stay in memory


class Collate:
    """Views of images -> arrays; rows are made side by side by threads.

    Args:
      images: boxes and labels.
      load: gives [height, width, 3] uint8 of the image at a position.
      max_boxes: columns for boxes; of more in a view a random part is kept.
      workers: threads; 0 = none.
    """

    def __init__(self, images: Sequence[CocoImage], load: Load, max_boxes: int, workers: int):
        self._images, self._load, self._max_boxes = images, load, max_boxes
        pool = ThreadPoolExecutor(workers, thread_name_prefix="image") if workers else None
        self._map: Callable[..., Any] = pool.map if pool else map

    def __call__(self, chosen: Sequence[int], views: Sequence[View], canvas: Canvas, keys: Sequence[int]) -> Batch:
        """Images ``chosen`` through ``views``, in the upper left corner of the canvas.

        Args:
          keys: [rows] a number for each row that decides which boxes stay where there are too many.
        """
        rows = len(chosen)
        batch = {
            "image": np.zeros((rows, *canvas, 3), np.uint8),
            "size": np.array([(view.height, view.width) for view in views], np.int32).reshape(rows, 2),
            "boxes": np.zeros((rows, self._max_boxes, 4), np.float32),
            "labels": np.zeros((rows, self._max_boxes), np.int32),
            "valid": np.zeros((rows, self._max_boxes), bool),
        }

        def fill(row: int) -> None:
            image, view = self._images[chosen[row]], views[row]
            batch["image"][row, : view.height, : view.width] = view.pixels(self._load(chosen[row]))
            moved, there = view.boxes(image.boxes)
            kept = np.flatnonzero(there)
            if len(kept) > self._max_boxes:
                kept = np.sort(kept[permute(np.arange(self._max_boxes), len(kept), "boxes", int(keys[row]))])
            batch["boxes"][row, : len(kept)] = moved[kept]
            batch["labels"][row, : len(kept)] = image.labels[kept]
            batch["valid"][row, : len(kept)] = True

        list(self._map(fill, range(rows)))
        return batch


class Augmented:
    """``augmented[step]`` -> this host's rows of the global batch of that step.

    Args:
      images: all that may be drawn.
      weights: [n] how often each is shown in a pass.
      groups: [n] the canvas that each belongs to; none is without images.
      canvases: static shapes.
      rows: of every global batch.
      augmentation: draws the views.
      collate: makes the arrays.
      seed: of everything random.
      host_index, host_count: concatenating the rows of all hosts gives the same global batch for every host count.
    """

    def __init__(
        self,
        images: Sequence[CocoImage],
        weights: np.ndarray,
        groups: np.ndarray,
        canvases: Sequence[Canvas],
        rows: int,
        augmentation: Augmentation,
        collate: Collate,
        seed: int,
        host_index: int = 0,
        host_count: int = 1,
    ):
        self._images, self._rows, self._augmentation, self._collate = images, rows, augmentation, collate
        self._seed, self._host = seed, (host_index, host_count)
        self._canvases, self._members = canvases, [np.flatnonzero(groups == i) for i in range(len(canvases))]
        self._cumulative = [np.cumsum(weights[m]) for m in self._members]
        self._schedule = Schedule([float(c[-1]) for c in self._cumulative], [rows] * len(self._members), seed)

    @property
    def steps_per_pass(self) -> float:
        """Steps in which every image goes by once (as often as its weight says)."""
        return self._schedule.steps_per_pass

    def __len__(self) -> int:
        return sys.maxsize  # endless; grain wants a length

    def __getitem__(self, step: int) -> Batch:
        stream, number = self._schedule(int(step))
        canvas, rows = self._canvases[stream], np.array(host_rows(self._rows, *self._host))
        positions = number * self._rows + rows
        chosen = self._members[stream][stratified(self._cumulative[stream], positions, self._seed, stream)]
        views = [
            self._augmentation.draw(self._images[i].height, self._images[i].width, canvas, self._seed, stream, int(p))
            for i, p in zip(chosen, positions, strict=True)
        ]
        batch = self._collate(chosen.tolist(), views, canvas, positions.tolist())
        return batch | {"index": rows.astype(np.int32), "mask": np.ones(len(rows), np.float32)}


@dataclasses.dataclass(frozen=True)
class Report:
    """What the data holds and what was done to it; ``str`` of it is for people."""

    train: str
    held_out: str
    canvases: Sequence[Canvas]
    rows: int
    max_boxes: int
    over: int
    steps_per_pass: float

    def __str__(self) -> str:
        shapes = ", ".join(f"{h} x {w}" for h, w in self.canvases)
        lines = [
            self.train,
            f"  batches of {self.rows}, in {len(self.canvases)} shape(s) (height x width): {shapes}; "
            f"up to {self.max_boxes} boxes; a pass over the data is {self.steps_per_pass:.1f} steps",
        ]
        if self.over:
            lines.append(f"  {self.over} images have more boxes: a random part of them counts each time")
        return "\n".join([*lines, f"held out: {self.held_out}"] if self.held_out else lines)


class DetectionData:
    """Batches of images with boxes.

    ``image`` [B, H, W, 3] uint8, zero beyond ``size`` [B, 2] int32 (height, width); ``boxes`` [B, M, 4] float32 corners
    in pixels, ``labels`` [B, M] int32 and ``valid`` [B, M] bool; ``index`` [B] int32; ``mask`` [B] float32 (1 = a real
    row).  Batches of ``evaluation`` also have ``position`` [B] int32, the image's place in ``held_out.images``.

    Args:
      coco_json, images: training set, see ``data.coco.read_coco``.
      eval_json, eval_images: held-out set with the same categories; "" = none, and ``images``.
      batch: rows of a global batch.
      short, longest, flip, crop, crop_short, crop_range: see ``data.boxes.Augmentation``; evaluation sees whole images
        at the largest of ``short``.
      shapes: most static shapes of training batches.
      max_boxes: columns for boxes; 0 = what the fullest training image has, in eights.
      repeat_threshold: of ``data.coco.repeat_factors``; 0 = every image once in a pass.
      prepared: images are opened once and kept in the cache (``data.coco_builder``); False = read from their files.
      on_bad: "error", or "skip" = images whose file is missing or (if prepared) damaged are left out and counted.
      workers: threads that make rows; -1 = as many as cores.
      seed: of order and views.
      host_index, host_count: this process's part of every global batch.
      row_multiple: the rows of every global batch must be a multiple of this.

    Attributes:
      train, evaluation, shapes, report: see ``train.assemble.Data``.
      spec: classes and sizes.
      held_out: the evaluation set, or None.

    Raises:
      UserError: see ``data.coco``; keys out of range; sets whose categories differ.
    """

    def __init__(
        self,
        coco_json: str,
        images: str = "",
        eval_json: str = "",
        eval_images: str = "",
        batch: int = 16,
        short: Sequence[int] = Augmentation.short,
        longest: int = 1333,
        flip: float = 0.5,
        crop: float = 0.5,
        crop_short: Sequence[int] = (400, 500, 600),
        crop_range: Sequence[int] = (384, 600),
        shapes: int = 4,
        max_boxes: int = 0,
        repeat_threshold: float = 0.0,
        prepared: bool = True,
        on_bad: str = "error",
        workers: int = -1,
        seed: int = 0,
        host_index: int = 0,
        host_count: int = 1,
        row_multiple: int = 1,
    ):
        if batch < 1 or batch % row_multiple or batch % host_count:
            raise UserError(f"config.data.batch={batch}: expected a multiple of {row_multiple} (devices x accumulate)")
        low, high = crop_range
        if not short or min(short) < 1 or longest < max(short) or shapes < 1 or not crop_short or not 0 < low <= high:
            raise UserError(
                f"config.data: short={tuple(short)}, longest={longest}, shapes={shapes}, crop_range={(low, high)}, "
                f"crop_short={tuple(crop_short)}: expected positive sizes, none of short above longest, low <= high"
            )
        if not coco_json:
            raise UserError("config.data.coco_json is not set: the COCO-format json to train on")
        augmentation = Augmentation(flip, tuple(short), longest, crop, tuple(crop_short), (low, high))
        place = host_index, host_count
        found, load = _open(read_coco(coco_json, images, on_bad), prepared, on_bad)
        sizes = [(image.height, image.width) for image in found.images]
        canvases = choose_canvases(sizes, max(short), longest, shapes)
        self.spec = DetectionSpec(found.categories, max(short), longest, tuple(canvases))

        most = max(len(image.boxes) for image in found.images)
        columns = max_boxes or -(-most // 8) * 8
        weights = np.ones(len(sizes))
        if repeat_threshold:
            weights = repeat_factors(found.images, len(found.categories), repeat_threshold)
        groups = smallest(np.array([fit(*size, max(short), longest) for size in sizes]), canvases)
        threads = (os.cpu_count() or 1) if workers < 0 else workers
        collate = Collate(found.images, load, columns, threads)
        self.train = Augmented(found.images, weights, groups, canvases, batch, augmentation, collate, seed, *place)

        self.held_out: CocoSet | None = None
        self.evaluation: Sequence[Batch] = []
        if eval_json:
            self.held_out, load = _open(read_coco(eval_json, eval_images or images, on_bad), prepared, on_bad)
            _check_same(found, self.held_out)
            fullest = max(len(image.boxes) for image in self.held_out.images)
            collate = Collate(self.held_out.images, load, -(-max(fullest, 1) // 8) * 8, threads)
            self.evaluation = HeldOut(self.held_out.images, self.spec, batch, shapes, collate, *place)
        self.shapes = [_shape(canvas, batch, columns) for canvas in canvases]
        over = sum(len(image.boxes) > columns for image in found.images)
        held_out = str(self.held_out) if self.held_out else ""
        self.report = Report(str(found), held_out, canvases, batch, columns, over, self.train.steps_per_pass)

    def write_assets(self, folder: str) -> None:
        """Writes ``detection.json``."""
        self.spec.save(folder)


class HeldOut(Sequence[Batch]):
    """This host's part of batches with every image once, whole and unmirrored; filling rows have mask 0."""

    def __init__(
        self,
        images: Sequence[CocoImage],
        spec: DetectionSpec,
        rows: int,
        shapes: int,
        collate: Collate,
        host_index: int = 0,
        host_count: int = 1,
    ):
        sizes = [(image.height, image.width) for image in images]
        canvases = choose_canvases(sizes, spec.short, spec.longest, shapes)
        self._views = [whole(*size, spec.short, spec.longest) for size in sizes]
        groups = smallest(np.array([(view.height, view.width) for view in self._views]), canvases)
        members = [np.flatnonzero(groups == i) for i in range(len(canvases))]
        self._batches = [
            (canvas, m[start : start + rows])
            for canvas, m in zip(canvases, members, strict=True)
            for start in range(0, len(m), rows)
        ]
        self._rows, self._collate = np.array(host_rows(rows, host_index, host_count)), collate

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        canvas, group = self._batches[i]
        # Filling rows repeat a real image, since an empty one could turn into NaN somewhere.
        chosen = group[np.minimum(self._rows, len(group) - 1)].tolist()
        batch = self._collate(chosen, [self._views[j] for j in chosen], canvas, chosen)
        real = (self._rows < len(group)).astype(np.float32)
        more = {"index": self._rows.astype(np.int32), "mask": real, "position": np.array(chosen, np.int32)}
        return batch | more


def _open(found: CocoSet, prepared: bool, on_bad: str) -> tuple[CocoSet, Load]:
    """The set's pixels; and the set without images whose file is damaged, as far as that is known."""
    load: Load = functools.partial(_from_file, found.images)
    if prepared:
        store = prepare(found.images)
        for reason in store.failed.values():
            found.problems.add("damaged files", reason)
        found.problems.settle(on_bad, str(found.source), len(found.images), "images")
        usable = tuple(image for i, image in enumerate(found.images) if i not in store.failed)
        if not any(len(image.boxes) for image in usable):
            raise UserError(f"{found.source}: no image with a box can be read; {found.problems.describe()}")
        found, load = dataclasses.replace(found, images=usable), store.pixels
    small = sum(3 * image.height * image.width for image in found.images) <= _CACHE_BYTES
    return found, functools.cache(load) if small else load


def _from_file(images: Sequence[CocoImage], i: int) -> np.ndarray:
    """[height, width, 3] uint8 read from the image's own file; a damaged one stops the run that meets it."""
    try:
        return load_pixels(images[i].file, (images[i].height, images[i].width))[0]
    except Unreadable as error:
        raise UserError(f"{images[i].file} {error}; repair it, or find all such by data.prepared=True") from None


def _check_same(train: CocoSet, held_out: CocoSet) -> None:
    """Raises UserError where the two sets mean different things by a class."""
    a, b = (list(zip(s.categories.ids, s.categories.names, strict=True)) for s in (train, held_out))
    if a != b:
        odd = next(iter(set(a) ^ set(b)))
        raise UserError(
            f"{train.source} and {held_out.source} have different categories, for example id {odd[0]} named {odd[1]!r} "
            "in only one of them; classes are numbered by them, so they must be the same"
        )


def _shape(canvas: Canvas, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shapes and types of a global training batch."""
    whole = {
        "image": ((rows, *canvas, 3), np.uint8),
        "size": ((rows, 2), np.int32),
        "boxes": ((rows, columns, 4), np.float32),
        "labels": ((rows, columns), np.int32),
        "valid": ((rows, columns), bool),
        "index": ((rows,), np.int32),
        "mask": ((rows,), np.float32),
    }
    return {name: (shape, np.dtype(kind)) for name, (shape, kind) in whole.items()}
