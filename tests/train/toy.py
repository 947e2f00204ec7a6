"""A small task for tests of the training side: variable lengths, two unequal loss terms, per-example noise."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train import rng
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
