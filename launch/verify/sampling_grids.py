"""Golden rows of time grids and of the ancestral step's two noise levels."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from launch.verify.golden import GoldenFolder
from launch.verify.precision import near
from launch.verify.report import Report
from sampling import grids
from sampling.paths import VE
from sampling.solvers import DDIM


def check(folder: GoldenFolder, report: Report) -> None:
    """What is a grid in every ``grids*.npz``; its json gives the range of noise levels and Karras's ρ."""
    for name, match in folder.names(r"(grids.*)\.npz"):
        stored, params = folder.arrays(name), folder.json(f"{match[1]}.json").get("params", {})
        for key in stored:
            for pattern, make in grid_makers(params).items():
                if match := re.fullmatch(pattern, key):
                    with report.guard(f"{name}:{key}"):
                        got = make(*match.groups())(stored[key])
                        near(report, f"{name}:{key}", "host", got, stored[key], tolerance="float64")
        if "anc_from" in stored:
            with report.guard(f"{name}:anc"):
                ancestral(name, stored, report)


def grid_makers(params: Mapping[str, Any]) -> dict[str, Callable[..., Callable[[np.ndarray], np.ndarray]]]:
    """Name pattern -> (what the name says) -> (the stored grid, for its size) -> ours."""
    range_ = {ours: params[key] for key, ours in (("smin", "sigma_min"), ("smax", "sigma_max")) if key in params}
    number = r"(-?\d+(?:\.\d+)?)"
    return {
        rf"sway_{number}_\d+": lambda s: lambda want: swayed(s, want),
        r"karras_(\d+)": lambda n: lambda _: grids.karras(int(n), **range_, rho=params.get("rho", 7.0)),
        r"exp_(\d+)": lambda n: lambda _: grids.exponential(int(n), **range_),
        r"polyexp_(\d+)": lambda n: lambda _: grids.polyexponential(int(n), **range_),
        r"vpsig_(\d+)": lambda n: lambda _: grids.vp(int(n)),
        rf"shift_{number}": lambda s: lambda want: grids.shift(np.linspace(1.0, 0.0, len(want)), float(s)),
    }


def swayed(named: str, want: np.ndarray) -> np.ndarray:
    """The grid of the coefficient that was rounded to ``named``: the one, within the rounding, that fits best."""
    t = grids.uniform(len(want) - 1)
    bend = grids.sway(t, 1.0) - t
    fitted, half = bend @ (want - t) / max(bend @ bend, 1e-12), 0.5 * 10.0 ** -len(named.partition(".")[2])
    return grids.sway(t, float(np.clip(fitted, float(named) - half, float(named) + half)))


def ancestral(file: str, stored: Mapping[str, Any], report: Report) -> None:
    """``anc_up`` and ``anc_down`` of steps from ``anc_from`` to ``anc_to``: noise put back, and σ without it."""
    up, down = [], []
    for high, low in zip(stored["anc_from"], stored["anc_to"], strict=True):
        plan = DDIM(eta=1.0).plan(VE(sigma_max=high), np.array([high, low]))
        up.append(plan.rows["spread"][0])
        down.append(plan.rows["keep"][0] * high)
    near(report, f"{file}:anc_up", "host", up, stored["anc_up"], tolerance="float64")
    near(report, f"{file}:anc_down", "host", down, stored["anc_down"], tolerance="float64")
