"""F5-TTS v1 Base on one accelerator: real-time factor of sampling and utilisation of training.

    python -m tests.benchmarks.gpu_speech [--json=FILE]           # a GPU; about ten minutes, most of it compilation
    python -m tests.benchmarks.gpu_speech --smoke                 # seconds, anywhere: does the command work?

Random weights, since neither figure depends on them.  Sampling: a 5 s reference and 10 s of new speech, guidance on,
the whole sampler one program; RTF = wall seconds / generated seconds (of all rows), the network alone, without the
vocoder.  Training: the whole step (forward, backward, AdamW, average) at 38,400 frames in bfloat16; MFU against the
device's dense bfloat16 peak.  Achieved TFLOP/s counts the products of the blocks and attention.
"""

import argparse
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SIZES = {"base": {"dim": 1024, "depth": 22, "heads": 16}, "smoke": {"dim": 64, "depth": 2, "heads": 2}}
TARGETS = {(16, 1): 0.010, (16, 16): 0.005, (7, 16): 0.0025}  # RTF in bfloat16, by steps and batch
RATE, HOP, VOCAB, MEL = 24_000, 256, 2545, 100


def network(size: str, precision: str) -> Any:
    """The v1 network as pure functions."""
    import jax.numpy as jnp

    from models.dit import DiT
    from models.functional import functional

    options = {**SIZES[size], "ff_mult": 2, "text_dim": 512 if size == "base" else 32, "conv_layers": 4}
    model = functools.partial(DiT, **options, mel_dim=MEL, text_num_embeds=VOCAB, remat="none")
    return functional(lambda rngs: model(dtype=jnp.dtype(precision), rngs=rngs))


