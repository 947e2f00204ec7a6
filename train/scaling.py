"""Precision policy and dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740).

Master parameters, gradients' accumulators, the optimiser and all averages are float32; the forward and backward passes
run on a copy of the parameters in the compute type, made once per step.  bfloat16 has float32's range: no scale.
"""

from typing import Any

import jax
import jax.numpy as jnp

from data.errors import UserError
from models.ops.precision import cast_floating

PRECISIONS = ("float32", "bfloat16", "float16")

INITIAL_SCALE = 2.0**16
LARGEST_SCALE = 2.0**24
GROWTH_INTERVAL = 2000  # finite steps before the scale doubles, as in torch.amp.GradScaler


def check(precision: str) -> None:
    """Raises ``UserError`` unless ``precision`` is one a step can compute in."""
    if precision not in PRECISIONS:
        raise UserError(f"precision.compute={precision!r} is not known; choose one of {', '.join(PRECISIONS)}")


def cast(params: Any, precision: str) -> Any:
    """The parameters in the compute type; the very same arrays when that is float32."""
    return params if precision == "float32" else cast_floating(params, precision)


def init(precision: str) -> dict[str, jax.Array]:
    """``{"scale": float32, "streak": int32}``; always there, so a checkpoint's tree does not depend on precision."""
    check(precision)
    scale = INITIAL_SCALE if precision == "float16" else 1.0
    return {"scale": jnp.asarray(scale, jnp.float32), "streak": jnp.zeros((), jnp.int32)}


def adjust(loss_scale: dict[str, jax.Array], finite: jax.Array) -> dict[str, jax.Array]:
    """Halves the scale after an overflow (not below 1) and doubles it after ``GROWTH_INTERVAL`` finite steps."""
    scale, streak = loss_scale["scale"], loss_scale["streak"] + 1
    grow = finite & (streak >= GROWTH_INTERVAL)
    grown = jnp.minimum(scale * 2, LARGEST_SCALE)
    scale = jnp.where(finite, jnp.where(grow, grown, scale), jnp.maximum(scale / 2, 1.0))
    return {"scale": scale, "streak": jnp.where(finite & ~grow, streak, 0)}
