"""Annealing a 40-mode mixture with and without Feynman–Kac correctors, beside the table of the FKC paper.

    python -m tests.benchmarks.fkc_mixture [--quick] [--out=DIR] [--seeds=5] [--particles=10000] [--steps=1000]

The set-up of https://arxiv.org/abs/2503.02819, table A1: a two-dimensional mixture of 40 modes, known at temperature 3
with its exact score, sampled at temperature 1 (β = 3) with 10,000 particles in 1000 steps.  What the paper leaves open
is fixed here: means uniform in [−40, 40]², modes of variance 3·softplus(1)² at temperature 3, geometric VE grid from
σ = 100 to 0.02, weights from the start law on (log w₀), resampling after every step.  The target is exactly q³, drawn
from a fine grid.  "ESS < 1/2" is ours: the same with adaptive resampling.

Metrics of the unweighted final particles against as many exact draws: total variation of histograms with cells of 1.25;
MMD with a mean of Gaussian kernels of width 1, 2, 4, 8, 16; exact W1 and W2 between 1000 of each; W2 of energies.
"exact" are two independent exact sets, the floor of each metric, and the true log ∫q³.  Finished cells are kept in
DIR/fkc_mixture.json, so a stopped run goes on.

Found, 5 seeds, mean ± standard deviation over them (JAX on a CPU, float32): the paper's direction.  With the target
score TV falls from .409 ± .005 to .264 ± .085 and W1 from 10.6 ± .3 to 7.0 ± 4.7 with systematic resampling, and to
.229 ± .012 and 5.7 ± 1.0 with births and deaths, whose runs spread least; with tempered noise TV falls from .563 to
.467 and W1 from 13.6 to 12.5.  Energies improve here, where the paper's did not.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sampling.analytic import Mixture
from sampling.guidance import Conditional, Product
from sampling.noise import Keyed, start_noise
from sampling.paths import VE
from sampling.sample import sample
from sampling.smc.correctors import FeynmanKac, start_log_weights
from sampling.smc.policies import Accumulate, BirthDeath, Resample
from sampling.smc.uniforms import KeyedUniforms
from sampling.solvers import ReverseSDE

BETA, MODES, REACH, SIGMA_MAX, SIGMA_MIN = 3.0, 40, 40.0, 100.0, 0.02
ZETAS = {"target score": 1.0, "tempered noise": BETA**-0.5}
POLICIES = ("none", "birth-death", "systematic", "systematic, ESS < 1/2")
METRICS = ("energy W2", "MMD", "TV", "W1", "W2")
PAPER = {
    ("target score", "none"): (".943±.026", ".020", ".487", "11.30", "15.67"),
    ("tempered noise", "none"): ("1.032±.012", ".058", ".638", "16.05", "19.63"),
    ("target score", "birth-death"): ("1.064±.369", ".010", ".402", "7.80", "12.45"),
    ("tempered noise", "birth-death"): ("1.228±.401", ".056", ".572", "12.60", "17.68"),
    ("target score", "systematic"): ("1.098±.418", ".007", ".372", "6.26±3.96", "11.27±5.63"),
    ("tempered noise", "systematic"): (".926±.248", ".027", ".512", "9.97", "14.05"),
}


def mixture() -> Mixture:
    """The 40 modes at temperature 3."""
    means = np.random.default_rng(0).uniform(-REACH, REACH, size=(MODES, 2))
    variance = 3.0 * np.log1p(np.e) ** 2
    return Mixture(np.ones(MODES), means, np.broadcast_to(variance * np.eye(2), (MODES, 2, 2)))


class Target:
    """q³: energies, and exact draws as cells of a fine grid with a uniform place inside."""

    def __init__(self, law: Mixture, cells: int = 2400, reach: float = 52.0):
        self.law, self.side = law, (np.arange(cells) + 0.5) / cells * 2 * reach - reach
        energy = jax.jit(lambda x: -BETA * law.log_density(x, 0.0, VE()))
        self.energy = lambda x: np.asarray(energy(jnp.asarray(x, jnp.float32)), np.float64)
        points = np.stack(np.meshgrid(self.side, self.side, indexing="ij"), -1)
        mass = np.exp(-np.concatenate([self.energy(row) for row in points]))
        self.log_z = float(np.log(mass.sum()) + 2.0 * np.log(self.side[1] - self.side[0]))
        self.cumulative = np.cumsum(mass / mass.sum())

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        cell = np.searchsorted(self.cumulative, rng.uniform(size=n) * self.cumulative[-1])
        corner = np.stack(np.divmod(cell, self.side.size), -1)
        return self.side[corner] + (rng.uniform(size=(n, 2)) - 0.5) * (self.side[1] - self.side[0])


def anneal(law: Mixture, zeta: float, rule: str, particles: int, steps: int) -> Any:
    """Compiled key -> (x [particles, 2], log Ẑ, least share of effective particles)."""
    path = VE(sigma_max=SIGMA_MAX)
    guide = Product([Conditional(law.denoiser(path, "score"))], [BETA])
    variance = SIGMA_MAX**2 / BETA

    @jax.jit
    def run(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        ids = jnp.arange(particles)
        x = variance**0.5 * start_noise(jax.random.fold_in(key, 0), ids, (2,))
        start = start_log_weights(BETA * law.log_density(x, SIGMA_MAX, path), x, variance)[None]
        uniforms = KeyedUniforms(key, jnp.zeros(1, jnp.uint32))
        policy = {
            "none": Accumulate(start=start),
            "birth-death": BirthDeath(uniforms=uniforms, start=start),
            "systematic": Resample(uniforms=uniforms, start=start, threshold=None),
        }.get(rule) or Resample(uniforms=uniforms, start=start, threshold=0.5)
        done = sample(
            guide,
            x,
            np.geomspace(SIGMA_MAX, SIGMA_MIN, steps + 1),
            path=path,
            solver=ReverseSDE(zeta),
            noise=Keyed(jax.random.fold_in(key, 1), ids),
            corrector=FeynmanKac(),
            resampling=policy,
            particles=particles,
        )
        assert done.weights is not None
        return done.x, done.weights.log_z[0], done.weights.ess.min() / particles

    return run


def metrics(target: Target, x: np.ndarray, exact: np.ndarray, matched: int = 1000) -> dict[str, float]:
    """Distances between two sets of as many points [n, 2]."""
    from scipy.optimize import linear_sum_assignment

    energies = [np.sort(target.energy(points)) for points in (x, exact)]
    edges = np.arange(-60.0, 60.0 + 1e-9, 1.25)
    shares = [np.histogram2d(*points.T, bins=[edges, edges])[0] / len(points) for points in (x, exact)]
    outside = 1.0 - shares[0].sum()
    few = [points[np.linspace(0, len(points) - 1, min(matched, len(points))).astype(int)] for points in (x, exact)]
    apart = np.sqrt(((few[0][:, None] - few[1][None]) ** 2).sum(-1))
    return {
        "energy W2": float(np.sqrt(((energies[0] - energies[1]) ** 2).mean())),
        "MMD": mmd(*few),
        "TV": float(0.5 * (np.abs(shares[0] - shares[1]).sum() + outside)),
        "W1": float(apart[linear_sum_assignment(apart)].mean()),
        "W2": float(np.sqrt((apart**2)[linear_sum_assignment(apart**2)].mean())),
    }


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy, a mean of Gaussian kernels."""
    both = np.concatenate([x, y])
    squares = ((both[:, None] - both[None]) ** 2).sum(-1)
    kernel = sum(np.exp(-squares / (2 * width**2)) for width in (1.0, 2.0, 4.0, 8.0, 16.0)) / 5
    n = len(x)
    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel[:n, :n], kernel[n:, n:]))
    return float(within - 2 * kernel[:n, n:].mean())


