"""run_verify on the sampling family: stored numbers, folders of other sizes, and damaged copies that must show."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.verify import sampling_grids, sampling_solvers
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from sampling import grids

GOLDEN = Path(__file__).parents[1] / "golden" / "sampling"
SOME = ("edm_heun_churn", "dpmpp2m_sde_midpoint", "ddim_eta05", "fm_rk4_-0.5")


def copy(tmp_path: Path, name: str, keep) -> Path:
    """One pair of files with some of its arrays, perhaps changed."""
    shutil.copyfile(GOLDEN / f"{name}.json", tmp_path / f"{name}.json")
    arrays = {key: array for key, array in np.load(GOLDEN / f"{name}.npz").items()}
    np.savez(tmp_path / f"{name}.npz", **{key: arrays[key] for key in arrays if keep(key)})
    return tmp_path


def checked(folder: Path, check) -> Report:
    report = Report(quiet=True)
    check(GoldenFolder(folder), report)
    return report


def test_grids_pass():
    report = checked(GOLDEN, sampling_grids.check)
    assert len(report.rows) > 40 and not report.failed, report.failed


def test_solvers_pass_in_both_precisions(tmp_path):
    """One trajectory of each sort; the slow test takes all."""
    inputs = ("g2a_", "sig", "noise", "vp_t", "vp_noise", "fm_t_")
    copy(tmp_path, "solvers", lambda key: key in SOME or key.startswith(inputs))
    settings = json.loads((tmp_path / "solvers.json").read_text()) | {"convergence": {}}
    (tmp_path / "solvers.json").write_text(json.dumps(settings))
    report = checked(tmp_path, sampling_solvers.check)
    assert not report.failed, report.failed
    assert {row.name for row in report.rows if row.mode == "float64"} == {f"solvers.npz:{key}" for key in SOME}
    assert sum(row.mode == "float32" for row in report.rows) == len(SOME)


def test_other_sizes_and_names_are_discovered(tmp_path):
    """A mixture of another name in three dimensions, another number of rows and steps, another η."""
    from sampling.analytic import Mixture
    from sampling.guidance import Conditional
    from sampling.noise import Stored
    from sampling.paths import VE
    from sampling.sample import sample
    from sampling.solvers import DDIM

    rng = np.random.default_rng(0)
    law = {"blob_w": np.ones(2) / 2, "blob_m": rng.normal(size=(2, 3)), "blob_C": np.stack([np.eye(3)] * 2)}
    sig, noise = grids.karras(5, 0.1, 9.0, 4.0), rng.normal(size=(5, 7, 3))
    with jax.enable_x64(True):
        guide = Conditional(Mixture(*law.values()).denoiser(VE(sigma_max=9.0)))
        states = sample(
            guide, jnp.asarray(9.0 * rng.normal(size=(7, 3))), sig, path=VE(sigma_max=9.0),
            solver=DDIM(eta=0.25), noise=Stored(jnp.asarray(noise)), keep="all",
        ).states  # fmt: skip
    arrays = {"sig": sig, "noise": noise, "euler_ancestral_eta025": states}
    np.savez(tmp_path / "solvers.npz", **law, **arrays, mystery=np.ones(2))
    (tmp_path / "solvers.json").write_text(json.dumps({"params": {"smin": 0.1, "smax": 9.0, "rho": 4.0}}))
    np.savez(tmp_path / "grids_b.npz", karras_5=sig, **{"sway_-0.3333_6": grids.sway(grids.uniform(6), -1 / 3)})
    shutil.copy(tmp_path / "solvers.json", tmp_path / "grids_b.json")
    folder, report = GoldenFolder(tmp_path), Report(quiet=True)
    sampling_grids.check(folder, report)
    sampling_solvers.check(folder, report)
    assert len(report.rows) == 5 and not report.failed, report.failed
    assert folder.unchecked() == ["solvers.npz: mystery"]


def test_wrong_numbers_fail_their_rows_only(tmp_path):
    copy(tmp_path, "grids", lambda key: key.startswith(("karras", "sway", "anc")))
    arrays = dict(np.load(tmp_path / "grids.npz"))
    arrays["karras_10"][3] *= 1 + 1e-8
    arrays["sway_-0.4000_7"][2] += 1e-7
    arrays["anc_up"][0] += 1e-6
    arrays["exp_4"] = np.ones(4)
    np.savez(tmp_path / "grids.npz", **arrays)
    report = checked(tmp_path, sampling_grids.check)
    failed = {row.name.removeprefix("grids.npz:") for row in report.failed}
    assert failed == {"karras_10", "sway_-0.4000_7", "anc_up", "exp_4"}


@pytest.mark.slow
def test_the_whole_folder_passes():
    from launch.verify.sampling_family import verify

    report = Report(quiet=True)
    verify(GoldenFolder(GOLDEN), report)
    assert not report.failed, report.failed
    for file in ("grids", "solvers"):
        for mode in ("float64", "float32") if file == "solvers" else ("host",):
            assert any(row.name.startswith(file) and row.mode == mode for row in report.rows), (file, mode)
    assert not [line for line in report.unchecked if line.startswith("solvers")], report.unchecked
