"""How good a detector is at a number of steps, and what an image costs: COCO's numbers and the latency beside them."""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.coco import CocoImage, CocoSet, load_json, read_coco
from data.errors import UserError
from data.pixels import Unreadable, encode_png, load_pixels
from launch.evaluation.coco import CocoResult, judge
from launch.pipelines.detect import DetectionPipeline, Options, picture
from train.components import build

TABLE = (1, 2, 4, 8)  # steps
CALLS = 15  # timed for the latency
LIKELY = 0.3  # score of what is drawn
METHOD = (
    "median of {calls} calls with one image of {height} x {width} on a canvas of {canvas}, from resized pixels to "
    "detections on the host; compiled before; reading, resizing and drawing left out"
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
      options: steps, proposals, merging; the first seed.
      results: one for each seed of the noise.
      milliseconds: latency of one image, see ``METHOD``.
    """

    options: Options
    results: tuple[CocoResult, ...]
    milliseconds: float

    def mean(self, name: str) -> float:
        """Of one of COCO's numbers over the seeds."""
        return float(np.mean([result.stats[name] for result in self.results]))

    @property
    def title(self) -> str:
        steps = f"{self.options.steps} step{'s' if self.options.steps > 1 else ''}"
        return steps if self.options.steps == 1 else f"{steps}, {'merged' if self.options.merge else 'last only'}"

    def __str__(self) -> str:
        means = "  ".join(f"{name} {self.mean(name):.3f}" for name in self.results[0].stats)
        spread = np.ptp([result.stats["AP"] for result in self.results])
        seeds = f"  (AP within {spread:.3f} over {len(self.results)} seeds)" if len(self.results) > 1 else ""
        return f"{self.title:<20} {means}  {self.milliseconds:.1f} ms{seeds}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        means = {name: self.mean(name) for name in self.results[0].stats}
        results = [result.to_dict() for result in self.results]
        return dataclasses.asdict(self.options) | means | {"milliseconds": self.milliseconds, "seeds": results}


def cells(table: Sequence[str], steps: int, proposals: int) -> list[Options]:
    """The settings to judge: of ``--table=steps`` 1, 2, 4 and 8 steps, merged and the last one alone.

    Raises:
      UserError: another axis.
    """
    if unknown := [axis for axis in table if axis != "steps"]:
        raise UserError(f"--table={unknown[0]}: a detector's table has the axis steps")
    counts = TABLE if table else (steps,)
    return [Options(n, proposals, merge) for n in counts for merge in ((True, False) if n > 1 and table else (True,))]


def held_out(config: Mapping[str, Any], coco_json: str, images: str) -> CocoSet:
    """The set to judge by: the one that is named, else the run's own held-out one.

    Raises:
      UserError: there is none.
    """
    if coco_json:
        return read_coco(coco_json, images, on_bad="skip")
    found = build(config.get("data", {}), "data", seed=0).held_out
    if found is None:
        raise UserError(
            "the run's data has no held-out set (config.data.eval_json); give one by --coco_json and --images"
        )
    return found


def run(
    detector: DetectionPipeline, truth: CocoSet, settings: Sequence[Options], seeds: int, out: Path, pictures: int
) -> list[Cell]:
    """Prints a line per setting; writes ``eval.json``, the best setting's ``detections.json`` and some pictures.

    Args:
      detector: the model.
      truth: images with boxes.
      settings: what to judge.
      seeds: of the noise; numbers are means over them.
      out: folder.
      pictures: how many images to draw.

    Raises:
      UserError: the set's categories are not the model's.
    """
    ids = detector.spec.categories.ids
    if truth.categories.ids != ids:
        raise UserError(f"{truth.source} has the categories {truth.categories.ids}; the model was trained on {ids}")
    content = load_json(truth.source)
    print(truth)
    rows, best, best_results, method = [], -np.inf, [], ""
    for options in settings:
        results = []
        for seed in range(seeds):
            detections = detect(detector, truth.images, dataclasses.replace(options, seed=seed))
            results.append(judge(content, detections, {image.id for image in truth.images}))
            if results[-1].stats["AP"] > best:
                best, best_results = results[-1].stats["AP"], detections
        milliseconds, method = latency(detector, truth.images, options)
        rows.append(Cell(options, tuple(results), milliseconds))
        print(rows[-1], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "data": str(truth.source),
        "images": len(truth.images),
        "categories": dict(zip(ids, truth.categories.names, strict=True)),
        "latency": method,
        "results": [row.to_dict() for row in rows],
    }
    (out / "eval.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "detections.json").write_text(json.dumps(best_results) + "\n", encoding="utf-8")
    draw(detector, truth.images[:pictures], max(rows, key=lambda row: row.mean("AP")).options, out)
    print(f"latency: {method}")
    print(f"{len(detector.programs)} programs compiled in {detector.compile_seconds:.1f} s; {out}/eval.json")
    return rows


def detect(detector: DetectionPipeline, images: Sequence[CocoImage], options: Options) -> list[dict[str, Any]]:
    """COCO's results for all images."""
    sizes = [(image.height, image.width) for image in images]
    results = []
    for i, found in detector.stream(sizes, lambda i: pixels(images[i]), options):
        own = found.results(detector.spec.categories.ids)
        results += [{"image_id": images[i].id} | one for one in own]
    return results


def pixels(image: CocoImage) -> np.ndarray:
    """[h, w, 3] uint8.

    Raises:
      UserError: the file is damaged.
    """
    try:
        return load_pixels(image.file, (image.height, image.width))[0]
    except Unreadable as error:
        raise UserError(f"{image.file} {error}") from None


def latency(detector: DetectionPipeline, images: Sequence[CocoImage], options: Options) -> tuple[float, str]:
    """Milliseconds for one image of the set's most frequent size, and how that was measured."""
    sizes = [(image.height, image.width) for image in images]
    size = max(set(sizes), key=lambda s: (sizes.count(s), s))
    canvas = detector.spec.canvas(*size)
    batch = detector.batch([pixels(images[sizes.index(size)])], canvas, [0], options)
    taken = []
    for _ in range(CALLS + 1):  # the first one compiles
        start = time.perf_counter()
        jax.device_get(tuple(getattr(detector.run(*batch, options), n) for n in ("boxes", "scores", "labels", "valid")))
        taken.append(time.perf_counter() - start)
    about = {"calls": CALLS, "height": size[0], "width": size[1], "canvas": f"{canvas[0]} x {canvas[1]}"}
    return 1e3 * float(np.median(taken[1:])), METHOD.format(**about)


def draw(detector: DetectionPipeline, images: Sequence[CocoImage], options: Options, out: Path) -> None:
    """``<out>/<file>.png`` with the detections that are likely."""
    shown = dataclasses.replace(options, min_score=LIKELY)
    for i, found in detector.stream([(im.height, im.width) for im in images], lambda i: pixels(images[i]), shown):
        (out / f"{images[i].file.stem}.png").write_bytes(encode_png(picture(pixels(images[i]), found)))
