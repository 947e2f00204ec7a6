"""Detectors: images in, boxes with classes and scores out.

    detector = load("runs/scenes")
    found = detector(["street.jpg"], Options(steps=4))[0]
    for name, score, box in zip(found.names, found.scores, found.boxes): ...

Images may have any size; those of like size share a batch, and what an image's boxes are does not depend on the others.
"""

import colorsys
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.typing import ArrayLike

from data.boxes import SMALLEST, View, clip, to_xywh, whole
from data.detection_spec import Canvas, DetectionSpec
from data.errors import UserError
from data.pixels import Unreadable, load_pixels
from train.checkpoint import restore_variables
from train.components import bind, build
from train.task import Variables
from train.workdir import ASSETS, read_config

Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True)
class Options:
    """How boxes are denoised.

    Attributes:
      steps: how often the head is called.
      proposals: boxes that are denoised in each image.
      merge: detections of all steps count, suppressed together; False = only those of the last step.
      min_score: detections below it are left out; COCO's numbers want all.
      seed: of the noise; image i of a call has its own.
    """

    steps: int = 1
    proposals: int = 300
    merge: bool = True
    min_score: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.proposals < 1:
            raise UserError(f"steps={self.steps} and proposals={self.proposals}: expected at least one of each")


class Detections(Protocol):
    """What a sampler gives for a batch: arrays of a fixed number n of detections for each image.

    Attributes:
      boxes: [b, n, 4] corners in pixels of the model's image.
      scores: [b, n] in 0..1.
      labels: [b, n] classes.
      valid: [b, n] which of them there are.
    """

    boxes: ArrayLike
    scores: ArrayLike
    labels: ArrayLike
    valid: ArrayLike


