# pyright: reportMissingImports=false
"""F5-TTS on the CPU, this code base against PyTorch, side by side in one run.

    python -m tests.benchmarks.f5_vs_torch [--dim=768 --depth=18 --frames=500 --rounds=3] [--json=FILE]

Needs the extra ``benchmark`` (PyTorch).  The same weights and inputs go through both; outputs are compared before
anything is timed.  Every (framework, threads) pair runs in its own process, pinned to that many cores, the two
frameworks taking turns; figures are medians over the rounds.  "CPU s" is the process's own processor time, which a busy
machine disturbs less than wall time.
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

VOCAB, MEL, SAMPLE_STEPS, GUIDANCE = 256, 100, 16, 2.0
CASES = ("forward", "train", "sample")
TOLERANCE = {"forward": 2e-4, "train": 1e-4, "sample": 2e-3}


def sizes(args: argparse.Namespace) -> dict[str, Any]:
    """Constructor arguments that both models understand."""
    return {"dim": args.dim, "depth": args.depth, "heads": args.dim // 64, "ff_mult": 2, "text_dim": 512,
            "conv_layers": 4, "text_num_embeds": VOCAB, "mel_dim": MEL}  # fmt: skip


def inputs(frames: int) -> dict[str, np.ndarray]:
    """One row without padding, a third of it reference speech."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    cond = normal(1, frames, MEL)
    cond[:, frames // 3 :] = 0
    return {
        "x": normal(1, frames, MEL),
        "cond": cond,
        "target": normal(1, frames, MEL),
        "time": np.array([0.3], np.float32),
        "text": rng.integers(0, VOCAB, (1, frames // 6)).astype(np.int32),
    }


def measure(call: Any, seconds: float) -> dict[str, float]:
    """Median wall and CPU seconds of a ``call`` that has run before, over as many repeats as fit into ``seconds``; at
    least one, and three if they fit into five times that."""
    walls, cpus, start = [], [], time.perf_counter()
    while not walls or time.perf_counter() - start < seconds * (5 if len(walls) < 3 else 1):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"wall": median(walls), "cpu": median(cpus), "repeats": len(walls)}


def child_torch(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    from tests.benchmarks.torch_dit import TorchDiT

    torch.set_num_threads(args.threads)
    model = TorchDiT(**sizes(args))
    weights = {
        k.removeprefix("ema_model.transformer."): v for k, v in load_file(str(folder / "model.safetensors")).items()
    }
    model.load_state_dict({k: v for k, v in weights.items() if k in model.state_dict()}, strict=True)
    batch = {
        k: torch.from_numpy(v).long() if k == "text" else torch.from_numpy(v) for k, v in inputs(args.frames).items()
    }
    times = torch.linspace(0, 1, SAMPLE_STEPS + 1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)

    def forward():
        with torch.no_grad():
            return model(batch["x"], batch["cond"], batch["text"], batch["time"])

    def train():
        optimiser.zero_grad(set_to_none=True)
        loss = (model(batch["x"], batch["cond"], batch["text"], batch["time"]) - batch["target"]).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return loss.detach()

    def sample():
        out = model.sample(batch["x"], batch["cond"], batch["text"], times, GUIDANCE)
        out[:, : args.frames // 3] = batch["cond"][:, : args.frames // 3]
        return out

    calls = {"forward": forward, "sample": sample, "train": train}
    outputs = {name: call().numpy() for name, call in calls.items()}
    np.savez(folder / "torch.npz", **outputs)
    return {name: measure(call, args.seconds) for name, call in calls.items()}


def child_jax(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import optax

    from models.convert import f5_tts
    from models.dit import DiT
    from models.functional import functional
    from sampling import grids
    from sampling.infill import InfillNetwork, infill

    model = functional(lambda rngs: DiT(**sizes(args), rngs=rngs))
    params, _ = f5_tts.read(folder / "model.safetensors", model.abstract()["params"])
    batch = {k: jnp.asarray(v) for k, v in inputs(args.frames).items()}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, weight_decay=0.01))

    def apply(params: Any, *xs: Any, method: str = "__call__") -> jax.Array:
        return model.apply({"params": params, "stats": {}}, *xs, method=method)[0]

    @jax.jit
    def forward(params: Any) -> jax.Array:
        return apply(params, batch["x"], batch["cond"], batch["text"], batch["time"])

    def train_step(params: Any, opt: Any) -> Any:
        def loss(p: Any) -> jax.Array:
            return jnp.square(
                apply(p, batch["x"], batch["cond"], batch["text"], batch["time"]) - batch["target"]
            ).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    @jax.jit
    def sample(params: Any) -> jax.Array:
        network = InfillNetwork(
            encode=lambda text, lengths, drop: apply(params, text, lengths, args.frames, drop, method="encode_text"),
            predict=lambda x, clip, text, t, lengths: apply(params, x, clip, text, t, lengths, method="velocity"),
        )
        known = jnp.arange(args.frames)[None] < args.frames // 3
        grid = grids.uniform(SAMPLE_STEPS)
        return infill(network, batch["cond"], known, batch["text"], None, batch["x"], grid, weight=GUIDANCE + 1).out

    step = jax.jit(train_step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.asarray, params)
    outputs = {"forward": np.asarray(forward(params)), "sample": np.asarray(sample(params))}
    state = [jax.tree.map(jnp.copy, params), tx.init(params)]

    dispatch = []

    def train() -> jax.Array:
        start = time.perf_counter()
        state[0], state[1], value = step(*state)
        dispatch.append(time.perf_counter() - start)
        return value.block_until_ready()

    outputs["train"] = np.asarray(train())
    np.savez(folder / "jax.npz", **outputs)
    result = {
        "forward": measure(lambda: forward(params).block_until_ready(), args.seconds),
        "sample": measure(lambda: sample(params).block_until_ready(), args.seconds),
        "train": measure(train, args.seconds),
    }
    # The call returns once the work is queued: what it took is Python and dispatch, not XLA.
    result["train"]["dispatch"] = median(dispatch[1:])
    return result


def make_weights(args: argparse.Namespace, folder: Path) -> None:
    """Random weights, the zero-initialised layers too, in the released file's layout."""
    import jax

    from models.convert import f5_tts
    from models.dit import DiT
    from models.functional import functional

    model = functional(lambda rngs: DiT(**sizes(args), rngs=rngs))
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(0))["params"])
    rng = np.random.default_rng(1)
    leaves = [np.asarray(leaf) + 0.01 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    f5_tts.write(folder / "model.safetensors", jax.tree.unflatten(tree, leaves))


def run_child(framework: str, threads: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One measurement in a process pinned to ``threads`` cores."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    flags = [f"--{k}={v}" for k, v in vars(args).items() if k in ("dim", "depth", "frames", "seconds")]
    command = [sys.executable, "-m", "tests.benchmarks.f5_vs_torch", f"--child={framework}", f"--threads={threads}",
               f"--folder={folder}", *flags]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, cores))  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def compare(folder: Path) -> None:
    """Refuses to time two models that do not compute the same."""
    ours, theirs = np.load(folder / "jax.npz"), np.load(folder / "torch.npz")
    for case in CASES:
        error = np.abs(ours[case] - theirs[case]).max() / max(1.0, np.abs(theirs[case]).max())
        print(
            f"outputs  {case:8} largest difference {error:.1e} of the largest value (allowed {TOLERANCE[case]:.0e})",
            flush=True,
        )
        if not error <= TOLERANCE[case]:
            sys.exit("the outputs differ; nothing was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"dim": 768, "depth": 18, "frames": 500, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each figure of each round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps({"torch": child_torch, "jax": child_jax}[args.child](args, args.folder)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_weights(args, folder)
        for threads in (1, 2):
            runs: dict[str, list[dict[str, Any]]] = {"torch": [], "jax": []}
            for number in range(args.rounds):
                for framework, results in runs.items():
                    start = time.perf_counter()
                    results.append(run_child(framework, threads, args, folder))
                    took = time.perf_counter() - start
                    print(
                        f"threads {threads}, round {number + 1}/{args.rounds}: {framework} in {took:.0f} s", flush=True
                    )
                if number == 0:
                    compare(folder)
            for case in CASES:
                row = {"threads": threads, "case": case}
                for framework, results in runs.items():
                    for kind in ("wall", "cpu"):
                        row[f"{framework}_{kind}"] = median(r[case][kind] for r in results)
                if case == "train":
                    row["dispatch_share"] = median(r[case]["dispatch"] / r[case]["wall"] for r in runs["jax"])
                rows.append(row)
    print(
        f"\ndim {args.dim}, depth {args.depth}, {args.frames} frames, batch 1, float32, median of {args.rounds} rounds"
    )
    print("threads case      torch ms    ours ms   torch/ours   torch CPU s   ours CPU s   dispatch")
    for r in rows:
        share = f"{r['dispatch_share']:.1%}" if "dispatch_share" in r else ""
        walls = f"{r['torch_wall'] * 1e3:9.0f} {r['jax_wall'] * 1e3:10.0f} {r['torch_wall'] / r['jax_wall']:12.2f}"
        print(f"{r['threads']:>7} {r['case']:8} {walls} {r['torch_cpu']:13.2f} {r['jax_cpu']:12.2f} {share:>10}")
    if args.json:
        args.json.write_text(json.dumps({"sizes": sizes(args), "frames": args.frames, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
