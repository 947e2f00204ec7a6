"""F5-TTS on the CPU, side by side with the PyPI release of f5-tts in its own environment.

    python -m tests.benchmarks.f5_release --quick
    python -m tests.benchmarks.f5_release [--sizes small base] [--steps 7 16 32] [--batches 1 8] [--threads 1 2]

The same full-size random weights (in official names), start noise, float32, guidance, grid and number of network calls
go through both; outputs are compared before any figure is printed.  Every (side, size, threads) has its own process,
pinned to that many cores, the sides taking turns.  "together" is one batch padded to its longest row; "one by one" is
what the release's `infer_batch_process` does with a list.  Walls are without the first call, which compiles.

--env names a folder for the release's environment; it is made where it is missing (a venv, f5-tts without its
dependencies, and those that inference needs).  Where the release cannot be imported, tests/benchmarks/torch_dit.py
takes its place, and the table says so.
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

from launch.pipelines.speech_sampler import bucket
from tests.benchmarks import environments
from tests.benchmarks import f5_cases as cases

NEEDS = ("numpy", "safetensors", "torchdiffeq", "x-transformers", "tqdm", "pypinyin", "rjieba", "librosa", "torchaudio")
TOLERANCE = 5e-3  # of the largest value, after all steps
LEAST = 64  # frames of the smallest program, as in the pipeline


def environment(folder: Path) -> Path:
    """The interpreter of the release's environment, made if it is not there; this one if that fails."""
    try:
        return environments.environment(folder, NEEDS, alone=("f5-tts",))
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"the release's environment could not be made ({error}): torch_dit in its place", flush=True)
        return Path(sys.executable)


