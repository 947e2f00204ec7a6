"""Golden rows of the inference pipeline: they pass, nothing of their files is left out, and damage shows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from launch.verify import f5_frontend, f5_pipeline
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report

GOLDEN = Path(__file__).parents[1] / "golden" / "f5_tts"
FILES = ("pipeline.json", "pipeline_waves.npz", "ref_audio_preprocess.json", "ref_audio_preprocess.npz")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("config.json", *FILES):
        shutil.copy(GOLDEN / name, tmp_path)
    return tmp_path


def check(folder: Path) -> tuple[Report, GoldenFolder]:
    report, golden = Report(quiet=True), GoldenFolder(folder)
    f5_pipeline.check(golden, report)
    return report, golden


def test_everything_in_these_files_is_checked_and_right(copy):
    report, golden = check(copy)
    assert not report.failed, report.failed
    assert golden.unchecked() == [] and len(report.rows) > 50


def test_resampling_is_checked(tmp_path):
    for name in ("config.json", "resample.npz"):
        shutil.copy(GOLDEN / name, tmp_path)
    report, golden = Report(quiet=True), GoldenFolder(tmp_path)
    f5_frontend.check(golden, report)
    assert len(report.rows) == 4 and not report.failed and golden.unchecked() == []


def test_a_wrong_frame_sample_or_letter_fails_its_row(copy):
    cases = json.loads((copy / "pipeline.json").read_text())
    cases[0]["calls"][1]["duration"] += 1
    cases[2]["calls"][0]["text"][0][5] = "_"
    cases[3]["kw"]["unheard_of"] = 1
    (copy / "pipeline.json").write_text(json.dumps(cases))
    stored = dict(np.load(copy / "ref_audio_preprocess.npz"))
    stored["clean5s_out"][1000] += 1
    np.savez(copy / "ref_audio_preprocess.npz", **stored)
    waves = dict(np.load(copy / "pipeline_waves.npz"))
    waves["short_wave_first300"][299] += 1e-3
    np.savez(copy / "pipeline_waves.npz", **waves)
    report, _ = check(copy)
    assert {row.name for row in report.failed} == {
        "pipeline.json:quiet_24k durations",
        "pipeline.json:short text",
        "pipeline.json:short wave_first300",
        "pipeline.json:fixdur_nofade",
        "ref_audio_preprocess.npz:clean5s_out",
    }


def test_a_stereo_case_is_understood(copy):
    """Half the level in the second channel: the mean is three quarters."""
    case = json.loads((copy / "pipeline.json").read_text())[2] | {"stereo": True}
    case["calls"][0]["cond_rms"] *= 0.75
    (copy / "pipeline.json").write_text(json.dumps([case]))
    assert not check(copy)[0].failed
