"""Learning rates as functions of the step: exact float64 for Python integers, float32 for traced steps.

Nothing here holds state.  Linear warm-up followed by ``linear`` decay is what torch's ``SequentialLR`` of two
``LinearLR`` gives, as in the F5-TTS release: the very first update has rate ``init_ratio * peak``, update number
``warmup`` the peak, and ``final_ratio * peak`` is reached at update number ``total`` (so the last update of the run is
one step short of it).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import UserError

Schedule = Callable[[Any], Any]  # update number (0 for the first) -> learning rate

KINDS = ("constant", "linear", "cosine")
DROP = 0.1  # at each milestone


def make_schedule(
    kind: str,
    peak: float,
    *,
    total: int,
    warmup: int = 0,
    init_ratio: float = 1e-8,
    final_ratio: float = 0.0,
    milestones: Sequence[int] = (),
) -> Schedule:
    """Linear warm-up from ``init_ratio * peak`` over ``warmup`` updates, then ``kind`` down to ``final_ratio * peak``.

    Args:
      kind: ``constant`` (``final_ratio`` is not used), ``linear`` or ``cosine``.
      peak: learning rate at update number ``warmup``.
      total: update number at which the decay ends; the rate stays there afterwards.
      milestones: update numbers from each of which on the rate is a tenth of what it would be.

    Raises:
      UserError: unknown kind, or a warm-up that does not fit into the run.
    """
    if kind not in KINDS:
        raise UserError(f"optim.schedule={kind!r} is not known; choose one of {', '.join(KINDS)}")
    if warmup < 0 or (warmup > 0 and warmup >= total and kind != "constant"):
        raise UserError(f"optim.warmup_steps={warmup} must be smaller than the run's {total} steps")

    def at(step: Any) -> Any:
        xp = jnp if isinstance(step, jax.Array) else np
        rising = init_ratio + (1 - init_ratio) * step / max(warmup, 1)
        # Integers are subtracted before the division: float32 keeps full relative precision at the end of the decay.
        left = xp.clip((total - step) / max(total - warmup, 1), 0.0, 1.0)
        if kind == "constant":
            falling = xp.ones_like(left)
        else:
            falling = final_ratio + (1 - final_ratio) * (left if kind == "linear" else 0.5 - 0.5 * xp.cos(xp.pi * left))
        for milestone in milestones:
            falling = falling * xp.where(step < milestone, 1.0, DROP)
        return peak * xp.where(step < warmup, rising, falling)

    return at
