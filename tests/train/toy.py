"""A small task for tests of the training side: variable lengths, two unequal loss terms, per-example noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train import rng, sharding
from train.compile import CompiledStep
from train.ema import EmaSpec
from train.mesh import build_mesh
from train.optim import OptimSpec, make_optimizer
from train.state import TrainState, create
from train.step import make_train_step
from train.task import LossOutput, StepContext, Term, Variables


class ToyTask:
    """Regression of sequences ``[b, t, dim]`` by a residual MLP of stacked layers; every size divides by eight."""

    unit = "frames"

    def __init__(self, batch: int = 16, length: int = 8, dim: int = 8, hidden: int = 16, layers: int = 2) -> None:
        self.batch, self.length, self.dim, self.hidden, self.layers = batch, length, dim, hidden, layers

    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract global batch."""
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self.make_batch(0).items()}

    def make_batch(self, step: int, *, bad: bool = False, length: int | None = None) -> dict[str, np.ndarray]:
        """The global batch of a step, numpy; ``bad`` puts a NaN into one row."""
        r = np.random.default_rng([7, step])
        b, t = self.batch, length or self.length
        x = r.normal(size=(b, t, self.dim)).astype(np.float32)
        y = np.roll(x, 1, axis=-1) * 0.5 + 0.1
        if bad:
            x[b // 2, 0, 0] = np.nan
        return {
            "x": x,
            "y": y.astype(np.float32),
            "lengths": r.integers(1, t + 1, size=b).astype(np.int32),
            "index": np.arange(b, dtype=np.int32),
            "mask": (np.arange(b) < b - 3).astype(np.float32),  # the last rows are padding
        }

    def init(self, key: jax.Array) -> Variables:
        """Kernels scaled by fan-in, biases zero, one running statistic."""
        k = jax.random.split(key, 4)
        d, h, n = self.dim, self.hidden, self.layers
        normal = jax.random.normal
        return {
            "params": {
                "embed": {"kernel": normal(k[0], (d, h)) * d**-0.5, "bias": jnp.zeros(h)},
                "blocks": {
                    "up": {"kernel": normal(k[1], (n, h, 2 * h)) * h**-0.5, "bias": jnp.zeros((n, 2 * h))},
                    "down": {"kernel": normal(k[2], (n, 2 * h, h)) * (2 * h) ** -0.5},
                },
                "out": {"kernel": normal(k[3], (h, d)) * h**-0.5},
            },
            "stats": {"seen": jnp.zeros(())},
        }

    def axes(self) -> list[tuple[str, tuple[str | None, ...]]]:
        """Logical axes of every parameter."""
        return [
            ("embed/kernel", ("mel", "embed")),
            ("embed/bias", ("embed",)),
            ("blocks/up/kernel", ("layers", "embed", "mlp")),
            ("blocks/up/bias", ("layers", "mlp")),
            ("blocks/down/kernel", ("layers", "mlp", "embed")),
            ("out/kernel", ("embed", "mel")),
        ]

    def _forward(self, params: Any, x: jax.Array) -> jax.Array:
        dtype = params["embed"]["kernel"].dtype
        h = x.astype(dtype) @ params["embed"]["kernel"] + params["embed"]["bias"]

        def block(h: jax.Array, p: Any) -> tuple[jax.Array, None]:
            return h + jax.nn.gelu(h @ p["up"]["kernel"] + p["up"]["bias"]) @ p["down"]["kernel"], None

        h, _ = jax.lax.scan(block, h, params["blocks"])
        return (h @ params["out"]["kernel"]).astype(jnp.float32)

    def _errors(
        self, variables: Variables, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Squared errors ``[b, t]`` on noisy input and the mask of valid frames of real rows."""
        noise = jax.vmap(lambda k: jax.random.normal(k, batch["x"].shape[1:]))(rng.per_example(key, batch["index"]))
        error = jnp.square(self._forward(variables["params"], batch["x"] + 0.1 * noise) - batch["y"]).mean(-1)
        frames = jnp.arange(error.shape[1]) < batch["lengths"][:, None]
        return error, frames * batch["mask"][:, None]

    def loss(
        self, variables: Variables, batch: Mapping[str, jax.Array], key: jax.Array, ctx: StepContext
    ) -> LossOutput:
        """``fit``: mean over valid frames; ``first``: mean over rows of the first frame's error, coefficient 0.3."""
        error, valid = self._errors(variables, batch, key)
        mask = batch["mask"]
        terms = {
            "fit": Term((error * valid).sum(), valid.sum()),
            "first": Term((error[:, 0] * mask).sum(), mask.sum(), 0.3),
        }
        stats = {"seen": variables["stats"]["seen"] + mask.sum()}
        return LossOutput(terms, {"error_max": ((error * valid).max(1).sum(), mask.sum())}, stats)

    def evaluate(self, variables: Variables, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, Any]:
        """Mean error over valid frames."""
        error, valid = self._errors(variables, batch, key)
        return {"error": ((error * valid).sum(), valid.sum())}

    def sample(
        self, variables: Variables, batch: Mapping[str, jax.Array], key: jax.Array, folder: str
    ) -> dict[str, float]:
        """Writes the prediction of the first row as text."""
        y = np.asarray(self._forward(variables["params"], jnp.asarray(batch["x"])[:1]))
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.savetxt(Path(folder) / "row0.txt", y[0])
        return {"sample_mean": float(y.mean())}

    def units(self, batch: Mapping[str, Any]) -> float:
        """Valid frames."""
        return float((np.asarray(batch["lengths"]) * np.asarray(batch["mask"])).sum())

    def flops(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> float:
        """Six FLOPs per parameter and frame."""
        b, t = shapes["x"].shape[:2]
        per_frame = 2 * self.dim * self.hidden + self.layers * 4 * self.hidden**2
        return 6.0 * b * t * per_frame


SPEC = OptimSpec(lr=1e-2, weight_decay=0.01, schedule="linear", warmup_steps=2)
EMAS = (EmaSpec(0.9), EmaSpec(0.99, update_after_step=1))


def assemble(
    task: Any,
    sizes: Mapping[str, int] | None = None,
    *,
    devices: int = 1,
    spec: OptimSpec = SPEC,
    ema: Sequence[EmaSpec] = EMAS,
    accumulate: int = 1,
    precision: str = "float32",
    skip_nonfinite: bool = True,
) -> tuple[CompiledStep, TrainState]:
    """The compiled step of a task on a mesh and its first state, put together as ``train/run.py`` does."""
    mesh = build_mesh(sizes, jax.devices()[:devices])
    params = jax.eval_shape(task.init, jax.random.key(0))["params"]
    optimizer = make_optimizer(spec, params, steps=10, axes=task.axes())
    specs, _ = sharding.param_specs(task.axes(), params, mesh)

    def fresh() -> TrainState:
        return create(task, optimizer, seed=3, ema=ema, precision=precision)

    placed = sharding.state_shardings(jax.eval_shape(fresh), specs, mesh)
    step = make_train_step(
        task,
        optimizer,
        seed=3,
        ema=ema,
        accumulate=accumulate,
        precision=precision,
        skip_nonfinite=skip_nonfinite,
        mesh=mesh,
        param_shardings=placed.params,
    )
    return CompiledStep(step, mesh, placed, donate=True), sharding.init_sharded(fresh, placed)


def run(step: CompiledStep, state: TrainState, batches: Sequence[Mapping[str, Any]]) -> tuple[TrainState, list[Any]]:
    """State after the batches and the metrics of each step, on the host."""
    history = []
    for batch in batches:
        state, metrics = step(state, jax.device_put(dict(batch), sharding.batch_shardings(batch, step.mesh)))
        history.append(jax.device_get(metrics))
    return state, history


def assert_close(left: Any, right: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Every leaf of two trees equal to a tolerance, with the path of the first that is not."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(left), jax.tree.leaves(right), strict=True)
    for (path, x), y in pairs:
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol, atol, err_msg=jax.tree_util.keystr(path))
