"""What the samplers' benchmark runs on both sides: networks, starts, methods.  Needs numpy only."""

import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
SIZES = {"small": {"dim": 16, "width": 64, "layers": 2}, "large": {"dim": 64, "width": 512, "layers": 4}}
STEPS = {"small": 50, "large": 20}
TRAINED = 1000  # discrete times of diffusers' schedules; a multiple of every number of steps
SIGMA_MIN, SIGMA_MAX = 0.02, 10.0
METHODS = (
    "diffusers DPM++2M",
    "diffusers DDIM",
    "diffusers flow Euler",
    "k-diffusion DPM++2M",
    "k-diffusion Euler",
    "k-diffusion Heun",
)


def calls(method: str, steps: int) -> int:
    """Network calls of a trajectory; Heun's step to σ = 0 is Euler's."""
    return 2 * steps - 1 if method.endswith("Heun") else steps


def weights(size: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(matrix, bias) of each layer of an MLP from (x, t, sin t, cos t) back to x: the same numbers on both sides."""
    rng, about = np.random.default_rng(SEED), SIZES[size]
    widths = [about["dim"] + 3, *[about["width"]] * about["layers"], about["dim"]]
    layers = []
    for m, n in itertools.pairwise(widths):
        bias = rng.standard_normal(n) / 10
        layers.append(((rng.standard_normal((m, n)) / np.sqrt(m)).astype(np.float32), bias.astype(np.float32)))
    return layers


def start(size: str, batch: int) -> np.ndarray:
    """Standard normal [batch, dim]."""
    return np.random.default_rng([SEED, batch]).standard_normal((batch, SIZES[size]["dim"])).astype(np.float32)


def gflop(size: str, batch: int) -> float:
    """Of one network call's products."""
    return 2e-9 * batch * sum(matrix.size for matrix, _ in weights(size))


def network(package: Any, join: Any, layers: Any, x: Any, t: Any) -> Any:
    """The MLP in either package: ``package`` has sin, cos and tanh, ``join`` puts columns side by side; t [b, 1]."""
    h = join([x, t, package.sin(t), package.cos(t)])
    for matrix, bias in layers[:-1]:
        h = package.tanh(h @ matrix + bias)
    matrix, bias = layers[-1]
    return h @ matrix + bias


class Neighbours:
    """How many cores other processes kept busy since this was made; figures want about none."""

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> float:
        wall, busy, own = (b - a for a, b in zip(self._start, self._now(), strict=True))
        return max(busy - own, 0.0) / wall

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """(wall, busy, own) seconds; without Linux' counters nothing is known to be busy."""
        own, stat = time.process_time(), Path("/proc/stat")
        ticks = [int(n) for n in stat.read_text().split("\n")[0].split()[1:]] if stat.exists() else [0] * 8
        busy = sum(ticks[:3] + ticks[5:8]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting for disks
        return time.perf_counter(), busy or own, own