def table(cells: dict[str, Any]) -> list[str]:
    """Mean ± standard deviation over seeds, the paper's figure below."""
    lines = [f"{'':<40}" + "".join(f"{name:>18}" for name in METRICS) + f"{'log Z':>16}{'least ESS':>11}"]
    for name, seeds in cells.items():
        values = {m: np.array([s[m] for s in seeds.values()]) for m in METRICS}
        text = "".join(f"{v.mean():>10.3f} ± {v.std(ddof=1) if v.size > 1 else 0:<5.3f}" for v in values.values())
        constants = np.array([s["log_z"] for s in seeds.values()])
        ess = np.mean([s["ess"] for s in seeds.values()])
        lines.append(f"{name:<40}{text}{constants.mean():>9.2f} ± {constants.std():<5.2f}{ess:>8.1%}")
        paper = PAPER.get(tuple(name.split(" / ")))  # type: ignore[arg-type]
        if paper:
            lines.append(f"{'   the paper':<40}" + "".join(f"{v:>18}" for v in paper))
    return lines


def verdict(cells: dict[str, Any]) -> list[str]:
    """Whether the paper's direction is there: systematic against none, in standard errors of the difference."""
    lines = []
    for zeta in ZETAS:
        for rule in POLICIES[1:]:
            for metric in METRICS:
                a, b = (np.array([s[metric] for s in cells.get(f"{zeta} / {r}", {}).values()]) for r in ("none", rule))
                if min(a.size, b.size) > 1:
                    error = np.sqrt(a.var(ddof=1) / a.size + b.var(ddof=1) / b.size)
                    change = "falls" if b.mean() < a.mean() else "rises"
                    z = abs(a.mean() - b.mean()) / error
                    lines.append(f"{zeta}, {rule}: {metric} {change} {a.mean():.3f} -> {b.mean():.3f} ({z:.1f} s.e.)")
    return lines


