"""Class-conditional images (arrays of one shape), trained by any ``train.objectives.generation.Objective``."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from data.errors import UserError
from data.images import load_statistics
from models.functional import functional
from sampling import paths
from sampling.few_step import Average, AverageVelocity
from sampling.guidance import Conditional, Denoiser
from sampling.noise import Keyed, start_noise
from sampling.prediction import Prediction
from sampling.sample import sample
from train import rng, trees
from train.components import build
from train.objectives.generation import Network, Networks, Objective
from train.task import AxisRules, Batch, LossOutput, StepContext, Term, Variables

Shapes = Sequence[Mapping[str, jax.ShapeDtypeStruct]]
ROWS = 4  # of each class in the in-loop picture
OVER = 1 << 30  # a step after every schedule's end


class ImageTask:
    """Trains a network to generate images of a class, or of any.

    Args:
      model: the network's constructor; it is given ``shape``, ``classes``, ``span``, ``dtype`` and ``rngs`` and called
        with (x, time, label, span), like ``models.image_dit.ImageDiT``.  Its module has ``AXES``.
      assets: folder with ``images.json``.
      shapes: the global batches of the run, abstract; not needed to sample.
      precision: type of the matrix products.
      path, objective: components, {"type": "module:Class", …}; the objective is given the path.
      label_drop: share of the rows whose class is hidden, for guidance.
      teacher: run folder of a network like this one, for objectives that learn from one.
      target: decay of the average (one of ``ema.decays``) that an objective's own targets come from; 0 = the network
        itself, as a constant.
      steps: network calls of in-loop samples.
    """

    unit = "images"

    def __init__(
        self,
        model: Callable[..., nnx.Module],
        assets: str | Path,
        shapes: Shapes = (),
        precision: str = "float32",
        *,
        path: Mapping[str, Any],
        objective: Mapping[str, Any],
        label_drop: float = 0.1,
        teacher: str = "",
        target: float = 0.0,
        steps: int = 16,
    ):
        self.teacher = teacher
        if not 0.0 <= label_drop <= 1.0:
            raise UserError(f"config.task.label_drop is a share of the rows, got {label_drop}")
        self.path: paths.Path = build(path, "task.path")
        try:
            self.objective: Objective = build(objective, "task.objective", path=self.path)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"config.task.objective: {error}") from error
        if self.objective.needs_teacher and not teacher:
            raise UserError(
                "config.task.objective learns from a teacher; give its run folder, --config.task.teacher=DIR"
            )
        self.shape, self.classes, self.mean, std = load_statistics(assets)
        self.scale = getattr(self.path, "sigma_data", 1.0) / std
        sizes = {"shape": self.shape, "classes": self.classes, "span": self.objective.spans}
        self.network = functional(lambda rngs: model(**sizes, dtype=jnp.dtype(precision), rngs=rngs))
        self._axes = sys.modules[getattr(model, "func", model).__module__].AXES
        self._shapes, self._drop, self._target, self._steps = shapes, label_drop, target, steps
        self._sample = jax.jit(self._draw)

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The global batch; all are alike."""
        return dict(self._shapes[0])

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables."""
        return self.network.init(key)

    def abstract(self) -> Variables:
        """Shapes of the variables."""
        return self.network.abstract()

    def axes(self) -> AxisRules:
        """The model file's own rules."""
        return self._axes

    def check_assets(self, folder: Path) -> None:
        """Whether a checkpoint with the assets in ``folder`` speaks of the same images.

        Raises:
          UserError: another shape, or another number of classes.
        """
        shape, classes, _, _ = load_statistics(folder)
        if (shape, classes) != (self.shape, self.classes):
            raise UserError(
                f"{folder} is about {classes} classes of images {shape}; this run has {self.classes} of {self.shape}"
            )

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, ctx: StepContext) -> LossOutput:
        """The objective's terms, averaged over the real rows."""
        draw_key, drop_key = jax.random.split(key)
        labels = jnp.where(self._dropped(drop_key, batch["index"]), self.classes, batch["label"])
        networks = Networks(
            student=self.bound(variables, labels),
            target=self.bound(_constant(self._targets(variables, ctx)), labels),
            teacher=None if ctx.teacher is None else self.bound(ctx.teacher, labels),
            log_variance=self.log_variance(variables),
        )
        values = self._values(networks, batch, draw_key, ctx.step)
        rows = batch["mask"]
        terms = {name: Term((value * rows).sum(), rows.sum()) for name, value in values.items()}
        return LossOutput(terms, {}, variables["stats"])

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The loss as at the training's end, nothing dropped, the network being its own target, without a teacher."""
        network = self.bound(variables, batch["label"])
        networks = Networks(network, network, None, self.log_variance(variables))
        values = self._values(networks, batch, key, jnp.int32(OVER))
        rows = batch["mask"]
        return {name: ((value * rows).sum(), rows.sum()) for name, value in values.items()}

    def sample(self, variables: Variables, batch: Batch, key: jax.Array, folder: str) -> dict[str, float]:
        """``images.png``: a few of every class, a column each, always from the same noise."""
        del batch  # classes and noise are all that is needed
        from train.pictures import image_table

        images = self._sample(variables, key)
        host = multihost_utils.process_allgather(images, tiled=True) if not images.is_fully_addressable else images
        image_table(Path(folder) / "images.png", np.asarray(host), columns=self.classes)
        return {}

    def units(self, batch: Mapping[str, Any]) -> float:
        """Real images."""
        return float(np.asarray(batch["mask"]).sum())

    def flops(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Matrix products of the passes that the objective makes; attention's are left out, tokens being few."""
        rows, per_row = shapes["image"].shape[0], 0.0
        leaves = trees.flatten(self.network.abstract()["params"])
        tokens = leaves["position"].shape[0]
        for path, leaf in leaves.items():
            if path.endswith("kernel"):  # modulations and embeddings of time are computed once a row
                steers = any(part in path.split("/") for part in ("modulation", "time", "span", "uncertainty"))
                per_row += 2.0 * leaf.size * (1 if steers else tokens)
        return self.objective.passes * rows * per_row

    def normalise(self, images: jax.Array) -> jax.Array:
        """Images [b, ...] in [-1, 1] -> mean 0 and the deviation that the path is for (1 where it does not say)."""
        return (images - self.mean) * self.scale

    def denormalise(self, x: jax.Array) -> jax.Array:
        """The inverse."""
        return x / self.scale + self.mean

    def bound(self, variables: Variables, labels: jax.Array) -> Network:
        """The network under ``variables`` for rows of the classes ``labels`` [b]."""

        def network(x: jax.Array, time: jax.Array, span: jax.Array | None) -> jax.Array:
            return self.network.apply(variables, x, time, labels, span)[0]

        return network

    def log_variance(self, variables: Variables) -> Callable[[jax.Array], jax.Array] | None:
        """The network's learned weighting, if it has one."""
        if "uncertainty" not in variables["params"]:
            return None
        return lambda time: self.network.apply(variables, time, method="log_variance")[0]

    def denoiser(self, variables: Variables) -> Denoiser:
        """The network for ``sampling.guidance``, conditions being labels [b]; label ``classes`` is the dropped one."""

        def denoise(x: jax.Array, t: jax.Array, labels: jax.Array) -> Prediction:
            time = jnp.broadcast_to(t, x.shape[:1])
            return self.objective.denoise(self.bound(variables, labels), x, time)

        return denoise

    def average_velocity(self, variables: Variables) -> Average:
        """The network for ``sampling.few_step``.

        Raises:
          UserError: it was trained by an objective without steps of a length.
        """
        average = getattr(self.objective, "average", None)
        if average is None:
            raise UserError(f"{type(self.objective).__name__} trains no average velocities; MeanFlow and Shortcut do")

        def velocity(x: jax.Array, t: jax.Array, end: jax.Array, labels: jax.Array) -> jax.Array:
            t, end = (jnp.broadcast_to(time, x.shape[:1]) for time in (t, end))
            return average(self.bound(variables, labels), x, t, end)

        return velocity

    def _draw(self, variables: Variables, key: jax.Array) -> jax.Array:
        """[ROWS · classes, h, w, c] in [-1, 1], row by row of the picture."""
        labels = jnp.tile(jnp.arange(self.classes), ROWS)
        solver, grid = self.objective.sampler(self._steps)
        if self.objective.spans:
            guide = AverageVelocity(self.average_velocity(variables), labels, grid)
        else:
            guide = Conditional(self.denoiser(variables), labels)
        ids = jnp.arange(len(labels))
        start = float(self.path.sigma(grid[0])) * start_noise(key, ids, self.shape)
        noise = Keyed(jax.random.fold_in(key, 1), ids)
        return self.denormalise(sample(guide, start, grid, path=self.path, solver=solver, noise=noise).x)

    def _values(self, networks: Networks, batch: Batch, key: jax.Array, step: jax.Array) -> dict[str, jax.Array]:
        data = self.normalise(batch["image"])
        draws = self.objective.draw(key, batch["index"], data.shape[1:], step)
        return self.objective.loss(networks, data, draws, step)

    def _dropped(self, key: jax.Array, index: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.uniform)(rng.per_example(key, index)) < self._drop

    def _targets(self, variables: Variables, ctx: StepContext) -> Variables:
        if not self._target:
            return variables
        name = repr(float(self._target))
        if name not in ctx.ema:
            raise UserError(f"config.task.target is {name}, which is none of config.ema.decays ({', '.join(ctx.ema)})")
        return variables | {"params": ctx.ema[name]}


def _constant(variables: Variables) -> Variables:
    return jax.tree.map(jax.lax.stop_gradient, variables)
