"""What a network predicts, as a tag, and the one table that converts between all of them.

Every kind of prediction is a combination a(t)·data + b(t)·noise, and x = α·data + σ·noise is another.  Two such rows
determine (data, noise), hence every third: a conversion is ``target = cx·x + cp·prediction`` with coefficients that
depend on t alone.  A new kind is one more line in ``basis``.
"""

import dataclasses

import jax
import numpy as np

from sampling.paths import Path, Time, expand

KINDS = ("data", "noise", "velocity", "score", "F")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
    """A network's output and what it means; ``kind`` is static under jit.

    "data" and "noise" are the two ends, "velocity" is dx/dt in the path's own time, "score" is ∇log q_t, and "F" the
    raw output of a preconditioned network, on paths that define one (``Path.network_basis``).
    """

    value: jax.Array
    kind: str = dataclasses.field(metadata={"static": True})

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown prediction kind {self.kind!r}; expected one of {', '.join(KINDS)}")


def kinds(path: Path) -> tuple[str, ...]:
    """The kinds of prediction that exist on ``path``."""
    return KINDS if path.network_basis(path.data_time) is not None else KINDS[:-1]


def basis(path: Path, t: Time, kind: str) -> tuple[Time, Time]:
    """(a, b) of ``kind = a·data + b·noise``."""
    zero = 0.0 * t
    if kind == "data":
        return zero + 1.0, zero
    if kind == "noise":
        return zero, zero + 1.0
    if kind == "velocity":
        return path.alpha_rate(t), path.sigma_rate(t)
    if kind == "score":  # ∇log p(x_t | data) = −noise / σ
        return zero, -1.0 / path.sigma(t)
    if kind == "F":
        if (own := path.network_basis(t)) is None:
            raise ValueError(f"{type(path).__name__} has no preconditioning, so 'F' means nothing on it")
        return own
    raise ValueError(f"unknown prediction kind {kind!r}; expected one of {', '.join(KINDS)}")


def coefficients(path: Path, t: Time, source: str, target: str) -> tuple[Time, Time]:
    """(cx, cp) of ``target = cx·x + cp·source``.

    Exact (0, 1) when nothing changes.  Where a conversion does not exist (data → noise at σ = 0) float64 arrays give
    inf or nan: callers check before they use it.
    """
    if source == target:
        return 0.0 * t, 0.0 * t + 1.0
    alpha, sigma = path.alpha(t), path.sigma(t)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = basis(path, t, source)
        c, d = basis(path, t, target)
        det = alpha * b - sigma * a
        return (c * b - d * a) / det, (alpha * d - sigma * c) / det


def convert(prediction: Prediction, x: jax.Array, t: Time, path: Path, target: str) -> Prediction:
    """The same information as another kind; ``t`` is a scalar or [b]."""
    if prediction.kind == target:
        return prediction
    cx, cp = coefficients(path, t, prediction.kind, target)
    return Prediction(expand(cx, x) * x + expand(cp, x) * prediction.value, target)
