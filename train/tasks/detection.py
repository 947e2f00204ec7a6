"""Objects in images: a network that finds boxes in noise, trained by any ``box_denoising.BoxObjective``."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from data.detection_spec import DetectionSpec
from data.errors import UserError
from models.detection import detector
from models.detection.layers import inside
from models.functional import functional
from models.layers.conv import zero_outside
from models.ops.boxes import iou, pairwise
from models.ops.detections import Detections
from sampling import detection
from sampling.box_paths import BoxPath
from sampling.noise import Keyed, sample_keys
from train import rng
from train.components import build
from train.flops import matrix_flops
from train.objectives.box_denoising import BoxObjective, Head, Heads, Truth
from train.objectives.matching import Targets
from train.objectives.set_prediction import SetPrediction, federated
from train.task import AxisRules, Batch, LossOutput, StepContext, Variables

Shapes = Sequence[Mapping[str, jax.ShapeDtypeStruct]]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet's pixels, 0..255
PADDING = ("exact", "reference")
OVER = 1 << 30  # a step after every schedule's end
SHOWN, LIKELY = 4, 0.3  # images of an in-loop picture, score of what is drawn
COVERED = 0.5  # overlap at which a target counts as found


class DetectionTask:
    """Trains a detector.

    Args:
      model: the network's constructor, such as ``models.detection.detector.Detector``; it is given ``num_classes``,
        ``dtype`` and ``rngs``.
      assets: folder with ``detection.json``.
      shapes: the global batches of the run, abstract; not needed to detect.
      precision: type of the matrix products.
      path: how boxes become noise, a component (``sampling.box_paths``).
      criterion: the set loss, a component; its ``matcher`` is one too.
      objective: a component that is given path and criterion.
      proposals: boxes of each image in training; at evaluation any number can be chosen.
      target: decay of the average (one of ``ema.decays``) that an objective's own targets come from; 0 = the network
        itself, as a constant.
      judged: classes that an image is judged by (federated loss); 0 = all.
      padding: "exact", what is beyond an image changes nothing; "reference", it belongs to the image, as in the
        releases.
      renewal: boxes less likely begin anew between the steps of sampling.
      overlap: above it, the likelier of two boxes of a class stays.
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
        criterion: Mapping[str, Any],
        objective: Mapping[str, Any],
        proposals: int = 500,
        target: float = 0.0,
        judged: int = 0,
        padding: str = "exact",
        renewal: float = 0.5,
        overlap: float = 0.5,
    ):
        if padding not in PADDING:
            raise UserError(f"config.task.padding is {padding!r}; expected one of {', '.join(PADDING)}")
        if proposals < 1:
            raise UserError(f"config.task.proposals is {proposals}; expected at least one box")
        self.spec = DetectionSpec.load(assets)
        self.path: BoxPath = _component(path, "path")
        self.objective: BoxObjective = _component(
            objective, "objective", path=self.path, criterion=_criterion(criterion)
        )
        sizes = {"num_classes": len(self.spec.categories), "dtype": jnp.dtype(precision)}
        self.network = functional(lambda rngs: model(**sizes, rngs=rngs))
        self._axes = detector.axes(getattr(model, "keywords", {}).get("backbone"))
        self._shapes, self._proposals, self._target, self._judged = shapes, proposals, target, judged
        self._exact, self._renewal, self._overlap = padding == "exact", renewal, overlap
        self._sample = jax.jit(self._find)

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The global batch with the most pixels."""
        return dict(max(self._shapes, key=lambda batch: batch["image"].size))

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables."""
        return self.network.init(key)

    def abstract(self) -> Variables:
        """Shapes of the variables."""
        return self.network.abstract()

    def axes(self) -> AxisRules:
        """Those of the network's parts."""
        return self._axes

    def check_assets(self, folder: Path) -> None:
        """Whether a checkpoint with the assets in ``folder`` has the same classes.

        Raises:
          UserError: it has not.
        """
        theirs, own = DetectionSpec.load(folder).categories, self.spec.categories
        if theirs.names != own.names:
            odd = next(iter(set(theirs.names) ^ set(own.names)), "their order")
            raise UserError(
                f"{folder} has {len(theirs)} classes, this run {len(own)}, and they differ, for example in {odd}; "
                "`run_convert --classes=` gives a checkpoint other classes"
            )

    def loss(self, variables: Variables, batch: Batch, key: jax.Array, ctx: StepContext) -> LossOutput:
        """The objective's terms; a term per stage of the head, the last stage's without a number."""
        draw_key, drop_key, judge_key = jax.random.split(key, 3)
        student, target = self._heads(variables, batch, ctx, rng.per_example(drop_key, batch["index"]))
        targets = _targets(batch)
        drawn = self.objective.draw(draw_key, batch["index"], self._proposals, targets.valid.shape[1], ctx.step)
        truth = Truth(targets, batch["mask"], self._judges(judge_key, batch["index"], targets))
        terms = self.objective.loss(Heads(student, target), truth, drawn, ctx.step)
        return LossOutput(terms, {}, variables["stats"])

    def evaluate(self, variables: Variables, batch: Batch, key: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        """The loss as at the training's end, and ``found``: the share of targets that one step of sampling covers by
        half with a box of their class.  AP is ``launch.run_eval``'s."""
        draw_key, noise_key = jax.random.split(key)
        targets, size = _targets(batch), batch["size"]
        features = self.features(variables, batch["image"], size)
        head = self.head(variables, features, size)
        drawn = self.objective.draw(draw_key, batch["index"], self._proposals, targets.valid.shape[1], jnp.int32(OVER))
        truth = Truth(targets, batch["mask"])
        terms = self.objective.loss(Heads(head, head), truth, drawn, jnp.int32(OVER))
        means = {name: (term.sum, term.weight) for name, term in terms.items()}
        found = self._denoise(head, size, Keyed(noise_key, batch["index"]), steps=1, proposals=self._proposals)
        covers = jax.vmap(lambda a, b: pairwise(iou, a, b))(targets.boxes, found.boxes) > COVERED
        right = found.valid[:, None] & (targets.labels[..., None] == found.labels[:, None])
        counted = targets.valid * batch["mask"][:, None]
        return means | {"found": (((covers & right).any(-1) * counted).sum(), counted.sum())}

    def sample(self, variables: Variables, batch: Batch, key: jax.Array, folder: str) -> dict[str, float]:
        """``detections.png``: what one step finds in the first held-out images."""
        from train.pictures import boxed

        few = {name: batch[name][:SHOWN] for name in ("image", "size", "index")}
        images, found = (few["image"], self._sample(variables, few, key))
        images, found = jax.tree.map(_host, (images, found))
        likely = found.valid & (found.scores > LIKELY)
        names = [
            [self.spec.categories.names[k] for k in row[keep]] for row, keep in zip(found.labels, likely, strict=True)
        ]
        boxes = [row[keep] for row, keep in zip(found.boxes, likely, strict=True)]
        boxed(Path(folder) / "detections.png", images, boxes, names)
        return {}

    def units(self, batch: Mapping[str, Any]) -> float:
        """Real images."""
        return float(np.asarray(batch["mask"]).sum())

    def flops(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Matrix products of the images' features, forward and backward, and of every pass of the head."""
        images, sizes = shapes["image"], shapes["size"]
        variables, rows = self.abstract(), images.shape[0]
        features = jax.eval_shape(self.features, variables, images, sizes)
        boxes = jax.ShapeDtypeStruct((rows, self._proposals, 4), jnp.float32)
        time = jax.ShapeDtypeStruct((rows,), jnp.float32)
        head = matrix_flops(
            lambda variables, features, sizes, *args: self.head(variables, features, sizes)(*args),
            variables, features, sizes, boxes, time,
        )  # fmt: skip
        return 3 * matrix_flops(self.features, variables, images, sizes) + self.objective.passes * head

    def features(
        self, variables: Variables, images: jax.Array, size: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, ...]:
        """The pyramid of images [b, H, W, 3] uint8 with sizes [b, 2]; ``key`` [b] is for training alone."""
        x = (images.astype(jnp.float32) - jnp.array(MEAN)) / jnp.array(STD)
        x = zero_outside(x, inside(size, 1, x.shape))
        return self.network.apply(variables, x, size if self._exact else None, key, method="features")[0]

    def head(self, variables: Variables, features: tuple[jax.Array, ...], size: jax.Array) -> Head:
        """The head over these features, all stages; see ``box_denoising.Head``."""

        def head(boxes: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
            copies = len(boxes) // len(size)
            levels, sizes = jax.tree.map(lambda a: jnp.concatenate([a] * copies), (features, size))
            seen = sizes if self._exact else None
            return self.network.apply(variables, levels, boxes, time, seen, method="head")[0]

        return head

    def detect(
        self,
        variables: Variables,
        images: jax.Array,
        sizes: jax.Array,
        keys: jax.Array,
        *,
        steps: int,
        proposals: int,
        merge: bool,
    ) -> Detections:
        """Objects in images [b, H, W, 3] uint8, zero beyond their sizes [b, 2].

        Args:
          keys: [b], of each row's noise.
          steps: calls of the head.
          proposals: boxes in each image.
          merge: detections of all steps count; else those of the last.

        Returns:
          [b, n], boxes in pixels of the padded image.
        """
        head = self.head(variables, self.features(variables, images, sizes), sizes)
        return self._denoise(head, sizes, Keyed.of(keys), steps=steps, proposals=proposals, merge=merge)

    def _denoise(
        self, head: Head, size: jax.Array, noise: Keyed, *, steps: int, proposals: int, merge: bool = True
    ) -> Detections:
        def last(boxes: jax.Array, time: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, boxes = head(boxes, time)
            return logits[-1], boxes[-1]

        return detection.detect(
            last,
            self.path,
            size,
            noise,
            proposals=proposals,
            steps=steps,
            renewal=self._renewal,
            overlap=self._overlap,
            use="all" if merge else "last",
        )

    def _find(self, variables: Variables, batch: Batch, key: jax.Array) -> Detections:
        keys = sample_keys(key, batch["index"])
        options = {"steps": 1, "proposals": self._proposals, "merge": True}
        return self.detect(variables, batch["image"], batch["size"], keys, **options)

    def _heads(self, variables: Variables, batch: Batch, ctx: StepContext, keys: jax.Array) -> tuple[Head, Head]:
        """The network as it is trained, and as the objective's targets want it; images are looked at once if it can."""
        images, size = batch["image"], batch["size"]
        features = self.features(variables, images, size, keys)
        if self._target:
            average = jax.lax.stop_gradient(self._average(variables, ctx))
            seen = self.features(average, images, size)
        else:
            average, seen = jax.lax.stop_gradient((variables, features))
        return self.head(variables, features, size), self.head(average, seen, size)

    def _average(self, variables: Variables, ctx: StepContext) -> Variables:
        name = repr(float(self._target))
        if name not in ctx.ema:
            raise UserError(f"config.task.target is {name}, which is none of config.ema.decays ({', '.join(ctx.ema)})")
        return variables | {"params": ctx.ema[name]}

    def _judges(self, key: jax.Array, index: jax.Array, targets: Targets) -> jax.Array | None:
        if not self._judged:
            return None
        frequency = jnp.asarray(self.spec.categories.images, jnp.float32)
        keys = rng.per_example(key, index)
        drawn = jax.vmap(lambda key, own: federated(key, own, frequency, self._judged))(keys, targets)
        return drawn.astype(jnp.float32)


def _targets(batch: Batch) -> Targets:
    return Targets(batch["boxes"], batch["labels"], batch["valid"], batch["size"])


def _criterion(section: Mapping[str, Any]) -> SetPrediction:
    options = dict(section)
    if "matcher" in options:
        options["matcher"] = _component(options["matcher"], "criterion.matcher")
    return _component(options, "criterion")


def _component(section: Mapping[str, Any], name: str, **given: Any) -> Any:
    """A component of the task's config; its complaints name the key."""
    try:
        return build(section, f"task.{name}", **given)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.task.{name}: {error}") from error


def _host(a: jax.Array) -> np.ndarray:
    return np.asarray(a if a.is_fully_addressable else multihost_utils.process_allgather(a, tiled=True))