def work(size: str, rows: int, frames: int) -> float:
    """FLOPs of a forward pass."""
    dim, depth = SIZES[size]["dim"], SIZES[size]["depth"]
    return rows * depth * frames * (2.0 * 8 * dim**2 + 4.0 * frames * dim)


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Seconds of the first call and the median of the others."""
    import jax

    walls = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        walls.append(time.perf_counter() - start)
    return walls[0], median(walls[1:])


def sampling(size: str, precision: str, steps: int, batch: int, seconds: tuple[float, float], repeats: int) -> dict:
    """One figure of sampling; ``seconds`` of reference and of new speech."""
    import jax
    import jax.numpy as jnp

    from models.ops.precision import cast_floating
    from sampling.grids import flow_grid
    from sampling.infill import InfillNetwork, infill

    model = network(size, precision)
    known, new = (round(s * RATE / HOP) for s in seconds)
    frames = known + new
    variables = jax.jit(lambda key: cast_floating(model.init(key), jnp.dtype(precision)))(jax.random.key(0))
    grid = flow_grid(steps)

    @jax.jit
    def speak(variables: Any, clip: jax.Array, text: jax.Array, lengths: jax.Array, noise: jax.Array) -> jax.Array:
        def apply(*xs: Any, method: str) -> jax.Array:
            return model.apply(variables, *xs, method=method)[0]

        side = InfillNetwork(
            encode=lambda text, lengths, drop: apply(text, lengths, frames, drop, method="encode_text"),
            predict=lambda x, clip, text, t, lengths: apply(x, clip, text, t, lengths, method="velocity"),
        )
        inside = jnp.arange(frames) < jnp.full((batch, 1), known)
        return infill(side, clip, inside, text, lengths, noise, grid, weight=3.0).out

    rng = np.random.default_rng(0)
    clip, noise = (jnp.asarray(rng.standard_normal((batch, frames, MEL)), jnp.float32) for _ in range(2))
    text = jnp.asarray(rng.integers(0, VOCAB, (batch, frames // 7)), jnp.int32)
    lengths = jnp.full(batch, frames)
    first, wall = timed(lambda: speak(variables, clip, text, lengths, noise), repeats)
    flops = steps * work(size, 2 * batch, frames)
    return {"precision": precision, "steps": steps, "batch": batch, "wall": wall, "first": first,
            "rtf": wall / (batch * seconds[1]), "tflops": flops / wall / 1e12}  # fmt: skip


def training(size: str, frames: int, rows: int, remat: str, repeats: int) -> dict:
    """The whole step in bfloat16 at ``frames`` frames in ``rows`` rows."""
    import jax
    import jax.numpy as jnp

    from data.audio import MelSpec, save_mel
    from data.text import tokenizer_from_texts
    from models.dit import DiT
    from train.ema import EmaSpec
    from train.flops import peak_flops
    from train.optim import OptimSpec, make_optimizer
    from train.state import create
    from train.step import make_train_step
    from train.tasks.speech import SpeechTask

    options = {**SIZES[size], "ff_mult": 2, "text_dim": 512 if size == "base" else 32, "conv_layers": 4}
    model = functools.partial(DiT, **options, remat=remat)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_from_texts("char", ["abcdefghijklmnopqrstuvwxyz"]).save(folder)
        save_mel(folder, MelSpec())
        task = SpeechTask(model, folder, precision="bfloat16")
    optimizer = make_optimizer(OptimSpec(lr=1e-5), jax.eval_shape(task.init, jax.random.key(0))["params"], steps=100)
    averages = [EmaSpec(0.999)]
    step = make_train_step(task, optimizer, seed=0, ema=averages, precision="bfloat16")
    state = jax.jit(lambda: create(task, optimizer, seed=0, ema=averages))()
    length, rng = frames // rows, np.random.default_rng(0)
    batch = {
        "mel": jnp.asarray(rng.standard_normal((rows, length, task.spec.n_mels)), jnp.float32),
        "mel_lengths": jnp.full(rows, length),
        "text": jnp.asarray(rng.integers(0, task.tokenizer.size, (rows, length // 7)), jnp.int32),
        "index": jnp.arange(rows),
        "mask": jnp.ones(rows),
    }
    compiled, holder = jax.jit(step, donate_argnums=0), [state]

    def train() -> Any:
        holder[0], metrics = compiled(holder[0], batch)
        return metrics

    first, wall = timed(train, repeats)
    flops = task.flops({name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in batch.items()})
    peak = peak_flops()
    return {"rows": rows, "frames": rows * length, "remat": remat, "wall": wall, "first": first,
            "tflops": flops / wall / 1e12, "mfu": peak and flops / wall / peak}  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs, prints a line per figure, returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny network and short speech")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--remat", default="attention", help="of the training step, see models/layers/stack.py")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    import jax

    device = jax.devices()[0]
    print(f"{device.device_kind} ({jax.default_backend()}), jax {jax.__version__}", flush=True)
    size, seconds = ("smoke", (0.2, 0.3)) if args.smoke else ("base", (5.0, 10.0))
    steps, batches = ((7,), (1, 2)) if args.smoke else ((7, 16, 32), (1, 16))
    precisions = ("float32",) if args.smoke else ("bfloat16", "float32")
    report: dict[str, Any] = {"device": device.device_kind, "sampling": [], "training": []}
    for precision in precisions:
        for batch in batches:
            for count in steps:
                row = sampling(size, precision, count, batch, seconds, 1 if args.smoke else args.repeats)
                target = TARGETS.get((count, batch)) if precision == "bfloat16" else None
                print(
                    f"sample {precision:8} {count:>2} steps, batch {batch:>2}: {row['wall'] * 1e3:8.1f} ms, RTF "
                    f"{row['rtf']:.4f}{f' (target {target})' if target else ''}, {row['tflops']:.1f} TFLOP/s; "
                    f"first call {row['first']:.1f} s",
                    flush=True,
                )
                report["sampling"].append(row)
    frames, rows = (64, 2) if args.smoke else (38_400, 32)
    row = training(size, frames, rows, args.remat, 1 if args.smoke else args.repeats)
    mfu = (
        f"MFU {row['mfu']:.1%} (target 45 %)"
        if row["mfu"]
        else "MFU unknown: this device's peak is not in train/flops.py"
    )
    print(
        f"train  bfloat16 {row['frames']} frames in {row['rows']} rows, remat {row['remat']}: "
        f"{row['wall'] * 1e3:.1f} ms, {row['tflops']:.1f} TFLOP/s, {mfu}; first call {row['first']:.1f} s",
        flush=True,
    )
    report["training"].append(row)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