class Detector(Protocol):
    """What a pipeline needs of a task."""

    spec: DetectionSpec

    def detect(
        self,
        variables: Variables,
        images: jax.Array,
        sizes: jax.Array,
        keys: jax.Array,
        *,
        steps: int,
        proposals: int,
        merge: bool,
    ) -> Any:
        """``Detections`` of a padded batch; called under ``jit`` with static options.

        Args:
          images: [b, H, W, 3] uint8, zero beyond the image.
          sizes: [b, 2] int32, (height, width) of each image.
          keys: [b] PRNG keys; all randomness of a row comes from its own.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Found:
    """Detections in one image, the best first.

    Attributes:
      boxes: [n, 4] float32 corners in pixels of the image as it was given, inside it, none empty.
      scores: [n] float32.
      labels: [n] int32.
      names: [n] of the classes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    def results(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO's results, without ``image_id``."""
        rows = zip(self.labels, to_xywh(self.boxes).tolist(), self.scores, strict=True)
        return [{"category_id": category_ids[int(k)], "bbox": box, "score": float(score)} for k, box, score in rows]


class DetectionPipeline:
    """A trained detector with its parameters.

    Args:
      detector: the task.
      variables: its parameters.
      rows: images in a full batch.

    Attributes:
      programs: what has been compiled, by options, rows and canvas.
      compile_seconds: how long that took.
    """

    def __init__(self, detector: Detector, variables: Variables, rows: int = 8):
        self.spec, self.rows = detector.spec, rows
        self._variables = jax.tree.map(jax.numpy.asarray, variables)
        self.programs: dict[Any, Callable[..., Any]] = {}
        self.compile_seconds = 0.0
        self._detect = jax.jit(detector.detect, static_argnames=("steps", "proposals", "merge"))

    def __call__(self, images: Sequence[str | Path | np.ndarray], options: Options = Options()) -> list[Found]:
        """Boxes in each image (a file, or [h, w, 3] uint8).

        Raises:
          UserError: a file that cannot be read.
        """
        pixels = [image if isinstance(image, np.ndarray) else load_image(image) for image in images]
        found = dict(self.stream([(p.shape[0], p.shape[1]) for p in pixels], pixels.__getitem__, options))
        return [found[i] for i in range(len(pixels))]

    def stream(
        self, sizes: Sequence[Size], load: Callable[[int], np.ndarray], options: Options
    ) -> Iterator[tuple[int, Found]]:
        """(i, boxes in image i) for many images, those of one canvas after the other.

        Only two batches are in memory: images are loaded while the device works on those before them.

        Args:
          sizes: (height, width) of every image.
          load: gives [height, width, 3] uint8 of image i.
        """
        groups: dict[Canvas, list[int]] = defaultdict(list)
        for i, size in enumerate(sizes):
            groups[self.spec.canvas(*size)].append(i)
        waiting: tuple[list[int], Any] | None = None
        for canvas, members in sorted(groups.items()):
            for start in range(0, len(members), self.rows):
                chosen = members[start : start + self.rows]
                # Calls return before the device is done.
                sent = chosen, self.run(*self.batch([load(i) for i in chosen], canvas, chosen, options), options)
                if waiting:
                    yield from self._finish(*waiting, sizes, options)
                waiting = sent
        if waiting:
            yield from self._finish(*waiting, sizes, options)

    def batch(
        self, pixels: Sequence[np.ndarray], canvas: Canvas, numbers: Sequence[int], options: Options
    ) -> tuple[np.ndarray, np.ndarray, jax.Array]:
        """Images, sizes and keys of a padded batch: a power of two of rows, the last image repeated."""
        rows = min(self.rows, 1 << (len(pixels) - 1).bit_length())
        images, sizes = np.zeros((rows, *canvas, 3), np.uint8), np.zeros((rows, 2), np.int32)
        for row in range(rows):
            image = pixels[min(row, len(pixels) - 1)]
            view = self._view(image.shape[:2])
            images[row, : view.height, : view.width] = view.pixels(image)
            sizes[row] = view.height, view.width
        padded = np.array([*numbers, *[numbers[-1]] * (rows - len(numbers))], np.uint32)
        return images, sizes, _keys(options.seed, padded)

    def run(self, images: np.ndarray, sizes: np.ndarray, keys: jax.Array, options: Options) -> Any:
        """``Detections`` of a batch; compiled once for each shape and choice of steps, proposals and merging."""
        static = {"steps": options.steps, "proposals": options.proposals, "merge": options.merge}
        known = (*static.values(), images.shape)
        if known not in self.programs:
            begin = time.perf_counter()
            self.programs[known] = self._detect.lower(self._variables, images, sizes, keys, **static).compile()
            self.compile_seconds += time.perf_counter() - begin
        return self.programs[known](self._variables, images, sizes, keys)

    def _view(self, size: Sequence[int]) -> View:
        return whole(size[0], size[1], self.spec.short, self.spec.longest)

    def _finish(
        self, chosen: Sequence[int], detections: Any, sizes: Sequence[Size], options: Options
    ) -> Iterator[tuple[int, Found]]:
        """Detections of a batch in pixels of the images as they were given."""
        names = ("boxes", "scores", "labels", "valid")
        arrays = [np.asarray(getattr(detections, name)) for name in names]
        if not np.isfinite(arrays[0][arrays[3]]).all():
            raise UserError("the model's boxes are not finite; is its training sound?")
        for row, i in enumerate(chosen):
            boxes, scores, labels, valid = (array[row] for array in arrays)
            boxes, kept = original(boxes, valid & (scores >= options.min_score), self._view(sizes[i]), sizes[i])
            order = kept[np.argsort(-scores[kept], kind="stable")]
            classes = labels[order].astype(np.int32)
            found = tuple(self.spec.categories.names[k] for k in classes)
            yield i, Found(boxes[order], scores[order].astype(np.float32), classes, found)


@jax.jit
def _keys(seed: ArrayLike, numbers: ArrayLike) -> jax.Array:
    """[b] keys of images by their numbers."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)


def original(boxes: np.ndarray, valid: np.ndarray, view: View, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] of a view in the image's own pixels, cut at its border; and the places of those with any area."""
    moved = clip(view.undo(boxes.astype(np.float64)), *size).astype(np.float32)
    return moved, np.flatnonzero(valid & np.all(moved[:, 2:] - moved[:, :2] > SMALLEST, axis=1))


def load(folder: str | Path, *, params: str = "ema", rows: int = 8) -> DetectionPipeline:
    """A pipeline from a run folder or a converted checkpoint.

    Args:
      folder: has config.json, assets/detection.json and checkpoints/.
      params: "ema" (what the run evaluated with), "raw", or "ema/<decay>".
      rows: images in a full batch.

    Raises:
      UserError: not such a folder, no checkpoint in it yet, or a damaged one; a run of something other than a detector.
    """
    config = read_config(folder)
    for section in ("task", "model"):
        if section not in config:
            raise UserError(f"{Path(folder) / 'config.json'} has no section {section!r}")
    assets = Path(folder) / ASSETS
    if not assets.is_dir():
        raise UserError(f"{folder} has no {ASSETS}/; has its training begun?")
    model = bind(config["model"], "model")
    precision = config.get("precision", {}).get("compute", "float32")
    task = build(config["task"], "task", model=model, assets=str(assets), shapes=(), precision=precision)
    if not hasattr(task, "detect"):
        raise UserError(f"{folder} is a run of {type(task).__name__}, not of a detector")
    variables, _ = restore_variables(folder, task.abstract(), params=params)
    return DetectionPipeline(task, variables, rows)


def picture(pixels: np.ndarray, found: Found, at_least: int = 480) -> np.ndarray:
    """[h, w, 3] uint8 with boxes, names and scores drawn in; small images are enlarged, so that text can be read."""
    from PIL import Image, ImageDraw

    times = max(1, -(-at_least // min(pixels.shape[:2])))
    image = Image.fromarray(pixels).resize((pixels.shape[1] * times, pixels.shape[0] * times), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    for box, score, label, name in zip(found.boxes, found.scores, found.labels, found.names, strict=True):
        colour = _colour(int(label))
        x1, y1, x2, y2 = (box * times).tolist()
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=2)
        text = f"{name} {score:.2f}"
        place = draw.textbbox((x1 + 2, max(0, y1 - 12)), text)
        draw.rectangle(place, fill=colour)
        draw.text(place[:2], text, fill=(0, 0, 0), anchor="lt")
    return np.asarray(image)


def _colour(label: int) -> tuple[int, int, int]:
    """Bright, and far from those of the neighbouring classes: the golden ratio spreads any number of hues evenly."""
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(label * 0.618034 % 1.0, 0.7, 1.0))
    return red, green, blue


def load_image(file: str | Path) -> np.ndarray:
    """[h, w, 3] uint8 of a file; raises UserError where it is no whole image."""
    try:
        return load_pixels(Path(file))[0]
    except Unreadable as error:
        raise UserError(f"{file}: {error}") from None
