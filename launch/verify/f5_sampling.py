"""F5-TTS golden rows of sampling: time grids, and whole trajectories from a stored start."""

from typing import Any

import jax
import numpy as np

from launch.verify.f5_network import Variants
from launch.verify.golden import GoldenFolder
from launch.verify.report import Report
from models.layers.backbone import Padding
from sampling.grids import flow_grid
from sampling.infill import InfillNetwork, infill, least_frames
from sampling.solvers import solver

TRAJECTORY = 5e-5  # a float64 replay differs by 4e-6
TIMES = 1e-6


def check(folder: GoldenFolder, variants: Variants, report: Report) -> None:
    """``timesteps.npz`` and every ``sample_<case>.npz`` whose model is known."""
    for name, _ in folder.names(r"timesteps\.npz"):
        time_grids(name, folder.arrays(name), report)
    for name, match in folder.names(r"sample_(.+)\.npz"):
        settings = folder.config["samples"].get(match[1])
        if settings and settings["model"] in variants.known:
            with report.guard(name):
                trajectory(name, folder.arrays(name), settings, variants, report)


def time_grids(file: str, stored: Any, report: Report) -> None:
    """Arrays ``t_n<steps>_<epss|linear>_<raw|sway<s>>``."""
    for key in stored:
        words = key.removeprefix("t_n").split("_")
        if len(words) != 3 or words[1] not in ("epss", "linear"):
            continue
        with report.guard(f"{file}:{key}"):
            coefficient = None if words[2] == "raw" else float(words[2].removeprefix("sway"))
            grid = flow_grid(int(words[0]), sway_coefficient=coefficient, pruned=words[1] == "epss")
            report.close(f"{file}:{key}", "host", grid, stored[key], TIMES)


def trajectory(file: str, stored: Any, settings: dict[str, Any], variants: Variants, report: Report) -> None:
    """One sampling case: batches as the release runs them, a row alone in exact mode."""
    start, text = stored["y0"], stored["text"]
    rows, frames, _ = start.shape
    mode: Padding = "exact" if rows == 1 else "reference"
    model, variables = variants.model(settings["model"], mode), variants.variables(settings["model"])
    clip, lengths = stored["cond"], np.full(rows, stored["cond"].shape[1])
    if "lens" in stored:
        lengths = stored["lens"]
    # The stored start says how long the reference made each utterance; our rule must agree.
    asked = np.broadcast_to(stored["duration"], rows)
    total = least_frames(asked, (text != -1).sum(1), lengths)
    report.equal(f"{file}:frames", [int(total.max())], [frames])

    known = np.arange(clip.shape[1]) < lengths[:, None]
    if "edit_mask" in stored:
        known &= stored["edit_mask"]
    clip = np.pad(clip, ((0, 0), (0, frames - clip.shape[1]), (0, 0)))
    known = np.pad(known, ((0, 0), (0, frames - known.shape[1])))
    if settings.get("no_ref_audio"):
        clip = np.zeros_like(clip)

    duplicate = settings.get("duplicate_test", False)
    begin = settings.get("t_inter", 0.1) if duplicate else 0.0
    grid = flow_grid(
        int(settings["steps"] * (1 - begin)),
        sway_coefficient=settings["sway_sampling_coef"],
        pruned=settings.get("use_epss", True),
        start=begin,
    )
    report.close(f"{file}:t", "host", grid, stored["t"], TIMES)

    weight = settings["cfg_strength"] + 1.0 if settings["cfg_strength"] >= 1e-5 else None
    index = stored["trajectory_index"]

    @jax.jit
    def run(variables: Any) -> Any:
        network = InfillNetwork(
            encode=lambda text, lens, drop: model.apply(variables, text, lens, frames, drop, method="encode_text")[0],
            predict=lambda x, clip, text, t, lens: model.apply(variables, x, clip, text, t, lens, method="velocity")[0],
        )
        return infill(
            network,
            clip,
            known,
            text,
            total,
            start,
            grid,
            weight=weight,
            solver=solver(settings["method"]),
            keep=tuple(int(i) for i in index),
        )

    result = run(variables)
    report.close(f"{file}:trajectory", mode, result.states, stored["trajectory"], TRAJECTORY)
    report.close(f"{file}:out", mode, result.out, stored["out"], TRAJECTORY)
