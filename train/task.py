"""The interface between the one training loop and everything it can train.

A task joins a model, an objective, its data's shapes and a sampler.  The loop, the step, sharding and checkpoints see
only this protocol; see ``train/tasks/`` for the tasks that exist.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from flax import struct

Variables = dict[str, Any]  # {"params": nested dict, "stats": nested dict}, string keys
Batch = Mapping[str, jax.Array]
AxisRules = Sequence[tuple[str, tuple[str | None, ...]]]  # (path regex, logical axis per dimension)


class Term(NamedTuple):
    """One additive part of a loss, not yet normalised.

    The step divides ``sum`` by ``weight`` summed over the *global* batch, so microbatches, padding and sharding change
    nothing.  ``weight`` must not depend on the parameters.
    """

    sum: jax.Array
    weight: jax.Array
    coefficient: float = 1.0


class LossOutput(NamedTuple):
    """What ``Task.loss`` returns: terms that are optimised, means that are only logged, new running statistics."""

    terms: dict[str, Term]
    metrics: dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)
    stats: dict[str, Any]


@struct.dataclass
class StepContext:
    """What a loss may need besides parameters and batch.

    Attributes:
      step: scalar int32, number of updates already done.
      ema: exponential averages of the parameters by name (targets of consistency training).
      teacher: frozen variables of a teacher, or None.
    """

    step: jax.Array
    ema: dict[str, Any]
    teacher: Variables | None = None


@runtime_checkable
class Task(Protocol):
    """One trainable problem.  All array methods are pure and jit-able.

    A task may also have ``optional`` (path regex of parameters that a checkpoint it begins from may lack),
    ``check_assets(folder)`` (raises ``UserError`` where a checkpoint with those assets speaks of other things) and
    ``teacher`` (run folder of a network like its own, whose frozen variables its loss finds in ``ctx.teacher``).
    """

    unit: str
    """Plural noun of the throughput unit, for example ``"frames"``."""

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The largest global batch this run will see, abstractly; the leading dimension is the batch."""
        ...

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables; called under ``jit`` with output shardings, so nothing is ever materialised unsharded."""
        ...

    def axes(self) -> AxisRules:
        """Logical axes of every parameter, by path regex."""
        ...

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, ctx: StepContext) -> LossOutput:
        """Loss terms of one (micro)batch; per-example randomness is ``fold_in(key, batch["index"][i])``."""
        ...

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Metrics as (sum, weight), rows with ``batch["mask"] == 0`` counting nothing."""
        ...

    def sample(self, variables: Variables, batch: Batch, key: jax.Array, folder: str) -> dict[str, float]:
        """Writes samples for a person to look at into ``folder``; returns scalars to log.  Not jitted."""
        ...

    def units(self, batch: Batch) -> float:
        """How many throughput units the host-side ``batch`` holds (padding not counted)."""
        ...

    def flops(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Analytic training FLOPs (forward and backward) of one global step at these shapes."""
        ...
