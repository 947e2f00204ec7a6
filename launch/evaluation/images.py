"""How good are generated digits?  An independent classifier, a distance of distributions, and a verifier apart.

The judge never helps to make a sample: a support vector machine on pixels says whether an image shows what was asked
for, and the Fréchet distance between Gaussians in the space of the training images' first principal components says
whether the images together look like held-out ones.  The verifier, for searches, is another classifier on other
features, so that a search that only flatters its verifier shows.  All were fitted to the 1200 training images; what
they are worth is measured on the 597 others.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from data.digits import load_split
from data.errors import UserError

COMPONENTS = 20  # principal components of the Fréchet distance
RESAMPLES = 2000  # of the bootstrap


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def estimate(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """Mean of one number per seed [s], with the percentile bootstrap's interval over seeds."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"an estimate is made of one number per seed, got shape {values.shape}")
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


class Judge:
    """Judges images [n, 8, 8, 1] in [-1, 1].

    Attributes:
      labels: [597] of the held-out images: generating one image for each makes sets of samples comparable.
      held_out_accuracy: share of the held-out images that the classifier gets right; no model can be told from perfect
        above it.
      floor: Fréchet distance of 597 training images to the held-out ones; their classes are not as evenly drawn, so a
        good model gets below it.

    Raises:
      UserError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        images, labels = load_split("train")
        held_out, self.labels = load_split("test")
        self._classifier = _scikit_learn("svm").SVC(C=10.0, gamma=0.03).fit(_flat(images), labels)
        flat = _flat(images).astype(np.float64)
        self._mean = flat.mean(0)
        self._axes = np.linalg.svd(flat - self._mean, full_matrices=False)[2][:COMPONENTS]
        self._reference = _moments(self.features(held_out))
        self.held_out_accuracy = self.accuracy(held_out, self.labels)
        self.floor = self.distance(images[: len(held_out)])

    def accuracy(self, images: ArrayLike, labels: ArrayLike) -> float:
        """Share of the images that are recognised as their labels [n]."""
        return float((self.classify(images) == np.asarray(labels)).mean())

    def classify(self, images: ArrayLike) -> np.ndarray:
        """What each image looks like [n]."""
        return self._classifier.predict(_flat(images))

    def features(self, images: ArrayLike) -> np.ndarray:
        """[n, 20] float64: pixels along the training images' first principal components."""
        return (_flat(images).astype(np.float64) - self._mean) @ self._axes.T

    def distance(self, images: ArrayLike) -> float:
        """Fréchet distance to the held-out images; falls with the number of images, so compare equal numbers."""
        return frechet(_moments(self.features(images)), self._reference)


def frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½), the squared 2-Wasserstein distance of two Gaussians (μ, C)."""
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0.0)).sum()
    return float(np.square(mean_a - mean_b).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross)


class Verifier:
    """Log-probability of the class by logistic regression on edges: what a search may use, and no judge.

    Attributes:
      held_out_accuracy: of its own guesses on the held-out images.

    Raises:
      UserError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        images, labels = load_split("train")
        model = _scikit_learn("linear_model").LogisticRegression(max_iter=2000, C=1.0)
        model.fit(np.asarray(edges(images)), labels)
        self._weights, self._bias = model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)
        held_out, wanted = load_split("test")
        guessed = np.asarray(self.log_probabilities(held_out)).argmax(-1)
        self.held_out_accuracy = float((guessed == wanted).mean())

    def __call__(self, images: jax.Array, labels: jax.Array) -> jax.Array:
        """[b] for images [b, 8, 8, 1] in [-1, 1] and labels [b]; pure, for use under jit."""
        return jnp.take_along_axis(self.log_probabilities(images), jnp.asarray(labels)[:, None], 1)[:, 0]

    def log_probabilities(self, images: ArrayLike) -> jax.Array:
        """[b, classes]."""
        return jax.nn.log_softmax(edges(images) @ self._weights + self._bias)


def edges(images: ArrayLike) -> jax.Array:
    """[b, 64]: how much brighter pixels are than their left, right, upper and lower neighbours, summed over 2 x 2."""
    x = jnp.asarray(images)[..., 0].clip(-1.0, 1.0)
    across, down = (jnp.diff(x, axis=axis, prepend=-1.0) for axis in (2, 1))
    maps = jnp.stack([across, -across, down, -down], -1).clip(0.0)
    return maps.reshape(-1, 4, 2, 4, 2, 4).sum((2, 4)).reshape(len(x), -1)


def _flat(images: ArrayLike) -> np.ndarray:
    return np.asarray(images, np.float32).reshape(len(np.asarray(images)), -1).clip(-1.0, 1.0)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(0), np.cov(features, rowvar=False)


def _scikit_learn(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ModuleNotFoundError:
        raise UserError('the judge of digits needs scikit-learn: pip install -e ".[images]"') from None
