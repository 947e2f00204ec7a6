"""Golden rows of solvers: trajectories on the exact denoiser of a mixture, and tables of convergence."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch.verify.golden import GoldenFolder
from launch.verify.precision import TOLERANCES, mixtures, near, precision
from launch.verify.report import Report
from sampling import grids
from sampling.analytic import Mixture
from sampling.guidance import Conditional
from sampling.noise import Stored
from sampling.paths import VE, FlowPath, Path, VPLinear
from sampling.sample import sample, trajectory
from sampling.solvers import DDIM, EDM, RK4, DPMpp2M, Euler, Heun, Midpoint, Solver

ORDERS = 0.15  # how far a measured order of convergence may be from the true one
OF_ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "edm_euler": 1, "edm_heun": 2, "dpmpp2m": 2, "ddim": 1}
FLOW: dict[str, Solver] = {"euler": Euler(), "midpoint": Midpoint(), "heun": Heun(), "rk4": RK4()}
DIFFUSION: dict[str, Solver] = {
    "edm_euler": EDM(order=1),
    "edm_heun": EDM(order=2),
    "dpmpp2m": DPMpp2M(),
    "ddim": DDIM(),
}


class Case(NamedTuple):
    """A stored trajectory [n + 1, b, d] and how it was made."""

    key: str
    solver: Solver
    path: Path
    grid: np.ndarray
    start: np.ndarray | None = None
    noise: np.ndarray | None = None


def check(folder: GoldenFolder, report: Report) -> None:
    """Every ``solvers*.npz`` with its json."""
    for name, match in folder.names(r"(solvers.*)\.npz"):
        stored, settings = folder.arrays(name), folder.json(f"{match[1]}.json")
        laws = mixtures(stored)
        with report.guard(name):
            time_grids(name, stored, settings["params"], report)
        for key in stored:
            with report.guard(f"{name}:{key}"):
                if (case := find_case(key, stored, settings)) is not None:
                    states = stored[key]
                    whole_and_steps(name, case, law_of(laws, states), states, report)
        for method, table in settings.get("convergence", {}).items():
            with report.guard(f"{name}:convergence {method}", "float64"):
                convergence(name, method, table, stored, settings, laws, report)


def law_of(laws: Mapping[str, Mixture], x: np.ndarray) -> Mixture:
    """The file's first mixture in as many dimensions as ``x`` [..., d]."""
    return next(law for law in laws.values() if law.dimension == x.shape[-1])


def time_grids(file: str, stored: Mapping[str, Any], params: Mapping[str, Any], report: Report) -> None:
    """The grids that trajectories run on: ``sig``, ``vp_*`` and ``fm_t_<sway>``."""
    for key in stored:
        if key == "sig":
            want = grids.karras(len(stored[key]) - 1, params["smin"], params["smax"], params["rho"])
        elif key in ("vp_alpha", "vp_sigma"):
            want = getattr(VPLinear(), key.removeprefix("vp_"))(stored["vp_t"])
        elif match := re.fullmatch(r"fm_t_(-?\d+(?:\.\d+)?)", key):
            steps, end = len(stored[key]) - 1, stored[key][-1]
            want = end * grids.sway(grids.uniform(steps), float(match[1]))
        else:
            continue
        near(report, f"{file}:{key}", "host", want, stored[key], tolerance="float64")


