"""Particles on the CPU: resampling beside blackjax, Feynman–Kac correctors beside a PyTorch loop.

    python -m tests.benchmarks.particles --quick
    python -m tests.benchmarks.particles [--particles 4096 65536] [--steps 500] [--sizes 1024 65536] [--threads 1 2]

Annealing (β = 1.5) of a five-mode mixture in two dimensions with its exact score, adaptive systematic resampling,
float32, on both sides; a run with the same noise is compared before any figure is printed.  Every (side, threads) has
its own process, pinned to that many cores, the sides taking turns.  Walls are medians without the first run, which
compiles.

--env names a folder for their environment; it is made where it is missing (a venv with blackjax, this JAX and this
PyTorch).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tests.benchmarks import particle_cases as cases
from tests.benchmarks.environments import environment
from tests.benchmarks.f5_cases import measure, say

LONGER = 20  # times as many steps, to see whether memory grows
TOLERANCE = 1e-3  # of states and log Ẑ, without resampling: one other float32 tie, and two runs are two samples
OURS = {"residual": "residual_multinomial"}  # blackjax's residual draws the rest independently


def child_ours(args: argparse.Namespace) -> dict[str, Any]:
    """Our side of ``particles_others.main``."""
    import jax
    import jax.numpy as jnp

    from sampling.analytic import Mixture
    from sampling.guidance import Conditional, Product
    from sampling.noise import Keyed, Stored
    from sampling.paths import VPLinear
    from sampling.sample import sample
    from sampling.smc.correctors import FeynmanKac
    from sampling.smc.policies import Accumulate, Resample
    from sampling.smc.schemes import scheme
    from sampling.smc.uniforms import KeyedUniforms
    from sampling.solvers import ReverseSDE

    path = VPLinear(cases.BETA_MIN, cases.BETA_MAX)
    guide = Product([Conditional(Mixture(*cases.mixture()).denoiser(path, "score"))], [cases.BETA])

    def anneal(x: jax.Array, steps: int, noise: Any, policy: Any, divergence: Any) -> tuple[jax.Array, jax.Array]:
        done = sample(guide, x, cases.grid(steps), path=path, solver=ReverseSDE(1.0), noise=noise,
                      corrector=FeynmanKac(divergence), resampling=policy, particles=len(x))  # fmt: skip
        assert done.weights is not None
        return done.x, done.weights.log_z[0]

    def keyed(x: jax.Array, key: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
        policy = Resample(uniforms=KeyedUniforms(key, jnp.arange(1)), threshold=cases.THRESHOLD)
        return anneal(x, steps, Keyed(key, jnp.arange(len(x))), policy, "exact")

    given = {k: jnp.asarray(v) for k, v in cases.draws(**cases.COMPARED).items()}
    run = jax.jit(lambda x, z: anneal(x, len(z), Stored(z), Accumulate(), "left"))
    x, log_z = run(given["x"] / cases.BETA**0.5, given["noise"])
    np.savez(args.folder / "ours.npz", x=x, log_z=log_z)

    walls: dict[str, float] = {}
    for n in args.sizes:
        w = jnp.asarray(cases.weights(n))
        for name in cases.SCHEMES:
            say(f"ours: {name}, {n}")
            rule = scheme(OURS.get(name, name))
            shape = () if rule.one_uniform else (n,)
            call = jax.jit(lambda key, w, r=rule, s=shape: r.parents(w, jax.random.uniform(key, s)))
            key = jax.random.key(0)
            jax.block_until_ready(call(key, w))
            walls[f"{name} {n}"] = measure(lambda c=call, k=key, w=w: jax.block_until_ready(c(k, w)), args.seconds)[
                "wall"
            ]
    result: dict[str, Any] = {
        "name": f"ours, jax {jax.__version__}",
        "resampling": walls,
        "runs": {},
        "compile": {},
        "memory": {},
    }
    for n in args.particles:
        say(f"ours: {n} particles, {args.steps} steps")
        x, key = jax.random.normal(jax.random.key(1), (n, 2)) / cases.BETA**0.5, jax.random.key(2)
        begin = time.perf_counter()
        short, long = (
            jax.jit(keyed, static_argnums=2).lower(x, key, s).compile() for s in (args.steps, LONGER * args.steps)
        )
        result["compile"][str(n)] = (time.perf_counter() - begin) / 2
        jax.block_until_ready(short(x, key))
        result["runs"][str(n)] = measure(lambda c=short, x=x, k=key: jax.block_until_ready(c(x, k)), args.seconds)[
            "wall"
        ]
        result["memory"][str(n)] = [int(c.memory_analysis().temp_size_in_bytes) for c in (short, long)]
    return result


def run_child(side: str, python: Path, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """One process's measurements, pinned to ``threads`` cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    command = [python, "-m", "tests.benchmarks.particles_others"]
    if side == "ours":
        command = [sys.executable, "-m", "tests.benchmarks.particles", "--child"]
    command += ["--folder", args.folder, "--steps", args.steps, "--seconds", args.seconds, "--threads", threads]
    command += ["--sizes", *args.sizes, "--particles", *args.particles]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([str(word) for word in command], env=environ, stdout=subprocess.PIPE, text=True, check=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, cores))  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path) -> None:
    """Refuses figures of two sides that do not compute the same."""
    ours, theirs = np.load(folder / "ours.npz"), np.load(folder / "theirs.npz")
    off = max(abs(float(ours["log_z"] - theirs["log_z"])), float(np.abs(ours["x"] - theirs["x"]).max()))
    constants = " and ".join(f"{float(side['log_z']):.4f}" for side in (ours, theirs))
    print(f"same noise: log Ẑ is {constants}; it and the states differ by {off:.1e} at most (allowed {TOLERANCE:.0e})")
    if not off <= TOLERANCE:
        sys.exit("the outputs differ; no figure is worth printing")


