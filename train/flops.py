"""Peak arithmetic rates of devices and the share of them that a step reaches (model FLOPs utilisation)."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

# Dense matmul peaks per device in FLOP/s, bfloat16 (float16 on older GPUs), from the makers' data sheets.
PEAKS = {
    "TPU v2": 22.5e12,  # per core, of which a v2 or v3 chip has two
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "Tesla V100": 125e12,
    "Tesla T4": 65e12,
}


def peak_flops(device: Any = None) -> float | None:
    """Peak FLOP/s of one device: from the table by the longest matching name, measured on a CPU, None when unknown.

    On a CPU it is what a float32 matmul of size 1024 reaches, on all the threads XLA has; fake devices share them.
    """
    device = device or jax.devices()[0]
    if device.platform == "cpu":
        return _measure() / jax.local_device_count()
    matching = [name for name in PEAKS if device.device_kind.startswith(name)]
    return PEAKS[max(matching, key=len)] if matching else None


@functools.cache
def _measure(size: int = 1024, repeats: int = 5) -> float:
    device = jax.local_devices()[0]
    x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    matmul = jax.jit(lambda a: a @ a)
    matmul(x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):  # the best of some: other work on the machine only ever slows it down
        start = time.perf_counter()
        matmul(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def utilisation(flops_per_step: float, seconds_per_step: float, devices: int, peak: float | None) -> float | None:
    """Share of the devices' peak that was useful model arithmetic; None when the peak or the FLOPs are unknown."""
    if not peak or not flops_per_step or seconds_per_step <= 0:
        return None
    return flops_per_step / (seconds_per_step * devices * peak)
