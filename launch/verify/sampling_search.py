"""Golden rows of search: random, zero-order and over paths on exact denoisers of stored mixtures, and ranks.

In float64 the whole search is run again from its stored noise; in float32 every round from its stored state, since one
other choice makes all that follows another search.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch.verify.golden import GoldenFolder
from launch.verify.precision import TOLERANCES, mixtures, near, precision
from launch.verify.report import Report
from sampling.analytic import Mixture
from sampling.guidance import Conditional
from sampling.noise import Stored
from sampling.paths import VE, FlowPath
from sampling.sample import Sample, sample
from sampling.search.candidates import Run
from sampling.search.over_paths import PathSearch
from sampling.search.starts import RandomSearch, ZeroOrder, rotate
from sampling.search.verifier import Verifier, merit, ranks


def check(folder: GoldenFolder, report: Report) -> None:
    """Every ``search*.npz`` and the json of the same name."""
    for name, match in folder.names(r"(search.*)\.npz"):
        stored, settings = folder.arrays(name), folder.json(f"{match[1]}.json")
        for mode in TOLERANCES:
            with precision(mode):
                for check in (random_search, zero_order, over_paths):
                    with report.guard(f"{name}:{check.__name__}", mode):
                        check(name, stored, settings, mode, report)
        with report.guard(f"{name}:ens_ranks"):
            ensemble(name, stored, settings, report)


def random_search(file: str, stored: Mapping[str, Any], settings: Mapping[str, Any], mode: str, report: Report) -> None:
    """Arrays ``rs_*``: the best of N starts of a flow on the grid ``t``."""
    start, verifier = jnp.asarray(stored["rs_noise"], mode)[:, None], nearest(stored["target"])
    run = flow(mixture(stored, start.shape[-1], last=False), stored["t"])
    search = RandomSearch(len(start), keep="all")
    found = jax.jit(lambda start: search(run, verifier, Stored(start), start.shape[1:], dtype=mode))(start)
    (choice,) = found.rounds
    samples = np.asarray(choice.candidates)[:, 0]
    near(report, f"{file}:rs_sample", mode, samples, stored["rs_sample"])
    scores = verifier(jnp.asarray(stored["rs_sample"], mode), None)
    near(report, f"{file}:rs_score", mode, choice.scores[:, 0] if mode == "float64" else scores, stored["rs_score"])
    report.equal(f"{file}:rs_best", [int(choice.chosen[0, 0])], [int(stored["rs_best"])], mode)
    report.equal(f"{file}:rs_nfe", [int(found.ledger.network_calls)], [settings["random"]["nfe"]], mode)


def zero_order(file: str, stored: Mapping[str, Any], settings: Mapping[str, Any], mode: str, report: Report) -> None:
    """Arrays ``zo_*``: pivots [iterations + 1, d], their neighbours, and which of these became the next pivot."""
    options = settings["zo"]
    raw, pivots = jnp.asarray(stored["zo_raw"], mode), jnp.asarray(stored["zo_pivots"], mode)
    iterations, neighbours, d = raw.shape
    verifier, run = nearest(stored["zo_target"]), flow(mixture(stored, d), stored["t"])
    search = ZeroOrder(neighbours, iterations, options["lam"], keep="all")
    draws = jnp.concatenate([pivots[:1], raw.reshape(-1, d)])[:, None]

    def whole(draws: jax.Array) -> Any:
        found = search(run, verifier, Stored(draws), (1, d), dtype=mode)
        (rounds,) = found.rounds
        moved = rounds.chosen[:, 0, 0]
        candidates = jnp.asarray(rounds.candidates)[:, :, 0]
        picked = candidates[jnp.arange(iterations), jnp.maximum(moved, 0)]
        after = [pivots[0]]
        for move, start in zip(moved, picked, strict=True):
            after.append(jnp.where(move < 0, after[-1], start))
        return candidates, rounds.scores[..., 0], moved, jnp.stack(after), found.ledger

    def steps(draws: jax.Array) -> Any:
        candidates = jax.vmap(lambda p, w: rotate(jnp.broadcast_to(p, w.shape), w, search.cosine))(pivots[:-1], raw)
        at_pivots = verifier(run(pivots, jnp.int32(0)).x, None)
        stood = jnp.asarray(stored["zo_candidates"], mode)
        scores = verifier(run(stood.reshape(-1, d), jnp.int32(0)).x, None).reshape(iterations, neighbours)
        pool = jnp.concatenate([at_pivots[:-1, None], scores], axis=1)
        moved = merit(pool.T[:, :, None]).argmax(0) - 1
        after = jnp.where(moved[:, None] < 0, pivots[:-1], stood[jnp.arange(iterations), moved])
        return candidates, scores, moved, jnp.concatenate([pivots[:1], after]), search.cost(run, (1, d))

    candidates, scores, moved, after, ledger = jax.jit(whole if mode == "float64" else steps)(draws)
    near(report, f"{file}:zo_candidates", mode, candidates, stored["zo_candidates"])
    near(report, f"{file}:zo_scores", mode, scores, stored["zo_scores"])
    report.equal(f"{file}:zo_choice", list(np.asarray(moved)), list(stored["zo_choice"]), mode)
    near(report, f"{file}:zo_pivots", mode, after, stored["zo_pivots"])
    reached = jax.jit(lambda x: verifier(run(x, jnp.int32(0)).x, None))(after)
    near(report, f"{file}:zo_pivot_scores", mode, reached, stored["zo_pivot_scores"])
    report.equal(f"{file}:zo_nfe", [int(ledger.network_calls)], [options["nfe"]], mode)


def over_paths(file: str, stored: Mapping[str, Any], settings: Mapping[str, Any], mode: str, report: Report) -> None:
    """Arrays ``pa_*``: Euler on EDM's path, geometric substeps between the levels of σ."""
    options, levels, top = settings["paths"], stored["pa_levels"], float(stored["pa_start"])
    end, points = final_substeps(options["final"])
    start, noise = (jnp.asarray(stored[f"pa_{key}"], mode) for key in ("init", "noise"))
    d, substeps = start.shape[-1], options["euler_substeps"]

    def between(a: float, b: float) -> np.ndarray:
        return np.geomspace(a, b, substeps + 1)

    grids = [between(top, levels[0])]
    grids += [between(a * options["up"], b) for a, b in itertools.pairwise(levels)]
    grids.append(np.append(np.geomspace(levels[-1], end, points), 0.0))
    path = VE(sigma_max=top)
    search = PathSearch(path, tuple(grids), options["N"], options["M"], keep="all")
    guide = Conditional(mixture(stored, d).denoiser(path, "data"))
    verifier = nearest(stored["zo_target"])

    def solve(x: jax.Array, grid: np.ndarray, number: jax.Array) -> Sample:
        return sample(guide, x, grid, path=path)

    draws = Stored(jnp.concatenate([start, noise.reshape(-1, d)])[:, None])
    at_level, kept = jnp.asarray(stored["pa_x0"], mode), jnp.asarray(stored["pa_x"], mode)

    def whole() -> Any:
        found = search(solve, verifier, draws, (1, d), dtype=mode)
        return found.rounds[:-1], found.rounds[-1]

    def steps() -> Any:
        before = jnp.concatenate([at_level[None], kept[:-1]])[:, :, None]
        rounds = [search.branch(i + 1, x, solve, verifier, draws, None, solve)[1] for i, x in enumerate(before)]
        ends = solve(kept[-1], grids[-1], jnp.int32(0)).x
        scores = verifier(ends, None)
        return tuple(rounds), type(rounds[0])(scores[:, None], scores.argmax()[None, None], ends[:, None])

    rounds, last = jax.jit(whole if mode == "float64" else steps)()
    first = jax.jit(lambda x: solve(top * x, grids[0], jnp.int32(0)).x)(start)
    near(report, f"{file}:pa_x0", mode, first, stored["pa_x0"], top)
    chosen = np.stack([np.asarray(r.chosen[:, 0]) for r in rounds])
    states = np.stack([np.asarray(r.candidates[:, 0])[keep] for r, keep in zip(rounds, chosen, strict=True)])
    scores = np.stack([np.asarray(r.scores[:, 0]) for r in rounds])
    near(report, f"{file}:pa_scores", mode, scores, stored["pa_scores"], top)
    report.equal(f"{file}:pa_keep", list(chosen.ravel()), list(stored["pa_keep"].ravel()), mode)
    near(report, f"{file}:pa_x", mode, states, stored["pa_x"], top)
    near(report, f"{file}:pa_final", mode, last.candidates[:, 0], stored["pa_final"], top)
    near(report, f"{file}:pa_final_scores", mode, last.scores[:, 0], stored["pa_final_scores"], top)
    report.equal(f"{file}:pa_best", [int(last.chosen[0, 0])], [int(stored["pa_best"])], mode)
    report.equal(f"{file}:pa_nfe", [search.cost(solve, (1, d)).network_calls], [options["nfe"]], mode)


