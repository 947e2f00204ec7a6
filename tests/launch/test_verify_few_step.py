"""run_verify on few-step models: stored numbers pass in both precisions, wrong ones fail their own rows."""

import json
import shutil
from pathlib import Path

import numpy as np

from launch.verify import sampling_few_step
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling"


def checked(folder: Path) -> Report:
    report = Report(quiet=True)
    sampling_few_step.check(GoldenFolder(folder), report)
    return report


def test_the_stored_numbers_pass_in_both_precisions():
    report = checked(GOLDEN)
    assert not report.failed, report.failed
    for mode in ("float64", "float32"):
        names = {row.name for row in report.rows if row.mode == mode}
        assert {"grids.npz:ct_mu", "grids.npz:ict_p", "grids.npz:cm_cout", "consistency.npz:samples"} <= names
        assert "consistency.npz:g1_f" in names


def test_other_sizes_are_discovered_and_wrong_numbers_fail_their_rows(tmp_path):
    grids, about = dict(np.load(GOLDEN / "grids.npz")), json.loads((GOLDEN / "grids.json").read_text())
    kept = {key: grids[key] for key in ("ct_k", "ct_N", "ct_mu", "ict_N", "pre_sigma", "edm_cskip", "cm_cout")}
    kept = {key: array[:5] for key, array in kept.items()}  # fewer of all
    kept["pseudo_huber_c"] = np.array(0.00054 * np.sqrt(64))
    kept["ct_mu"][3] *= 1 + 1e-8
    kept["edm_cskip"][0] += 1e-3
    np.savez(tmp_path / "grids_small.npz", **kept)
    (tmp_path / "grids_small.json").write_text(json.dumps(about))
    stored = dict(np.load(GOLDEN / "consistency.npz"))
    multistep = {key: stored[key] for key in ("mu", "sigmas", "xT", "noise", "samples", "xhat")}
    multistep["sigmas"], multistep["samples"] = multistep["sigmas"][:3], multistep["samples"][:3].copy()
    multistep["noise"], multistep["xhat"] = multistep["noise"][:2], multistep["xhat"][:2]
    multistep["samples"][1, 0, 0] += 1e-2
    np.savez(tmp_path / "consistency.npz", **multistep)
    shutil.copyfile(GOLDEN / "consistency.json", tmp_path / "consistency.json")
    report = checked(tmp_path)
    failed = {(row.name, row.mode) for row in report.failed}
    assert failed == {
        ("grids_small.npz:ct_mu", "float64"),
        *(("grids_small.npz:edm_cskip", mode) for mode in ("float64", "float32")),
        *(("consistency.npz:samples", mode) for mode in ("float64", "float32")),
    }
    assert any(row.name == "grids_small.npz:pseudo_huber_c" and row.passed for row in report.rows)
