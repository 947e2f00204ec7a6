"""COCO's judgement of detections, by pycocotools itself: twelve numbers, per category, per overlap; and LVIS' rules.

Detections are COCO's results format: dicts with ``image_id``, ``category_id``, ``bbox`` (left, top, width, height) and
``score``.  A number is -1 where there is no ground truth to compute it from, as in pycocotools.
"""

import contextlib
import dataclasses
import io
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data.errors import UserError

AREAS = ("", "s", "m", "l")  # all, below 32² pixels, below 96², larger
MOST = 100  # detections per image and category that count
LVIS_MOST = 300  # detections per image

Detection = Mapping[str, Any]
Content = Mapping[str, Any]  # of a COCO-format json


@dataclasses.dataclass(frozen=True)
class CocoResult:
    """How good detections are.

    Attributes:
      stats: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100 (AR300 under LVIS' rules), ARs, ARm, ARl; under LVIS' rules
        also APr, APc, APf of rare, common and frequent categories.
      per_category: AP by category id.
      per_iou: AP at the overlaps .5, .55, …, .95.
    """

    stats: dict[str, float]
    per_category: dict[int, float]
    per_iou: list[float]

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.3f}" for name, value in self.stats.items())

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


def judge(truth: Content, detections: Iterable[Detection], image_ids: Collection[int] | None = None) -> CocoResult:
    """Compares detections with the ground truth of a COCO-format json, crowds and all.

    Args:
      truth: the json's content (``data.coco.load_json``); where its images have ``neg_category_ids`` LVIS' rules hold.
      detections: of any images, in any order.
      image_ids: judge only by these images; None = by all.

    Raises:
      UserError: pycocotools is missing; a detection of an image or category that the json does not have.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError:
        raise UserError('COCO\'s numbers need pycocotools: pip install -e ".[detection]"') from None

    federated = any("neg_category_ids" in image for image in truth["images"])
    chosen = _known(detections, truth)
    if federated:
        chosen = _federated(chosen, truth["images"], truth["annotations"])
    with contextlib.redirect_stdout(io.StringIO()):  # it tells about every stage
        both: list[Any] = [COCO(), COCO()]
        for coco, annotations in zip(both, (truth["annotations"], chosen), strict=True):
            coco.dataset = {**truth, "annotations": _annotations(annotations)}
            coco.createIndex()
        evaluation: Any = COCOeval(both[0], both[1], "bbox")
        evaluation.params.maxDets = [1, 10, LVIS_MOST if federated else MOST]
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        if federated:
            _forgive(evaluation, truth["images"])
        evaluation.accumulate()
    return _result(evaluation, truth["categories"], federated)


def _result(evaluation: Any, categories: Sequence[Mapping[str, Any]], federated: bool) -> CocoResult:
    """Means over the arrays that pycocotools has filled: overlap, (recall,) category, area, number of detections."""
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    overall = precision[:, :, :, 0, -1]
    stats = {"AP": _mean(overall), "AP50": _mean(overall[0]), "AP75": _mean(overall[5])}
    stats |= {f"AP{area}": _mean(precision[:, :, :, i, -1]) for i, area in enumerate(AREAS) if area}
    stats |= {f"AR{most}": _mean(recall[:, :, 0, i]) for i, most in enumerate(evaluation.params.maxDets)}
    stats |= {f"AR{area}": _mean(recall[:, :, i, -1]) for i, area in enumerate(AREAS) if area}
    ids = list(evaluation.params.catIds)
    if federated:
        kinds = {category["id"]: category.get("frequency") for category in categories}
        stats |= {f"AP{kind}": _mean(overall[:, :, [kinds[id] == kind for id in ids]]) for kind in "rcf"}
    per_category = {int(id): _mean(overall[:, :, i]) for i, id in enumerate(ids)}
    return CocoResult(stats, per_category, [_mean(at) for at in overall])


def _mean(values: np.ndarray) -> float:
    """Over entries with ground truth; -1 where there are none."""
    there = values[values > -1]
    return float(there.mean()) if there.size else -1.0


def _known(detections: Iterable[Detection], truth: Content) -> list[Detection]:
    """The four fields that count of each; raises UserError for what the ground truth does not list."""
    out: list[Detection] = [{key: d[key] for key in ("image_id", "category_id", "bbox", "score")} for d in detections]
    for key, where in (("image_id", "images"), ("category_id", "categories")):
        ids = {entry["id"] for entry in truth[where]}
        if strange := next((d for d in out if d[key] not in ids), None):
            raise UserError(f"a detection has {key} {strange[key]}, which is not among the {where} of the ground truth")
    return out


def _annotations(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With the fields that pycocotools needs.  Ids count from 1, because it takes a match with id 0 for none."""
    defaults = [{"area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0} for entry in entries]
    return [{**default, **entry, "id": i} for i, (default, entry) in enumerate(zip(defaults, entries, strict=True), 1)]


def _federated(
    detections: Sequence[Detection], images: Sequence[Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]
) -> list[Detection]:
    """LVIS: the best 300 of each image, without categories of which nobody knows whether they are in it."""
    known = {image["id"]: set(image.get("neg_category_ids", ())) for image in images}
    for annotation in annotations:
        known[annotation["image_id"]].add(annotation["category_id"])
    by_image: dict[int, list[Detection]] = defaultdict(list)
    for detection in sorted(detections, key=lambda d: -d["score"]):
        by_image[detection["image_id"]].append(detection)
    best = (d for own in by_image.values() for d in own[:LVIS_MOST])
    return [d for d in best if d["category_id"] in known[d["image_id"]]]


def _forgive(evaluation: Any, images: Sequence[Mapping[str, Any]]) -> None:
    """LVIS: where not all of a category is marked in an image, a detection without a match counts neither way."""
    open_ended = {(image["id"], id) for image in images for id in image.get("not_exhaustive_category_ids", ())}
    for one in evaluation.evalImgs:
        if one is not None and (one["image_id"], one["category_id"]) in open_ended:
            one["dtIgnore"] = np.logical_or(one["dtIgnore"], np.asarray(one["dtMatches"]) == 0)
