"""The sampler: one ``lax.scan`` from noise to data.

    guide  = ClassifierFree(denoiser, condition, null, weight=3.0)
    result = sample(guide, start_noise(key, ids, (frames, mel)), flow_grid(16))

Everything is a pure function of arrays; put the call inside ``jax.jit`` and the whole trajectory is one program.  Times
and conversion coefficients are host numbers in float64, stacked per step, cast to the state's type.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sampling import grids
from sampling.guidance import Guide, Guided
from sampling.ledger import Ledger
from sampling.paths import FlowPath, Path
from sampling.prediction import KINDS, Prediction, coefficients
from sampling.solvers import Euler, Solver


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sample:
    """Result of ``sample``.

    Attributes:
      x: final state [b, ...].
      states: the states asked for by ``keep`` [k, b, ...], or None.
      ledger: costs per row.
    """

    x: jax.Array
    states: jax.Array | None
    ledger: Ledger


def sample(
    guide: Guide,
    x: jax.Array,
    grid: np.ndarray,
    *,
    path: Path | None = None,
    solver: Solver | None = None,
    keep: str | Sequence[int] = "final",
) -> Sample:
    """Follows the guide from ``x`` at ``grid[0]`` to ``grid[-1]``.

    Args:
      guide: networks and how they are mixed.
      x: start state [b, ...]: noise, injected by the caller.
      grid: host times [n + 1] from noise to data in the path's own direction.
      path: α, σ; F5's flow by default.
      solver: Euler by default.
      keep: "final" (memory does not grow with n), "all" (n + 1 states) or the indices of the states to return.

    Raises:
      ValueError: a grid that is not monotone, an index out of range, or a network whose prediction cannot be converted
        at one of the solver's times (for example ``data`` at σ = 0).  All are raised before anything is compiled.
    """
    path, solver = path or FlowPath(), solver or Euler()
    grid = grids.check(grid, path)
    steps = grid.size - 1
    plan = solver.plan(path, grid)
    tables = {kind: coefficients(path, plan.times, kind, solver.target) for kind in KINDS}

    def to_target(prediction: Prediction, state: jax.Array, row: dict[str, Any], stage: int) -> Prediction:
        if prediction.kind == solver.target:
            return prediction
        bad = plan.times[~np.isfinite(tables[prediction.kind]).all(axis=0)]
        if bad.size:
            raise ValueError(f"a {prediction.kind!r} prediction has no {solver.target} at t = {bad.flat[0]:g}")
        cx, cp = row["tables"][prediction.kind]
        return Prediction(cx[stage] * state + cp[stage] * prediction.value, solver.target)

    def body(carry: tuple[jax.Array, Any, Any], row: dict[str, Any]) -> tuple[tuple[jax.Array, Any, Any], None]:
        state, history, kept = carry

        def evaluate(point: jax.Array, stage: int) -> Guided:
            guided = guide(point, row["times"][stage])
            mix, *components = (to_target(p, point, row, stage) for p in (guided.mix, *guided.components))
            return Guided(mix, tuple(components))

        done = solver.step(evaluate, state, history, row["rows"], None)
        if kept is not None:
            kept = kept.at[row["slot"]].set(done.x, mode="drop")
        return (done.x, done.history, kept), None

    slots, kept = _kept_states(keep, steps, x)
    xs = jax.tree.map(lambda a: jnp.asarray(a, x.dtype), {"times": plan.times, "rows": plan.rows, "tables": tables})
    xs["slot"] = jnp.asarray(slots[1:])
    (final, _, kept), _ = jax.lax.scan(body, (x, solver.init(x), kept), xs)
    return Sample(final, kept, Ledger(network_calls=steps * solver.evaluations * guide.calls))


def _kept_states(keep: str | Sequence[int], steps: int, x: jax.Array) -> tuple[np.ndarray, jax.Array | None]:
    """(slot of each of the steps + 1 states in the buffer, or past its end; the buffer with the start state in it)."""
    if isinstance(keep, str):
        if keep not in ("final", "all"):
            raise ValueError(f'keep is "final", "all" or a list of state indices, got {keep!r}')
        keep = range(steps + 1) if keep == "all" else ()
    indices = [int(i) for i in keep]
    slots = np.full(steps + 1, max(len(indices), 1), np.int32)
    for slot, index in enumerate(indices):
        if not 0 <= index <= steps or slots[index] < len(indices):
            raise ValueError(f"state index {index} is given twice or not in 0..{steps}")
        slots[index] = slot
    if not indices:
        return slots, None
    buffer = jnp.zeros((len(indices), *x.shape), x.dtype)
    return slots, buffer.at[slots[0]].set(x, mode="drop")
