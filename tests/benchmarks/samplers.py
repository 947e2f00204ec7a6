"""Whole trajectories on the CPU, side by side with diffusers and k-diffusion in their own environment.

    python -m tests.benchmarks.samplers --quick
    python -m tests.benchmarks.samplers [--sizes small large] [--batches 8 4096] [--threads 1 2]

The same network with the same weights (an MLP: the small one answers in well under a millisecond), the same start, time
grid, float32 and number of network calls go through both; outputs are compared before any figure is printed.  Every
(side, size, threads) has its own process, pinned to that many cores, the sides taking turns.  Walls are medians without
the first run, which compiles; what compiling takes stands beside.  "over" is what a step takes beyond its network calls
measured alone: below zero where a call of its own costs more than one inside the compiled loop.

--env names a folder for their environment; it is made where it is missing (a venv with diffusers, k-diffusion and the
PyTorch of this one).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sampling import grids
from sampling.paths import VE, FlowPath, VPLinear
from sampling.paths import Path as NoisePath
from tests.benchmarks import sampler_cases as cases
from tests.benchmarks.environments import environment
from tests.benchmarks.f5_cases import measure, say

NEEDS = ("diffusers>=0.35,<0.43", "numpy", "scipy", "tqdm", "torchsde", "torchdiffeq", "Pillow", "safetensors")
TOLERANCE = 2e-4  # of the largest value, after all steps; their tables are float32
LONGER = 20  # times as many steps, to see whether memory grows


def prepare(folder: Path, size: str) -> None:
    """Schedules that both sides read: diffusers' discrete betas are those whose products are α² of ``VPLinear``."""
    squares = VPLinear().alpha(np.arange(cases.TRAINED + 1) / cases.TRAINED) ** 2
    sigmas = grids.karras(cases.STEPS[size], cases.SIGMA_MIN, cases.SIGMA_MAX)
    np.savez(folder / f"{size}.npz", betas=1.0 - squares[1:] / squares[:-1], sigmas=sigmas.astype(np.float32))


def method(name: str, steps: int) -> tuple[NoisePath, np.ndarray, Any, str]:
    """(path, grid, solver, what the network predicts)."""
    from sampling.solvers import DDIM, EDM, DPMpp2M, Euler

    levels = grids.karras(steps, cases.SIGMA_MIN, cases.SIGMA_MAX)
    down, ve = grids.uniform(steps, 1.0, 0.0), VE(sigma_max=cases.SIGMA_MAX)
    return {
        "diffusers DPM++2M": (VPLinear(), down, DPMpp2M(), "noise"),
        "diffusers DDIM": (VPLinear(), down, DDIM(), "noise"),
        "diffusers flow Euler": (FlowPath(data_time=0.0), down, Euler(), "velocity"),
        "k-diffusion DPM++2M": (ve, levels, DPMpp2M(), "data"),
        "k-diffusion Euler": (ve, levels, EDM(order=1), "data"),
        "k-diffusion Heun": (ve, levels, EDM(order=2), "data"),
    }[name]


