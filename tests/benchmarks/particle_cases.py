"""What the particle benchmark runs on both sides: an annealed mixture, weights, sizes.  Needs numpy only."""

import numpy as np

BETA, BETA_MIN, BETA_MAX, END, THRESHOLD = 1.5, 0.1, 20.0, 1e-3, 0.5
SCHEMES = ("systematic", "stratified", "multinomial", "residual")
COMPARED = {"particles": 2048, "steps": 100}  # with the same noise on both sides


def mixture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(weights [5], means [5, 2], covariances [5, 2, 2])."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(5, 2, 2)) * 0.3
    return (
        rng.dirichlet(np.ones(5) * 5),
        rng.uniform(-1.5, 1.5, size=(5, 2)),
        roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(2),
    )


def grid(steps: int) -> np.ndarray:
    """Times of VP from 1 to the end, denser near the data."""
    return END + (1.0 - END) * np.linspace(1.0, 0.0, steps + 1) ** 2


def weights(n: int) -> np.ndarray:
    """Normalised, uneven: about a third of the particles are effective."""
    logw = np.random.default_rng(n).normal(size=n)
    w = np.exp(logw - logw.max())
    return (w / w.sum()).astype(np.float32)


def draws(particles: int, steps: int) -> dict[str, np.ndarray]:
    """Start and noise of the compared run."""
    rng = np.random.default_rng(1)
    return {
        "x": rng.standard_normal((particles, 2)).astype(np.float32),
        "noise": rng.standard_normal((steps, particles, 2)).astype(np.float32),
    }
