"""Golden rows of COCO's judgement: every ``<name>_gt.json`` with its ``<name>_dt.json`` and ``<name>_stats.json``."""

from launch.evaluation.coco import judge
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report

TOLERANCE = 1e-6


def check(folder: GoldenFolder, report: Report) -> None:
    """Judges each set of stored detections."""
    for name, match in folder.names(r"(.+)_gt\.json"):
        stem = match[1]
        if folder.has(f"{stem}_dt.json") and folder.has(f"{stem}_stats.json"):
            with report.guard(name):
                judged(stem, folder, report)


def judged(stem: str, folder: GoldenFolder, report: Report) -> None:
    """All numbers of one set."""
    truth, detections = dict(folder.json(f"{stem}_gt.json")), list(dict(folder.json(f"{stem}_dt.json")).values())
    stored, where = folder.json(f"{stem}_stats.json"), f"{stem}_stats.json"
    result = judge(truth, detections)
    for key in stored:
        if key == "stats":
            names = stored["stat_names"]
            report.close(f"{where}:stats", "host", [result.stats[n] for n in names], stored[key], TOLERANCE)
        elif key == "per_category_AP":
            ids = [int(id) for id in stored[key]]
            found = [result.per_category[id] for id in ids]
            report.close(f"{where}:{key}", "host", found, list(stored[key].values()), TOLERANCE)
            report.equal(f"{where}:categories", sorted(result.per_category), sorted(ids))
        elif key == "per_iou_AP":
            report.close(f"{where}:{key}", "host", result.per_iou, stored[key], TOLERANCE)
        elif key in ("n_gt", "n_dt"):
            counted = truth["annotations"] if key == "n_gt" else detections
            report.equal(f"{where}:{key}", [len(counted)], [stored[key]])
