"""Images of classes from a trained model.

    digits = load("runs/flow")
    made = digits([3, 1, 4, 1, 5], Options(steps=8, solver="dpmpp2m", guidance=2.0))
    made.images  # [5, 8, 8, 1] in [-1, 1]

A search wants the sampler itself: ``digits.run(labels, options)`` is the plain function that ``sampling.search`` takes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from data.errors import UserError
from sampling.few_step import AverageVelocity
from sampling.guidance import Autoguidance, ClassifierFree, Conditional, Denoiser, Guide
from sampling.ledger import Ledger
from sampling.noise import Keyed, start_noise
from sampling.sample import Sample, sample
from sampling.smc.correctors import FeynmanKac
from sampling.smc.policies import Accumulate, Resample
from sampling.smc.protocol import Corrector, Resampling, Weights
from sampling.smc.uniforms import KeyedUniforms
from sampling.solvers import SOLVERS, Consistency, ReverseSDE, Solver
from sampling.solvers import solver as solver_named
from train.checkpoint import restore_variables
from train.components import bind, build
from train.task import Variables
from train.tasks.images import ImageTask
from train.workdir import ASSETS, read_config

OWN = ""  # the sampler that the model's objective is made for
FAR = 50.0  # σ/α where weighed particles begin: with α = 0 their weights would be infinite
NEAR = 0.01  # σ/α from which their last step goes to the data
GUIDES = ("classifier_free", "autoguidance")


@dataclasses.dataclass(frozen=True)
class Options:
    """How to sample.

    Attributes:
      steps: of the solver; a step of a higher order is several network calls.
      solver: a name of ``sampling.solvers``, "sde", or "" = what the model's objective is made for.
      times: the grid, noise first; () = the objective's own spacing.
      guidance: w of û + w(ĉ − û); 1 = none.
      guide: û is the network without its class ("classifier_free") or the pipeline's weaker one ("autoguidance").
      interval: (low, high] in σ where there is guidance; None = everywhere.
      rescale: share of the guided answer that is scaled back to the conditional one's spread.
      particles: of each image; above 1 they are weighed so as to follow the guided density exactly (Feynman-Kac), and
        one of them is drawn by weight.
      threshold: particles are resampled when fewer than this share of them count; 0 = never, 1 = always.
      zeta: scale of the noise of "sde", which weighing implies.
    """

    steps: int = 16
    solver: str = OWN
    times: tuple[float, ...] = ()
    guidance: float = 1.0
    guide: str = "classifier_free"
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    particles: int = 1
    threshold: float = 0.5
    zeta: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.particles < 1:
            raise UserError(f"steps and particles must be at least 1, got {self.steps} and {self.particles}")
        if self.solver not in (OWN, "sde", *SOLVERS):
            raise UserError(f"solver is {self.solver!r}; choose one of sde, {', '.join(SOLVERS)}")
        if self.guide not in GUIDES:
            raise UserError(f"guide is {self.guide!r}; choose one of {', '.join(GUIDES)}")
        if self.particles > 1 and self.solver not in (OWN, "sde"):
            raise UserError(f"particles are weighed along the sde, not along {self.solver!r}; leave the solver out")


DEFAULT = Options()


class Images(NamedTuple):
    """Samples.

    Attributes:
      images: [n, h, w, c] float32 in [-1, 1].
      ledger: costs of each.
      weights: of the particles, where there were several; one swarm per image.
    """

    images: np.ndarray
    ledger: Ledger
    weights: Weights | None


class ImagePipeline:
    """A trained model, ready to draw.

    Args:
      task: the network with its normalisation, path and objective.
      variables: its parameters.
      weak: a weaker model of the same images, for autoguidance.
      rows: images (times particles) of one batch.
    """

    def __init__(self, task: ImageTask, variables: Variables, weak: "ImagePipeline | None" = None, *, rows: int = 512):
        self.task, self.variables, self.weak, self.rows = task, variables, weak, rows
        self._programs: dict[Any, Callable[..., Any]] = {}

    @property
    def follows_slopes(self) -> bool:
        """Whether solvers of differential equations can follow the model; few-step models have their own samplers."""
        return not (self.task.objective.spans or isinstance(self.task.objective.sampler(1)[0], Consistency))

    def __call__(
        self, labels: Sequence[int] | np.ndarray, options: Options = DEFAULT, *, seed: int = 0, first: int = 0
    ) -> Images:
        """Draws one image per label.

        Args:
          labels: [n]; ``task.classes`` means any class.
          seed: of all noise.
          first: number of the first image: image i of a seed is the same in any batch and on any device.

        Raises:
          UserError: unknown labels, options that do not fit the model, or NaN out of it.
        """
        labels = np.asarray(labels, np.int32)
        if labels.ndim != 1 or not labels.size or labels.min() < 0 or labels.max() > self.task.classes:
            raise UserError(f"labels must be numbers in 0..{self.task.classes} (the last means any), got {labels}")
        size = max(min(self.rows // options.particles, len(labels)), 1)
        parts = []
        for start in range(0, len(labels), size):
            chosen = np.minimum(np.arange(start, start + size), len(labels) - 1)
            parts.append(self._batch(labels[chosen], options, seed, first + np.arange(start, start + size)))
        images = np.concatenate([np.asarray(x) for x, _, _ in parts])[: len(labels)]
        if not np.isfinite(images).all():
            bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
            raise UserError(
                f"images {bad[:5]} ({len(bad)} in all) are not numbers: the model diverged, or a swarm died"
            )
        weights = None if parts[0][2] is None else _joined([w for _, _, w in parts], len(labels))
        return Images(images.clip(-1.0, 1.0), parts[0][1], weights)

    def run(
        self, labels: np.ndarray | jax.Array, options: Options = DEFAULT, *, seed: int = 0
    ) -> Callable[[jax.Array, jax.Array | int], Sample]:
        """The sampler for b labels as ``sampling.search`` takes it: pure, not jitted.

        Returns:
          (standard normal start [b, h, w, c], number of the candidate) -> Sample of images in [-1, 1], not clipped.
        """
        if options.particles > 1:
            raise UserError("a search draws its candidates itself; give it a sampler with particles=1")
        labels = jnp.asarray(labels, jnp.int32)

        def run(start: jax.Array, number: jax.Array | int) -> Sample:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), number)
            noise = Keyed(key, jnp.arange(len(labels)))
            return self._sample(self._all_variables(), labels, start, noise, options, options.guidance)

        return run

    def solver(self, options: Options) -> tuple[Solver, np.ndarray]:
        """What follows the model, and along which times [steps + 1].

        Raises:
          UserError: a solver that this model's answers do not fit.
        """
        objective, path = self.task.objective, self.task.path
        own, grid = objective.sampler(options.steps)
        if options.particles > 1 or options.solver == "sde":
            chosen = ReverseSDE(options.zeta)
        else:
            chosen = own if options.solver == OWN else solver_named(options.solver)
        if isinstance(own, Consistency) and not isinstance(chosen, Consistency):
            raise UserError("a consistency model knows the end of a trajectory, not its slope: leave the solver out")
        if isinstance(chosen, ReverseSDE) and not path.alpha(grid[0]) > 0.5 / FAR:
            # Equal steps of log(σ/α): near the noise the drift of a flow is as steep as 1/t.
            grid = np.append(path.time_at(np.geomspace(FAR, NEAR, options.steps)), path.data_time)
        return chosen, np.asarray(options.times, np.float64) if options.times else grid

    def _batch(self, labels: np.ndarray, options: Options, seed: int, ids: np.ndarray) -> tuple[Any, Ledger, Any]:
        """(images [b, ...], ledger, weights)."""
        static = dataclasses.replace(options, guidance=float(options.guidance != 1.0))
        if (static, len(labels)) not in self._programs:
            self._programs[static, len(labels)] = jax.jit(
                lambda *arguments: self._draw(*arguments, options=options)  # guidance itself is traced
            )
        found, weights = self._programs[static, len(labels)](
            self._all_variables(), labels, ids.astype(np.uint32), jax.random.key(seed), options.guidance
        )
        return found.x, jax.tree.map(int, found.ledger), weights

    def _draw(
        self, variables: Any, labels: jax.Array, ids: jax.Array, key: jax.Array, weight: Any, *, options: Options
    ) -> tuple[Sample, Weights | None]:
        count = options.particles
        each = (ids[:, None] * np.uint32(count) + np.arange(count, dtype=np.uint32)).reshape(-1)
        start = start_noise(key, each, self.task.shape)
        noise = Keyed(jax.random.fold_in(key, 1), each)
        weighing = self._weighing(KeyedUniforms(key, ids), options) if count > 1 else {}
        result = self._sample(variables, jnp.repeat(labels, count), start, noise, options, weight, **weighing)
        if result.weights is None:
            return result, None
        # One particle of every swarm by weight; the first ones would be the heaviest, as resampling orders them.
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, 2), i))(ids)
        drawn = jax.vmap(jax.random.categorical)(keys, result.weights.logw)
        x = result.x.reshape(len(ids), count, *result.x.shape[1:])
        picked = x[jnp.arange(len(ids)), drawn]
        ledger = jax.tree.map(lambda cost: cost * count, result.ledger)
        return Sample(picked, None, ledger), result.weights

    def _sample(
        self,
        variables: Any,
        labels: jax.Array,
        start: jax.Array,
        noise: Keyed,
        options: Options,
        weight: Any,
        corrector: Corrector | None = None,
        resampling: Resampling | None = None,
    ) -> Sample:
        chosen, grid = self.solver(options)
        guide = self._guide(variables, labels, options, weight, grid)
        result = sample(
            guide,
            float(self.task.path.sigma(grid[0])) * start,
            grid,
            path=self.task.path,
            solver=chosen,
            noise=noise,
            corrector=corrector,
            resampling=resampling,
            particles=options.particles,
        )
        return dataclasses.replace(result, x=self.task.denormalise(result.x))

    def _weighing(self, uniforms: KeyedUniforms, options: Options) -> dict[str, Any]:
        rule = Resample(uniforms=uniforms, threshold=options.threshold) if options.threshold else Accumulate()
        return {"corrector": FeynmanKac(), "resampling": rule}

    def _guide(self, variables: Any, labels: jax.Array, options: Options, weight: Any, grid: np.ndarray) -> Guide:
        own, weak = variables
        guided = options.guidance != 1.0
        if self.task.objective.spans and options.solver == OWN and not options.particles > 1:
            if guided:
                raise UserError("average velocities have no guidance; choose a solver, or leave the guidance out")
            return AverageVelocity(self.task.average_velocity(own), labels, grid)
        denoiser = self.task.denoiser(own)
        if not guided:
            return Conditional(denoiser, labels)
        settings = {"interval": options.interval, "rescale": options.rescale}
        if options.guide == "autoguidance":
            return Autoguidance(denoiser, self._weaker(weak), labels, weight, **settings)
        null = jnp.full_like(labels, self.task.classes)
        return ClassifierFree(denoiser, labels, null, weight, **settings)

    def _weaker(self, variables: Any) -> Denoiser:
        if self.weak is None:
            raise UserError("autoguidance needs a weaker model: load(folder, weak=ITS_FOLDER)")
        return self.weak.task.denoiser(variables)

    def _all_variables(self) -> tuple[Variables, Variables | None]:
        return self.variables, None if self.weak is None else self.weak.variables


def _joined(parts: Sequence[Weights], swarms: int) -> Weights:
    """The weights of batch after batch, as one run of so many swarms."""

    def whole(name: str, axis: int = 0) -> jax.Array:
        found = jnp.concatenate([getattr(part, name) for part in parts], axis)
        return jax.lax.slice_in_dim(found, 0, swarms, axis=axis)

    return Weights(whole("logw"), whole("log_z"), whole("ess", 1), whole("resampled", 1), whole("alive"))


def load(folder: str | Path, *, params: str = "ema", weak: str | Path | None = None) -> ImagePipeline:
    """A pipeline from a run folder.

    Args:
      folder: has config.json, assets/ and checkpoints/.
      params: "ema" (what the run evaluated with), "raw", or "ema/<decay>".
      weak: folder of a weaker model of the same images, for autoguidance.

    Raises:
      UserError: not such a folder, no checkpoint in it yet, or a damaged one; a run of something other than images; a
        weaker model on another path.
    """
    config = read_config(folder)
    for section in ("task", "model"):
        if section not in config:
            raise UserError(f"{Path(folder) / 'config.json'} has no section {section!r}")
    assets = Path(folder) / ASSETS
    if not assets.is_dir():
        raise UserError(f"{folder} has no {ASSETS}/; has its training begun?")
    model = bind(config["model"], "model")
    precision = config.get("precision", {}).get("compute", "float32")
    task = build(config["task"], "task", model=model, assets=str(assets), shapes=(), precision=precision)
    if not isinstance(task, ImageTask):
        raise UserError(f"{folder} is a run of {type(task).__name__}, not of images")
    variables, _ = restore_variables(folder, task.abstract(), params=params)
    other = None if weak is None else load(weak, params=params)
    if other is not None and other.task.path != task.path:
        raise UserError(f"{weak} is trained on {other.task.path} and {folder} on {task.path}: they do not mix")
    return ImagePipeline(task, variables, other)
