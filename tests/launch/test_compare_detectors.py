"""The comparison keeps finished cells, makes budgets equal, and its table says what was found."""

import json

import pytest

from data.errors import UserError
from launch.evaluation.detector_comparison import budgets, cell, config_of, summary, table


def results(ap):
    return {"results": [{"steps": n, "merge": m, "milliseconds": 5.0, "AP": ap, "AP50": ap + 0.1}
                        for n, m in ((1, True), (2, True), (2, False))]}  # fmt: skip


def test_recipes_make_as_many_updates_as_cost_the_same(tmp_path):
    configs = {name: config_of(name, "tiny") for name in ("diffusion", "released", "consistency")}
    updates = budgets(configs, 1000, tmp_path)
    assert updates["diffusion"] == 1000
    assert updates["released"] < updates["consistency"] < 1000  # two levels with gradient, and one of the two without


def test_a_finished_cell_is_kept_and_one_of_another_length_refused(tmp_path):
    folder = tmp_path / "diffusion-0"
    folder.mkdir()
    kept = {"updates": 7, "seed": 0, **results(0.4)}
    (folder / "cell.json").write_text(json.dumps(kept))
    assert cell(folder, config_of("diffusion", "tiny"), 7, 0) == kept
    with pytest.raises(UserError, match="was trained for 7 updates, not 8"):
        cell(folder, config_of("diffusion", "tiny"), 8, 0)


def test_the_table_has_means_and_intervals_over_seeds():
    report = summary({"diffusion": [results(0.4), results(0.5), results(0.6)]}, {"diffusion": 9})
    assert len(report) == 3 and abs(report[0]["AP"]["value"] - 0.5) < 1e-9
    assert report[0]["AP"]["low"] < 0.5 < report[0]["AP"]["high"]
    text = table(report)
    assert "| diffusion | 9 | 2, last only | 0.500 [" in text and "Means over 3 seeds" in text
