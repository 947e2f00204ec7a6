"""run_verify on the golden folder, and on damaged copies of it: every kind of damage must show."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.errors import UserError
from launch.verify import f5_frontend, f5_network, f5_sampling, f5_training
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report

GOLDEN = Path(__file__).parents[1] / "golden" / "f5_tts"


def copy(tmp_path: Path, *patterns: str) -> Path:
    """Config and weights, and the files asked for."""
    for pattern in ("config.json", "dit_noconv.safetensors", "inputs.npz", *patterns):
        for file in GOLDEN.glob(pattern):
            shutil.copy(file, tmp_path)
    return tmp_path


def change(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **{**np.load(path), **arrays})


def names(report: Report) -> set[str]:
    return {row.name for row in report.failed}


def test_data_side_rows_pass():
    report = Report(quiet=True)
    folder = GoldenFolder(GOLDEN)
    f5_frontend.check(folder, report)
    f5_sampling.time_grids("timesteps.npz", folder.arrays("timesteps.npz"), report)
    f5_training.schedules("schedules.json", folder.json("schedules.json"), report)
    assert len(report.rows) > 100 and not report.failed, report.failed


def test_one_network_passes_and_names_what_nobody_checked(tmp_path):
    copy(tmp_path, "forward_dit_noconv.npz", "forward_unett_add.npz", "README.md")
    config = json.loads((tmp_path / "config.json").read_text())
    config["variants"]["unett_add"]["backbone"] = "Mamba"
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = GoldenFolder(tmp_path)
    report = Report(quiet=True)
    variants = f5_network.Variants(folder)
    f5_network.check(folder, variants, report)
    assert len(report.rows) == 9 and not report.failed
    assert variants.unknown == {"unett_add": "Mamba"} and "unett" in variants.known
    assert folder.unchecked() == ["forward_unett_add.npz"]


def test_a_wrong_number_fails_its_row_only(tmp_path):
    copy(tmp_path, "forward_dit_noconv.npz")
    stored = np.load(GOLDEN / "forward_dit_noconv.npz")
    off = stored["out__nomask"].copy()
    off[1, 2, 3] += 5e-5
    nan = stored["out__mask"].copy()
    nan[0, 0, 0] = np.nan
    change(tmp_path / "forward_dit_noconv.npz", out__nomask=off, out__mask=nan, out__mask_droptext=off[:2])
    report = Report(quiet=True)
    folder = GoldenFolder(tmp_path)
    f5_network.check(folder, f5_network.Variants(folder), report)
    assert names(report) == {f"forward_dit_noconv.npz:out__{c}" for c in ("nomask", "mask", "mask_droptext")}
    assert "shape" in next(row.note for row in report.rows if row.name.endswith("droptext"))


def test_other_names_and_configurations_are_discovered(tmp_path):
    """The same numbers under another variant name, with another number of steps and rows."""
    config = json.loads((GOLDEN / "config.json").read_text())
    config["variants"] = {"net": config["variants"]["dit_noconv"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "dit_noconv.safetensors", tmp_path)
    shutil.copy(GOLDEN / "forward_dit_noconv.npz", tmp_path / "forward_net.npz")
    inputs = dict(np.load(GOLDEN / "inputs.npz"))
    np.savez(tmp_path / "inputs.npz", **{k: v[:2] for k, v in inputs.items()})
    two = {k: v[:2] for k, v in np.load(GOLDEN / "forward_dit_noconv.npz").items() if "cfg" not in k}
    np.savez(tmp_path / "forward_net.npz", **two)
    np.savez(tmp_path / "timesteps.npz", **{"t_n3_linear_sway-0.25": f5_sampling.flow_grid(3, sway_coefficient=-0.25)})
    report, folder = Report(quiet=True), GoldenFolder(tmp_path)
    f5_network.check(folder, f5_network.Variants(folder), report)
    f5_sampling.check(folder, f5_network.Variants(folder), report)
    assert len(report.rows) == 9 and not report.failed, report.failed


def test_a_model_that_does_not_fit_its_weights_is_a_failed_row(tmp_path):
    copy(tmp_path, "forward_dit_noconv.npz")
    config = json.loads((tmp_path / "config.json").read_text())
    config["variants"]["dit_noconv"]["kwargs"]["depth"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    report, folder = Report(quiet=True), GoldenFolder(tmp_path)
    f5_network.check(folder, f5_network.Variants(folder), report)
    assert [row.name for row in report.failed] == ["forward_dit_noconv.npz"]
    assert "missing transformer_blocks" in report.failed[0].note


def test_rows_are_written_as_json_and_summed_up(tmp_path):
    report = Report(quiet=True)
    report.close("a", "host", [1.0, 2.0], [1.0, 2.5], 0.1)
    report.equal("b", ["x", "y"], ["x", "y"])
    report.equal("c", ["x"], ["x", "y"])
    with report.guard("d"):
        raise KeyError("gone")
    report.unchecked.append("e.npz")
    report.write(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["passed"] for row in written["rows"]] == [False, True, False, False]
    assert written["failed"] == 3 and written["not_checked"] == ["e.npz"]
    assert "1 of 4 rows ok, 1 things not checked" in report.summary()


def test_folders_that_are_none_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        GoldenFolder(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no config\.json"):
        f5_network.Variants(GoldenFolder(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        f5_network.Variants(GoldenFolder(tmp_path))


@pytest.mark.slow
def test_the_whole_folder_passes(tmp_path):
    from launch.verify.f5_tts import verify

    report = Report(quiet=True)
    verify(GoldenFolder(GOLDEN), report)
    assert not report.failed, report.failed
    checked = {row.name.split(":")[0].removeprefix("exp(") for row in report.rows}
    for kind in ("forward", "single", "sample", "loss", "train6", "mel", "text", "dynamic", "schedules"):
        assert any(name.startswith(kind) for name in checked), kind
    assert {row.mode for row in report.rows if row.name.startswith("single_")} == {"exact"}
    assert report.unchecked == []


def test_the_command_exits_by_its_verdict(tmp_path):
    copy(tmp_path, "schedules.json")

    def run(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "launch.run_verify", *flags]
        return subprocess.run(command, cwd=GOLDEN.parents[2], capture_output=True, text=True, timeout=300)

    flags = ("--family=f5_tts", f"--golden={tmp_path}", f"--json={tmp_path / 'rows.json'}")
    good = run(*flags)
    assert good.returncode == 0 and re.search(r"^(\d+) of \1 rows ok", good.stdout, re.MULTILINE), good.stderr
    content = json.loads((tmp_path / "schedules.json").read_text())
    content["lr"]["value_used_at_update"]["10"] *= 1.001
    (tmp_path / "schedules.json").write_text(json.dumps(content))
    bad = run(*flags)
    assert bad.returncode == 1 and "FAILED" in bad.stdout
    assert json.loads((tmp_path / "rows.json").read_text())["failed"] == 1
    unknown = run("--family=f6", f"--golden={tmp_path}")
    assert unknown.returncode == 2 and "--family=f6 is not known" in unknown.stderr