def child_jax(args: argparse.Namespace) -> dict[str, Any]:
    """Our side of ``samplers_torch.main``."""
    import jax
    import jax.numpy as jnp

    from sampling.guidance import Conditional
    from sampling.prediction import Prediction
    from sampling.sample import sample

    size = args.sizes[0]
    layers = [(jnp.asarray(m), jnp.asarray(b)) for m, b in cases.weights(size)]

    def net(layers: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        return cases.network(jnp, lambda parts: jnp.concatenate(parts, 1), layers, x, jnp.full((len(x), 1), t))

    def program(name: str, steps: int) -> Any:
        path, grid, solver, kind = method(name, steps)

        def run(layers: Any, x: jax.Array) -> jax.Array:
            guide = Conditional(lambda x, t, condition: Prediction(net(layers, x, t), kind))
            return sample(guide, path.sigma(grid[0]) * x, grid, path=path, solver=solver).x

        return jax.jit(run)

    result: dict[str, Any] = {
        "name": f"ours, jax {jax.__version__}",
        "cases": {},
        "calls": {},
        "compile": {},
        "memory": {},
    }
    outputs, call, neighbours = {}, jax.jit(net), cases.Neighbours()
    for batch in args.batches:
        x, t = jnp.asarray(cases.start(size, batch)), jnp.float32(0.5)
        jax.block_until_ready(call(layers, x, t))
        alone = measure(lambda x=x, t=t: jax.block_until_ready(call(layers, x, t)), args.seconds / 2, least=3)
        result["calls"][str(batch)] = alone["wall"]
        for name in cases.METHODS:
            case = f"{batch} {name}"
            say(f"ours: {size}, batch {batch}, {name}")
            begin = time.perf_counter()
            run = program(name, cases.STEPS[size]).lower(layers, x).compile()
            result["compile"][case] = time.perf_counter() - begin
            outputs[case] = np.asarray(run(layers, x))
            result["cases"][case] = measure(lambda run=run, x=x: jax.block_until_ready(run(layers, x)), args.seconds)[
                "wall"
            ]
        longer = program(name, LONGER * cases.STEPS[size]).lower(layers, x).compile()
        sizes = [p.memory_analysis().temp_size_in_bytes for p in (run, longer)]
        result["memory"][str(batch)] = [int(n) for n in sizes]
    result["neighbours"] = neighbours.cores()
    np.savez(args.folder / "ours.npz", **outputs)
    return result


def run_child(side: str, python: Path, size: str, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """One process's measurements, pinned to ``threads`` cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    command = [str(python if side == "theirs" else sys.executable), "-m"]
    command += ["tests.benchmarks.samplers_torch", "--size"] if side == "theirs" else [
        "tests.benchmarks.samplers", "--child", "--sizes"
    ]  # fmt: skip
    command += [size, f"--folder={args.folder}", f"--seconds={args.seconds}", "--threads", str(threads)]
    command += ["--batches", *map(str, args.batches)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, cores))  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path) -> None:
    """Refuses figures of two sides that do not compute the same."""
    ours, theirs = np.load(folder / "ours.npz"), np.load(folder / "theirs.npz")
    errors = {case: np.abs(ours[case] - theirs[case]).max() / np.abs(theirs[case]).max() for case in ours.files}
    worst = max(errors, key=lambda case: errors[case])
    print(f"outputs differ by {errors[worst]:.1e} of the largest value at most ({worst}; allowed {TOLERANCE:.0e})")
    if not errors[worst] <= TOLERANCE:
        sys.exit("the outputs differ; no figure is worth printing")


def table(size: str, threads: int, runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Prints a line per case; returns them."""
    theirs, ours = runs["theirs"], runs["ours"]
    steps, rows = cases.STEPS[size], []
    busy = [max(run["neighbours"] for run in side) for side in (theirs, ours)]
    print(f"\n{size}, {steps} steps, {threads} thread(s); {theirs[0]['name']} | {ours[0]['name']}")
    print(f"other processes kept {busy[0]:.2f} | {busy[1]:.2f} cores busy meanwhile")
    print(f"{'method':<22} batch  theirs ms    ours ms  theirs/ours  over/step us theirs   ours  compile s")
    for case in ours[0]["cases"]:
        batch, name = case.split(" ", 1)
        per_step = cases.calls(name, steps) / steps
        wall = [median(run["cases"][case] for run in side) for side in (theirs, ours)]
        call = [median(run["calls"][batch] for run in side) for side in (theirs, ours)]
        over = [w / steps - per_step * c for w, c in zip(wall, call, strict=True)]
        compiling = median(run["compile"][case] for run in ours)
        print(
            f"{name:<22} {batch:>5} {1e3 * wall[0]:10.2f} {1e3 * wall[1]:10.2f} {wall[0] / wall[1]:12.2f} "
            f"{1e6 * over[0]:20.0f} {1e6 * over[1]:6.0f} {compiling:10.2f}"
        )
        rows.append({"size": size, "threads": threads, "case": case, "wall": wall, "call": call, "compile": compiling})
    for batch, (short, long) in ours[0]["memory"].items():
        call = [median(run["calls"][batch] for run in side) for side in (theirs, ours)]
        print(
            f"  batch {batch}: one network call ({cases.gflop(size, int(batch)):.3g} GFLOP) {1e3 * call[0]:.3f} | "
            f"{1e3 * call[1]:.3f} ms; our temporary memory {short / 2**20:.3f} MiB, with {LONGER} times the steps "
            f"{long / 2**20:.3f} MiB"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(cases.SIZES), default=list(cases.SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 4096])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each figure of each round")
    parser.add_argument("--quick", action="store_true", help="the small network, batch 8, one thread, one round")
    parser.add_argument("--env", type=Path, help="folder of their environment; in the user's cache by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child_jax(args)))
        return
    if args.quick:
        args.sizes, args.batches, args.threads, args.rounds, args.seconds = ["small"], [8], [1], 1, 0.3
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "murmuration" / "sampler-packages"
    python, rows = environment(args.env or cache, NEEDS, alone=("k-diffusion",)), []
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        for size in args.sizes:
            prepare(args.folder, size)
            for threads in args.threads:
                runs: dict[str, list[dict[str, Any]]] = {"theirs": [], "ours": []}
                for number in range(args.rounds):
                    for side, results in runs.items():
                        results.append(run_child(side, python, size, threads, args))
                    if number == 0:
                        compare(args.folder)
                rows += table(size, threads, runs)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