def draw(points: dict[str, np.ndarray], exact: np.ndarray, file: Path) -> None:
    """One panel of particles a cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {"exact": exact} | points
    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4 * columns, 4 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, x) in zip(axes.flat, panels.items(), strict=False):
        axis.scatter(*x[:4000].T, s=1, alpha=0.3, linewidths=0)
        axis.set(title=name, xlim=(-50, 50), ylim=(-50, 50), aspect="equal")
    figure.tight_layout()
    figure.savefig(file, dpi=80)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 1000 particles, 200 steps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("runs/fkc_mixture"))
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.particles, args.steps = 2, 1000, 200
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "fkc_mixture.json"
    setup = {"particles": args.particles, "steps": args.steps, "beta": BETA, "sigma": [SIGMA_MAX, SIGMA_MIN]}
    done = json.loads(file.read_text()) if file.exists() else {}
    cells = done["cells"] if done.get("setup") == setup else {}
    law = mixture()
    target, points = Target(law), {}
    sets = [target.sample(np.random.default_rng(seed), args.particles) for seed in range(2 * args.seeds)]
    truth = {"log_z": target.log_z, "ess": 1.0}
    cells["exact"] = {str(s): metrics(target, sets[s], sets[args.seeds + s]) | truth for s in range(args.seeds)}
    for zeta in ZETAS:
        for rule in POLICIES:
            name = f"{zeta} / {rule}"
            seeds, run = cells.setdefault(name, {}), anneal(law, ZETAS[zeta], rule, args.particles, args.steps)
            for seed in range(args.seeds):
                if str(seed) in seeds:
                    continue
                start = time.process_time()
                x, log_z, ess = (np.asarray(a) for a in run(jax.random.key(seed)))
                found = metrics(target, np.asarray(x, np.float64), sets[seed])
                seeds[str(seed)] = found | {"log_z": float(log_z), "ess": float(ess)}
                points[name] = x
                file.write_text(json.dumps({"setup": setup, "cells": cells}, indent=1) + "\n")
                took = time.process_time() - start
                print(f"{name} seed {seed}: TV {found['TV']:.3f}, W1 {found['W1']:.2f} ({took:.0f} s CPU)", flush=True)
    print("\n".join([*table(cells), "", *verdict(cells)]))
    if points:
        draw(points, sets[0], args.out / "fkc_mixture.png")


if __name__ == "__main__":
    main()
