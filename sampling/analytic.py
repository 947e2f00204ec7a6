"""Gaussian mixtures, for which everything a sampler asks of a network is known exactly, at every time of every path.

    law = Mixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], [0.1 * np.eye(2)] * 2)
    result = sample(Conditional(law.denoiser(path), None), noise, grid, path=path)

x_t = α·data + σ·noise is again a mixture, N(αm_k, α²C_k + σ²I).  The covariances are diagonalised once, on the host, so
that a time costs one division per axis and no factorisation.  ``geometric`` gives the normalised ∏ q_i^β_i and its
constant wherever they are closed, ``log_integral`` every other constant in one or two dimensions: the truth for powers,
products and classifier-free guidance.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from sampling.paths import Path, Time
from sampling.prediction import Prediction, basis

Component = tuple[float, np.ndarray, np.ndarray]  # weight, mean [d], covariance [d, d]


@jax.tree_util.register_pytree_node_class
class Mixture:
    """Σ_k w_k N(m_k, C_k) as the law of the data; a pytree.

    Args:
      weights: [k], positive, normalised here.
      means: [k, d].
      covariances: [k, d, d], symmetric positive definite.

    Raises:
      ValueError: shapes that do not fit, weights that are not positive, a covariance that is not positive definite.
    """

    def __init__(self, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike):
        self.weights, self.means, full = (np.asarray(a, np.float64) for a in (weights, means, covariances))
        k, d = self.means.shape if self.means.ndim == 2 else (0, 0)
        if not k or self.weights.shape != (k,) or full.shape != (k, d, d):
            shapes = f"{self.weights.shape}, {self.means.shape}, {full.shape}"
            raise ValueError(f"a mixture needs weights [k], means [k, d], covariances [k, d, d]; got {shapes}")
        if not (self.weights > 0).all():
            raise ValueError(f"mixture weights must be positive, got {self.weights}")
        self.weights = self.weights / self.weights.sum()
        self.variances, self.axes = np.linalg.eigh(full)  # [k, d] and [k, d, d], eigenvectors in columns
        if not (self.variances > 0).all() or not np.allclose(full, full.swapaxes(1, 2)):
            raise ValueError("every covariance must be symmetric and positive definite")

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return (self.weights, self.means, self.axes, self.variances), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[Any, ...]) -> "Mixture":
        law = object.__new__(cls)
        law.weights, law.means, law.axes, law.variances = children
        return law

    @property
    def dimension(self) -> int:
        return self.means.shape[-1]

    @property
    def covariances(self) -> np.ndarray:
        """[k, d, d], on the host."""
        return np.einsum("kie,ke,kje->kij", self.axes, self.variances, self.axes)

    def _in_axes(self, x: jax.Array, alpha: Time, sigma: Time) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(x − αm in each component's axes [b, k, d], variances there, log w_k N(x; αm_k, α²C_k + σ²I) [b, k])."""
        weights, means, axes, variances = (jnp.asarray(a, x.dtype) for a in self.tree_flatten()[0])
        alpha, sigma = (jnp.reshape(jnp.asarray(a, x.dtype), (-1, 1, 1)) for a in (alpha, sigma))  # scalar or [b]
        inside = jnp.einsum("bkd,kde->bke", x[:, None] - alpha * means, axes, precision="highest")
        spread = alpha**2 * variances + sigma**2
        logs = -0.5 * (inside**2 / spread + jnp.log(2.0 * jnp.pi * spread)).sum(-1) + jnp.log(weights)
        return inside, spread, logs

    def log_density(self, x: jax.Array, t: Time, path: Path) -> jax.Array:
        """log q_t(x) [b] of points ``x`` [b, d]; ``t`` is a scalar or [b]."""
        return jax.nn.logsumexp(self._in_axes(x, path.alpha(t), path.sigma(t))[2], axis=-1)

    def score(self, x: jax.Array, t: Time, path: Path) -> jax.Array:
        """∇log q_t(x) [b, d]."""
        inside, spread, logs = self._in_axes(x, path.alpha(t), path.sigma(t))
        return -self._average(logs, inside / spread)

    def data(self, x: jax.Array, t: Time, path: Path) -> jax.Array:
        """E[data | x_t = x] [b, d]: the best denoiser there is.  Finite at σ = 0 and at α = 0."""
        alpha = path.alpha(t)
        inside, spread, logs = self._in_axes(x, alpha, path.sigma(t))
        gain = jnp.reshape(jnp.asarray(alpha, x.dtype), (-1, 1, 1)) * jnp.asarray(self.variances, x.dtype) / spread
        share = jax.nn.softmax(logs, axis=-1)
        mean = jnp.einsum("bk,kd->bd", share, jnp.asarray(self.means, x.dtype), precision="highest")
        return mean + self._average(logs, gain * inside)

    def _average(self, logs: jax.Array, inside: jax.Array) -> jax.Array:
        """Mean over components of vectors given in their axes: [b, k, d] -> [b, d] in common coordinates."""
        share = jax.nn.softmax(logs, axis=-1)[..., None]
        return jnp.einsum("bke,kde->bd", share * inside, jnp.asarray(self.axes, logs.dtype), precision="highest")

    def predict(self, x: jax.Array, t: Time, path: Path, kind: str) -> Prediction:
        """The ideal network's answer of any kind, without a division by σ or α where the kind has none."""
        score = self.score(x, t, path)
        if kind == "score":
            return Prediction(score, kind)
        a, b, sigma = (jnp.asarray(c, x.dtype) for c in (*basis(path, t, kind), path.sigma(t)))
        a, b, sigma = (c[:, None] if c.ndim else c for c in (a, b, sigma))
        return Prediction(a * self.data(x, t, path) - b * sigma * score, kind)  # E[noise | x] = −σ·score

    def denoiser(self, path: Path, kind: str = "data") -> Callable[[jax.Array, jax.Array, Any], Prediction]:
        """A denoiser for guides; its condition is ignored."""
        return lambda x, t, condition: self.predict(x, t, path, kind)

    def sample(self, key: jax.Array, n: int, dtype: Any = jnp.float32) -> jax.Array:
        """Exact draws of the data [n, d]."""
        which, normal = jax.random.split(key)
        weights, means, axes, variances = (jnp.asarray(a, dtype) for a in self.tree_flatten()[0])
        k = jax.random.categorical(which, jnp.log(weights), shape=(n,))
        z = jnp.sqrt(variances)[k] * jax.random.normal(normal, (n, self.dimension), dtype)
        return means[k] + jnp.einsum("bde,be->bd", axes[k], z, precision="highest")


