"""The sampler: one ``lax.scan`` from noise to data.

    guide  = ClassifierFree(denoiser, condition, null, weight=3.0)
    result = sample(guide, start_noise(key, ids, (frames, mel)), flow_grid(16))

Everything is a pure function of arrays; put the call inside ``jax.jit`` and the whole trajectory is one program.  Times
and conversion coefficients are host numbers in float64, stacked per step, cast to the state's type.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sampling import grids
from sampling.guidance import Guide, Guided
from sampling.ledger import Ledger
from sampling.noise import Noise
from sampling.paths import FlowPath, Path
from sampling.prediction import Prediction, coefficients, kinds
from sampling.smc.protocol import Corrector, Resampling, Weights
from sampling.solvers import Euler, Plan, Solver, Step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sample:
    """Result of ``sample``.

    Attributes:
      x: final state [b, ...].
      states: the states asked for by ``keep`` [k, b, ...], or None.
      ledger: costs per row.
      weights: of the particles, if they have any.
    """

    x: jax.Array
    states: jax.Array | None
    ledger: Ledger
    weights: Weights | None = None


def sample(
    guide: Guide,
    x: jax.Array,
    grid: np.ndarray,
    *,
    path: Path | None = None,
    solver: Solver | None = None,
    noise: Noise | None = None,
    corrector: Corrector | None = None,
    resampling: Resampling | None = None,
    particles: int = 1,
    keep: str | Sequence[int] = "final",
) -> Sample:
    """Follows the guide from ``x`` at ``grid[0]`` to ``grid[-1]``.

    Args:
      guide: networks and how they are mixed.
      x: start state [b, ...]: σ(grid[0]) times noise, injected by the caller.
      grid: host times [n + 1] from noise to data in the path's own direction.
      path: α, σ; F5's flow by default.
      solver: Euler by default.
      noise: what a stochastic solver draws from, ``Keyed(key, ids)`` or ``Stored(values)``.
      corrector, resampling: weigh the particles at every step, and copy the likely ones; see ``sampling.smc``.
      particles: of each requested output; rows of x are swarm-major, b = outputs·particles.
      keep: "final" (memory does not grow with n), "all" (n + 1 states) or the indices of the states to return.

    Raises:
      ValueError: a grid that is not monotone, an index out of range, states of low precision, missing noise, or a
        network whose prediction cannot be converted at one of the solver's times (for example ``data`` at σ = 0).  All
        are raised before anything is compiled.
    """
    path, solver = path or FlowPath(), solver or Euler()
    grid = grids.check(grid, path)
    if x.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"states are float32 or float64, got {x.dtype}: lower precision belongs inside the network")
    steps, (slots, kept) = grid.size - 1, _kept_states(keep, grid.size - 1, x)
    track = trajectory(guide, x, grid, path, solver, noise)
    rows: dict[str, Any] = {"track": track.rows, "slot": jnp.asarray(slots[1:])}
    swarm = None
    if corrector is not None and resampling is not None:
        if x.shape[0] % particles:
            raise ValueError(f"{x.shape[0]} rows are not a whole number of swarms of {particles} particles")
        if (solver.plan(path, grid).times[:, 0] != grid[:-1]).any():
            raise ValueError(
                f"{solver} evaluates its guide elsewhere than where its steps start: they cannot be weighed"
            )
        swarms = x.shape[0] // particles
        rows["corrector"] = _device(corrector.plan(path, grid, x.shape), x.dtype)
        rows["resampling"] = _device(resampling.plan(grid, swarms, particles), x.dtype)
        swarm = resampling.init(swarms, particles, x.dtype)
    elif corrector is not resampling:
        raise ValueError("a corrector and a resampling rule come together (one that never resamples only weighs)")

    def body(carry: Any, row: dict[str, Any], last: bool = False) -> tuple[Any, Any]:
        state, history, swarm, kept = carry
        done = track.step(state, history, row["track"], last)
        moved, trace = (done.x, done.history), None
        if corrector is not None and resampling is not None:
            scores = track.scores(done.guided, state, row["track"])
            increments = corrector.increment(scores, state, row["corrector"])
            stepped = resampling.step(swarm, increments.reshape(-1, particles), row["resampling"])
            swarm, moved, trace = stepped.state, stepped.move(moved), stepped.trace
        if kept is not None:
            kept = kept.at[row["slot"]].set(moved[0], mode="drop")
        return (*moved, swarm, kept), trace

    carry, traces = (x, solver.init(x), swarm, kept), []
    if scanned := steps - track.peel:
        carry, trace = jax.lax.scan(body, carry, jax.tree.map(lambda a: a[:scanned], rows))
        traces.append(trace)
    if track.peel:
        carry, trace = body(carry, jax.tree.map(lambda a: a[-1], rows), last=True)
        traces.append(jax.tree.map(lambda a: a[None], trace))
    final, _, swarm, kept = carry
    weights = None
    if resampling is not None:
        weights, final = resampling.finish(swarm, jax.tree.map(lambda *ts: jnp.concatenate(ts), *traces), final)
    return Sample(final, kept, Ledger(network_calls=track.calls), weights)


class Trajectory(NamedTuple):
    """Everything about a run that does not depend on its states; ``sample`` scans over it.

    Attributes:
      rows: pytree of arrays [n, ...]; a step takes its own row.
      peel: 1 if the last step, to σ = 0, is another than the rest, else 0.
      calls: network calls of the whole run, per output row.
      step: (x, history, row, whether it is a peeled last step) -> Step.
      scores: (what the guide answered at the step's left end, x there, row) -> the same as scores.
    """

    rows: Any
    peel: int
    calls: int
    step: Callable[[jax.Array, Any, Any, bool], Step]
    scores: Callable[[Guided, jax.Array, Any], Guided]


def trajectory(
    guide: Guide, x: jax.Array, grid: np.ndarray, path: Path, solver: Solver, noise: Noise | None = None
) -> Trajectory:
    """Plans a run of ``solver`` along a checked grid, for states like ``x``; arguments and errors as in ``sample``."""
    plan = solver.plan(path, grid)
    called = guide.plan(path, plan.times)
    draws = _check_plan(plan, solver, noise, x)
    host = {
        "times": plan.times,
        "solver": plan.rows,
        "guide": called.rows,
        "tables": {kind: coefficients(path, plan.times, kind, solver.target) for kind in kinds(path)},
        "score": coefficients(path, plan.times[:, 0], solver.target, "score"),
    }
    if draws:
        host["step"] = np.arange(len(plan.times), dtype=np.int32)

    def to_target(prediction: Prediction, at: jax.Array, row: dict[str, Any], stage: int) -> Prediction:
        if prediction.kind == solver.target:
            return prediction
        if prediction.kind not in row["tables"]:
            raise ValueError(
                f"{type(path).__name__} has no preconditioning, so {prediction.kind!r} means nothing on it"
            )
        table = np.stack(host["tables"][prediction.kind])
        bad = plan.times[~np.isfinite(table).all(axis=0) & np.isfinite(plan.times)]
        if bad.size:
            raise ValueError(f"a {prediction.kind!r} prediction has no {solver.target} at t = {bad.flat[0]:g}")
        cx, cp = row["tables"][prediction.kind]
        return Prediction(cx[stage] * at + cp[stage] * prediction.value, solver.target)

    def step(state: jax.Array, history: Any, row: dict[str, Any], last: bool) -> Step:
        def evaluate(at: jax.Array, stage: int) -> Guided:
            guided = guide(at, row["times"][stage], jax.tree.map(lambda a: a[stage], row["guide"]))
            if guided.renoise is not None and not solver.renoises:
                raise ValueError(f"{type(solver).__name__} puts no noise back, so CFG++ cannot guide it; DDIM does")
            return guided.map(lambda prediction: to_target(prediction, at, row, stage))

        drawn = noise.at(row["step"], state.shape, state.dtype) if draws and noise is not None else None
        return (solver.last if last else solver.step)(evaluate, state, history, row["solver"], drawn)

    def scores(guided: Guided, at: jax.Array, row: dict[str, Any]) -> Guided:
        def score(prediction: Prediction) -> Prediction:
            cx, cp = row["score"]
            return Prediction(cx * at + cp * prediction.value, "score")

        return guided if solver.target == "score" else guided.map(score)

    calls = int(called.calls[np.isfinite(plan.times)].sum())
    return Trajectory(_device(host, x.dtype), int(plan.peel), calls, step, scores)


def _check_plan(plan: Plan, solver: Solver, noise: Noise | None, x: jax.Array) -> bool:
    """Whether the plan draws noise, if there is enough of it and every coefficient is finite."""
    for name, rows in plan.rows.items():
        if not np.isfinite(rows).all():
            step = int(np.argwhere(~np.isfinite(rows))[0, 0])
            t = plan.times[step, 0]
            raise ValueError(
                f"{type(solver).__name__} has no finite {name!r} for step {step}, which starts at t = {t:g}"
            )
    if "spread" not in plan.rows:
        return False
    if noise is None:
        raise ValueError(f"{solver} draws noise at its steps: give noise=Keyed(key, ids) or Stored(values)")
    noise.check(int(np.flatnonzero(plan.rows["spread"]).max(initial=-1)) + 1, x.shape)
    return True


def _device(rows: Any, dtype: Any) -> Any:
    """Host rows as arrays; real numbers take the state's type, whole numbers and booleans keep theirs."""
    return jax.tree.map(lambda a: jnp.asarray(a, dtype if np.issubdtype(a.dtype, np.floating) else None), rows)


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
