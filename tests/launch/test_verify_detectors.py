"""run_verify on the training and sampling of detectors: stored numbers pass, wrong ones fail their own rows."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from launch.verify import det_sampling, det_training
from launch.verify.det_network import Network
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report

GOLDEN = Path(__file__).parents[1] / "golden" / "consistency_det"


def checked(folder: Path) -> Report:
    report, golden = Report(quiet=True), GoldenFolder(folder)
    network = Network(golden)
    det_training.check(golden, network, report)
    det_sampling.check(golden, network, report)
    return report


@pytest.mark.slow
def test_the_stored_numbers_pass():
    report = checked(GOLDEN)
    assert not report.failed, "\n".join(map(str, report.failed))
    names = {row.name.partition(":")[0] for row in report.rows}
    assert names == {
        "matcher.npz", "matcher_quirk.npz", "losses.npz", "diffusion_train.npz", "diffusion_train_grads.safetensors",
        "consistency_train.npz", "schedule.npz", "ddim_sample_1.npz", "ddim_sample_4.npz", "consistency_sample_1.npz",
        "consistency_sample_3.npz", "consistency_fn_inverted.npz",
    }  # fmt: skip


def test_other_sizes_are_discovered_and_wrong_numbers_fail_their_rows(tmp_path):
    """Half of the matcher's images and some schedules, three numbers of them changed."""
    for name in ("config.json", "features.npz"):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    stored = {key: array[4:] for key, array in np.load(GOLDEN / "matcher.npz").items()}
    stored["cost"][0, 3, 0] += 0.1
    stored["assigned_gt"][1, 2] = -1 if stored["assigned_gt"][1, 2] >= 0 else 0
    np.savez(tmp_path / "matcher.npz", **stored)
    schedule = dict(np.load(GOLDEN / "schedule.npz"))
    schedule = {key: array for key, array in schedule.items() if not key.startswith(("ddim", "karras"))}
    schedule |= {"ddim_pairs_3": np.array([[999, 665], [665, 332], [332, -1]]), "ddim_c_3_f64": np.zeros(3)}
    np.savez(tmp_path / "schedule.npz", **schedule)
    report = checked(tmp_path)
    assert {row.name for row in report.failed} == {
        "matcher.npz:cost",
        "matcher.npz:assigned_gt",
        "schedule.npz:ddim_c_3_f64",
    }
    assert any(row.name == "schedule.npz:ddim_pairs_3" and row.passed for row in report.rows)