def geometric(laws: Sequence[Mixture], exponents: Sequence[float]) -> tuple[Mixture, float]:
    """(∏ q_i^β_i normalised, the log of its integral), in float64 on the host.

    A single Gaussian may have any exponent (negative ones too: classifier-free guidance is q_u^{1−w} q_c^w); a mixture
    of several needs a positive whole one, which is expanded.

    Raises:
      ValueError: an exponent that has no closed form, or a product that has no finite integral.
    """
    factors: list[tuple[list[Component], float]] = []
    for law, exponent in zip(laws, exponents, strict=True):
        components = list(zip(law.weights, law.means, law.covariances, strict=True))
        if len(components) == 1:
            factors.append((components, float(exponent)))
        elif exponent >= 1 and float(exponent).is_integer():
            factors += [(components, 1.0)] * int(exponent)
        else:
            raise ValueError(f"a mixture to the power {exponent} is no mixture: use log_integral for its constant")
    betas = [beta for _, beta in factors]
    parts = [_product(pick, betas) for pick in itertools.product(*(components for components, _ in factors))]
    logs, means, covariances = (np.stack(column) for column in zip(*parts, strict=True))
    log_z = float(np.logaddexp.reduce(logs))
    return Mixture(np.maximum(np.exp(logs - log_z), np.finfo(np.float64).tiny), means, covariances), log_z


def _product(components: Sequence[Component], betas: Sequence[float]) -> tuple[float, np.ndarray, np.ndarray]:
    """∏ (w N(m, C))^β as (log of its integral, mean, covariance)."""
    d = components[0][1].size
    precision, shift, log_z = np.zeros((d, d)), np.zeros(d), 0.0
    for (weight, mean, covariance), beta in zip(components, betas, strict=True):
        inverse = np.linalg.inv(covariance)
        precision += beta * inverse
        shift += beta * inverse @ mean
        constant = d * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] + mean @ inverse @ mean
        log_z += beta * (np.log(weight) - 0.5 * constant)
    if np.linalg.eigvalsh(precision).min() <= 0:
        raise ValueError("the product has no finite integral: its precision is not positive definite")
    covariance = np.linalg.inv(precision)
    mean = covariance @ shift
    log_z += 0.5 * (d * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] + mean @ shift)
    return log_z, mean, covariance


def log_integral(log_density: Callable[[np.ndarray], ArrayLike], box: Sequence[tuple[float, float]], n: int) -> float:
    """log ∫ exp(log_density) over a box of any (small) dimension by the trapezoid rule, n points a side.

    For smooth densities that vanish at the box's edge the rule converges faster than any power of 1/n.
    ``log_density`` takes points [m, d], and is called once per slice of the first coordinate.
    """
    sides = [np.linspace(low, high, n) for low, high in box]
    cell = sum(np.log(side[1] - side[0]) for side in sides)
    rest = np.stack(np.meshgrid(*sides[1:], indexing="ij"), -1).reshape(-1, len(sides) - 1)
    logs = np.stack([np.asarray(log_density(np.insert(rest, 0, first, axis=1))) for first in sides[0]])
    return float(logs.max() + np.log(np.exp(logs - logs.max()).sum()) + cell)
