"""The demo's own training step: milliseconds, CPU seconds, dispatch, and where the time goes.

    python -m tests.benchmarks.demo_step [--variant=demo] [--seconds=8] [--json=FILE]

Each thread count runs in its own process pinned to that many cores.  The parts are timed on their own, forward and
backward, at the shapes of the step; they do not add up to it exactly, since XLA fuses across them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.f5_vs_torch import measure


def warmed(call: Callable[[], Any], seconds: float) -> dict[str, float]:
    """``measure`` after one call that compiles."""
    call()
    return measure(call, seconds)


def child(variant: str, seconds: float) -> dict[str, Any]:
    """All measurements of one process."""
    import jax
    import jax.numpy as jnp

    from configs.f5_tts import get_config
    from train.assemble import RunConfig, assemble, build_data, compile_step, plain
    from train.components import call
    from train.feed import place
    from train.mesh import build_mesh
    from train.workdir import write_assets

    config = call(RunConfig, json.loads(json.dumps(plain(get_config(variant)))), "")
    mesh = build_mesh(config.mesh)
    data = build_data(config, mesh)
    with tempfile.TemporaryDirectory() as folder:
        parts = assemble(config, mesh, data.shapes, write_assets(Path(folder), data.write_assets, check=False))
    step = compile_step(config, mesh, parts, data.shapes)
    state = parts.create(None)
    batches = [place(data.train[i], mesh, 1) for i in range(4)]
    holder, dispatch = [state], []

    def train() -> None:
        start = time.perf_counter()
        holder[0], metrics = step(holder[0], batches[len(dispatch) % 4])
        dispatch.append(time.perf_counter() - start)
        jax.block_until_ready(metrics)

    whole = warmed(train, seconds)
    whole["dispatch"] = sorted(dispatch[2:])[len(dispatch[2:]) // 2]
    start = time.perf_counter()
    for i in range(20):
        data.train[100 + i]
    whole["batch"] = (time.perf_counter() - start) / 20
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in batches[0].items()}
    whole["gflop"] = parts.task.flops(shapes) / 1e9
    network = dict(config.model)
    rows, frames, _ = shapes["mel"].shape
    pieces = {
        name: warmed(call_, seconds / 4)
        for name, call_ in components(network, rows, frames, shapes["text"].shape[1]).items()
    }
    zeros = jax.tree.map(jnp.zeros_like, holder[0].params)
    update = jax.jit(parts.optimizer.update)
    arguments = (zeros, holder[0].opt_state, holder[0].params, holder[0].step)
    pieces["optimiser"] = warmed(lambda: jax.block_until_ready(update(*arguments)), seconds / 4)
    return {"step": whole, "parts": pieces, "depth": network["depth"]}


def components(model: dict[str, Any], rows: int, frames: int, symbols: int) -> dict[str, Callable[[], Any]]:
    """Forward and backward of the network's parts as thunks."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from models.layers.attention import SelfAttention
    from models.layers.conv import ConvPositionEmbedding
    from models.layers.linear import linear
    from models.layers.rope import rope_phases
    from models.layers.text import TextEncoder
    from models.ops.attention import MaskSpec

    dim, rngs = model["dim"], nnx.Rngs(0)
    x = jax.random.normal(jax.random.key(0), (rows, frames, dim))
    lengths = jnp.full(rows, frames)
    inside = jnp.ones((rows, frames), bool)
    phases = rope_phases(jnp.arange(frames), model["dim_head"])
    hidden = int(dim * model["ff_mult"])

    def gradient(module: Any, fn: Callable[[Any, jax.Array], jax.Array], *inputs: Any) -> Callable[[], Any]:
        graph, params = nnx.split(module)
        grad = jax.jit(jax.grad(lambda p, *a: jnp.square(fn(nnx.merge(graph, p), *a)).sum()))
        return lambda: jax.block_until_ready(grad(params, *inputs))

    attention = SelfAttention(dim, model["heads"], model["dim_head"], dtype=jnp.float32, rngs=rngs)
    feed_forward = nnx.List([linear(dim, hidden, rngs=rngs), linear(hidden, dim, rngs=rngs)])
    position = ConvPositionEmbedding(
        dim, width=model["conv_pos_kernel"], groups=model["conv_pos_groups"], dtype=jnp.float32, rngs=rngs
    )
    text = TextEncoder(
        32, model["text_dim"], blocks=model["conv_layers"], mask_filler=True, upsample=True, exact=True,
        dtype=jnp.float32, rngs=rngs,
    )  # fmt: skip
    ids = jnp.ones((rows, symbols), jnp.int32)
    drop = jnp.zeros(rows, bool)
    return {
        "attention, one block": gradient(attention, lambda m, a: m(a, phases, MaskSpec(kv_lengths=lengths)), x),
        "feed-forward, one block": gradient(feed_forward, lambda m, a: m[1](jax.nn.gelu(m[0](a))), x),
        "position convolutions": gradient(position, lambda m, a: m(a, inside), x),
        "text encoder": gradient(text, lambda m, a: m(a, lengths, frames, drop, scan=True, remat="none"), ids),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="demo")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each figure")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.variant, args.seconds)))
        return
    results = {}
    for threads in (1, 2):
        cores = sorted(os.sched_getaffinity(0))[:threads]
        command = [sys.executable, "-m", "tests.benchmarks.demo_step", "--child", f"--variant={args.variant}"]
        done = subprocess.run(
            [*command, f"--seconds={args.seconds}"], stdout=subprocess.PIPE, text=True, check=True,
            preexec_fn=lambda cores=cores: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        result = results[threads] = json.loads(done.stdout.splitlines()[-1])
        step = result["step"]
        print(
            f"{threads} thread(s): {step['wall'] * 1e3:.0f} ms a step, {step['cpu']:.3f} CPU s, "
            f"{step['gflop'] / step['wall']:.0f} GFLOP/s of {step['gflop']:.1f} GFLOP; "
            f"dispatch {step['dispatch'] * 1e3:.2f} ms ({step['dispatch'] / step['wall']:.2%}); "
            f"making a batch {step['batch'] * 1e3:.1f} ms, in another thread"
        )
        for name, part in result["parts"].items():
            times = result["depth"] if "one block" in name else 1
            share = times * part["wall"] / step["wall"]
            print(f"    {name:26} {part['wall'] * 1e3:7.1f} ms x {times}   {share:.0%} of a step")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
