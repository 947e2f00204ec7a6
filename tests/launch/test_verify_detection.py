"""run_verify on the golden numbers of the detectors, and on damaged copies."""

import json
import shutil
from pathlib import Path

import numpy as np

from launch.verify import det_network
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report

GOLDEN = Path(__file__).parents[1] / "golden" / "consistency_det"


def check(path: Path) -> Report:
    report, folder = Report(quiet=True), GoldenFolder(path)
    det_network.check(folder, det_network.Network(folder), report)
    return report


def test_every_row_of_the_network_passes():
    report = check(GOLDEN)
    assert not report.failed, report.failed
    checked = {row.name.split(".")[0] for row in report.rows}
    assert checked == {"features", "rcnn_stage", "dynamic_head", "roi_align", "nms", "inference_single_step"}
    assert len(report.rows) == 44


def test_damage_shows_where_it_is(tmp_path):
    for name in ("config.json", "features.npz", "nms.npz", "dynamic_head.npz", "weights.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path)
    stored = dict(np.load(GOLDEN / "nms.npz"))
    np.savez(tmp_path / "nms.npz", **stored | {"keep_050": stored["keep_050"][::-1]})
    config = json.loads((GOLDEN / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"NUM_REG": 2}))
    report = check(tmp_path)
    assert {row.name for row in report.failed} == {"nms.npz:keep_050", "dynamic_head.npz"}
    notes = " ".join(row.note for row in report.failed)
    assert "unexpected head.head_series.0.reg_module.6.weight" in notes