def table(threads: int, runs: dict[str, list[dict[str, Any]]], steps: int) -> list[dict[str, Any]]:
    """Prints a line per case; returns them."""
    theirs, ours, rows = runs["theirs"], runs["ours"], []
    print(f"\n{threads} thread(s); {theirs[0]['name']} | {ours[0]['name']} | theirs/ours")
    for kind, unit, scale in (("resampling", "ms", 1e3), ("runs", "s", 1.0)):
        for case in ours[0][kind]:
            wall = [median(run[kind][case] for run in side) for side in (theirs, ours)]
            what = case if kind == "resampling" else f"{case} particles, {steps} steps"
            line = (
                f"{what:<32} {scale * wall[0]:10.3f} {scale * wall[1]:10.3f} {unit:<3} {wall[0] / wall[1]:8.2f} times"
            )
            if kind == "runs":
                short, long = (size / 2**20 for size in ours[0]["memory"][case])
                line += f"; compile {median(run['compile'][case] for run in ours):.1f} s"
                line += f"; temporary memory {short:.2f} MiB, with {LONGER} times the steps {long:.2f} MiB"
            print(line)
            rows.append({"threads": threads, "case": what, "theirs": wall[0], "ours": wall[1]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, nargs="+", default=[4096, 65536])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 65536, 1048576], help="weights to resample")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each figure of each round")
    parser.add_argument("--quick", action="store_true", help="small sizes, one thread")
    parser.add_argument("--env", type=Path, help="folder of their environment; in the user's cache by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child_ours(args)))
        return
    if args.quick:
        args.particles, args.steps, args.sizes, args.threads, args.seconds = [2048], 50, [1024], [1], 0.1
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "murmuration" / "particle-packages"
    needs = ("blackjax==1.7.1", f"jax=={version('jax')}", "numpy")
    python, rows = environment(args.env or cache, needs, alone=("blackjax==1.7.1",)), []
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        for threads in args.threads:
            runs: dict[str, list[dict[str, Any]]] = {"theirs": [], "ours": []}
            for number in range(args.rounds):
                for side, results in runs.items():
                    results.append(run_child(side, python, threads, args))
                if number == 0:
                    compare(args.folder)
            rows += table(threads, runs, args.steps)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
