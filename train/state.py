"""Everything a run carries from one step to the next.  Plain nested dicts of arrays with string keys; no PRNG keys."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from train import ema as averages
from train import rng, scaling
from train.ema import EmaSpec
from train.task import Task, Variables

if TYPE_CHECKING:
    from train.optim import Optimizer

FIELDS = ("step", "params", "stats", "opt_state", "ema", "skipped", "skipped_row", "loss_scale")


@struct.dataclass
class TrainState:
    """State after ``step`` updates.

    Attributes:
      step: int32 scalar, the only clock: batches, keys and schedules are functions of it.  A skipped step counts.
      params: float32 master parameters.
      stats: running statistics of the model, mostly empty.
      opt_state: ``{group: {rule: {moment: tree like the group's parameters}}}``, see ``train/optim.py``.
      ema: ``{decay as text: copy of params}``.
      skipped: int32 scalar, steps left out because of non-finite gradients, in total.
      skipped_row: int32 scalar, how many of them came one after the other, up to now.
      loss_scale: ``{"scale", "streak"}`` of float16 training; scale 1 otherwise.
    """

    step: jax.Array
    params: dict[str, Any]
    stats: dict[str, Any]
    opt_state: dict[str, Any]
    ema: dict[str, Any]
    skipped: jax.Array
    skipped_row: jax.Array
    loss_scale: dict[str, jax.Array]

    def variables(self, ema: str | None = None) -> Variables:
        """What ``Task.evaluate`` and ``Task.sample`` take: the raw parameters or the named average."""
        if ema is not None and ema not in self.ema:
            raise KeyError(f"no average named {ema!r}; this state has {sorted(self.ema) or 'none'}")
        return {"params": self.params if ema is None else self.ema[ema], "stats": self.stats}


def create(
    task: Task, optimizer: "Optimizer", *, seed: int, ema: Sequence[EmaSpec] = (), precision: str = "float32"
) -> TrainState:
    """Fresh state; pure, to be run under ``jit`` with output shardings (or ``jax.eval_shape`` for an abstract one)."""
    return from_variables(task.init(rng.stream(seed, "init", 0)), optimizer, ema=ema, precision=precision)


def from_variables(
    variables: Variables, optimizer: "Optimizer", *, ema: Sequence[EmaSpec] = (), precision: str = "float32"
) -> TrainState:
    """State of step 0 around given variables: the start of a fine-tuning run; averages start as copies of them."""
    params = variables["params"]
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        stats=variables.get("stats", {}),
        opt_state=optimizer.init(params),
        ema=averages.init(params, ema),
        skipped=jnp.zeros((), jnp.int32),
        skipped_row=jnp.zeros((), jnp.int32),
        loss_scale=scaling.init(precision),
    )


def to_dict(state: TrainState) -> dict[str, Any]:
    """The state as one nested dict: what a checkpoint holds.  Arrays are shared, not copied."""
    return {name: getattr(state, name) for name in FIELDS}


def from_dict(tree: dict[str, Any]) -> TrainState:
    """Inverse of ``to_dict``.

    Raises:
      ValueError: fields missing or unknown.
    """
    if set(tree) != set(FIELDS):
        missing, unknown = sorted(set(FIELDS) - set(tree)), sorted(set(tree) - set(FIELDS))
        raise ValueError(f"not a training state: missing {missing}, unknown {unknown}")
    return TrainState(**tree)
