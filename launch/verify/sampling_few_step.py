"""Golden rows of few-step models: schedules and weights of their training, preconditioners, consistency sampling."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.verify.golden import GoldenFolder
from launch.verify.precision import TOLERANCES, near, precision
from launch.verify.report import Report
from sampling import preconditioning
from sampling.analytic import Mixture
from sampling.grids import karras
from sampling.guidance import Conditional
from sampling.noise import Stored
from sampling.paths import VE
from sampling.prediction import Prediction
from sampling.sample import sample
from sampling.solvers import RK4, Consistency
from train.objectives import consistency_schedules as schedules

STEPS = 1000  # of the Runge-Kutta method that follows a 1-D mixture's trajectories


def check(folder: GoldenFolder, report: Report) -> None:
    """Schedules and preconditioners of every ``grids*.npz``; ``consistency*.npz``."""
    for name, match in folder.names(r"(grids.*)\.npz"):
        stored, about = folder.arrays(name), folder.json(f"{match[1]}.json")
        for mode in TOLERANCES:
            for rows in (training_schedules, improved_weights, preconditioners):
                with report.guard(f"{name}:{rows.__name__}", mode), precision(mode):
                    for key, got in rows(stored, about).items():
                        near(report, f"{name}:{key}", mode, got, stored[key])
    for name, match in folder.names(r"(consistency.*)\.npz"):
        stored, about = folder.arrays(name), folder.json(f"{match[1]}.json")
        for mode in TOLERANCES:
            with report.guard(name, mode), precision(mode):
                multistep(name, mode, stored, about, report)
                mixtures(name, mode, stored, about, report)


def training_schedules(stored: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Levels and decays at the steps ``ct_k``, as a training run computes them: from a traced step."""
    if "ct_k" not in stored:
        return {}
    ct, ict, steps = about["ct"], about.get("ict", {}), jnp.asarray(stored["ct_k"])
    ends = ct["s0"], ct["s1"]
    own = ict.get("s0", ct["s0"]), ict.get("s1", ct["s1"])
    return {
        "ct_N": jax.jit(lambda k: schedules.ct_points(k, ct["K"], *ends))(steps),
        "ct_mu": jax.jit(lambda k: schedules.ct_decay(k, ct["K"], ct["mu0"], *ends))(steps),
        "ict_N": jax.jit(lambda k: schedules.ict_points(k, ict.get("K", ct["K"]), *own))(steps),
    }


def improved_weights(stored: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """iCT's levels, probabilities and weights of intervals, and the pseudo-Huber constant."""
    out: dict[str, Any] = {}
    if "ict_sigma_ascending" in stored:
        ict, params, sigmas = about["ict"], about["params"], stored["ict_sigma_ascending"]
        levels = jnp.arange(len(sigmas), dtype=jnp.result_type(float))
        place = params["smin"], params["smax"], params["rho"]
        out["ict_sigma_ascending"] = schedules.karras_level(levels, len(sigmas), *place)
        out["ict_p"] = schedules.interval_probabilities(sigmas, ict["Pmean"], ict["Pstd"])
        out["ict_lambda"] = schedules.interval_weights(sigmas)
    if "pseudo_huber_c" in stored:  # of whatever whole number of pixels its file was made for
        size = round((float(stored["pseudo_huber_c"]) / schedules.pseudo_huber_constant(1)) ** 2)
        out["pseudo_huber_c"] = schedules.pseudo_huber_constant(size)
    return out


def preconditioners(stored: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """EDM's and consistency models' around a network, at the noise levels ``pre_sigma``."""
    if "pre_sigma" not in stored:
        return {}
    params = about["params"]
    sigma, size = jnp.asarray(stored["pre_sigma"], jnp.result_type(float)), params.get("sigma_data", 0.5)
    edm, cm = preconditioning.edm(sigma, size), preconditioning.consistency(sigma, size, params["smin"])
    out = {"edm_cskip": edm.skip, "edm_cout": edm.out, "edm_cin": edm.into, "edm_cnoise": edm.noise}
    out |= {"edm_weight": preconditioning.edm_weight(sigma, size), "cm_cskip": cm.skip, "cm_cout": cm.out}
    return {key: value for key, value in out.items() if key in stored}


def multistep(file: str, mode: str, stored: Mapping[str, Any], about: Mapping[str, Any], report: Report) -> None:
    """A Gaussian's exact consistency function, sampled with the stored noise; float32 starts every step as stored."""
    if "xhat" not in stored:
        return
    epsilon, mean, deviation, sigmas = about["eps"], stored["mu"], about["s"], stored["sigmas"]
    path, dtype = VE(sigma_max=float(sigmas[0]), sigma_min=epsilon), jnp.result_type(float)

    def exact(x: jax.Array, sigma: jax.Array, condition: Any) -> Prediction:
        shrink = jnp.sqrt((deviation**2 + epsilon**2) / (deviation**2 + sigma**2))
        return Prediction(mean.astype(dtype) + (x - mean.astype(dtype)) * shrink, "data")

    def run(start: Any, first: int, last: int) -> Any:
        """From level ``first`` to the data, by way of the levels up to ``last``: all states."""
        grid = np.array([*sigmas[first : last + 1], epsilon])
        solver, noise = Consistency(epsilon), Stored(jnp.asarray(stored["noise"][first:last], dtype))
        go = jax.jit(lambda x: sample(Conditional(exact), x, grid, path=path, solver=solver, noise=noise, keep="all"))
        return go(jnp.asarray(start, dtype)).states

    if mode == "float64":
        near(report, f"{file}:xhat", mode, run(stored["xT"], 0, len(sigmas) - 1)[1:-1], stored["xhat"])
        ends = [run(stored["xT"], 0, last)[-1] for last in range(len(sigmas))]
    else:
        starts = [stored["xT"], *stored["xhat"]]
        moved = [run(starts[i], i, i + 1)[1] for i in range(len(sigmas) - 1)]
        levels = sigmas[: len(moved), None, None]  # errors are of the size of the state that was left
        near(report, f"{file}:xhat", mode, moved, stored["xhat"], scale=np.maximum(levels, 1.0))
        ends = [run(start, i, i)[-1] for i, start in enumerate(starts)]
    near(report, f"{file}:samples", mode, ends, stored["samples"])


def mixtures(file: str, mode: str, stored: Mapping[str, Any], about: Mapping[str, Any], report: Report) -> None:
    """Exact maps of 1-D mixtures (``NAME_f`` of ``NAME_x`` at ``NAME_sigma``): the probability flow ends there."""
    for name in [key.removesuffix("_f") for key in stored if key.endswith("_f") and f"{key[:-2]}_std" in stored]:
        epsilon, sigma = about["eps"], float(np.squeeze(stored[f"{name}_sigma"]))
        means, deviations = stored[f"{name}_m"], stored[f"{name}_std"]
        law = Mixture(stored[f"{name}_w"], means[:, None], np.square(deviations)[:, None, None])
        path, dtype = VE(sigma_max=sigma, sigma_min=epsilon), jnp.result_type(float)
        grid = karras(STEPS + 1, epsilon, sigma)[:-1]
        start = jnp.asarray(stored[f"{name}_x"], dtype)[:, None]
        go = jax.jit(lambda x, law=law, path=path, grid=grid: sample(
            Conditional(law.denoiser(path, "velocity")), x, grid, path=path, solver=RK4()))  # fmt: skip
        near(report, f"{file}:{name}_f", mode, go(start).x[:, 0], stored[f"{name}_f"], scale=max(sigma, 1.0))