def ensemble(file: str, stored: Mapping[str, Any], settings: Mapping[str, Any], report: Report) -> None:
    """Arrays ``ens_*``: scores [verifiers, n], ranks with 1 the best, and the smallest mean rank."""
    if "mean rank" not in settings["ensemble"]:
        raise ValueError(f"the rule of the ensemble is not understood: {settings['ensemble']!r}")
    scores = jnp.asarray(stored["ens_scores"].T)[:, None]
    got = np.asarray(ranks(scores))[:, 0].T
    report.equal(f"{file}:ens_ranks", list(got.ravel()), list(stored["ens_ranks"].ravel()))
    joined = np.asarray(merit(scores))[:, 0]
    near(report, f"{file}:ens_mean_rank", "host", -joined, stored["ens_mean_rank"], tolerance="float32")
    report.equal(f"{file}:ens_best", [int(joined.argmax())], [int(stored["ens_best"])])


def mixture(stored: Mapping[str, Any], dimension: int, last: bool = True) -> Mixture:
    """The stored mixture of a dimension; of several the first or the last."""
    laws = mixtures(stored)
    fitting = [law for law in laws.values() if law.dimension == dimension]
    if not fitting:
        raise ValueError(f"the file holds no mixture in {dimension} dimensions, only {', '.join(laws)}")
    return fitting[-1 if last else 0]


def flow(law: Mixture, times: np.ndarray) -> Run:
    """Euler on the flow from noise at t = 0."""
    path = FlowPath()
    guide = Conditional(law.denoiser(path, "velocity"))
    return lambda start, number: sample(guide, start, times, path=path)


def nearest(target: np.ndarray) -> Verifier:
    """Minus the squared distance to a point."""
    return lambda x, condition: -((x - jnp.asarray(target, x.dtype)) ** 2).sum(-1)


def final_substeps(text: str) -> tuple[float, int]:
    """(smallest σ before 0, number of points) of "geomspace(last,0.01,4) then 0"."""
    match = re.search(r"geomspace\(last, *([0-9.e-]+), *([0-9]+)\) then 0", text)
    if match is None:
        raise ValueError(f"the last stretch of the search over paths is not understood: {text!r}")
    return float(match[1]), int(match[2])