def find_case(key: str, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> Case | None:
    """What the name of an array says about the trajectory in it; None where it is no trajectory."""
    if match := re.fullmatch(r"fm_(euler|midpoint|heun|rk4)_(-?\d+(?:\.\d+)?)", key):
        return Case(key, FLOW[match[1]], FlowPath(), stored[f"fm_t_{match[2]}"])
    if match := re.fullmatch(r"edm_(euler|heun)(_churn)?", key):
        about = settings[key] if match[2] else {}
        names = {"S_churn": "churn", "S_tmin": "tmin", "S_tmax": "tmax", "S_noise": "noise_scale"}
        options = {ours: about[theirs] for theirs, ours in names.items() if theirs in about}
        solver: Solver = EDM(order=2 if match[1] == "heun" else 1, **options)
    elif match := re.fullmatch(r"euler_ancestral(?:_eta(\d)(\d*))?", key):
        solver = DDIM(eta=_eta(match, default=1.0))
    elif match := re.fullmatch(r"dpmpp2m_sde_midpoint(?:_eta(\d)(\d*))?", key):
        solver = DPMpp2M(eta=_eta(match, default=1.0))
    elif match := re.fullmatch(r"ddim_eta(\d)(\d*)", key):
        solver = DDIM(eta=_eta(match, default=0.0))
    elif key in ("dpmpp2m_karras", "dpmpp2m_vp"):
        solver = DPMpp2M()
    else:
        return None
    if key.startswith("ddim") or key.endswith("_vp"):
        return Case(key, solver, VPLinear(), stored["vp_t"], stored.get("vp_xT"), stored["vp_noise"])
    return Case(key, solver, VE(sigma_max=stored["sig"][0]), stored["sig"], stored.get("xT"), stored["noise"])


def _eta(match: re.Match[str], default: float) -> float:
    """ "05" is 0.5."""
    return default if match[1] is None else float(f"{match[1]}.{match[2] or 0}")


def whole_and_steps(file: str, case: Case, law: Mixture, states: np.ndarray, report: Report) -> None:
    """The trajectory from its start in float64; in both precisions every step from the state before it."""
    guide = Conditional(law.denoiser(case.path, "velocity" if isinstance(case.path, FlowPath) else "data"))
    for mode in TOLERANCES:
        with precision(mode):
            known = jnp.asarray(states, mode)
            noise = None if case.noise is None else Stored(jnp.asarray(case.noise, mode))
            if mode == "float64":
                run = jax.jit(
                    lambda x, noise: (
                        sample(guide, x, case.grid, path=case.path, solver=case.solver, noise=noise, keep="all").states
                    )
                )
                start = known[0] if case.start is None else jnp.asarray(case.start, mode)
                near(report, f"{file}:{case.key}", mode, run(start, noise), states)
            else:
                got = jax.jit(lambda known, noise: every_step(guide, known, case, noise))(known, noise)
                scale = np.maximum(case.path.sigma(case.grid[:-1]), 1.0)[:, None, None]
                near(report, f"{file}:{case.key} by steps", mode, got, states[1:], scale)


def every_step(guide: Conditional, states: jax.Array, case: Case, noise: Stored | None) -> jax.Array:
    """Each state [n, b, d] made from the one before it, and that one's memory from the one before that."""
    track = trajectory(guide, states[0], case.grid, case.path, case.solver, noise)
    n, start = len(case.grid) - 1 - track.peel, case.solver.init(states[0])
    rows, last = jax.tree.map(lambda a: a[:n], track.rows), jax.tree.map(lambda a: a[-1], track.rows)
    memories = jax.vmap(lambda x, row: track.step(x, start, row, False).history)(states[:n], rows)
    history = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), start, memories)
    moved = jax.vmap(lambda x, memory, row: track.step(x, memory, row, False).x)(states[:n], history, rows)
    if track.peel:
        moved = jnp.concatenate([moved, track.step(states[n], start, last, True).x[None]])
    return moved


def convergence(
    file: str,
    method: str,
    table: Mapping[str, Any],
    stored: Mapping[str, Any],
    settings: Mapping[str, Any],
    laws: Mapping[str, Mixture],
    report: Report,
) -> None:
    """Errors at the end of a segment for growing numbers of steps, and the order they fall with."""
    flow = method in FLOW
    (start, end), rho = settings["fm_segment" if flow else "edm_segment"], settings["params"]["rho"]
    x, want = (stored[f"conv_{'' if flow else 'edm_'}{what}"] for what in ("x", "ref"))
    path: Path = FlowPath() if flow else VE(sigma_max=start)
    solver = FLOW[method] if flow else DIFFUSION[method]
    guide = Conditional(law_of(laws, x).denoiser(path, "velocity" if flow else "data"))
    errors = []
    with precision("float64"):
        for steps in table["steps"]:
            grid = grids.uniform(steps, start, end) if flow else grids.karras(steps + 1, end, start, rho)[:-1]
            run = jax.jit(lambda x, grid=grid: sample(guide, x, grid, path=path, solver=solver).x)
            errors.append(np.abs(np.asarray(run(jnp.asarray(x))) - want).max())
    near(report, f"{file}:convergence {method}", "float64", errors, table["err"])
    orders = -np.diff(np.log(errors)) / np.diff(np.log(table["steps"]))
    report.close(f"{file}:order {method}", "float64", orders[-2:], [OF_ORDER[method]] * 2, ORDERS)
