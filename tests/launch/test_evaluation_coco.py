"""COCO's numbers: the golden ones, closed forms, and LVIS' federated rules."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from data.errors import UserError
from launch.evaluation.coco import judge
from launch.verify import det_coco
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report

GOLDEN = Path(__file__).parents[1] / "golden" / "consistency_det"


def golden(tmp_path: Path, stem: str = "coco") -> Path:
    for part in ("gt", "dt", "stats"):
        shutil.copy(GOLDEN / f"coco_{part}.json", tmp_path / f"{stem}_{part}.json")
    shutil.copy(GOLDEN / "config.json", tmp_path)
    return tmp_path


def test_golden_numbers_and_others_of_any_name(tmp_path: Path):
    folder, report = GoldenFolder(golden(tmp_path, "other")), Report(quiet=True)
    det_coco.check(folder, report)
    assert len(report.rows) == 6 and not report.failed, report.failed
    assert folder.unchecked() == []


def test_a_wrong_number_fails(tmp_path: Path):
    golden(tmp_path)
    stored = json.loads((tmp_path / "coco_stats.json").read_text())
    stored["stats"][3] += 1e-5
    stored["per_category_AP"]["18"] = 0.5
    (tmp_path / "coco_stats.json").write_text(json.dumps(stored))
    report = Report(quiet=True)
    det_coco.check(GoldenFolder(tmp_path), report)
    assert {row.name for row in report.failed} == {"coco_stats.json:stats", "coco_stats.json:per_category_AP"}


def scene(annotations, **image):
    """One image with boxes (category, left, top, width, height)."""
    return {
        "images": [{"id": 5, "height": 100, "width": 100} | image],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": c, "bbox": list(box)} for i, (c, *box) in enumerate(annotations)
        ],
        "categories": [{"id": 2, "name": "a", "frequency": "f"}, {"id": 9, "name": "b", "frequency": "r"}],
    }


def found(*rows):
    return [{"image_id": 5, "category_id": c, "bbox": list(box), "score": s} for c, s, *box in rows]


def test_perfect_and_empty_detections():
    truth = scene([(2, 10, 10, 20, 20), (2, 50, 50, 40, 40), (9, 0, 50, 10, 10)])
    perfect = found((2, 0.9, 10, 10, 20, 20), (2, 0.8, 50, 50, 40, 40), (9, 0.7, 0, 50, 10, 10))
    result = judge(truth, perfect)  # the first annotation's id is 0, which pycocotools alone would call unmatched
    assert [result.stats["AP"], result.stats["AR100"], result.per_category[9]] == pytest.approx([1.0] * 3)
    assert result.stats["APl"] == -1 and result.per_iou == pytest.approx([1.0] * 10)
    nothing = judge(truth, [])
    assert nothing.stats["AP"] == nothing.stats["AR100"] == 0.0 and nothing.per_category == {2: 0.0, 9: 0.0}
    assert judge(truth, perfect, image_ids=[]).stats["AP"] == -1


def test_average_precision_of_one_mistake():
    """Right, wrong, right: precision 1 up to recall 1/2, then 2/3; COCO samples 101 recalls, 51 of them up to 1/2."""
    truth = scene([(2, 10, 10, 20, 20), (2, 50, 50, 40, 40)])
    result = judge(truth, found((2, 0.9, 10, 10, 20, 20), (2, 0.8, 0, 70, 9, 9), (2, 0.7, 50, 50, 40, 40)))
    assert result.stats["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_lvis_rules():
    boxes = [(2, 10, 10, 20, 20)]
    hit, wrong_a, wrong_b = (2, 0.5, 10, 10, 20, 20), (2, 0.9, 60, 60, 9, 9), (9, 0.8, 60, 60, 9, 9)
    strict = judge(scene(boxes, neg_category_ids=[9]), found(hit, wrong_a, wrong_b))
    assert strict.stats["AP"] == pytest.approx(0.5) and strict.stats["APf"] == pytest.approx(0.5)
    assert "AR300" in strict.stats and strict.stats["APr"] == -1
    lenient = judge(scene(boxes, neg_category_ids=[], not_exhaustive_category_ids=[2]), found(hit, wrong_a, wrong_b))
    assert lenient.stats["AP"] == pytest.approx(1.0)
    # Only the best 300 of an image count, whatever their category.
    many = found(hit, *[(2, 0.6 + i / 1000, 60, 60, 9, 9) for i in range(300)])
    assert judge(scene(boxes, neg_category_ids=[9]), many).stats["AP"] == 0.0
    two = scene([*boxes, (9, 60, 60, 9, 9)], neg_category_ids=[])
    assert judge(two, found(hit, wrong_b)).stats["APr"] == pytest.approx(1.0)


def test_without_pycocotools_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match=r"pip install -e .*detection"):
        judge(scene([(2, 10, 10, 20, 20)]), [])


def test_detections_of_strangers_are_named():
    truth = scene([(2, 10, 10, 20, 20)])
    with pytest.raises(UserError, match="category_id 3, which is not among the categories"):
        judge(truth, found((3, 0.5, 1, 1, 2, 2)))
    with pytest.raises(UserError, match="image_id 6"):
        judge(truth, [{"image_id": 6, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1.0}])


def test_results_are_json_and_text():
    result = judge(scene([(2, 10, 10, 20, 20)]), found((2, 0.5, 10, 10, 20, 20)))
    assert json.loads(json.dumps(result.to_dict()))["per_iou"] == pytest.approx([1.0] * 10)
    assert str(result).startswith("AP 1.000  AP50 1.000") and len(result.stats) == 12
    assert np.isfinite(list(result.stats.values())).all()
