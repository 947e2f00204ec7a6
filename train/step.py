"""One training step and one evaluation step, as pure functions of state and batch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from train import ema as averages
from train import rng, scaling
from train.accumulate import gradients
from train.ema import EmaSpec
from train.optim import Optimizer
from train.state import TrainState
from train.task import LossOutput, StepContext, Task, Variables

Batch = Mapping[str, jax.Array]
TrainStep = Callable[..., tuple[TrainState, dict[str, Any]]]
EvalStep = Callable[[Variables, Batch, jax.Array], dict[str, tuple[jax.Array, jax.Array]]]


def make_train_step(
    task: Task,
    optimizer: Optimizer,
    *,
    seed: int,
    ema: Sequence[EmaSpec] = (),
    accumulate: int = 1,
    precision: str = "float32",
    skip_nonfinite: bool = True,
    mesh: Mesh | None = None,
    param_shardings: Any = None,
) -> TrainStep:
    """Builds ``step(state, batch, teacher=None) -> (state, metrics)``, to be compiled with the state donated.

    Args:
      accumulate: microbatches per update; the result does not depend on it.
      precision: compute type of forward and backward; float16 brings dynamic loss scaling.
      skip_nonfinite: leave parameters, optimiser, averages and statistics untouched when a gradient is not finite.
      mesh, param_shardings: where microbatches and gradients live; without them XLA decides.

    The metrics are ``loss``, ``loss/<term>`` and the task's own as (sum, weight) pairs, and the scalars ``grad_norm``,
    ``lr`` (and ``lr/<group>``), ``finite``, ``skipped``, ``skipped_row`` and, in float16, ``loss_scale``.  A step that
    was skipped adds nothing to the pairs.
    """
    scaling.check(precision)
    fp16 = precision == "float16"

    def constrain(tree: Any) -> Any:
        return tree if param_shardings is None else jax.lax.with_sharding_constraint(tree, param_shardings)

    def step(state: TrainState, batch: Batch, teacher: Variables | None = None) -> tuple[TrainState, dict[str, Any]]:
        key = rng.stream(seed, "train", state.step)
        context = StepContext(step=state.step, ema=state.ema, teacher=teacher)

        def loss_fn(params: Any, stats: Any, part: Batch) -> LossOutput:
            return task.loss({"params": params, "stats": stats}, part, key, context)

        result = gradients(
            loss_fn,
            scaling.cast(state.params, precision),
            state.stats,
            batch,
            microbatches=accumulate,
            scale=state.loss_scale["scale"] if fp16 else None,
            mesh=mesh,
            constrain=constrain,
        )
        updates, opt_state, scalars = optimizer.update(result.grads, state.opt_state, state.params, state.step)
        finite = jnp.isfinite(scalars["grad_norm"]) & jnp.isfinite(result.loss)
        params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), state.params, updates)
        new = (params, result.stats, opt_state, averages.update(state.ema, params, state.step, ema))
        if skip_nonfinite:
            old = (state.params, state.stats, state.opt_state, state.ema)
            new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        params, stats, opt_state, averaged = new
        # While float16's scale can still fall, an overflow is the scaler at work, not a run going wrong.
        wrong = ~finite & (state.loss_scale["scale"] <= 1.0) if fp16 else ~finite
        new_state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            stats=stats,
            opt_state=opt_state,
            ema=averaged,
            skipped=state.skipped + ~finite,
            skipped_row=jnp.where(wrong, state.skipped_row + 1, jnp.where(finite, 0, state.skipped_row)),
            loss_scale=scaling.adjust(state.loss_scale, finite) if fp16 else state.loss_scale,
        )
        pairs = {"loss": (result.loss, jnp.float32(1.0)), **result.pairs}
        metrics = {name: tuple(jnp.where(finite, x, 0.0) for x in pair) for name, pair in pairs.items()}
        metrics |= scalars
        metrics |= {"finite": finite, "skipped": new_state.skipped, "skipped_row": new_state.skipped_row}
        if fp16:
            metrics["loss_scale"] = new_state.loss_scale["scale"]
        return new_state, metrics

    return step


def make_eval_step(task: Task, *, seed: int, precision: str = "float32") -> EvalStep:
    """Builds ``evaluate(variables, batch, number) -> {name: (sum, weight)}``, to be added up by ``metrics.merge``.

    ``variables`` is ``state.variables()`` or ``state.variables(ema_name)``; ``number`` is the batch's position in the
    evaluation set, so every evaluation draws the same noise for the same row.
    """
    scaling.check(precision)

    def evaluate(variables: Variables, batch: Batch, number: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        cast = {"params": scaling.cast(variables["params"], precision), "stats": variables["stats"]}
        return task.evaluate(cast, batch, rng.stream(seed, "evaluate", number))

    return evaluate