def child_jax(args: argparse.Namespace) -> dict[str, Any]:
    """Our side of ``f5_release_torch.run``."""
    import jax
    import jax.numpy as jnp

    from models.convert import f5_tts
    from models.dit import DiT
    from models.functional import functional
    from sampling.grids import flow_grid
    from sampling.infill import InfillNetwork, infill

    model = functional(lambda rngs: DiT(**cases.arguments(args.size), rngs=rngs))
    params, _ = f5_tts.read(args.folder / f"{args.size}.safetensors", model.abstract()["params"])
    variables = {"params": jax.tree.map(jnp.asarray, params), "stats": {}}
    del params
    saved = np.load(args.folder / "torch.npz")

    def apply(variables: Any, *xs: Any, method: str) -> jax.Array:
        return model.apply(variables, *xs, method=method)[0]

    def run(variables: Any, clip: Any, known: Any, text: Any, lengths: Any, noise: Any, *, steps: int) -> jax.Array:
        frames = clip.shape[1]
        network = InfillNetwork(
            encode=lambda text, lengths, drop: apply(variables, text, lengths, frames, drop, method="encode_text"),
            predict=lambda x, clip, text, t, lengths: apply(variables, x, clip, text, t, lengths, method="velocity"),
        )
        inside = jnp.arange(frames) < known[:, None]
        grid = flow_grid(steps, sway_coefficient=cases.SWAY)
        return infill(network, clip, inside, text, lengths, noise, grid, weight=cases.GUIDANCE + 1).out

    program = jax.jit(run, static_argnames=("steps",))

    def speak(rows: list[dict[str, np.ndarray]], steps: int) -> list[np.ndarray]:
        frames = bucket(max(int(row["frames"]) for row in rows), LEAST)
        batch = cases.padded(rows, frames)
        text = np.full((len(rows), frames // 6), -1, np.int32)
        text[:, : batch["text"].shape[1]] = batch["text"]
        noise = np.zeros((len(rows), frames, cases.MEL), np.float32)
        for line, row in zip(noise, rows, strict=True):
            line[: row["frames"]] = saved[f"noise {row['frames']}"]
        known, lengths = batch["known"].astype(np.int32), batch["frames"].astype(np.int32)
        out = np.asarray(program(variables, batch["clip"], known, text, lengths, noise, steps=steps))
        return [row[:n] for row, n in zip(out, lengths, strict=True)]

    name = f"ours, jax {jax.__version__}"
    result: dict[str, Any] = {"name": name, "loaded": cases.peak_memory(), "cases": {}, "factors": {}}
    outputs = {}
    for batch in args.batches:
        rows = cases.requests(batch, args.frames)
        for steps in args.steps:
            for mode in ("together", "one by one") if batch > 1 else ("together",):

                def sample(rows=rows, steps=steps, mode=mode) -> list[np.ndarray]:
                    groups = [rows] if mode == "together" else [[row] for row in rows]
                    return [made for group in groups for made in speak(group, steps)]

                case = f"{steps} {batch} {mode}"
                cases.say(f"{name}: {args.size}, {steps} steps, batch {batch}, {mode}")
                start = time.perf_counter()
                outputs[case] = np.concatenate(sample())
                first = time.perf_counter() - start
                result["cases"][case] = cases.measure(sample, args.seconds) | {"first": first}
    two = np.array([False, True])
    text = np.repeat(cases.requests(1, args.frames)[0]["text"][None], 2, 0)
    x = np.random.default_rng(0).standard_normal((2, args.frames, cases.MEL)).astype(np.float32)
    encode = jax.jit(lambda v, text, n: apply(v, text, None, n, two, method="encode_text"), static_argnums=2)
    call = jax.jit(lambda v, x, text: apply(v, x, x, text, jnp.float32(0.3), None, method="velocity"))
    encoded = encode(variables, text, args.frames)
    short = cases.DISPATCH_FRAMES
    for factor, thunk in {
        "text": lambda: encode(variables, text, args.frames),
        "call": lambda: call(variables, x, encoded),
        "dispatch": lambda: call(variables, x[:, :short], encoded[:, :short]),
    }.items():
        jax.block_until_ready(thunk())
        result["factors"][factor] = cases.measure(lambda t=thunk: jax.block_until_ready(t()), args.seconds / 2, least=2)
    result["peak"] = cases.peak_memory()
    np.savez(args.folder / "jax.npz", **outputs)
    return result


def make_weights(size: str, file: Path) -> None:
    """A random full-size checkpoint in official names, the zero-initialised layers filled too."""
    import jax

    from models.convert import f5_tts
    from models.dit import DiT
    from models.functional import functional

    model = functional(lambda rngs: DiT(**cases.arguments(size), rngs=rngs))
    rng = np.random.default_rng(1)

    def fill(a: Any) -> np.ndarray:
        noise = rng.standard_normal(a.shape, np.float32)
        return noise * np.float32(0.02 if len(a.shape) < 2 else 0.5 / np.sqrt(a.shape[-2]))

    f5_tts.write(file, jax.tree.map(fill, model.abstract()["params"]))


def run_child(side: str, python: Path, size: str, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    """One process's measurements, pinned to ``threads`` cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    module = "f5_release_torch" if side == "theirs" else "f5_release"
    command = [str(python if side == "theirs" else sys.executable), "-m", f"tests.benchmarks.{module}"]
    command += ["--child"] if side == "ours" else []
    command += [f"--folder={args.folder}", f"--frames={args.frames}", f"--seconds={args.seconds}"]
    name = "--size" if side == "theirs" else "--sizes"
    command += [name, size, "--threads", str(threads), "--steps", *map(str, args.steps)]
    command += ["--batches", *map(str, args.batches)]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, cores))  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Refuses figures of two sides that do not compute the same; says how far the release's batches are from itself."""
    ours, theirs = np.load(folder / "jax.npz"), np.load(folder / "torch.npz")
    for case in ours.files:
        steps, batch, _ = case.split(" ", 2)
        alone = theirs[f"{steps} {batch} {'together' if batch == '1' else 'one by one'}"]
        error = np.abs(ours[case] - alone).max() / np.abs(alone).max()
        print(f"outputs  {case:18} ours and theirs alone: {error:.1e} of the largest value (allowed {TOLERANCE:.0e})")
        if not error <= TOLERANCE:
            sys.exit("the outputs differ; no figure is worth printing")
        if case in theirs.files and case.endswith("together") and batch != "1":
            own = np.abs(theirs[case] - alone).max() / np.abs(alone).max()
            print(f"         {case:18} theirs in a batch and alone: {own:.1e}")


def table(size: str, threads: int, runs: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> list[dict]:
    """Prints a line per case and a line per factor; returns them."""
    theirs, ours = runs["theirs"], runs["ours"]
    print(f"\n{size}, {threads} thread(s), {args.frames} frames on average; {theirs[0]['name']} | {ours[0]['name']}")
    print("steps batch mode           theirs s     ours s   theirs/ours   CPU s theirs/ours   our first call s")
    lines = []
    for case in ours[0]["cases"]:
        steps, batch, mode = case.split(" ", 2)
        mine = {kind: median(r["cases"][case][kind] for r in ours) for kind in ("wall", "cpu", "first")}
        if case not in theirs[0]["cases"]:
            continue
        other = {kind: median(r["cases"][case][kind] for r in theirs) for kind in ("wall", "cpu")}
        print(
            f"{steps:>5} {batch:>5} {mode:<12} {other['wall']:10.2f} {mine['wall']:10.2f} "
            f"{other['wall'] / mine['wall']:13.2f} {other['cpu'] / mine['cpu']:19.2f} {mine['first']:18.1f}"
        )
        lines.append({"size": size, "threads": threads, "case": case, "theirs": other, "ours": mine})
    factors = {
        name: [median(r["factors"][name]["wall"] for r in side) for side in (theirs, ours)]
        for name in ("call", "text", "dispatch")
    }
    work = cases.flops(size, 2, args.frames) / 1e9
    notes = {
        "call": f"matrix products: one guided call, {work:.0f} GFLOP, {work / factors['call'][0]:.0f} | "
        f"{work / factors['call'][1]:.0f} GFLOP/s",
        "text": "text encoding, both branches: once a row | once a batch",
        "dispatch": f"dispatch, and the weights through the caches: a guided call of {cases.DISPATCH_FRAMES} frames",
    }
    for name, (other, mine) in factors.items():
        print(f"  factor {notes[name]}: {other * 1e3:.0f} | {mine * 1e3:.0f} ms, {other / mine:.2f}")
    for batch in args.batches:
        lengths = [int(row["frames"]) for row in cases.requests(batch, args.frames)]
        rounded = [bucket(n, LEAST) for n in lengths]
        real = sum(lengths)
        print(
            f"  factor padding, batch {batch}: frames computed per real frame, together "
            f"{batch * max(lengths) / real:.2f} | {batch * max(rounded) / real:.2f}, one by one 1.00 | "
            f"{sum(rounded) / real:.2f}"
        )
    memory = [max(r[kind] for r in side) / 2**30 for kind in ("peak", "loaded") for side in (theirs, ours)]
    print(f"  peak memory {memory[0]:.2f} | {memory[1]:.2f} GiB (after loading {memory[2]:.2f} | {memory[3]:.2f})")
    return [*lines, {"size": size, "threads": threads, "factors": factors, "memory": memory}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(cases.SIZES), default=["small", "base"])
    for name, value in {"steps": [7, 16, 32], "batches": [1, 8], "threads": [1, 2]}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=value)
    parser.add_argument("--frames", type=int, default=500, help="mean frames of a row; 93.75 are a second")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each figure of each round")
    parser.add_argument("--quick", action="store_true", help="small, 7 steps, short speech, batch 1 and 4, one round")
    parser.add_argument("--env", type=Path, help="folder of the release's environment; in the user's cache by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        args.size, args.threads = args.sizes[0], args.threads[0]
        print(json.dumps(child_jax(args)))
        return
    if args.quick:
        args.sizes, args.steps, args.batches, args.rounds, args.seconds, args.frames = ["small"], [7], [1, 4], 1, 3, 120
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "murmuration" / "f5-tts-release"
    python, rows = environment(args.env or cache), []
    with tempfile.TemporaryDirectory() as name:
        args.folder = Path(name)
        for size in args.sizes:
            print(f"random weights of {size}", flush=True)
            make_weights(size, args.folder / f"{size}.safetensors")
            for threads in args.threads:
                runs: dict[str, list[dict[str, Any]]] = {"theirs": [], "ours": []}
                for number in range(args.rounds):
                    for side, results in runs.items():
                        start = time.perf_counter()
                        results.append(run_child(side, python, size, threads, args))
                        took = time.perf_counter() - start
                        print(f"{size}, {threads} thread(s), round {number + 1}: {side} in {took:.0f} s", flush=True)
                    if number == 0:
                        compare(args.folder, args)
                rows += table(size, threads, runs, args)
            (args.folder / f"{size}.safetensors").unlink()
    if args.json:
        args.json.write_text(json.dumps({"frames": args.frames, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
