"""Golden rows of search: the stored file, a smaller one under other names, and a damaged one that must show."""

import json
from pathlib import Path

import numpy as np
import pytest

from launch.verify import sampling_search
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling"


def smaller(tmp_path, change=lambda arrays: None):
    """Five of the random starts and the first two rounds of the zero-order search, which are searches themselves."""
    stored, settings = dict(np.load(GOLDEN / "search.npz")), json.loads((GOLDEN / "search.json").read_text())
    steps = len(stored["t"]) - 1
    for key in ("rs_noise", "rs_sample", "rs_score"):
        stored[key] = stored[key][:5]
    stored["rs_best"] = stored["rs_score"].argmax()
    for key in [key for key in stored if key.startswith("zo_") and key != "zo_target"]:
        stored[key] = stored[key][: 3 if "pivot" in key else 2]
    settings["random"]["nfe"] = 5 * steps
    settings["zo"]["nfe"] = (1 + 2 * settings["zo"]["neighbours"]) * steps
    for part in "wmC":
        stored[f"law_{part}"] = stored.pop(f"q10_{part}")
    change(stored)
    np.savez(tmp_path / "search_small.npz", **stored)
    (tmp_path / "search_small.json").write_text(json.dumps(settings))
    return tmp_path


def checked(folder, only=("random_search", "zero_order")):
    report = Report(quiet=True)
    (name,) = [name for name, _ in GoldenFolder(folder).names(r"search.*\.npz")]
    opened = GoldenFolder(folder)
    stored, settings = opened.arrays(name), opened.json(name.replace("npz", "json"))
    for mode in ("float64", "float32"):
        with sampling_search.precision(mode):
            for check in only:
                getattr(sampling_search, check)(name, stored, settings, mode, report)
    return report


def test_other_sizes_and_names_are_discovered(tmp_path):
    report = checked(smaller(tmp_path))
    assert not report.failed, report.failed
    assert len(report.rows) == 2 * (4 + 6)


def test_damage_shows(tmp_path):
    def damage(arrays):
        arrays["zo_choice"][1] = -1
        arrays["rs_sample"][2, 0] += 0.01

    failed = {row.name.split(":")[1] for row in checked(smaller(tmp_path, damage)).failed}
    assert failed == {"zo_choice", "rs_sample", "rs_score"}


@pytest.mark.slow
def test_the_whole_file_passes():
    report = Report(quiet=True)
    folder = GoldenFolder(GOLDEN)
    sampling_search.check(folder, report)
    assert len(report.rows) == 39 and not report.failed, report.failed
    assert not [what for what in folder.unchecked() if what.startswith("search")]
