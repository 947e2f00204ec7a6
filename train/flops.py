"""Peak arithmetic rates of devices and the share of them that a step reaches (model FLOPs utilisation)."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

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


def matrix_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of the matrix products and convolutions of ``function(*args)``, arguments abstract; nothing is compiled.

    Loops of a known length count as often as they run, other loops once.
    """
    return _matrix_flops(jax.make_jaxpr(function)(*args).jaxpr)


def _matrix_flops(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, options = equation.primitive.name, equation.params
        if name == "dot_general":
            (summed, _), _ = options["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in summed)
        elif name == "conv_general_dilated":
            kernel, spec = equation.invars[1].aval.shape, options["dimension_numbers"].rhs_spec
            total += 2.0 * equation.outvars[0].aval.size * math.prod(kernel) / kernel[spec[0]]
        inner = [getattr(sub, "jaxpr", sub) for sub in jaxprs_in_params(options)]
        total += options.get("length", 1) * sum(_matrix_flops(sub) for sub in inner)
    return total
