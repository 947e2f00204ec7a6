"""What the speech benchmarks measure: sizes, requests, clocks.  Needs numpy only, so every environment can read it."""

import resource
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

VOCAB, MEL, GUIDANCE, SWAY, SEED = 2545, 100, 2.0, -1.0, 0
SIZES = {"small": {"dim": 768, "depth": 18, "heads": 12}, "base": {"dim": 1024, "depth": 22, "heads": 16}}
DISPATCH_FRAMES = 8  # so few that what a network call takes is what starting its operations takes


def arguments(size: str) -> dict[str, Any]:
    """Constructor arguments of the released v1 network, which both implementations understand."""
    return {**SIZES[size], "ff_mult": 2, "text_dim": 512, "conv_layers": 4, "text_num_embeds": VOCAB, "mel_dim": MEL}


def requests(batch: int, frames: int) -> list[dict[str, np.ndarray]]:
    """Rows of different lengths, from half to one and a half times ``frames``; a third of each is the reference."""
    lengths = [frames] if batch == 1 else np.linspace(0.5 * frames, 1.5 * frames, batch).round().astype(int).tolist()
    rows = []
    for i, length in enumerate(lengths):
        rng = np.random.default_rng([i, length])
        rows.append(
            {
                "clip": rng.standard_normal((length // 3, MEL)).astype(np.float32),
                "text": rng.integers(0, VOCAB, length // 6).astype(np.int32),
                "frames": np.int32(length),
            }
        )
    return rows


def padded(rows: Sequence[dict[str, np.ndarray]], frames: int | None = None) -> dict[str, np.ndarray]:
    """One batch: clips and texts padded, lengths beside them."""
    known = np.array([len(row["clip"]) for row in rows])
    text = np.full((len(rows), max(len(row["text"]) for row in rows)), -1, np.int32)
    clip = np.zeros((len(rows), known.max() if frames is None else frames, MEL), np.float32)
    for i, row in enumerate(rows):
        clip[i, : known[i]], text[i, : len(row["text"])] = row["clip"], row["text"]
    return {"clip": clip, "known": known, "text": text, "frames": np.array([row["frames"] for row in rows])}


def flops(size: str, rows: int, frames: int) -> float:
    """Of one network call: the products of the blocks, and attention."""
    dim, depth = SIZES[size]["dim"], SIZES[size]["depth"]
    return rows * depth * frames * (2.0 * 8 * dim**2 + 4.0 * frames * dim)


def measure(call: Callable[[], Any], seconds: float, least: int = 1) -> dict[str, float]:
    """Median wall and CPU seconds over as many repeats as fit into ``seconds``; the caller has warmed it up."""
    walls, cpus, end = [], [], time.perf_counter() + seconds
    while len(walls) < least or time.perf_counter() < end:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"wall": median(walls), "cpu": median(cpus), "repeats": len(walls)}


def peak_memory() -> int:
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(text: str) -> None:
    """A line of progress from a child process, whose standard output is its result."""
    import sys

    print(f"    {text}", file=sys.stderr, flush=True)
