"""Averages of the parameters at several rates, with the arithmetic of ``ema-pytorch`` (which F5-TTS released with).

The ``n``-th update (counted from 0, the step before the optimiser's increment) does nothing unless ``n`` is a multiple
of ``update_every``; it copies while ``n <= update_after_step``, and from then on moves by ``1 - decay`` with a decay
that warms up to its final value: ``1 - (1 + (n - update_after_step) / inv_gamma) ** -power``.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import UserError


@dataclasses.dataclass(frozen=True)
class EmaSpec:
    """One average; it is stored in ``TrainState.ema`` under ``name``."""

    decay: float = 0.999
    update_after_step: int = 0
    update_every: int = 1
    power: float = 2.0 / 3.0
    inv_gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"ema.decays holds {self.decay}; a decay lies in [0, 1)")
        if self.update_every < 1 or self.update_after_step < 0 or self.inv_gamma <= 0:
            raise UserError(f"ema: need update_every >= 1, update_after_step >= 0 and inv_gamma > 0, got {self}")

    @property
    def name(self) -> str:
        """The decay as text, e.g. ``"0.999"``."""
        return repr(float(self.decay))


def decay_at(spec: EmaSpec, counter: Any) -> Any:
    """Decay once ``counter`` updates have been counted (the current one included)."""
    xp = jnp if isinstance(counter, jax.Array) else np
    n = xp.maximum(counter - spec.update_after_step - 1, 0)
    return xp.clip(1 - (1 + n / spec.inv_gamma) ** -spec.power, 0.0, spec.decay)


def init(params: Any, specs: Sequence[EmaSpec]) -> dict[str, Any]:
    """One real copy of the parameters per average: the step donates its state, and shared buffers cannot be."""
    return {spec.name: jax.tree.map(lambda p: jnp.array(p, copy=True), params) for spec in specs}


def update(ema: dict[str, Any], params: Any, step: jax.Array, specs: Sequence[EmaSpec]) -> dict[str, Any]:
    """New averages after the update that turned ``step`` into ``step + 1`` and gave ``params``."""
    return {spec.name: _move(ema[spec.name], params, step, spec) for spec in specs}


def _move(old: Any, params: Any, step: jax.Array, spec: EmaSpec) -> Any:
    decay = decay_at(spec, step + 1)
    copy = step <= spec.update_after_step
    due = step % spec.update_every == 0

    def leaf(e: jax.Array, p: jax.Array) -> jax.Array:
        p = p.astype(e.dtype)
        moved = jnp.where(copy, p, e + (1 - decay).astype(e.dtype) * (p - e))  # a copy is exact, not a rounded lerp
        return moved if spec.update_every == 1 else jnp.where(due, moved, e)

    return jax.tree.map(leaf, old, params)
