"""The training loop.  It knows no model, no data and no config: see ``train/run.py`` for what is put in.

The order is law.  Step k means "after k updates": hooks see that state, a checkpoint holds it, and batch k is taken
only afterwards, so whatever is saved at k goes on with batch k.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from train.feed import DeviceFeed
from train.hooks import Hook, Save
from train.preempt import Preemption, Stop
from train.progress import Progress
from train.state import TrainState

TrainStep = Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Mapping[str, Any]]]


def fit(
    state: TrainState,
    *,
    start: int,
    steps: int,
    train_step: TrainStep,
    feed: DeviceFeed,
    hooks: Sequence[Hook],
    save: Save,
    progress: Progress,
    preemption: Preemption,
) -> tuple[TrainState, Stop | None]:
    """Trains from ``start`` to ``steps`` updates.

    Args:
      state: after ``start`` updates; it is donated to the first step.
      train_step: compiled, donates its state.
      feed: its first batch is that of step ``start``.
      hooks: in the order in which they act; ``save`` is one of them, after those whose metrics it stores.

    Returns:
      The last state, on disk by then, and why the run stopped early, if it did.

    Raises:
      Diverged: too many steps in a row without finite gradients.
      CheckpointError: a checkpoint could not be written.
    """
    step, stop = start, None
    progress.resume()
    while step < steps and stop is None:
        save.check()
        if due := [hook for hook in hooks if hook.due(step)]:
            progress.flush()  # their records follow those of the updates before
            for hook in due:
                hook(step, state)
            progress.resume()
        batch = feed.next()
        with jax.profiler.StepTraceAnnotation("train", step_num=step), jax.transfer_guard("disallow"):
            state, metrics = train_step(state, batch.arrays)
        step += 1
        progress.push(step, metrics, batch)  # waits for the update before this one: two are in flight at most
        stop = preemption.check(step)
    progress.flush()
    save(step, state)
    save.wait()
    if stop is None:
        for hook in hooks:
            hook.finish(step, state)
        save.wait()
    return state, stop
